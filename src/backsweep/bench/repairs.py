"""The bench of repairs: one JSON line for every (network, repair, share of clean samples).

A repair gets clean samples of the training set and what a scan with the default detectors recovers from
them; or, of networks that were scanned before, what was said of them by networks of other kinds alone: the
class, and no trigger. Test images and the triggers that were planted serve to judge it, and for nothing else.
`repair_figures.py` makes the figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsweep import __version__
from backsweep.bench import kinds
from backsweep.bench.records import ALPHA, about, der, read
from backsweep.core.discovery import make
from backsweep.core.errors import BacksweepError, BadInput
from backsweep.core.files import writable_folder
from backsweep.core.provenance import is_own, provenance, reason_of
from backsweep.core.seeds import derive_seed, run_key
from backsweep.core.versions import versions
from backsweep.engine.engine import Engine
from backsweep.formats.weights import origins
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.repairing.method import Repair
from backsweep.repairing.proof import MOST_RETUNED
from backsweep.repairing.relapse import retuned
from backsweep.repairing.repair import applied, case_of
from backsweep.reports.report import BACKDOORED, CLEAN, Report
from backsweep.scanning import scan
from backsweep.zoo import build
from backsweep.zoo.tasks import TASKS

SHARE = 0.05  # of the training set that a repair is given
CLEAN_NET = "clean"  # what `attacks` calls a network without a backdoor
PART = 0.1  # of the training set, on which the cost of an epoch is measured
KEYS = ("name", "settings", "share", "seeds", "tasks", "attacks", "scans")
Cell = tuple[build.Entry, Repair, float, str]


def cells(plan: dict[str, Any]) -> list[Cell]:
    """Every (network, repair, share, scans) of a plan's `[[repairs]]`; seeds, tasks and attacks narrow down.

    A table may name several repairs, whose settings are then the same; they run in that order. `scans` is a
    file of lines of the cascade, "" where the networks are scanned.

    Raises:
        BadInput: an unknown key or repair, a share that cannot be, or no such file.
    """
    found = []
    for table in plan.get("repairs", []):
        for key in set(table) - set(KEYS):
            raise BadInput(f"unknown key {key!r} under [[repairs]]; there are {', '.join(KEYS)}")
        names = table.get("name", "")
        settings = table.get("settings", {})
        repairs = [make(Repair, n, settings) for n in (names if isinstance(names, list) else [names])]
        share = table.get("share", SHARE)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise BadInput(
                f"share {share!r} under [[repairs]] is not a share of the training set, above 0 to 1"
            )
        scans = str(table.get("scans", ""))
        if scans and not Path(scans).is_file():
            raise BadInput(f"scans {scans!r} under [[repairs]] is no file; run the command where it is")
        for repair, entry in product(repairs, build.entries(plan)):
            own = {"seeds": entry.seed, "tasks": entry.task, "attacks": entry.attack or CLEAN_NET}
            if all(value in table.get(key, [value]) for key, value in own.items()):
                found.append((entry, repair, float(share), scans))
    return found


def cell_key(net: build.Net, repair: Repair, share: float, scans: str = "") -> str:
    """What a line is known by; a network that was trained again is another one."""
    settings, brought = repair.settings(), provenance([repair])
    return key_of(net.id, net.truth["sha256"], repair.name, settings, share, __version__, brought, scans)


def key_of(
    net: str, sha256: str, repair: str, settings: dict[str, Any], share: float, version: str,
    brought: dict[str, dict[str, str]] | None = None, scans: str = "",
) -> str:  # fmt: skip
    """`cell_key`, from what a line says: `brought` are its "packages", if it has any."""
    parts = {"net": net, "sha256": sha256, "repair": repair, "settings": settings, "share": share}
    return run_key(**parts, version=version, **(brought or {}), **({"scans": scans} if scans else {}))[:16]


def run_cell(net: build.Net, repair: Repair, share: float = SHARE, scans: str = "") -> dict[str, Any]:
    """Repair one network on one core and compare with the truth."""
    torch.set_num_threads(1)
    line: dict[str, Any] = {
        "cell": cell_key(net, repair, share, scans), **about(net),
        "repair": repair.name, "settings": repair.settings(), "share": share, **versions(),
        **provenance([repair]), **({"scans": scans} if scans else {}),
    }  # fmt: skip
    if line["gate"]:  # not in the tables, only in their list of what was not admitted
        return line
    train, test = build.load_data(net.truth["task"])
    seed = int(net.truth["seed"])
    try:
        clean = train.sample(round(share * len(train)), derive_seed(seed, "repair"))
        line |= {"data_sha256": clean.digest, "samples": len(clean)}
        work = net.model().copy("cpu")
        case = case_of(work, clean, None, seed)  # too few samples: said before they are scanned
        if scans:
            said = said_before(net, scans)
            case = replace(case, aims=said.pop("aims"))
        else:
            report = scan_of(net, clean, share)
            case = case_of(work, clean, report, seed)
            said = {
                "verdict": report.verdict, "p_value": report.p_value,
                "scan_cpu_seconds": round(sum(e.cpu_seconds for e in report.evidence), 2),
            }  # fmt: skip
        case = replace(case, origin=origin_of(net, work))
        line |= said | {"suspected": [list(way) for way in case.aims], "recovered": len(case.triggers)}
        if reason := repair.applies(case):
            return {**line, "skipped": reason}
        begin = time.process_time()
        mended = applied(repair, case)
        line["cpu_seconds"] = round(time.process_time() - begin, 2)
        line |= {
            "repaired_sha256": mended.digest,
            "held_out_before": case.accuracy(case.model),
            "held_out_after": case.accuracy(mended),
            **figures(case.model, mended, net.triggers(), test),
            **_after_retuning(net, mended, case.clean, test),
            "epoch_cpu_seconds": epoch_cost(net),
        }
    except Exception as e:
        ours = BacksweepError | RuntimeError | ArithmeticError
        if is_own(repair) and not isinstance(e, ours):
            raise
        line["error"] = reason_of(e) or type(e).__name__
    return line


def origin_of(net: build.Net, work: Model) -> dict[str, Tensor]:
    """What a network was tuned from, as its parameters; empty where it began anew."""
    before = build.entry_of(net).before
    if before is None:
        return {}
    return origins.of(work.net, build.build_net(before, net.folder.parent).model().net)


def scan_of(net: build.Net, clean: Data, share: float) -> Report:
    """What the default detectors say of a network; all its repairs with this share have it in common."""
    seed, model = derive_seed(net.truth["seed"], "repair"), net.model()
    key = run_key(net=net.id, sha256=net.truth["sha256"], share=share, version=__version__)[:16]
    place = net.folder.parent.parent / "bench" / f"repair-scan-{key}"
    methods = {m.name: m.settings() for m in scan.choose(scan.usual(model))}
    wanted = {
        "model": model.digest, "data": clean.digest, "seed": seed, "versions": versions(),
        "detectors": json.loads(json.dumps(methods)),
    }  # fmt: skip
    if (report := _saved(place)) is None or _made_of(report) != wanted:
        scan.scan(model, clean, None, seed=seed, device="cpu", engine=Engine(), out=writable_folder(place))
        report = Report.load(place)  # what every later repair reads
    return report


def said_before(net: build.Net, scans: str) -> dict[str, Any]:
    """What networks of other kinds say of a network that was scanned before: verdict, p-value, aims, cost.

    Raises:
        BadInput: it is not among the lines, or no population can be made of them.
    """
    found = next((n for n in _known(scans) if n.name == net.id), None)
    if found is None:
        raise BadInput(f"{scans} has no line of the cascade about {net.id}")
    judged = next(j for j in _apart(scans, found.kind) if j.network.name == net.id)
    called = judged.p_value <= ALPHA
    return {
        "verdict": BACKDOORED if called else CLEAN, "p_value": judged.p_value,
        "aims": [(None, judged.target)] if called else [], "scan_cpu_seconds": found.cpu_seconds,
    }  # fmt: skip


@lru_cache(maxsize=4)
def _known(scans: str) -> tuple[kinds.Network, ...]:
    return tuple(kinds.networks(read(Path(scans))))


@lru_cache(maxsize=256)
def _apart(scans: str, kind: str) -> list[kinds.Judged]:
    """The networks of one kind, judged by all others."""
    return kinds.apart(_known(scans), kind)


def _saved(place: Path) -> Report | None:
    """The report of an earlier scan; none where it cannot be read."""
    try:
        return Report.load(place)
    except BadInput:
        return None


def _made_of(report: Report) -> dict[str, Any]:
    """All that the outcome of a scan hangs on."""
    return {
        "model": report.model.get("sha256"), "data": report.data.get("sha256"),
        "seed": report.settings.get("seed"), "versions": dict(report.versions),
        "detectors": report.settings.get("detectors"),
    }  # fmt: skip


# ---------------------------------------------------------------------- judging, with the truth


def figures(suspect: Model, mended: Model, triggers: Sequence[Trigger], test: Data) -> dict[str, Any]:
    """Both networks on the test set, with the planted triggers: highest success, lowest robust accuracy."""
    found: dict[str, Any] = {}
    for when, model in (("before", suspect), ("after", mended)):
        found[f"accuracy_{when}"] = model.accuracy(test.x, test.y)
        rates = [model.success_rate(t, test) for t in triggers]
        robust = []
        for trigger in triggers:
            some = test[acted_on(trigger, test.y, model.classes)]
            robust.append(model.accuracy(trigger(some.x), some.y))
        found[f"success_{when}"] = max(rates, default=None)
        found[f"robust_{when}"] = min(robust, default=None)
    lost = found["accuracy_before"] - found["accuracy_after"]
    found["der"] = der(found["success_before"] - found["success_after"], lost) if triggers else None
    return found


def _after_retuning(net: build.Net, mended: Model, clean: Data, test: Data) -> dict[str, Any]:
    """The re-tuning check with the planted triggers, and the same for the clean twin as a yardstick."""
    triggers = net.triggers()[:MOST_RETUNED]
    twin = net.folder.parent / str(net.truth["twin"])
    there = bool(triggers) and (twin / "manifest.json").is_file()
    return {
        "retuned": _relapse(mended, triggers, clean, test, net),
        "twin_retuned": (
            _relapse(build.Net.read(twin).model().copy("cpu"), triggers, clean, test, net) if there else None
        ),
    }


def _relapse(
    model: Model, triggers: Sequence[Trigger], clean: Data, test: Data, net: build.Net
) -> float | None:
    seed = derive_seed(net.truth["seed"], "repair", "re-tuning")
    return max((retuned(model, clean, t, seed).success_rate(t, test) for t in triggers), default=None)


def epoch_cost(net: build.Net) -> float:
    """CPU seconds of one epoch of a network's own training, on the whole training set."""
    recipe = replace(TASKS[net.truth["task"]].recipe, **{**net.truth["recipe"], "epochs": 1})
    return _epoch_cost(net.truth["task"], net.truth.get("arch"), replace(recipe, lr=1e-3))


@lru_cache(maxsize=16)
def _epoch_cost(task: str, arch: str | None, recipe: Recipe) -> float:
    train, _ = build.load_data(task)
    part = train.sample(round(PART * len(train)), 0)
    begin = time.process_time()
    fit(TASKS[task].net(0, arch), part, recipe, 0)
    return round((time.process_time() - begin) * len(train) / len(part), 2)
