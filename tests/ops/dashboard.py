"""Starts a launcher that trains, and a Prometheus that scrapes it and has the alarms; asks it all that the dashboard asks."""

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

PATIENCE_SECS = 120
DASHBOARD, ALARMS = Path("ops/grafana/arinar.json"), Path("ops/grafana/alerts.yaml")
NAME = re.compile(r"\barinar_\w+")


def free_port():
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Vain(Exception):
    """Something did not come."""


class Prometheus:
    """What its HTTP interface says."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}/api/v1/"

    def get(self, path, **parameters):
        """The data of an answer; None while nobody listens yet."""
        try:
            url = self.base + path + "?" + urllib.parse.urlencode(parameters)
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            sys.exit(f"dashboard: Prometheus refuses {parameters}: {error.read().decode()}")
        except OSError:
            return None

    def query(self, expression):
        """The series that an expression has now."""
        return (self.get("query", query=expression) or {}).get("result", [])


def wait_until(what, condition, processes):
    """Returns what the condition returns when that is true."""
    deadline = time.monotonic() + PATIENCE_SECS
    while not (found := condition()):
        for process in processes:
            if process.poll() is not None:
                raise Vain(f"{process.args[0]} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise Vain(f"waited {PATIENCE_SECS} s in vain until {what}")
        time.sleep(0.2)
    return found


def start(folder):
    """A launcher and a Prometheus; also the address that the launcher's metrics have."""
    status, web = free_port(), free_port()
    instance = f"127.0.0.1:{status}"
    scrape = {"job_name": "arinar", "scrape_interval": "1s", "static_configs": [{"targets": [instance]}]}
    # JSON is YAML, too.
    settings = {"scrape_configs": [scrape], "rule_files": [str(ALARMS.resolve())]}
    config = folder / "prometheus.yml"
    config.write_text(json.dumps(settings))
    launcher_output, output = (folder / "launcher.log").open("w"), (folder / "prometheus.log").open("w")
    processes = [
        subprocess.Popen(
            ["arinar-launcher", "--config", "configs/demo.yaml", "--nproc", "2", "--status-port", str(status)]
            + ["--set", "data.url=synthetic:", "--set", f"run.dir={folder}/run", "--set", f"run.log_dir={folder}/logs"]
            # It is ended before it is done: neither steps nor epochs end it.
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
    """All that the dashboard asks, for this launcher, by the name of who asks."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in dashboard["panels"]}
    for title, texts in asked.items():
        asked[title] = [text.replace("$instance", re.escape(instance).replace("\\", "\\\\")) for text in texts]
    labels = {title: re.findall(r"\{\{(\w+)\}\}", json.dumps(panel)) for title, panel in zip(asked, dashboard["panels"])}
    return asked, labels


def problems_of(prometheus, instance):
    """One line for each thing that the dashboard, the alarms and the metrics do not agree in."""
    asked, labels = expressions(instance)
    for title, texts in asked.items():
        for text in texts:
            series = prometheus.query(text)
            if not series:
                yield f"the panel {title!r} is empty: {text}"
            for label in labels[title]:
                if any(label not in one["metric"] for one in series):
                    yield f"the panel {title!r} shows the label {label}, which its metric lacks"
    used = set(NAME.findall(DASHBOARD.read_text() + ALARMS.read_text()))
    there = {name for name in prometheus.get("label/__name__/values") if name.startswith("arinar_")}
    yield from (f"no metric {name}" for name in sorted(used - there))
    yield from (f"nothing shows the metric {name}" for name in sorted(there - used))
    for group in prometheus.get("rules")["groups"]:
        yield from (f"the alarm {rule['name']}: {rule['lastError']}" for rule in group["rules"] if rule["health"] == "err")


def main():
    """Ends with what is wrong, if anything is."""
    with tempfile.TemporaryDirectory() as name:
        processes, prometheus, instance = start(Path(name))
        try:
            # Two samples make a rate; a checkpoint has come by then or comes soon.
            trained = f'arinar_step{{instance="{instance}"}} > 0 and count_over_time(arinar_step[1m]) > 3'
            wait_until("Prometheus has seen steps", lambda: prometheus.query(trained), processes)
            wait_until("a checkpoint is saved", lambda: prometheus.query("arinar_saved_step > 0"), processes)
            problems = list(problems_of(prometheus, instance))
        except Vain as error:
            problems = [str(error)] + [log.read_text() for log in sorted(Path(name).glob("*.log"))]
        finally:
            for process in processes:
                process.terminate()
            codes = [process.wait(PATIENCE_SECS) for process in processes]
        if codes[0] != 75:
            problems.append(f"the launcher ended with {codes[0]} after SIGTERM, not with 75")
    for problem in problems:
        print(f"dashboard: {problem}", file=sys.stderr)
    return bool(problems)


sys.exit(main())
