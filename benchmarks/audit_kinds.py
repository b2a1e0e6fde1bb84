"""Audits of the training sets of networks of many kinds, each judged by unpoisoned sets of the other kinds.

    python benchmarks/audit_kinds.py run LINES --zoo FOLDER [--detector NAME ...] [--most 20000]
    python benchmarks/audit_kinds.py null LINES... --out src/backsweep/auditing/unpoisoned/kinds.json
    python benchmarks/audit_kinds.py judge LINES --scans docs/results/kinds.jsonl --out PAGE

FOLDER is what `backsweep zoo build plans/kinds.toml` made. `run` measures what is not yet in LINES, one JSON
line for a set and a detector; it can be stopped and goes on. Sets whose attack did not pass the gate of the
zoo, and attacks without a poisoned set (they control the training), are left out. `null` makes the table over
kinds of the package, of the default detectors on unpoisoned sets of any seed; `judge` judges those of judging
seeds, each without all sets of its own task and architecture.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from audit_sets import percent, rates, share, told
from torch import Tensor

from backsweep.auditing import audit, nulls
from backsweep.auditing.detector import SetDetector, TrainingSet
from backsweep.auditing.detectors.network_scan import SCAN, NetworkScan
from backsweep.auditing.nulls import ANY, Together, joined
from backsweep.bench import kinds
from backsweep.bench.kinds import Network, kind_of
from backsweep.bench.records import about, read
from backsweep.core.discovery import find, make
from backsweep.core.errors import BadInput
from backsweep.core.files import write_json, write_text
from backsweep.core.versions import versions
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.reports.report import Report
from backsweep.scanning.cascade.measured import Measured
from backsweep.scanning.cascade.population import Population
from backsweep.scanning.detector import ModelDetector
from backsweep.zoo import build

OTHERS = (
    *audit.DEFAULT_AUDITS,
    audit.SECOND,
    "cross_confusion parts=groups",
    "activation_clustering",
    "spectral_signatures",
    "spectre",
)
USUAL = tuple(n for n in OTHERS if " " not in n)
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Remembered(NetworkScan):
    """Keeps what its last scan measured, so that it can be judged with its kind left out."""

    said: ClassVar[dict[str, Any]] = {}

    def scanned(self, given: TrainingSet) -> tuple[Tensor, Report]:
        scores, report = super().scanned(given)
        detector = make(ModelDetector, SCAN)
        self.said["measured"] = detector.measured(report.evidence, given.classes)
        return scores, report


def opened(
    net: build.Net, most: float = math.inf
) -> tuple[Data, Tensor, Model, tuple[Tensor, Tensor]] | None:
    """The set of a network, which samples are poisoned (N,), the network, its features and logits.

    None: the set has more than `most` samples, or the attack controls the training.
    """
    try:
        data, rows = build.poisoned(net)
    except BadInput:
        return None
    if len(data) > most:
        return None
    bad, model = torch.zeros(len(data), dtype=torch.bool), net.model()
    bad[rows] = True
    return data, bad, model, audit.streamed(model.copy("cpu"), data.x)


def measured(net: build.Net, names: Sequence[str], most: int) -> list[dict[str, Any]]:
    """What detectors say of the set of one network, class by class, beside the truth."""
    given = opened(net, most)
    if given is None:
        return []
    (data, bad, model, known), found = given, list[dict[str, Any]]()
    for name in names:
        clock = time.process_time()
        one = Remembered() if name == audit.SECOND else name
        report = audit.audit(model, data, [one], seed=net.truth["seed"], device="cpu", features=known)
        if not report.evidence:
            continue
        classes = [told(e, report.scores[name], data.y, bad) for e in report.evidence]
        found.append({
            **about(net), "audit": name, "settings": report.settings["detectors"][name],
            **{k: report.model[k] for k in ("layout", "shape", "classes")}, "samples": len(data),
            "poisoned": int(bad.sum()),
            "score": max(c["statistic"] for c in classes),
            "classes_found": classes,
            "training_accuracy": report.data["training_accuracy"],
            "cpu_seconds": round(time.process_time() - clock, 2), **versions(),
            **(Remembered.said if name == audit.SECOND else {}),
        })  # fmt: skip
    return found


def run(out: Path, zoo: Path, names: Sequence[str], most: int) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    known = {(x["net"], x["sha256"], asked(x)) for x in read(out)} if out.is_file() else set()
    for folder in sorted(p.parent for p in zoo.glob("*/manifest.json")):
        net = build.Net.read(folder)
        left = [n for n in names if (net.id, net.truth["sha256"], n) not in known]
        if left and not about(net)["gate"]:
            for line in measured(net, left, most):
                with out.open("a", encoding="utf-8") as f:
                    f.write(json.dumps(line, allow_nan=False) + "\n")
                print(net.id, line["audit"], round(line["score"], 2), line["cpu_seconds"], flush=True)


@dataclass(frozen=True)
class Judged:
    """One set judged by unpoisoned sets of other kinds.

    Attributes:
        line: what was measured, by one of the detectors.
        p_value: of all of them together.
        right: whether a class that is called is a target; None where nothing is called.
        first: whether the class with the smallest p-value is one.
        tpr, fpr: shares of the poisoned and of the other samples that are flagged.
        cpu_seconds: of the detectors.
    """

    line: Line
    p_value: float
    right: bool | None
    first: bool
    tpr: float
    fpr: float
    cpu_seconds: float


def asked(line: Line) -> str:
    """The detector of a line, and how it is set where that is not the usual way."""
    kind, name = find(SetDetector, line["audit"]), str(line["audit"])
    own, usual = kind.completed(line["settings"]), make(SetDetector, name).settings()
    return " ".join([name, *(f"{k}={v}" for k, v in own.items() if v != usual[k])])


def sized(line: Line) -> str:
    """A kind as a table counts it: task, architecture and number of samples."""
    return f"{kind_of(line)} {line['samples']:,} samples"


class Scans:
    """Scans of networks by clean networks of other kinds.

    Args:
        lines: of scans by the cascade of the networks of many kinds, clean ones among them.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self._known = kinds.networks(lines)
        self._looks: dict[str, list[Population]] = {}

    def p_values(self, line: Line) -> dict[int, float]:
        """By class, of the network of a set."""
        kind = kind_of(line)
        if kind not in self._looks:
            self._looks[kind] = kinds.populations([n for n in self._known if n.kind != kind])
        own = Measured.read(line["measured"], line["classes"])
        network = Network(kind, line["net"], line["attack"], tuple(line["targets"]), own, 0.0)
        return {s.target: s.p_value for s in kinds.suspected(network, self._looks[kind])[0]}


def judged(
    lines: Sequence[Line], names: Sequence[str], alpha: float, scans: Scans | None = None
) -> list[Judged]:
    """Every set that all detectors were asked about, by the unpoisoned ones of other kinds.

    Args:
        scans: what scans of the networks say joins that; only sets whose network was scanned are judged.
    """
    wanted = (*names, audit.SECOND) if scans is not None else names
    known = _complete(lines, names)
    sets = list({s[names[0]]["net"]: s for s in known if all(n in s for n in wanted)}.values())
    first, found = names[0], []
    for own in (s for s in sets if s[first]["split"] == build.JUDGING):
        others = [s for s in known if not s[first]["attack"] and kind_of(s[first]) != kind_of(own[first])]
        table = np.array([[s[n]["score"] for n in names] for s in others])
        scores = np.array([own[n]["score"] for n in names])
        group = Together(tuple(names), table, scores, "", [sized(s[first]) for s in others])
        second = scans.p_values(own[audit.SECOND]) if scans is not None else None
        # a set whose network was scanned is parted by the scan, as an audit parts it
        parted = {c["target"]: c for c in (own[audit.SECOND]["classes_found"] if second is not None else ())}
        called: list[Line] = []
        top = (2.0, -1)
        for n in names:
            for c in sorted(own[n]["classes_found"], key=lambda c: -float(c["statistic"])):
                p = group.p_value(n, c["statistic"])
                if second is not None:
                    p = joined(p, second.get(c["target"], 1.0))
                top = min(top, (p, c["target"]), key=lambda t: t[0])
                if p <= alpha:
                    called.append(parted.get(c["target"], c))
        line = own[first]
        planted = set(line["targets"])
        if line["attack"] and not planted:  # all to all
            planted = {c["target"] for c in own[first]["classes_found"]}
        right = any(c["target"] in planted for c in called) if called else None
        seconds = sum(own[n]["cpu_seconds"] for n in wanted)
        found.append(
            Judged(line, top[0], right, top[1] in planted, *rates(line, called), cpu_seconds=seconds)
        )
    return found


def _complete(lines: Sequence[Line], names: Sequence[str]) -> list[dict[str, Line]]:
    """Every set that all detectors were asked about; of a network that was built again, each."""
    found: dict[tuple[str, str], dict[str, Line]] = {}
    for x in lines:
        found.setdefault((x["net"], x["sha256"]), {})[asked(x)] = x
    return [own for own in found.values() if all(n in own for n in names)]


def table(found: Sequence[Judged], alpha: float, keys: Mapping[str, Any]) -> list[str]:
    """Rows of a table: a name and which sets."""
    text = [
        "| sets | unpoisoned: called | poisoned: called | right class | their TPR | their FPR | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, which in keys.items():
        own = [j for j in found if which(j.line)]
        calm, bad = ([j for j in own if bool(j.line["attack"]) is b] for b in (False, True))
        hit = [j for j in bad if j.p_value <= alpha]
        cells = [_share([j.p_value <= alpha for j in some]) for some in (calm, bad)]
        cells.append(f"{sum(bool(j.right) for j in hit)}/{len(hit)}" if hit else "")
        cells += [percent(v, "") for v in ([j.tpr for j in hit], [j.fpr for j in hit])]
        cells.append(f"{statistics.median(j.cpu_seconds for j in own):.0f}" if own else "")
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    return text


def _share(called: Sequence[bool]) -> str:
    return share(called) if called else ""


def by_size(lines: Sequence[Line], alpha: float, scans: Scans | None = None) -> list[Judged]:
    """Every set judged by the detectors of samples that are the default for its size."""
    alone = judged(lines, audit.SMALL_AUDITS[:1], alpha, scans)
    pair = judged(lines, audit.DEFAULT_AUDITS, alpha, scans)
    found = [j for j in alone if j.line["samples"] <= audit.SMALL]
    return found + [j for j in pair if j.line["samples"] > audit.SMALL]


def scanned(lines: Sequence[Line], alpha: float, scans: Scans) -> list[str]:
    """The section of sets whose network was scanned too, beside the same sets without that."""
    both = by_size(lines, alpha, scans)
    builds = {(j.line["net"], j.line["sha256"]) for j in both}
    only = [x for x in lines if (x["net"], x["sha256"]) in builds or not x["attack"]]
    before = [j for j in by_size(only, alpha) if (j.line["net"], j.line["sha256"]) in builds]
    keys: dict[str, Any] = {"samples and network": lambda x: True}
    for value in sorted({j.line["attack"] for j in both if j.line["attack"]}):
        keys[value] = _is(lambda x: x["attack"], value)
    for value in sorted({kind_of(j.line) for j in both}):
        keys[value] = _is(kind_of, value)
    first = table(before, alpha, {"the same sets, samples alone": lambda x: True})
    calm, bad = ([j for j in both if bool(j.line["attack"]) is b] for b in (False, True))
    return [
        "## The default: samples and network\n",
        "The detectors of samples, and a scan of the network with unsuspected samples (`network_scan`),",
        "joined; the scan too is judged by clean networks of other kinds alone. Networks of these sets were",
        "built anew, in float32.\n",
        *first,
        *table(both, alpha, keys)[2:],
        "",
        f"At alpha {2 * alpha:g}: {_share([j.p_value <= 2 * alpha for j in calm])} and",
        f"{_share([j.p_value <= 2 * alpha for j in bad])}. The poisoned class stands out most in",
        f"{sum(j.first for j in bad)} of {len(bad)}. Every set:\n",
        *listed(both),
        "",
    ]


def listed(found: Sequence[Judged]) -> list[str]:
    """Every set, a row each."""
    text = [
        "| set | samples | poisoned | p-value | called class is the target | TPR | FPR |",
        "|---|---|---|---|---|---|---|",
    ]
    for j in sorted(found, key=lambda j: (bool(j.line["attack"]), j.p_value, j.line["net"])):
        right, x = "" if j.right is None else ("yes" if j.right else "no"), j.line
        text.append(
            f"| {x['net']} | {x['samples']:,} | {x['poisoned']:,} | {j.p_value:.3f} | {right} "
            f"| {100 * j.tpr:.0f} % | {100 * j.fpr:.1f} % |"
        )
    return text


def page(lines: Sequence[Line], alpha: float, scans: Scans | None = None) -> str:
    """The page of results."""
    text = [
        "# Audits of sets of many kinds\n",
        "Training sets of the networks of [many kinds](kinds.md), as far as they were built; judging seeds.",
        f"Each is judged at alpha {alpha:g} by unpoisoned sets of *other* kinds (task, architecture; sets of",
        "another size count for themselves). 95 % Wilson intervals; TPR, FPR: means of sets that are called.",
        "Networks outside the gate of the zoo, and attacks that control the training (WaNet), have no line.",
        "Made by `benchmarks/audit_kinds.py`.\n",
    ]
    known = {name: _unpoisoned(lines, name) for name in OTHERS}
    found = by_size(lines, alpha)
    keys: dict[str, Any] = {"all": lambda x: True}
    for label, key in (
        ("", lambda x: x["attack"]), ("classes ", lambda x: x["classes"]), ("", kind_of),
    ):  # fmt: skip
        for value in sorted({key(j.line) for j in found if key(j.line) is not None}):
            keys[f"{label}{value}"] = _is(key, value)
    calm, bad = ([j for j in found if bool(j.line["attack"]) is b] for b in (False, True))
    text += [
        *(scanned(lines, alpha, scans) if scans is not None else []),
        "## Samples alone\n",
        f"Sets of up to {audit.SMALL:,} samples by contamination_analyzer alone: reclassification, beside",
        f'it, can only say "cannot tell". Others by {" and ".join(audit.DEFAULT_AUDITS)} together.\n',
        *table(found, alpha, keys),
        "",
        f"At alpha {2 * alpha:g}: {_share([j.p_value <= 2 * alpha for j in calm])} and",
        f"{_share([j.p_value <= 2 * alpha for j in bad])}. What stands out most is the poisoned class",
        f"in {sum(j.first for j in bad)} of {len(bad)} poisoned sets, called or not.\n",
        "## Each alone, and both\n",
        "| detectors | kinds | unpoisoned: called | poisoned: called | right class | TPR | FPR | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for names in (*((n,) for n in OTHERS if n != audit.SECOND), audit.DEFAULT_AUDITS, (OTHERS[1], OTHERS[3])):
        row = table(judged(lines, names, alpha), alpha, {", ".join(names): keys["all"]})[-1]
        name, _, rest = row[2:].partition(" | ")
        text.append(f"| {name} | {known[names[0]]} | {rest}")
    text += ["\n## Every set, samples alone\n", *listed(found)]
    return "\n".join(text).rstrip() + "\n"


def _unpoisoned(lines: Sequence[Line], name: str) -> int:
    """Kinds of unpoisoned sets that a detector was asked about."""
    return len({sized(x) for x in lines if asked(x) == name and not x["attack"]})


def _is(key: Any, value: Any) -> Any:
    return lambda x: key(x) == value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["run", "null", "judge"])
    parser.add_argument("lines", type=Path, nargs="+")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--detector", action="append")
    parser.add_argument("--most", type=int, default=20000)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--scans", type=Path, help="lines of the cascade on the networks of many kinds")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.verb == "run":
        run(given.lines[0], given.zoo, given.detector or USUAL, given.most)
        return
    known = [x for path in given.lines for x in read(path)]
    if given.verb == "null":
        own = [x for x in known if x["audit"] in audit.DEFAULT_AUDITS]  # the others stay uncalibrated
        write_json(given.out, [t for t in nulls.make(own) if t["layout"] == ANY])
    else:
        scans = None if given.scans is None else Scans(list(read(given.scans)))
        write_text(given.out, page(known, given.alpha, scans))


if __name__ == "__main__":
    main()
