"""Checks ops/kubernetes: schemas, references inside a pod, and the launcher's arguments, with the launcher itself."""

import subprocess
import sys
import tempfile
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

FOLDER = Path("ops/kubernetes")
SCHEMA = yaml.safe_load(Path("tests/ops/mpijob_schema.yaml").read_text())
KUBERNETES = "1.30"


def duration_secs(text):
    """Returns a duration such as `150s` or `3m` in seconds."""
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def option(arguments, name):
    """Returns the value of `--name=value`."""
    values = [argument.split("=", 1)[1] for argument in arguments if argument.startswith(f"--{name}=")]
    return values[0] if values else sys.exit(f"manifests: the launcher's arguments lack --{name}=")


def validate(kind, version, name, body):
    """Validates an object against Kubernetes' schema of its kind; unknown fields are errors."""
    whole = {"apiVersion": version, "kind": kind, "metadata": {"name": name}} | body
    kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def pod_problems(name, spec):
    """Yields problems that a schema does not detect: names that do not match."""
    for container in spec["containers"]:
        ports = {port["name"] for port in container.get("ports", [])}
        probe = container.get("readinessProbe", {})
        port = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
        if port not in ports:
            yield f"{name}: the readiness probe uses port {port}, but the container has {sorted(ports)}"
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        if mounted != (volumes := {volume["name"] for volume in spec.get("volumes", [])}):
            yield f"{name}: mounts {sorted(mounted)}, but the volumes are {sorted(volumes)}"


def launcher_problems(job):
    """Yields contradictions between the launcher and the rest of the job."""
    replicas = job["spec"]["mpiReplicaSpecs"]
    pod, workers = replicas["Launcher"]["template"]["spec"], replicas["Worker"]
    container = pod["containers"][0]
    arguments = container["args"]
    slots = job["spec"]["slotsPerWorker"]
    if slots != workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]:
        yield "slotsPerWorker is not a worker's number of GPUs"
    if int(option(arguments, "min-ranks")) > slots * workers["replicas"]:
        yield "--min-ranks exceeds the number of ranks"
    for name, period in [("launcher", pod), ("worker", workers["template"]["spec"])]:
        if period["terminationGracePeriodSeconds"] <= duration_secs(option(arguments, "grace")):
            yield f"the {name}'s terminationGracePeriodSeconds does not exceed --grace"
    if option(arguments, "status-port") != f"0.0.0.0:{container['ports'][0]['containerPort']}":
        yield "--status-port is not the container's port"
    yield from launcher_error(container["command"] + arguments, slots * workers["replicas"])


def launcher_error(command, slots):
    """Yields the real launcher's error for this command, as a dry run."""
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder) / "hosts"
        hosts.write_text(f"localhost slots={slots}\n")
        replacements = {"--hostfile": f"--hostfile={hosts}", "--set=run.log_dir": f"--set=run.log_dir={folder}/logs"}
        replaced = [next((new for old, new in replacements.items() if word.startswith(old)), word) for word in command]
        done = subprocess.run(replaced + ["--dry-run"], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0 or f"-n {slots} " not in done.stdout:
            yield f"arinar-launcher exits with {done.returncode}: {done.stderr.strip() or done.stdout}"


def monitor_problems(monitor, job):
    """Yields reasons why the PodMonitor misses the launcher's pod, whose role the operator stores in a label."""
    pod = job["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]
    labels = pod["metadata"]["labels"] | {"training.kubeflow.org/job-role": "launcher"}
    if not monitor["spec"]["selector"]["matchLabels"].items() <= labels.items():
        yield "the PodMonitor does not select the launcher"
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    if not {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports:
        yield "the PodMonitor uses a port that the launcher does not have"


def main():
    """Prints all problems and returns whether there are any."""
    claim, job = yaml.safe_load_all((FOLDER / "mpijob.yaml").read_text())
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    problems = []
    try:
        kubernetes_validate.validate(claim, KUBERNETES, strict=True)
        jsonschema.validate(job, SCHEMA)
        for role, replica in job["spec"]["mpiReplicaSpecs"].items():
            template = replica["template"]
            validate("Pod", "v1", role.lower(), {"metadata": template["metadata"], "spec": template["spec"]})
            problems += pod_problems(role, template["spec"])
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        problems.append(f"{'.'.join(map(str, error.path))}: {error.message}")
    else:
        problems += list(launcher_problems(job)) + list(monitor_problems(monitor, job))
    for problem in problems:
        print(f"manifests: {problem}", file=sys.stderr)
    return bool(problems)


sys.exit(main())
