"""Runs a launcher that trains and a Prometheus that scrapes it, and checks the dashboard's queries and the alerts."""

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

TIMEOUT_SECS = 120
DASHBOARD, ALERTS = Path("ops/grafana/arinar.json"), Path("ops/grafana/alerts.yaml")
NAME = re.compile(r"\barinar_\w+")


def free_port():
    """Returns a port that is currently free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class WaitFailed(Exception):
    """A condition was not reached in time, or a process exited."""


class Prometheus:
    """A client of Prometheus' HTTP interface."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}/api/v1/"

    def get(self, path, **parameters):
        """Returns the data of a response, or None if Prometheus does not listen yet."""
        try:
            url = self.base + path + "?" + urllib.parse.urlencode(parameters)
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            sys.exit(f"dashboard: Prometheus refuses {parameters}: {error.read().decode()}")
        except OSError:
            return None

    def query(self, expression):
        """Returns the current series of an expression."""
        return (self.get("query", query=expression) or {}).get("result", [])


def wait_until(what, condition, processes):
    """Waits until the condition returns a true value and returns that."""
    deadline = time.monotonic() + TIMEOUT_SECS
    while not (found := condition()):
        for process in processes:
            if process.poll() is not None:
                raise WaitFailed(f"{process.args[0]} exited with {process.returncode}")
        if time.monotonic() > deadline:
            raise WaitFailed(f"timed out after {TIMEOUT_SECS} s waiting until {what}")
        time.sleep(0.2)
    return found


def start(folder):
    """Starts a launcher and a Prometheus. Returns the processes, a client and the address of the metrics."""
    status, web = free_port(), free_port()
    instance = f"127.0.0.1:{status}"
    scrape = {"job_name": "arinar", "scrape_interval": "1s", "static_configs": [{"targets": [instance]}]}
    # JSON is also valid YAML.
    settings = {"scrape_configs": [scrape], "rule_files": [str(ALERTS.resolve())]}
    config = folder / "prometheus.yml"
    config.write_text(json.dumps(settings))
    launcher_output, output = (folder / "launcher.log").open("w"), (folder / "prometheus.log").open("w")
    processes = [
        subprocess.Popen(
            ["arinar-launcher", "--config", "configs/demo.yaml", "--nproc", "2", "--status-port", str(status)]
            + ["--set", "data.url=synthetic:", "--set", f"run.dir={folder}/run", "--set", f"run.log_dir={folder}/logs"]
            # The run must not end by itself, neither by steps nor by epochs.
            + ["--set", "train.max_steps=100000000", "--set", "optim.epochs=1000000"]
            + ["--set", "checkpoint.every=5s"],
            stdout=launcher_output,
            stderr=launcher_output,
        ),
        subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
            + [f"--web.listen-address=127.0.0.1:{web}"],
            stdout=output,
            stderr=output,
        ),
    ]
    return processes, Prometheus(web), instance


def expressions(instance):
    """Returns the queries of each panel for this launcher, and the labels that the panel shows."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in dashboard["panels"]}
    for title, texts in queries.items():
        queries[title] = [text.replace("$instance", re.escape(instance).replace("\\", "\\\\")) for text in texts]
    panels = zip(queries, dashboard["panels"])
    labels = {title: re.findall(r"\{\{(\w+)\}\}", json.dumps(panel)) for title, panel in panels}
    return queries, labels


def problems_of(prometheus, instance):
    """Yields the mismatches between the dashboard, the alerts and the metrics."""
    queries, labels = expressions(instance)
    for title, texts in queries.items():
        for text in texts:
            series = prometheus.query(text)
            if not series:
                yield f"the panel {title!r} is empty: {text}"
            for label in labels[title]:
                if any(label not in one["metric"] for one in series):
                    yield f"the panel {title!r} shows the label {label}, which its metric lacks"
    used = set(NAME.findall(DASHBOARD.read_text() + ALERTS.read_text()))
    existing = {name for name in prometheus.get("label/__name__/values") if name.startswith("arinar_")}
    yield from (f"the metric {name} does not exist" for name in sorted(used - existing))
    yield from (f"the metric {name} is not used" for name in sorted(existing - used))
    for group in prometheus.get("rules")["groups"]:
        failing = [rule for rule in group["rules"] if rule["health"] == "err"]
        yield from (f"the alert {rule['name']}: {rule['lastError']}" for rule in failing)


def main():
    """Prints all problems and returns whether there are any."""
    with tempfile.TemporaryDirectory() as name:
        processes, prometheus, instance = start(Path(name))
        try:
            # A rate needs two samples. A checkpoint is saved by then or soon after.
            trained = f'arinar_step{{instance="{instance}"}} > 0 and count_over_time(arinar_step[1m]) > 3'
            wait_until("Prometheus has seen steps", lambda: prometheus.query(trained), processes)
            wait_until("a checkpoint is saved", lambda: prometheus.query("arinar_saved_step > 0"), processes)
            problems = list(problems_of(prometheus, instance))
        except WaitFailed as error:
            problems = [str(error)] + [log.read_text() for log in sorted(Path(name).glob("*.log"))]
        finally:
            for process in processes:
                process.terminate()
            codes = [process.wait(TIMEOUT_SECS) for process in processes]
        if codes[0] != 75:
            problems.append(f"the launcher exited with {codes[0]} after SIGTERM instead of 75")
    for problem in problems:
        print(f"dashboard: {problem}", file=sys.stderr)
    return bool(problems)


sys.exit(main())
