"""Audits of the training sets of networks over tables, each judged by unpoisoned sets of the other kinds.

    python benchmarks/audit_tables.py run LINES --zoo FOLDER [--detector NAME ...]
    python benchmarks/audit_tables.py judge LINES --out PAGE [--split choosing]

FOLDER is what `backsweep zoo build plans/audits-tables.toml` made. `run` measures what is not yet in LINES,
one JSON line for a set and a detector; it can be stopped and goes on. Sets whose attack did not pass the gate
of the zoo are left out. `judge` writes how well each detector orders the rows, and what it would call if it
were judged by the unpoisoned sets of other kinds (task, network, number of rows), its own task left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audit_kinds import opened
from audit_sets import told

from backsweep.auditing import audit
from backsweep.auditing.nulls import Together
from backsweep.bench.records import about, read
from backsweep.bench.samples import auroc
from backsweep.core.files import write_text
from backsweep.core.statistics import Share
from backsweep.core.versions import versions
from backsweep.inputs.table.modality import Table
from backsweep.reports.report import BACKDOORED, CLEAN, INCONCLUSIVE
from backsweep.zoo import build

DETECTORS = (
    *audit.SMALL_AUDITS,
    audit.DEFAULT_AUDITS[0],
    "activation_clustering",
    "spectral_signatures",
    "z_defence",
)
Line = Mapping[str, Any]


def measured(net: build.Net, names: Sequence[str]) -> list[dict[str, Any]]:
    """What detectors say of the set of one network, class by class, beside the truth."""
    given = opened(net)
    if given is None:
        return []
    (data, bad, model, known), found = given, list[dict[str, Any]]()
    for name in names:
        clock = time.process_time()
        report = audit.audit(model, data, [name], seed=net.truth["seed"], device="cpu", features=known)
        if not report.evidence:
            print(net.id, name, [n.reason for n in (*report.skipped, *report.errors)], flush=True)
            continue
        classes, scores = [], report.scores[name]
        for e in report.evidence:
            own = data.y == e.target
            order = auroc(scores[own & ~bad], scores[own & bad]) if int(bad[own].sum()) > 0 else None
            classes.append({**told(e, scores, data.y, bad), "rows": int(own.sum()), "auroc": order})
        found.append({
            **about(net), "audit": name, "settings": report.settings["detectors"][name],
            **{k: report.model[k] for k in ("layout", "shape", "classes")}, "samples": len(data),
            "poisoned": int(bad.sum()), "verdict": report.verdict,
            "score": max(c["statistic"] for c in classes), "classes_found": classes,
            "auroc": auroc(scores[~bad], scores[bad]) if bool(bad.any()) else None,
            "training_accuracy": report.data["training_accuracy"],
            "cpu_seconds": round(time.process_time() - clock, 2), **versions(),
        })  # fmt: skip
    return found


def run(out: Path, zoo: Path, names: Sequence[str]) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    known = {(x["net"], x["sha256"], x["audit"]) for x in read(out)} if out.is_file() else set()
    for net in build.nets(zoo):
        left = [n for n in names if (net.id, net.truth["sha256"], n) not in known]
        if not left or about(net)["gate"] or net.task.kind != Table.name or not net.model().gives:
            continue  # trees have no layers
        for line in measured(net, left):
            with out.open("a", encoding="utf-8") as f:
                f.write(json.dumps(line, allow_nan=False) + "\n")
            print(
                net.id, line["audit"], round(line["score"], 2), line["auroc"], line["cpu_seconds"], flush=True
            )


# ---------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Judged:
    """One set and one detector, judged by the unpoisoned sets of other tasks.

    Attributes:
        line: what was measured.
        p_value: of the class that stands out most.
        right: whether that class is a target.
        inside: AUROC of the poisoned rows among those of the target class; None where there are none.
        tpr, fpr: shares of the poisoned and of the other rows of the set above the cut of that class.
    """

    line: Line
    p_value: float
    right: bool
    inside: float | None
    tpr: float
    fpr: float


def kind_of(line: Line) -> str:
    """Task, network and number of rows."""
    return " ".join(filter(None, (line["task"], line["arch"], f"{line['samples']:,} rows")))


def judged(lines: Sequence[Line], name: str, split: str) -> list[Judged]:
    """Every set that a detector was asked about, its own task left out of the unpoisoned ones."""
    own = list({x["net"]: x for x in lines if x["audit"] == name and x["split"] == split}.values())
    found = []
    for line in own:
        others = [x for x in own if not x["attack"] and x["task"] != line["task"]]
        top = max(line["classes_found"], key=lambda c: float(c["statistic"]))
        p_value = math.nan
        if others:
            table = np.array([[x["score"]] for x in others])
            group = Together((name,), table, np.array([line["score"]]), "", [kind_of(x) for x in others])
            p_value = group.p_value(name, line["score"])
        bad = line["poisoned"]
        inside = [c["auroc"] for c in line["classes_found"] if c["target"] in line["targets"]]
        tpr, wrong = top["poison"] / bad if bad else 0.0, top["flagged"] - top["poison"]
        found.append(Judged(
            line, p_value, top["target"] in line["targets"], next(iter(inside), None), tpr,
            wrong / (line["samples"] - bad),
        ))  # fmt: skip
    return found


def page(lines: Sequence[Line], alpha: float, split: str) -> str:
    """The page of results."""
    names = [n for n in DETECTORS if any(x["audit"] == n for x in lines)]
    every = {n: judged(lines, n, split) for n in names}
    kinds = {kind_of(j.line) for some in every.values() for j in some if not j.line["attack"]}
    text = [
        "# Audits of tables\n",
        f"Training sets of networks over tables (`plans/audits-tables.toml`; {split} seeds): unpoisoned ones",
        f"of {len(kinds)} kinds (task, network, number of rows), and poisoned ones whose attack passed the",
        f"gate of the zoo. *Called*: a p-value of at most {alpha:g} among the unpoisoned sets of other",
        "*tasks*, kinds counting alike; no such table comes with the package. *Verdicts*: of each, as it is",
        "(p = poisoned, ? = cannot tell, c = clean), unpoisoned / poisoned sets. *Top class*: the one that",
        "stands out most is the target. TPR, FPR: poisoned and other rows above the cut of that class, even",
        "if it is not called. Brackets: Wilson 95 %. Made by `benchmarks/audit_tables.py`.\n",
        "| detector | verdicts | AUROC, all rows | of the target | worst | top class | unpoisoned called "
        "| poisoned called | right class | TPR | FPR | TPR >= .90 at FPR <= .02 | CPU s |",
        "|" + "---|" * 13,
    ]
    for name, some in every.items():
        text.append(f"| {name} | " + " | ".join(_row(some, alpha)) + " |")
    head = " | ".join(names)
    text += ["", "## By attack: AUROC of the rows of the target class, mean\n", f"| attack | sets | {head} |"]
    text.append("|---|---|" + "---|" * len(names))
    attacks = {_attack(j.line) for j in every[names[0]] if j.line["attack"]}
    for attack in sorted(attacks):
        of = [[j for j in every[n] if j.line["attack"] and _attack(j.line) == attack] for n in names]
        text.append(f"| {attack} | {len(of[0])} | {' | '.join(_mean([j.inside for j in o]) for o in of)} |")
    head = " | ".join(f"{n}: statistic, p" for n in names)
    text += [
        "",
        "## Every set\n",
        f"| set | rows | poisoned | {head} |",
        "|---|---|---|" + "---|" * len(names),
    ]
    nets = {j.line["net"]: j.line for some in every.values() for j in some}
    known = {(n, j.line["net"]): j for n, some in every.items() for j in some}
    for net, line in sorted(nets.items(), key=lambda item: (bool(item[1]["attack"]), item[0])):
        of_net = [known.get((n, net)) for n in names]
        cells = ["" if j is None else f"{j.line['score']:.3g}, {j.p_value:.3f}" for j in of_net]
        text.append(f"| {net} | {line['samples']:,} | {line['poisoned']:,} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def _row(some: Sequence[Judged], alpha: float) -> list[str]:
    calm, bad = ([j for j in some if bool(j.line["attack"]) is b] for b in (False, True))
    hit = [j for j in bad if j.p_value <= alpha]
    said = [Counter(str(j.line["verdict"]) for j in part) for part in (calm, bad)]
    verdicts = " / ".join(f"{c[BACKDOORED]} p, {c[INCONCLUSIVE]} ?, {c[CLEAN]} c" for c in said)
    both = [j.tpr >= 0.9 and j.fpr <= 0.02 and j.right for j in bad]
    return [
        verdicts,
        _mean([j.line["auroc"] for j in bad]),
        _mean([j.inside for j in bad]),
        f"{min((j.inside for j in bad if j.inside is not None), default=math.nan):.2f}",
        _share([j.right for j in bad]),
        _share([j.p_value <= alpha for j in calm]),
        _share([j.p_value <= alpha for j in bad]),
        f"{sum(j.right for j in hit)}/{len(hit)}",
        _mean([j.tpr for j in bad]),
        _mean([j.fpr for j in bad], 3),
        _share(both),
        f"{statistics.median(j.line['cpu_seconds'] for j in some):.1f}" if some else "",
    ]


def _attack(line: Line) -> str:
    """Name and what its options say in words."""
    said = line["options"]
    words = [said.get("values"), "labels kept" if said.get("clean_label") else None]
    words += ["one source" if said.get("source_specific") else None]
    columns = f"{said['columns']} columns" if "columns" in said else None
    return " ".join(filter(None, (line["attack"], *words, columns)))


def _mean(values: Sequence[float | None], digits: int = 2) -> str:
    known = [v for v in values if v is not None]
    return f"{statistics.fmean(known):.{digits}f}" if known else ""


def _share(called: Sequence[bool]) -> str:
    if not called:
        return ""
    share = Share(sum(called), len(called))
    low, high = share.interval
    return f"{share.hits} of {share.n} [{100 * low:.0f}-{100 * high:.0f} %]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["run", "judge"])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--detector", action="append")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--split", default=build.JUDGING)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.verb == "run":
        run(given.lines, given.zoo, given.detector or DETECTORS)
    else:
        write_text(given.out, page(read(given.lines), given.alpha, given.split))


if __name__ == "__main__":
    main()
