"""A scan that is killed, and one that is spread, gives what an unbroken one gives.

    python benchmarks/interrupted.py MODEL DATA [--arch backsweep.archs:digits_cnn] [--kills 10] [--seed 0]

The command `backsweep scan` runs once undisturbed. Then it is started as often as asked for in a fresh
folder, killed (SIGKILL) at a random moment of the time that it took, and started again until it ends. Then it
runs with 1, 2 and 4 workers, and on Dask and Ray clusters of this machine where they are installed. Every
line has the digest of the evidence and of the findings; all must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEASURED = ("cpu_seconds", "seconds")  # what differs from run to run in a record


def digest(folder: Path) -> str:
    """Of what a scan found: evidence without its times, and findings."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    evidence = [{k: v for k, v in e.items() if k not in MEASURED} for e in report["evidence"]]
    text = json.dumps([evidence, report["findings"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--arch")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    base = [sys.executable, "-m", "backsweep", "scan", str(given.model), "--data", str(given.data)]
    base += ["--arch", given.arch] if given.arch else []

    def run(out: Path, *more: str, until: float | None = None) -> int | None:
        """The exit status; None for one that was killed."""
        command = [*base, "--out", str(out), *more]
        process = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            return process.wait(until)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None

    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        begin = time.perf_counter()
        status = run(place / "whole")
        took = time.perf_counter() - begin
        expected = digest(place / "whole")
        print(f"unbroken: exit {status}, {took:.1f} s, digest {expected}", flush=True)
        alike = True
        kills = 0
        while kills < given.kills:
            out, moment = place / f"killed-{kills}", rng.uniform(0, took)
            begin = time.perf_counter()
            if run(out, until=moment) is not None:  # it ended first: the machine is quieter than it was
                took = min(took, time.perf_counter() - begin)
                alike &= digest(out) == expected
                shutil.rmtree(out)
                continue
            kills += 1
            ended = run(out)
            alike &= digest(out) == expected
            print(f"killed after {moment:.1f} s, then exit {ended}, digest {digest(out)}", flush=True)
        ways = [("--workers", "1"), ("--workers", "2"), ("--workers", "4")]
        there = {"dask": "distributed", "ray": "ray"}
        ways += [("--engine", e) for e, module in there.items() if importlib.util.find_spec(module)]
        for way in ways:
            out = place / "-".join(way).strip("-")
            begin = time.perf_counter()
            ended = run(out, *way)
            alike &= digest(out) == expected
            took = time.perf_counter() - begin
            print(f"{' '.join(way)}: exit {ended}, {took:.1f} s, digest {digest(out)}", flush=True)
    print("all the same" if alike else "NOT all the same")
    sys.exit(0 if alike else 1)


if __name__ == "__main__":
    main()
