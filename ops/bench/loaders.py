#!/usr/bin/env python3
"""Times MosaicML Streaming, LitData and our reader on the same records in one run, and prints ratios.

    python3 ops/bench/loaders.py            # first installs the other two in $ARINAR_HOME/bench (6 GB, with PyTorch)
    python3 ops/bench/loaders.py --seconds 20 --records 16384

Each reader gets the same records of 32 KiB (16,384 of them, 512 MiB) in its own format, in a folder below $ARINAR_HOME,
and reads them in random order from a warm page cache: every file has been read just before. MosaicML Streaming and
LitData run once in one process, without the cost of a DataLoader, and with a torch DataLoader with 1, 2 and 4 workers,
of which the best result counts. Neither verifies what it reads. Our reader runs in a Rust program (the benchmark
`records`) on one thread and verifies the CRC32C of every record. Its dataset has a second view of each record, so it is
twice as large. Run nothing else during the measurement.
"""

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ["mosaicml-streaming==0.13.0", "litdata==0.2.76"]
RECORD_BYTES = 32 * 1024
BATCH = 256
WORKERS = [0, 1, 2, 4]
OURS = re.compile(r"arinar: (\d+) records/s")
ROOT = Path(__file__).resolve().parents[2]


def home():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("ARINAR_HOME") or cache / "arinar")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=16384)
    parser.add_argument("--seconds", type=float, default=10, help="time for each measurement")
    parser.add_argument("--times", type=int, default=3, help="runs of each measurement, of which the best counts")
    parser.add_argument("--measure", choices=["mosaic", "litdata"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    python = install()
    results = {}
    for name in ["mosaic", "litdata"]:
        results[name] = theirs(python, name, arguments)
    results["arinar"] = {0: ours(arguments)}
    report(results, arguments)


def install():
    """Creates a virtual environment with both packages and returns its Python."""
    folder = home() / "bench"
    python = folder / "bin" / "python"
    wanted = [requirement.partition("==")[::2] for requirement in PACKAGES]
    check = "import importlib.metadata as m, sys; sys.exit(any(m.version(n) != v for n, v in %r))" % (wanted,)
    if python.exists() and subprocess.run([python, "-c", check], stderr=subprocess.DEVNULL).returncode == 0:
        return python
    print(f"installing {' and '.join(PACKAGES)} into {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def theirs(python, name, arguments):
    """Measures in a separate process, since each reader changes global state. Returns records/s by worker count."""
    command = [python, __file__, "--measure", name, "--records", str(arguments.records),
               "--seconds", str(arguments.seconds), "--times", str(arguments.times)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {int(workers): rate for workers, rate in json.loads(ended.stdout.splitlines()[-1]).items()}


def ours(arguments):
    """Returns the best of several runs of the Rust benchmark, in records/s."""
    folder = home() / "bench-data" / f"arinar-{arguments.records}"
    environment = dict(os.environ, RECORDS=str(arguments.records), SECONDS=str(max(1, round(arguments.seconds))),
                       FOLDER=str(folder))
    command = ". ops/env.sh && cargo bench --quiet --locked -p arinar-data --bench records"
    rates = []
    for _ in range(arguments.times):
        ended = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
                               check=True)
        print(ended.stdout.strip(), flush=True)
        rates.append(int(OURS.search(ended.stdout).group(1)))
    return max(rates)


def report(results, arguments):
    print(f"\nrecords/s, {arguments.records} records of {RECORD_BYTES} bytes, random order, warm cache; "
          f"best of {arguments.times} runs of {arguments.seconds:g} s, {os.cpu_count()} cores")
    own = results["arinar"][0]
    print(f"{'':24}{'one process':>12}{'ratio':>8}{'best workers':>14}{'ratio':>8}")
    for name, title in [("mosaic", "MosaicML Streaming"), ("litdata", "LitData")]:
        rates = results[name]
        workers, best = max(rates.items(), key=lambda rate: rate[1])
        print(f"{title:24}{rates[0]:12.0f}{own / rates[0]:8.1f}{best:10.0f} ({workers}){own / best:8.1f}")
    print(f"{'arinar, verified':24}{own:12.0f}{1:8.1f}")


def measure(arguments):
    """Runs in the virtual environment: writes the records if they are absent, and reads them."""
    folder = home() / "bench-data" / f"{arguments.measure}-{arguments.records}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        {"mosaic": write_mosaic, "litdata": write_litdata}[arguments.measure](folder / "data", arguments.records)
        (folder / "done").touch()
    rates = {}
    for workers in WORKERS:
        runs = []
        for _ in range(arguments.times):
            warm(folder)
            loader = {"mosaic": mosaic, "litdata": litdata}[arguments.measure](folder / "data", workers)
            runs.append(rate_of(loader, arguments))
            del loader
            gc.collect()  # ends its workers
        rates[workers] = max(runs)
        print(f"{arguments.measure}, {workers} workers: {rates[workers]:.0f} records/s", file=sys.stderr, flush=True)
    return rates


def warm(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                while file.read(1 << 24):
                    pass


def rate_of(loader, arguments):
    """Returns records/s over whole epochs. The first is not timed, since it starts workers and opens files."""
    seen = 0
    for batch in loader:
        assert batch.nbytes == len(batch) * RECORD_BYTES, batch.shape
        seen += len(batch)
    assert seen == arguments.records, f"{seen} records in an epoch"
    records, started = 0, time.perf_counter()
    while time.perf_counter() - started < arguments.seconds:
        for batch in loader:
            records += len(batch)
    return records / (time.perf_counter() - started)


class OneProcess:
    """Yields batches of a dataset's items, collated in this process."""

    def __init__(self, dataset, collate):
        self.dataset, self.collate = dataset, collate

    def __iter__(self):
        batch = []
        for item in self.dataset:
            batch.append(item)
            if len(batch) == BATCH:
                yield self.collate(batch)
                batch = []
        if batch:
            yield self.collate(batch)


def records_of(count):
    """Yields the records: distinct, incompressible bytes."""
    import numpy as np

    rng = np.random.default_rng(1)
    for _ in range(count):
        yield rng.integers(0, 256, RECORD_BYTES, dtype=np.uint8)


def write_mosaic(folder, count):
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"record": f"ndarray:uint8:{RECORD_BYTES}"}, size_limit=64 << 20) as writer:
        for record in records_of(count):
            writer.write({"record": record})


def mosaic(folder, workers):
    import streaming
    from torch.utils.data import DataLoader

    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, shuffle_algo="naive", batch_size=BATCH,
                                         num_canonical_nodes=1)
    if workers == 0:
        return OneProcess(dataset, stack_dicts)
    return DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=stack_dicts, persistent_workers=True)


def write_litdata(folder, count):
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir(parents=True)
    writer = BinaryWriter(str(folder), chunk_bytes=64 << 20)
    for index, record in enumerate(records_of(count)):
        writer.add_item(index, record)
    writer.done()
    writer.merge()


def litdata(folder, workers):
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(folder), shuffle=True, seed=1)
    if workers == 0:
        return OneProcess(dataset, stack)
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=stack, persistent_workers=True)


def stack(batch):
    """Returns a batch in one buffer, as a training step needs it."""
    import numpy as np

    return np.stack(batch)


def stack_dicts(batch):
    return stack([sample["record"] for sample in batch])


if __name__ == "__main__":
    main()
