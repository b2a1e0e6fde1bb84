"""The default scan without each of its savings: CPU and wall seconds, and what is found.

    python benchmarks/savings.py ZOO [--match 'mnist-*'] [--way 'all classes in full'] [--threads 2]

ZOO is a folder of networks that `backsweep zoo build` made. Every network is scanned as it is, and with one
saving taken away at a time (docs/decisions/0020): nothing kept (the reference is trained whole), one class in
a pass, no class left out of the full measurement (and pairs as version 0.1 screened them), and with several
threads instead of one, which a busy machine cannot tell.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

import backsweep
from backsweep.core.seeds import derive_seed
from backsweep.engine.engine import Engine
from backsweep.reports.report import Report
from backsweep.scanning.cascade.schedule import EFFORTS
from backsweep.scanning.detectors import cascade
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.zoo import build

STANDARD = EFFORTS["standard"]
WAYS = {
    "as it is": STANDARD,
    "nothing kept": replace(STANDARD, kept=False),
    "one class in a pass": STANDARD,
    "all classes in full": replace(STANDARD, all_classes=10**9, pairs=(0, 0), cells=0),
    "threads": STANDARD,
}


@contextmanager
def without(way: str) -> Iterator[None]:
    """The package without a saving."""
    together, before = cascade.units_in_a_pass, dict(EFFORTS)
    EFFORTS["standard"] = WAYS[way]  # type: ignore[index]
    if way == "one class in a pass":
        cascade.units_in_a_pass = lambda model, inputs: 1
    try:
        yield
    finally:
        cascade.units_in_a_pass = together
        EFFORTS.update(before)  # type: ignore[attr-defined]


def right(report: Report, net: build.Net) -> bool:
    """Whether the class that stands out most is one that was planted."""
    own = [f for f in report.findings if f.code == Cascade.code]  # natural shortcuts are notes of their own
    most = max(own, key=lambda f: f.score or 0.0, default=None)
    return most is not None and most.target in [t.target for t in net.triggers()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--match", default="*")
    parser.add_argument(
        "--way", action="append", choices=WAYS, help="one of them; may repeat; all by default"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="1 leaves that row out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | scan | CPU s | wall s | passes | verdict, p-value |\n|---|---|---|---|---|---|")
    for place in sorted(p for p in given.zoo.glob(given.match) if (p / "model.safetensors").is_file()):
        net = build.Net.read(place)
        _, test = build.load_data(net.truth["task"])
        seed, model = net.truth["seed"], net.model()
        clean = test.sample(max(1000, 30 * net.task.classes), derive_seed(seed, "bench"))
        for way in given.way or list(WAYS)[: None if given.threads > 1 else -1]:
            threads = given.threads if way == "threads" else 1
            with without(way):
                cpu, wall = time.process_time(), time.perf_counter()
                report = backsweep.scan(
                    model, clean, "cascade", seed=seed, device="cpu", engine=Engine(threads=threads)
                )
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            passes = sum(int(e.values.get("passes") or 0) for e in report.evidence)
            p = f"{report.p_value:.3f}" if report.p_value is not None else "none"
            said = f"{report.verdict}, {p}{', the right class' if right(report, net) else ''}"
            print(f"| {net.id} | {way} | {cpu:.1f} | {wall:.1f} | {passes:,} | {said} |", flush=True)


if __name__ == "__main__":
    main()
