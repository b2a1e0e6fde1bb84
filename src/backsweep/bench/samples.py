"""The bench of audits and guards: one JSON line for every (network, detector of samples).

An audit is given the training set as the attack left it and the network that was trained on it. A guard
is fitted on clean samples of the training set and judged on test images, clean ones and triggered ones.
`sample_figures.py` makes the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backsweep import __version__
from backsweep.auditing import audit
from backsweep.bench.records import about
from backsweep.core.discovery import make
from backsweep.core.errors import BacksweepError, BadInput
from backsweep.core.provenance import is_own, provenance, reason_of
from backsweep.core.seeds import derive_seed, run_key
from backsweep.core.versions import versions
from backsweep.guarding.detector import SampleDetector
from backsweep.guarding.guard import DEFAULT_GUARDS
from backsweep.guarding.guard import guard as fit_guard
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.zoo import build
from backsweep.zoo.tasks import TASKS

DEFAULT = "default"  # the default detectors of an audit or a guard together
CLEAN_NET = "clean"
FPR = 0.01  # false-rejection rate that a guard is asked for
SHARE = 0.05  # of the training set, clean, that a guard is fitted on; at least 30 samples a class
SHOWN = 1000  # test images that a guard is asked about, clean, and with every trigger
LEAST_WORKING = 30  # triggered test images that reach their target, below which there is nothing to guard
KEYS = ("name", "settings", "seeds", "tasks", "attacks", "retrain")
ASKED = {"fpr": FPR, "share": SHARE}  # of a guard, where a plan says nothing else
Cell = tuple[str, Callable[[], dict[str, Any]]]


def cells(plan: dict[str, Any], open_net: Callable[[build.Entry], build.Net]) -> list[Cell]:
    """Key and job of every (network, audit) and (network, guard) that a plan asks for.

    `[[audits]]` and `[[guards]]` name one detector or several; `seeds`, `tasks` and `attacks` narrow down;
    `retrain` also trains a network without the flagged samples.

    Raises:
        BadInput: an unknown key or detector, or a network is missing.
    """
    found: list[Cell] = []
    for kind in ("audits", "guards"):
        for table in plan.get(kind, []):
            allowed = (*KEYS, *(ASKED if kind == "guards" else ()))
            for key in set(table) - set(allowed):
                raise BadInput(f"unknown key {key!r} under [[{kind}]]; there are {', '.join(allowed)}")
            asked = {k: _share(k, table[k]) for k in ASKED if k in table}
            names, settings = table.get("name", ""), table.get("settings", {})
            for name in names if isinstance(names, list) else [names]:
                used, brought = _settings(kind, name, settings), _brought(kind, name, settings)
                for entry in build.entries(plan):
                    own = {"seeds": entry.seed, "tasks": entry.task, "attacks": entry.attack or CLEAN_NET}
                    if not all(value in table.get(key, [value]) for key, value in own.items()):
                        continue
                    net = open_net(entry)
                    if kind == "audits":
                        again = bool(table.get("retrain", False))
                        key = key_of(net, kind, name, {**used, "retrain": again}, brought)
                        found.append((key, partial(audit_cell, net, name, settings, again, key)))
                    else:
                        key = key_of(net, kind, name, {**used, **asked}, brought)
                        found.append((key, partial(guard_cell, net, name, settings, key, asked)))
    return found


def _settings(kind: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a detector, those of the default ones together by their names."""
    if name == DEFAULT:
        names = DEFAULT_GUARDS if kind == "guards" else audit.DEFAULT_AUDITS
        return {n: audit.made(n).settings() for n in names}
    return _made(kind, name, settings).settings()


def _share(key: str, value: Any) -> float:
    """A share above 0 and below 1.

    Raises:
        BadInput: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise BadInput(f"{key} = {value!r} under [[guards]] is no share between 0 and 1")
    return float(value)


def _made(kind: str, name: str, settings: Mapping[str, Any]) -> audit.Detector:
    return make(SampleDetector, name, settings) if kind == "guards" else audit.made(name, dict(settings))


def _brought(kind: str, name: str, settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The package that brings the detector; nothing for ours."""
    return {} if name == DEFAULT else provenance([_made(kind, name, settings)])


def key_of(
    net: build.Net, kind: str, name: str, settings: dict[str, Any],
    brought: dict[str, dict[str, str]] | None = None,
) -> str:  # fmt: skip
    """What a line is known by; a network that was trained again is another one."""
    return run_key(
        net=net.id, sha256=net.truth["sha256"], kind=kind, detector=name, settings=settings,
        version=__version__, **(brought or {}),
    )[:16]  # fmt: skip


def audit_cell(
    net: build.Net, name: str, settings: Mapping[str, Any], retrain: bool, key: str
) -> dict[str, Any]:
    """Audit the training set of one network on one core and compare with the truth."""
    torch.set_num_threads(1)
    used = _settings("audits", name, settings)
    line = {
        "cell": key, **about(net), "audit": name, "settings": used, "retrain": retrain, **versions(),
        **_brought("audits", name, settings),
    }  # fmt: skip
    if line["gate"]:
        return line
    try:
        data, rows = build.poisoned(net)
        clock = time.process_time()
        asked = list(audit.DEFAULT_AUDITS) if name == DEFAULT else audit.made(name, dict(settings))
        report = audit.audit(net.model(), data, asked, seed=net.truth["seed"], device="cpu")
    except BacksweepError as e:
        return {**line, "error": " ".join(str(e).split())}
    if not report.scores:
        return {**line, "error": "; ".join(n.reason for n in (*report.skipped, *report.errors))}
    bad, flagged = (torch.zeros(len(data), dtype=torch.bool) for _ in range(2))
    bad[rows], flagged[report.flagged] = True, True
    score = joint(list(report.scores.values()))
    top = max(report.evidence, key=lambda e: float(e.values["statistic"] or 0))
    line |= {
        "layout": report.model["layout"], "shape": report.model["shape"], "classes": report.model["classes"],
        "verdict": report.verdict, "p_value": report.p_value, "alpha": report.settings["alpha"],
        "score": float(top.values["statistic"] or 0),
        "most_suspicious": report.findings[0].target if report.findings else top.target,
        "suspected": list(report.targets), "samples": len(data), "poisoned": int(bad.sum()),
        "flagged": int(flagged.sum()), "missed": int((bad & ~flagged).sum()),
        "tpr": float(flagged[bad].double().mean()) if len(rows) else None,
        "fpr": float(flagged[~bad].double().mean()),
        "auroc": auroc(score[~bad], score[bad]) if len(rows) else None,
        "cpu_seconds": round(time.process_time() - clock, 2),
        "detector_cpu_seconds": sum(report.timings.get(f"{n}_cpu_seconds", 0.0) for n in report.scores),
    }  # fmt: skip
    if retrain and len(rows) and len(report.flagged):
        line |= _retrained(net, data[report.kept])
    return line


def joint(scores: Sequence[Tensor]) -> Tensor:
    """One score of several (N,): the largest rank that any of them gives a sample."""
    if len(scores) == 1:
        return scores[0]
    return torch.stack([s.argsort(stable=True).argsort(stable=True) for s in scores]).amax(0).double()


def _retrained(net: build.Net, kept: Data) -> dict[str, Any]:
    """Accuracy and attack success rate of a network that learned from the samples that were kept."""
    entry, (_, test) = build.entry_of(net), build.load_data(net.truth["task"])
    task, recipe = TASKS[entry.task], Recipe(**net.truth["training"])
    seed = derive_seed(entry.seed, "retrain")
    model = task.model(fit(task.net(seed, entry.arch), kept, recipe, seed))
    return {
        "retrained_accuracy": model.accuracy(test.x, test.y),
        "retrained_success": max(model.success_rate(t, test) for t in net.triggers()),
    }


def guard_cell(
    net: build.Net,
    name: str,
    settings: Mapping[str, Any],
    key: str,
    asked_of: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Fit a guard for one network on one core and ask it about test images.

    Args:
        asked_of: `fpr` and `share`, where they differ from the usual ones (`ASKED`).
    """
    fpr, share = ({**ASKED, **(asked_of or {})}[k] for k in ("fpr", "share"))
    torch.set_num_threads(1)
    task, seed = net.task, net.truth["seed"]
    train, test = build.load_data(net.truth["task"])
    line: dict[str, Any] = {
        "cell": key,
        **about(net),
        "guard": name,
        "settings": dict(settings),
        **versions(),
        **_brought("guards", name, settings),
    }
    if line["gate"]:
        return line
    count = max(round(share * len(train)), 30 * task.classes)
    clean = train.sample(count, derive_seed(seed, "guard"))
    shown = test.sample(SHOWN, derive_seed(seed, "guard", "shown"))
    model = net.model().copy()
    asked = None if name == DEFAULT else make(SampleDetector, name, dict(settings))
    try:
        clock = time.process_time()
        guard = fit_guard(model, clean, asked, fpr=fpr, device="cpu", seed=seed)
        fitted = time.process_time() - clock
        clock = time.process_time()
        usual = guard.predict(shown.x).scores
        seconds = time.process_time() - clock
    except Exception as e:
        ours = BacksweepError | RuntimeError | ArithmeticError | ValueError
        if (asked is None or is_own(asked)) and not isinstance(e, ours):
            raise
        return {**line, "skipped": " ".join(str(e).split()) or reason_of(e)}
    clock = time.process_time()
    model.copy().predict(shown.x)
    bare = time.process_time() - clock
    line |= {
        "detectors": list(guard.scorers), "asked_frr": fpr,
        "frr": float((usual > guard.threshold).double().mean()),
        "passes": guard.passes, "clean_samples": count, "shown": len(shown),
        "fit_cpu_seconds": round(fitted, 2), "milliseconds": round(1000 * seconds / len(shown), 3),
        "ratio": round(seconds / bare, 2),
    }  # fmt: skip
    found = []
    for trigger in net.triggers():
        x = working(model, trigger, test, seed)
        if len(x) < LEAST_WORKING:
            continue
        scores = guard.score(x)
        found.append({
            "auroc": auroc(usual, scores), "far": float((scores <= guard.threshold).double().mean()),
            "triggered": len(x),
        })  # fmt: skip
    if found:  # of several triggers the one that is noticed least
        line |= min(found, key=lambda f: f["auroc"])
    return line


def working(model: Model, trigger: Trigger, test: Data, seed: int) -> Tensor:
    """Triggered test images (M, *shape) that reach the class they are sent to."""
    rows = torch.nonzero(acted_on(trigger, test.y, model.classes)).flatten()
    generator = torch.Generator().manual_seed(derive_seed(seed, "guard", "triggered"))
    rows = rows[torch.randperm(len(rows), generator=generator)[:SHOWN]]
    x = trigger(test.x[rows])
    return x[model.predict(x) == trigger.labels(test.y[rows], model.classes)]


def auroc(clean: Tensor, triggered: Tensor) -> float:
    """Probability that a triggered sample scores higher than a clean one."""
    from sklearn.metrics import roc_auc_score

    truth = torch.cat([torch.zeros(len(clean)), torch.ones(len(triggered))])
    both = torch.nan_to_num(torch.cat([clean, triggered]), posinf=3e38, neginf=-3e38)
    return float(roc_auc_score(truth.numpy(), both.numpy()))
