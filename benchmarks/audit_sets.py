"""Audits of small training sets from beginning to end: the network is trained by the audit itself.

    python benchmarks/audit_sets.py run LINES --kind digits --seeds 1000-1039 [--attack badnets]
    python benchmarks/audit_sets.py null LINES... --out src/backsweep/auditing/unpoisoned/small.json
    python benchmarks/audit_sets.py judge LINES... --out docs/results/small-sets.md

`run` measures what is not yet in LINES, one JSON line for a set; it can be stopped and goes on. A set is
drawn anew for every seed: MNIST's of 60,000 samples, so that two have little in common; those of digits of
1,797, so that two share most of theirs. `null` makes the tables of the package of the unpoisoned sets with
seeds from 1000 on, `judge` decides about the sets with judging seeds by the tables of the package.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsweep.auditing import nulls
from backsweep.auditing.audit import SMALL_AUDITS, audit, choose, judge
from backsweep.auditing.detector import class_evidence
from backsweep.auditing.learning import trained
from backsweep.bench.records import read
from backsweep.core.discovery import make
from backsweep.core.files import write_json, write_text
from backsweep.core.seeds import derive_seed
from backsweep.core.statistics import Share
from backsweep.core.versions import versions
from backsweep.inputs.samples import Data
from backsweep.reports.audit import Audit
from backsweep.reports.report import BACKDOORED, ERROR, INCONCLUSIVE, Evidence
from backsweep.zoo.attack import Attack
from backsweep.zoo.build import CALIBRATION, JUDGING, MIN_ATTACK_SUCCESS, split_of
from backsweep.zoo.tasks import TASKS, loaded

KINDS = {"digits": (1500, "digits_cnn"), "mnist": (2000, "mnist_cnn")}  # task: samples, network
SMALL = {"digits": {"size": 1, "margin": 0}, "mnist": {"size": 3, "margin": 1}}  # patches
RATES = (0.1, 0.05)  # by turns
DETECTORS = SMALL_AUDITS


def drawn(task: str, seed: int, samples: int) -> tuple[Data, Data]:
    """A set of so many samples, and others of the task that are not in it."""
    train, test = loaded(TASKS[task])
    if len(train) < samples:  # digits
        train = Data(torch.cat([train.x, test.x]), torch.cat([train.y, test.y]))
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(derive_seed(seed, task, "set")))
    return train[rows[:samples]], train[rows[samples : samples + 1000]]


def measured(task: str, attack: str | None, seed: int) -> dict[str, Any]:
    """What the detectors say of one set, class by class, beside the truth."""
    samples, arch = KINDS[task]
    data, others = drawn(task, seed, samples)
    options: dict[str, Any] = {}
    bad, trigger = torch.zeros(len(data), dtype=torch.bool), None
    if attack is not None:
        options = {"rate": RATES[seed % len(RATES)], **(SMALL[task] if attack == "badnets" else {})}
        planted, setup = make(Attack, attack, options), TASKS[task].setup(data, seed)
        (trigger,) = planted.triggers(setup)
        data, rows = planted.poison(setup, [trigger])
        bad[rows] = True
    clock = time.process_time()
    model = trained(arch, data, seed, "cpu")
    learned = time.process_time() - clock
    report = audit(model, data, choose(DETECTORS), seed=seed, device="cpu")
    found = [
        {"detector": e.detector, **told(e, report.scores[e.detector], data.y, bad)} for e in report.evidence
    ]
    return {
        "task": task, "arch": arch, "attack": attack, "options": options, "seed": seed, "samples": len(data),
        "poisoned": int(bad.sum()), "target": None if trigger is None else trigger.target,
        "success": None if trigger is None else model.success_rate(trigger, others),
        "accuracy": model.accuracy(others.x, others.y), "training_accuracy": report.data["training_accuracy"],
        **{k: report.model[k] for k in ("layout", "shape", "classes")},
        "settings": report.settings["detectors"], "classes_found": found,
        "failed": [n.reason for n in report.errors], "training_seconds": round(learned, 2),
        "cpu_seconds": round(time.process_time() - clock, 2), **versions(),
    }  # fmt: skip


def told(e: Evidence, scores: Tensor, y: Tensor, bad: Tensor) -> dict[str, Any]:
    """What is kept of a class: its statistic, its samples that are flagged, and how many of them are poison.

    Args:
        scores, y, bad: of all samples (N,): what the detector says, their labels, whether they are poison.
    """
    above = (y == e.target) & (scores > float(e.values["cut"] or 0))
    return {
        "target": e.target, "statistic": float(e.values["statistic"] or 0),
        "flagged": int(above.sum()), "poison": int((above & bad).sum()),
    }  # fmt: skip


def run(out: Path, task: str, attack: str | None, seeds: range) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    known = {key_of(line) for line in read(out)} if out.is_file() else set()
    for seed in seeds:
        if (task, attack, seed) not in known:
            line = measured(task, attack, seed)
            with out.open("a", encoding="utf-8") as f:
                f.write(json.dumps(line, allow_nan=False) + "\n")
            tops = {
                d: max(c["statistic"] for c in line["classes_found"] if c["detector"] == d) for d in DETECTORS
            }
            print(task, attack, seed, line["success"], {k: round(v, 2) for k, v in tops.items()}, flush=True)


def key_of(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["task"], line["attack"], line["seed"]


def null(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tables of the package: of unpoisoned sets that nothing is judged on."""
    calm = [x for x in lines if x["attack"] is None and split_of(x["seed"]) == CALIBRATION]
    made = nulls.make(
        {
            **x, "arch": None, "audit": name, "settings": x["settings"][name],
            "net": f"{x['task']}-{x['samples']}-s{x['seed']}",
            "score": max(c["statistic"] for c in x["classes_found"] if c["detector"] == name),
        }
        for x in calm for name in x["settings"]
    )  # fmt: skip
    return [t for t in made if t["layout"] != nulls.ANY]  # digits say nothing of other kinds


def rates(line: Mapping[str, Any], called: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Shares of the poisoned and of the other samples of a set that are flagged in classes that are called.

    Of a class that several detectors call, as the one says that flags most: they flag the same group.
    """
    most: dict[int, tuple[int, int]] = {}
    for c in called:
        most[c["target"]] = max(most.get(c["target"], (0, 0)), (c["flagged"], c["poison"]))
    flagged, poison = (sum(v[i] for v in most.values()) for i in (0, 1))
    bad = line["poisoned"]
    return poison / bad if bad else 0.0, (flagged - poison) / (line["samples"] - bad)


def share(called: Sequence[bool]) -> str:
    """How many of some sets, with the interval."""
    found = Share(sum(called), len(called))
    low, high = found.interval
    return f"{found.hits}/{found.n} ({low:.0%}-{high:.0%})"


def percent(values: Sequence[float], none: str) -> str:
    """The mean of some shares; `none` of none."""
    return f"{100 * statistics.fmean(values):.1f} %" if values else none


@dataclass(frozen=True)
class Judged:
    """One set: whether it was called poisoned, and what was flagged.

    Attributes:
        line: what was measured.
        called, undecided: the verdict.
        right: whether a class that was found is the target.
        tpr, fpr: shares of the poisoned and of the other samples that are flagged.
    """

    line: Mapping[str, Any]
    called: bool
    undecided: bool
    right: bool
    tpr: float
    fpr: float


def judged(line: Mapping[str, Any], alpha: float) -> Judged:
    """The set judged anew, as `backsweep audit` does it."""
    found = [class_evidence(c["detector"], c["target"], c["statistic"], 0.0) for c in line["classes_found"]]
    report = Audit(
        model={k: line[k] for k in ("layout", "shape", "classes")}, evidence=found,
        settings={"alpha": alpha, "detectors": dict(line["settings"])},
        labels=torch.zeros(line["samples"], dtype=torch.long),
    )  # fmt: skip
    judge(report)
    named = {(f.detector, f.target) for f in report.findings if f.level == ERROR}
    called = [c for c in line["classes_found"] if (c["detector"], c["target"]) in named]
    right = line["target"] in {c["target"] for c in called}
    return Judged(
        line, report.verdict == BACKDOORED, report.verdict == INCONCLUSIVE, right, *rates(line, called)
    )


def table(lines: Sequence[Mapping[str, Any]], alpha: float) -> str:
    """The page of results."""
    text = [
        "# Audits of small sets\n",
        f"Judging seeds, alpha {alpha:g}; 95 % Wilson intervals. The audit trains its own network",
        "(`--train`) and takes its default detectors. Sets whose poison the network did not learn (attack",
        "success below 90 % on other samples) have no backdoor and stand in their own column. TPR and FPR",
        "are means over the sets that were found. The sets of digits are drawn from the same 1,797 images,",
        "so they are less unlike each other than a stranger's. Made by `benchmarks/audit_sets.py`.\n",
        "| set | poison | sets | called poisoned | right class | TPR | FPR | not learned | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    own = [judged(x, alpha) for x in lines if split_of(x["seed"]) == JUDGING]
    for task in KINDS:
        for attack in (None, "badnets", "blended"):
            every = [j for j in own if (j.line["task"], j.line["attack"]) == (task, attack)]
            sets = [j for j in every if attack is None or j.line["success"] >= MIN_ATTACK_SUCCESS]
            if not every:
                continue
            hit = [j for j in sets if j.called]
            tpr, fpr = (percent(v, "-") for v in ([j.tpr for j in hit if attack], [j.fpr for j in hit]))
            name = "none" if attack is None else f"{attack}, 5 and 10 %"
            seconds = statistics.median(j.line["cpu_seconds"] for j in every)
            right = "-" if attack is None else f"{sum(j.right for j in hit)}/{len(hit)}"
            text.append(
                f"| {task}, {KINDS[task][0]:,} samples | {name} | {len(sets)} "
                f"| {share([j.called for j in sets])} | {right} | {tpr} | {fpr} | {len(every) - len(sets)} "
                f"| {seconds:.0f} |"
            )
    open_sets = sum(j.undecided for j in own)
    return "\n".join([*text, "", f"Neither poisoned nor clean: {open_sets} of {len(own)} sets.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["run", "null", "judge"])
    parser.add_argument("lines", type=Path, nargs="+")
    parser.add_argument("--kind", choices=list(KINDS), default="digits")
    parser.add_argument("--attack", default=None)
    parser.add_argument("--seeds", default="1000-1039")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.verb == "run":
        first, _, last = given.seeds.partition("-")
        run(given.lines[0], given.kind, given.attack, range(int(first), int(last or first) + 1))
        return
    known = [x for path in given.lines for x in read(path)]
    if given.verb == "null":
        write_json(given.out, null(known))
    else:
        write_text(given.out, table(known, given.alpha))


if __name__ == "__main__":
    main()
