"""Bad files over all readers: python tests/fuzz.py --count 20000 (make fuzz).

Good files of every kind are changed - bytes, lengths, JSON, members of archives - and read in a process
with a limit of time and memory. A file may be refused in one line or read; whatever else happens is a defect.
Exit status: 1 if anything ran, any traceback, hang, or more than 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from fuzz_worker import HANG, OUTCOMES, READ, REFUSED, Result, folder_of

WORKER = Path(__file__).with_name("fuzz_worker.py")
LIMIT, PATIENCE = 30.0, 40  # seconds of processor time for a file; how many times that by the clock
START = 3600.0  # seconds by the clock for a worker to read all good files


class Worker:
    """The process that reads; started again when it dies."""

    def __init__(self, seeds: Path, scratch: Path, seed: int, only: list[str]) -> None:
        words = [sys.executable, str(WORKER), str(seeds), str(scratch), str(seed), str(LIMIT), *only]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._rest = b""
        if self._line(START) != "ready":
            self.close()
            raise SystemExit("a good file cannot be read; see above")

    def read(self, index: int) -> Result:
        """What came of a file."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{index}\n".encode())
        self.process.stdin.flush()
        line = self._line(LIMIT * PATIENCE)
        if line:
            return replace(Result(**json.loads(line)), index=index)
        self.close()
        return Result(HANG, "", "no answer", index)

    def _line(self, patience: float) -> str:
        """A line of the process; "" when it died or does not answer."""
        assert self.process.stdout is not None
        end = time.monotonic() + patience
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest and waiting.select(max(0.0, end - time.monotonic())):
                part = os.read(self.process.stdout.fileno(), 65536)
                if not part:
                    break
                self._rest += part
        line, newline, rest = self._rest.partition(b"\n")
        self._rest = rest if newline else b""
        return line.decode() if newline else ""

    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        if self.alive():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def run(count: int, seconds: float, seed: int, first: int, only: list[str], workers: int) -> list[Result]:
    """Read bad files until there are enough, or the time is over; in several processes at once."""
    import fuzz_readers

    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="backsweep-fuzz-") as place:
        seeds = Path(place) / "good"
        for reader in fuzz_readers.READERS:
            if reader.there and (not only or reader.name in only):
                folder = seeds / folder_of(reader.name)
                folder.mkdir(parents=True)
                reader.make(folder)
        begin, numbers, turn = time.monotonic(), iter(range(first, first + count)), threading.Lock()

        def work(which: int) -> None:
            scratch = Path(place) / f"scratch-{which}"
            worker = Worker(seeds, scratch, seed, only)
            try:
                while time.monotonic() - begin < seconds:
                    with turn:
                        index = next(numbers, None)
                    if index is None:
                        return
                    if not worker.alive():
                        worker.close()
                        worker = Worker(seeds, scratch, seed, only)
                    result = worker.read(index)
                    if not result.reader:
                        result.reader = named(seed, index, tuple(only))
                    with turn:
                        results.append(result)
                        told(result, len(results), time.monotonic() - begin)
            finally:
                worker.close()

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    return sorted(results, key=lambda r: r.index)


def told(result: Result, done: int, seconds: float) -> None:
    """Print what must not happen, and now and then how far it is."""
    if result.outcome not in (REFUSED, READ):
        print(f"{result.outcome}: {result.reader}, --first {result.index}: {result.detail}", flush=True)
    if done % 1000 == 0:
        print(f"{done:,} files, {seconds:.0f} s", file=sys.stderr, flush=True)


def named(seed: int, index: int, only: tuple[str, ...]) -> str:
    """The reader that a file was for."""
    import random

    import fuzz_readers

    return fuzz_readers.pick(random.Random(f"{seed}/{index}"), only).name


def table(results: list[Result]) -> str:
    """Files by reader and by what came of them."""
    import fuzz_readers

    counts = Counter((r.reader, r.outcome) for r in results)
    heads = ["reader", "files", *OUTCOMES]
    rows = []
    for r in fuzz_readers.READERS:
        own = [counts[r.name, o] for o in OUTCOMES]
        rows.append([r.name, *map(str, (sum(own), *own))] if r.there else [r.name, "not here"])
    rows.append(["all", str(len(results)), *(str(sum(r.outcome == o for r in results)) for o in OUTCOMES)])
    width = max(len(row[0]) for row in rows)
    lines = []
    for row in [heads, *rows]:
        cells = [f"{c:>{len(h)}}" for c, h in zip(row[1:], heads[1:], strict=False)]
        lines.append("  ".join([f"{row[0]:<{width}}", *cells]))
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Exit status: 0 when every file was refused or read."""
    about = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    about.add_argument("--count", type=int, default=20_000, help="of files")
    about.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    about.add_argument("--seed", type=int, default=0)
    about.add_argument(
        "--first", type=int, default=0, help="number of the first file: --first N --count 1 repeats one"
    )
    about.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read")
    about.add_argument("--only", action="append", default=[], help="name of a reader; may repeat")
    given = about.parse_args(words)
    results = run(given.count, given.seconds, given.seed, given.first, given.only, given.workers)
    print(table(results))
    return int(any(r.outcome not in (REFUSED, READ) for r in results) or not results)


if __name__ == "__main__":
    sys.exit(main())
