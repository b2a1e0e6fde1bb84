"""The bench: detectors over the zoo, one JSON line for every (network, detector), and the tables.

A line holds all that a table needs, with versions and digests; finished cells are not run again.
Rates stand with the number of networks and a Wilson interval.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

import backsweep
from backsweep import zoo
from backsweep.api import scan
from backsweep.base import ModelDetector, derive_seed
from backsweep.errors import BadInput
from backsweep.plugins import make
from backsweep.report import BACKDOORED, INCONCLUSIVE, Report
from backsweep.run import Event, OnEvent, run_key
from backsweep.stats import wilson
from backsweep.trigger import Patch, overlap

SAMPLES = 1000  # clean test images that a detector is given, at least 30 a class


def cells(plan: dict[str, Any]) -> list[tuple[zoo.Entry, ModelDetector]]:
    """Every (network, detector) that a plan asks for; `seeds` and `tasks` narrow a detector down."""
    found = []
    for table in plan.get("detectors", [{"name": "neural_cleanse"}]):
        for key in set(table) - {"name", "settings", "seeds", "tasks"}:
            raise BadInput(f"unknown key {key!r} under [[detectors]]")
        detector = make(ModelDetector, table.get("name", ""), table.get("settings", {}))
        for entry in zoo.entries(plan):
            if entry.seed in table.get("seeds", [entry.seed]) and entry.task in table.get(
                "tasks", [entry.task]
            ):
                found.append((entry, detector))
    return found


def run(
    plan: dict[str, Any], folder: Path, out: Path, workers: int = 1, on_event: OnEvent | None = None
) -> int:
    """Run what is missing in `out`; returns how many cells it holds then."""
    known = {line["cell"] for line in read(out)} if out.is_file() else set()
    wanted = cells(plan)
    todo = [(e, d) for e, d in wanted if cell_key(e, d) not in known]
    for entry, _ in todo:
        if not (folder / entry.id / "manifest.json").is_file():
            raise BadInput(f"network {entry.id} is not in {folder}; run `backsweep zoo build` first")
    begin, done = time.monotonic(), len(wanted) - len(todo)

    def tell() -> None:
        if on_event is not None:
            resumed = len(wanted) - len(todo)
            on_event(Event("bench", done, len(wanted), resumed, time.monotonic() - begin))

    tell()
    jobs = (delayed(run_cell)(entry, detector, folder) for entry, detector in todo)
    for line in Parallel(n_jobs=workers, return_as="generator_unordered")(jobs):
        with out.open("a", encoding="utf-8") as f:
            f.write(json.dumps(line, allow_nan=False) + "\n")
        done += 1
        tell()
    return done


def cell_key(entry: zoo.Entry, detector: ModelDetector) -> str:
    """What a line is known by."""
    return run_key(
        net=entry.id, detector=detector.name, settings=detector.settings(), version=backsweep.__version__
    )[:16]


def run_cell(entry: zoo.Entry, detector: ModelDetector, folder: Path) -> dict[str, Any]:
    """Scan one network on one core and compare with the truth; its report stays beside the zoo."""
    torch.set_num_threads(1)
    net = zoo.build_net(entry, folder)
    _, test = zoo.load_data(entry.task)
    clean = test.sample(max(SAMPLES, 30 * net.task.classes), derive_seed(entry.seed, "bench"))
    place = folder.parent / "bench" / cell_key(entry, detector)
    report = scan(net.model(), clean, detector, seed=entry.seed, device="cpu", out=place)
    return {
        "cell": cell_key(entry, detector),
        "net": entry.id, "task": entry.task, "attack": entry.attack, "seed": entry.seed,
        "detector": detector.name, "settings": detector.settings(),
        "targets": sorted({t["target"] for t in net.truth["triggers"] if t["target"] is not None}),
        "clean_accuracy": net.truth["clean_accuracy"],
        "attack_success_rate": net.truth["attack_success_rate"],
        "gate": zoo.failed_gate(net),
        **outcome(report, net),
        "sha256": net.truth["sha256"], "data_sha256": report.data["sha256"], **report.versions,
    }  # fmt: skip


def outcome(report: Report, net: zoo.Net) -> dict[str, Any]:
    """What a detector said of a network, beside the planted trigger."""
    top = report.findings[0] if report.findings else None
    jaccard = inside = None
    for planted in net.triggers():
        if top is not None and isinstance(top.trigger, Patch) and isinstance(planted, Patch):
            jaccard, inside = max((jaccard or 0.0, inside or 0.0), overlap(top.trigger, planted))
    return {
        "verdict": report.verdict,
        "p_value": report.p_value,
        "suspected": list(report.targets),
        "most_suspicious": top.target if top else None,
        "score": top.score if top else None,
        **({f"detail_{k}": v for k, v in top.details.items()} if top else {}),
        "norm": top.trigger.size if top and top.trigger else None,
        "recovered_success_rate": top.attack_success_rate if top else None,
        "jaccard": jaccard, "inside": inside,
        "norms": [e.values.get("norm") for e in report.evidence],
        "updates": sum(int(e.values.get("updates") or 0) for e in report.evidence),
        "passes": sum(int(e.values.get("passes") or 0) for e in report.evidence),
        "cpu_seconds": round(sum(e.cpu_seconds for e in report.evidence), 2),
    }  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a bench file; a torn last line is left out.

    Raises:
        BadInput: the file is not there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror}") from e
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


# ---------------------------------------------------------------------- tables


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a summary for each task and detector, the cost, and a row for every network."""
    out = sorted({line["net"] + ": " + line["gate"] for line in lines if line["gate"]})
    lines = [line for line in lines if not line["gate"]]
    made = _unique(f"Backsweep {x['backsweep']}, torch {x['torch']}, Python {x['python']}" for x in lines)
    parts = [
        "# Results",
        f"{len({x['net'] for x in lines})} networks, {len(lines)} scans; {'; '.join(made)}. Intervals are "
        "Wilson's at 95 %, over networks. CPU seconds are of one core. How this was made and how to read "
        "it: [README](README.md).",
        "## Summary", _summary(lines), "## Cost on the same networks", _cost(lines), "## Networks",
    ]  # fmt: skip
    for name in _unique(_detector(line) for line in lines):
        rows = [line for line in lines if _detector(line) == name]
        parts += [f"### {name}", _networks(rows)]
    parts += ["## Not admitted by the gate of the zoo", "\n".join(f"- {reason}" for reason in out) or "None."]
    return "\n\n".join(parts) + "\n"


def _detector(line: dict[str, Any]) -> str:
    default = make(ModelDetector, line["detector"]).settings()
    extra = [f"{k}={v}" for k, v in line["settings"].items() if v != default.get(k)]
    return " ".join([line["detector"], *extra])


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{hits}/{n} ({low:.0%}-{high:.0%})" if n else "-"


def _summary(lines: Sequence[dict[str, Any]]) -> str:
    rows = []
    for task in _unique(line["task"] for line in lines):
        for name in _unique(_detector(line) for line in lines):
            part = [x for x in lines if x["task"] == task and _detector(x) == name]
            bad, good = [x for x in part if x["attack"]], [x for x in part if not x["attack"]]
            caught = [x for x in bad if x["verdict"] == BACKDOORED]
            right = [x for x in caught if x["suspected"][:1] == x["targets"]]
            if part:
                rows.append([
                    task, name, _share(len(caught), len(bad)), _share(len(right), len(caught)),
                    _share(sum(x["verdict"] == BACKDOORED for x in good), len(good)),
                    _share(sum((x.get("detail_paper_index") or 0) > 2 for x in bad), len(bad)),
                    _share(sum((x.get("detail_paper_index") or 0) > 2 for x in good), len(good)),
                    f"{sum(x['verdict'] == INCONCLUSIVE for x in bad)} / "
                    f"{sum(x['verdict'] == INCONCLUSIVE for x in good)}",
                ])  # fmt: skip
    head = [
        "task", "detector", "attacked nets called backdoored", "target right, when called",
        "clean nets called backdoored", "attacked nets, paper's index > 2", "clean nets, paper's index > 2",
        "inconclusive (attacked / clean)",
    ]  # fmt: skip
    return _markdown(head, rows)


def _cost(lines: Sequence[dict[str, Any]]) -> str:
    """CPU seconds of two presets on the networks that both scanned."""
    by: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        by.setdefault(line["net"], {})[_detector(line)] = line
    rows = []
    for net, found in sorted(by.items()):
        if len(found) > 1:
            cheap = min(found.values(), key=lambda x: x["cpu_seconds"])
            for name, line in found.items():
                ratio = line["cpu_seconds"] / cheap["cpu_seconds"]
                work = [f"{line['cpu_seconds']:.0f}", str(line["updates"]), str(line["passes"])]
                rows.append([net, name, *work, f"{ratio:.1f}"])
    head = ["network", "detector", "CPU seconds", "updates", "forward+backward passes", "ratio"]
    return _markdown(head, rows)


def _networks(lines: Sequence[dict[str, Any]]) -> str:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    rows = [
        [
            x["net"], x["verdict"],
            number(x["score"], ".2f"), number(x["p_value"], ".2g"),
            number(x.get("detail_paper_index"), ".2f"), number(x.get("detail_paper_index_chance"), ".2g"),
            f"{x['most_suspicious']}" + "".join(f" / {t}" for t in x["targets"]),
            number(x["norm"], ".1f"), number(x["jaccard"], ".2f"), number(x["inside"], ".2f"),
            number(x["attack_success_rate"], ".1%"), number(x["recovered_success_rate"], ".1%"),
            number(x["clean_accuracy"], ".1%"), number(x["cpu_seconds"], ".0f"), str(x["updates"]),
        ]
        for x in sorted(lines, key=lambda x: (x["task"], x["attack"] is None, x["seed"]))
    ]  # fmt: skip
    head = [
        "network", "verdict", "log index", "p", "paper's index", "its chance", "suspected / true target",
        "norm", "overlap (Jaccard)", "share inside the planted mask", "success planted",
        "success recovered", "clean accuracy", "CPU s", "updates",
    ]  # fmt: skip
    return _markdown(head, rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line: Callable[[Sequence[str]], str] = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
    return "\n".join([line(head), line(["---"] * len(head)), *(line(r) for r in rows)])
