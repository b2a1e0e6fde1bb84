"""The cascade without each of its parts: detection and cost, from the evidence of scans that are there.

    python benchmarks/ablation.py LINES ZOO [--split judging] [--task mnist]

LINES is what `backsweep bench run` wrote for the detector `cascade`, ZOO the folder of the zoo; the
evidence lies in ZOO/../bench. Every row judges the same measurements again, without the part; its cost
is that of the units it still needs. No p-value is calibrated here: a network's suspicion is its score,
and the threshold is set on the clean networks of the same row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from backsweep.bench.detectors import key_of
from backsweep.bench.records import read
from backsweep.core.statistics import wilson
from backsweep.reports.report import Evidence, Report
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.zoo.build import split_of

FULL = Cascade()
Needs = Callable[[Evidence], bool]


def without(space: str) -> tuple[Cascade, Needs]:
    """The cascade without a space."""
    left = "+".join(s for s in FULL.spaces.split("+") if s != space)
    return replace(FULL, spaces=left), lambda e: f"-{space}-" not in e.unit


PARTS: dict[str, tuple[Cascade, Needs]] = {
    "all": (FULL, lambda e: True),
    "without faint pixels": without("dense"),
    "without few pixels": without("sparse"),
    "without tone curves": without("tone"),
    "without the early embedding": without("early"),
    "without the later embedding": without("late"),
    "without pairs": (replace(FULL, pairs=False), lambda e: not e.unit.startswith(("pairs", "closer"))),
    "without the reference": (replace(FULL, reference=False), lambda e: not e.unit.startswith("reference")),
    "faint pixels alone": (
        replace(FULL, spaces="dense", pairs=False),
        lambda e: "-dense-" in e.unit or e.unit.startswith("trigger"),
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--split", default="judging")
    parser.add_argument("--task", default="mnist")
    given = parser.parse_args()
    scans = []
    for line in read(given.lines):
        if line.get("detector") != "cascade" or line["task"] != given.task or line["gate"]:
            continue
        if split_of(line["seed"]) == given.split and line["settings"] == FULL.settings():
            key = key_of(line["net"], line["sha256"], "cascade", line["settings"], line["backsweep"])
            scans.append((line, Report.load(given.zoo.parent / "bench" / key)))
    attacked = np.array([line["attack"] is not None for line, _ in scans])
    print(f"{given.task}, {given.split} networks: {attacked.sum()} attacked, {(~attacked).sum()} clean\n")
    print("| the cascade | AUROC | TPR at 5 % FPR (Wilson) | target right | CPU s | passes |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (detector, needs) in PARTS.items():
        score, right, cost, passes = [], [], [], []
        for line, report in scans:
            evidence = [e for e in report.evidence if needs(e)]
            top = detector.judge(evidence, report.model["classes"], 0.05)[0]
            score.append(top.score or 0.0)
            right.append(not line["targets"] or top.target in line["targets"])
            cost.append(sum(e.cpu_seconds for e in evidence))
            passes.append(sum(int(e.values.get("passes") or 0) for e in evidence))
        s = np.array(score)
        clean = np.sort(s[~attacked])
        limit = clean[-1 - int(0.05 * len(clean))] if len(clean) else np.inf
        hit = s[attacked] > limit
        low, high = wilson(int(hit.sum()), int(hit.size))
        correct = np.array(right)[attacked][hit]
        print(
            f"| {name} | {roc_auc_score(attacked, s):.3f} | {hit.sum()}/{hit.size} ({low:.0%}-{high:.0%}) | "
            f"{correct.sum()}/{correct.size} | {np.median(cost):.1f} | {np.median(passes):,.0f} |"
        )


if __name__ == "__main__":
    main()
