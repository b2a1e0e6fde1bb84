"""Neural Cleanse's table of mitigations on networks of the zoo, the paper's figures beside ours.

    python benchmarks/neural_cleanse_repair.py ZOO/mnist-badnets-s1? [--out lines.jsonl] [--preset paper]

For each network: accuracy and attack success rate (test samples, the planted trigger) before, after one
epoch of unlearning with the recovered trigger, with the original one and with clean images alone, and
after pruning; and which triggered inputs the filter lets through at 5 % false alarms. A repair has 10 %
of the training set. The trigger is recovered by the detector `neural_cleanse` on some of it; where the
scan flags no class, nothing is repaired. One JSON line for each network, then a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from backsweep import scan
from backsweep.core.seeds import derive_seed
from backsweep.guarding.detectors.activation_filter import ActivationFilter
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.models.model import Model
from backsweep.repairing.method import Case, Repair
from backsweep.repairing.methods.neuron_pruning import NeuronPruning
from backsweep.repairing.methods.unlearning import Unlearning
from backsweep.reports.report import ERROR
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from backsweep.zoo import build

FPR = 0.05
SCANNED = 1000  # samples, and 30 of each class where that is more
TASKS = ("mnist", "gtsrb")
# Accuracy and attack success rate in percent; Wang et al. 2019, as the method's page cites them.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "mnist": {
        "before": (98.54, 99.90), "recovered": (97.69, 0.57),
        "original": (97.77, 0.29), "clean": (97.38, 93.37),
    },
    "gtsrb": {
        "before": (96.51, 97.40), "recovered": (92.91, 0.14),
        "original": (90.06, 0.19), "clean": (92.02, 95.69),
    },
}  # fmt: skip
ROWS = {
    "before": "before",
    "recovered": "unlearning, recovered trigger",
    "original": "unlearning, original trigger",
    "clean": "fine-tuning, clean images",
    "penultimate": "pruning, penultimate neurons",
    "conv": "pruning, last convolution",
}


def measure(net: build.Net, preset: str) -> dict[str, Any]:
    """One line: all figures of a network of the zoo."""
    train, test = build.load_data(net.truth["task"])
    given = train.sample(round(0.1 * len(train)), derive_seed(net.truth["seed"], "repair"))
    clean = given.sample(max(SCANNED, 30 * net.task.classes), 0)
    suspect, planted = net.model(), net.triggers()
    report = scan(suspect, clean, NeuralCleanse(preset), device="cpu")
    found = [f.trigger for f in report.findings if f.level == ERROR and f.trigger is not None]
    model = suspect.copy("cpu")
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(0))
    learned, held_out = given[order[len(given) // 5 :]], given[order[: len(given) // 5]]

    def figures(repaired: Model) -> dict[str, float]:
        rates = [repaired.success_rate(t, test) for t in planted]
        return {"accuracy": repaired.accuracy(test.x, test.y), "attack_success_rate": max(rates, default=0.0)}

    def repaired(repair: Repair, triggers: Sequence[Trigger], whole: bool = True) -> dict[str, Any] | None:
        """Figures after a repair, None where it cannot be made."""
        case = Case(model, given if whole else learned, held_out, triggers, seed=net.truth["seed"])
        if reason := repair.applies(case):
            print(f"{net.id}: {repair.name}: {reason}", file=sys.stderr)
            return None
        begin = time.process_time()
        after = repair.apply(case)
        seconds = time.process_time() - begin
        return {
            **figures(after),
            "recovered_success_rate": max((after.success_rate(t, test) for t in found), default=None),
            "cpu_seconds": round(seconds, 1),
            "silenced": silenced(model, after, repair) if isinstance(repair, NeuronPruning) else None,
        }

    return {
        "net": net.id,
        "task": net.truth["task"],
        "attack": net.truth["attack"],
        "seed": net.truth["seed"],
        "sha256": net.truth["sha256"],
        "samples": len(given),
        "verdict": report.verdict,
        "flagged": [t.target for t in found],
        "targets": [t.target for t in planted],
        "recovered_success_rate": max((model.success_rate(t, test) for t in found), default=None),
        "scan_cpu_seconds": round(report.timings["neural_cleanse_cpu_seconds"], 1),
        "before": figures(model),
        "recovered": repaired(Unlearning("paper"), found),
        "original": repaired(Unlearning("paper"), planted),
        "clean": repaired(Unlearning("paper", share=0.0), ()),
        "penultimate": repaired(NeuronPruning("penultimate"), found, whole=False),
        "conv": repaired(NeuronPruning("conv"), found, whole=False),
        "filter": filtered(model, given, test, found, planted),
    }


def silenced(before: Model, after: Model, repair: NeuronPruning) -> float:
    """Share of the neurons that the pruned network is deaf to and the suspect was not."""
    site = repair.site(before)
    if site is None:
        return 0.0

    def deaf(model: Model) -> Tensor:
        weight = dict(model.net.named_parameters())[site.weight]
        return (weight.transpose(0, 1).flatten(1) == 0).all(1)

    return float((deaf(after) & ~deaf(before)).double().mean())


def filtered(
    model: Model, given: Data, test: Data, found: Sequence[Trigger], planted: Sequence[Trigger]
) -> dict[str, float] | None:
    """False alarms on clean test samples, and triggered ones that pass, of the filter set to 5 %."""
    detector = ActivationFilter()
    if reason := detector.applies(model, given, found):
        print(f"filter: {reason}", file=sys.stderr)
        return None
    scorer = detector.fit(model, given, found)
    limit = scorer.threshold(FPR)
    missed = []
    for trigger in planted:
        x = trigger(test.x[acted_on(trigger, test.y, model.classes)])
        missed.append(float((scorer(x) <= limit).double().mean()))
    false_alarms = float((scorer(test.x) > limit).double().mean())
    return {"fpr": false_alarms, "fnr": max(missed, default=0.0)}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The paper's table with means of ours: accuracy / attack success rate in percent."""
    text = []
    for task in TASKS:
        here = [x for x in lines if x["task"] == task]
        if not here:
            continue
        flagged = sum(x["flagged"] == x["targets"] for x in here)
        text += [
            f"{task}: {len(here)} networks; Neural Cleanse flags the target, and it alone, in {flagged}", "",
            "| accuracy / success rate, % | paper, 1 net | ours, mean | highest success rate | networks |",
            "| --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for key, title in ROWS.items():
            rows = [x[key] for x in here if x[key] is not None]
            paper = PUBLISHED[task].get(key)
            accuracy, rate = ([100 * r[k] for r in rows] for k in ("accuracy", "attack_success_rate"))
            ours = f"{np.mean(accuracy):.2f} / {np.mean(rate):.2f} | {max(rate):.2f}" if rows else "- | -"
            beside = f"{paper[0]:.2f} / {paper[1]:.2f}" if paper else "-"
            text.append(f"| {title} | {beside} | {ours} | {len(rows)} |")
        rows = [x["filter"] for x in here if x["filter"] is not None]
        fnr, fpr = ([100 * r[k] for r in rows] for k in ("fnr", "fpr"))
        ours = f"{np.mean(fnr):.2f} (at FPR {np.mean(fpr):.1f}) | {max(fnr):.2f}" if rows else "- | -"
        text.append(
            f"| filter, triggered inputs that pass (FNR, %) | < 1.63 (at FPR 5) | {ours} | {len(rows)} |"
        )
        text.append("")
        for key in ("penultimate", "conv"):
            shares = [x[key]["silenced"] for x in here if x[key] is not None]
            if shares:
                text.append(f"Silenced ({key}): {min(shares):.0%} to {max(shares):.0%} of the neurons.")
        text.append("")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("nets", type=Path, nargs="+", help="folders of networks of the zoo")
    parser.add_argument("--out", type=Path, help="file for the JSON lines, goes on where it is; else stdout")
    parser.add_argument("--preset", default="standard", help="of the detector neural_cleanse")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = []
    if given.out is not None and given.out.is_file():
        lines = [json.loads(x) for x in given.out.read_text(encoding="utf-8").splitlines()]
    done = {x["net"] for x in lines}

    def run(write: Callable[[str], object]) -> None:
        for folder in given.nets:
            net = build.Net.read(folder)
            if net.id not in done and net.truth["task"] in TASKS:
                lines.append(measure(net, given.preset))
                write(json.dumps(lines[-1]) + "\n")

    out: TextIO = sys.stdout
    if given.out is None:
        run(out.write)
    else:
        with given.out.open("a", encoding="utf-8", buffering=1) as f:
            run(f.write)
    print(table(lines))


if __name__ == "__main__":
    main()
