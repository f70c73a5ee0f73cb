#!/usr/bin/env python3
"""Times MosaicML Streaming, LitData and our own reader on the same records, in one run, and prints ratios.

    python3 ops/bench/loaders.py            # installs the two into $ARINAR_HOME/bench first (6 GB: they need PyTorch)
    python3 ops/bench/loaders.py --seconds 20 --records 16384

Each gets the same records of 32 KiB (16,384 of them, 512 MiB) in its own format, in a folder under $ARINAR_HOME, and
reads them in random order from a warm page cache: every file has been read just before. MosaicML Streaming and LitData
run as they are used, behind a torch DataLoader: once in this process (no workers), and with 1, 2 and 4 workers, the best
of which counts. They check nothing while reading. Ours reads through a Rust program (data/benches/records.rs), on one
thread, comparing the CRC32C of every record; its dataset has a second view of each record, so it is twice as large.
Nothing else should be running.
"""

import argparse
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
    parser.add_argument("--seconds", type=float, default=10, help="time for each measure")
    parser.add_argument("--times", type=int, default=3, help="runs of each measure; the best counts")
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
    """A virtual environment with both of them; returns its Python."""
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
    """Measures in a process of its own, since each of them changes global state; worker count to records/s."""
    command = [python, __file__, "--measure", name, "--records", str(arguments.records),
               "--seconds", str(arguments.seconds), "--times", str(arguments.times)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {int(workers): rate for workers, rate in json.loads(ended.stdout.splitlines()[-1]).items()}


def ours(arguments):
    """The best of some runs of the Rust bench, in records/s."""
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
    """In the virtual environment: writes the records if they are not there, and reads them."""
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
            runs.append(rate_of(loader, arguments.seconds))
        rates[workers] = max(runs)
        print(f"{arguments.measure}, {workers} workers: {rates[workers]:.0f} records/s", file=sys.stderr, flush=True)
    return rates


def warm(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                while file.read(1 << 24):
                    pass


def rate_of(loader, seconds):
    """Records/s over whole epochs, the first of which is not timed: it starts workers and opens files."""
    for _ in loader:
        pass
    records, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for batch in loader:
            records += len(batch)
    return records / (time.perf_counter() - started)


def records_of(count):
    """The records: bytes that differ from one to the next and do not compress."""
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
    return DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=stack_dicts,
                      persistent_workers=workers > 0)


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
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=stack,
                               persistent_workers=workers > 0)


def stack(batch):
    """A batch buffer, as a training step wants it."""
    import numpy as np

    return np.stack(batch)


def stack_dicts(batch):
    return stack([sample["record"] for sample in batch])


if __name__ == "__main__":
    main()
