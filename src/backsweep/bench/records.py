"""The lines of the bench: reading them, and what they say, older ones too."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from backsweep.auditing.detector import SetDetector
from backsweep.core.discovery import make
from backsweep.core.errors import BadInput
from backsweep.core.method import Method
from backsweep.guarding.detector import SampleDetector
from backsweep.repairing.method import Repair
from backsweep.reports.report import BACKDOORED, CLEAN
from backsweep.scanning.detector import ModelDetector
from backsweep.zoo.attack import Attack
from backsweep.zoo.build import Net, failed_gate, split_of
from backsweep.zoo.tasks import TASKS

ALPHA = 0.05  # of lines that do not say theirs
NO_REPAIR = "none"  # what networks as they were are called beside repairs
MOST = 1e12  # samples


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a bench file; a torn line is left out, and measured again by the next run.

    Raises:
        BadInput: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror}") from e
    lines = []
    for line in text.split("\n"):
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(raw, dict):
            lines.append(raw)
    return lines


def read_all(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of several bench files; a cell that stands in two of them counts once, as the later has it.

    Raises:
        BadInput: a file cannot be read.
    """
    found: dict[object, dict[str, Any]] = {}
    for line in (line for path in paths for line in read(path)):
        cell = line.get("cell")
        found[cell if isinstance(cell, str) else len(found)] = line
    return list(found.values())


def about(net: Net) -> dict[str, Any]:
    """What every line says of its network, the truth with it."""
    truth = net.truth

    def planted(key: str) -> list[Any]:
        return sorted({t[key] for t in truth["triggers"] if t.get(key) is not None})

    return {
        "net": net.id, "task": truth["task"], "attack": truth["attack"], "seed": truth["seed"],
        "split": split_of(truth["seed"]),
        "options": truth["options"], "recipe": truth["recipe"], "training": truth["training"],
        "arch": truth.get("arch"), "samples": truth.get("samples"), "start": truth.get("start"),
        "targets": planted("target"), "sources": planted("source"), "families": planted("family"),
        "clean_accuracy": truth["clean_accuracy"],
        "attack_success_rate": truth["attack_success_rate"],
        "gate": failed_gate(net),
        "sha256": truth["sha256"],
    }  # fmt: skip


class Line:
    """What all lines of the bench have in common."""

    net: str
    task: str
    attack: str | None
    seed: int
    gate: str | None
    raw: Mapping[str, Any]

    @property
    def split(self) -> str:
        """What the network is for; follows from its seed."""
        return split_of(self.seed)

    def number(self, key: str) -> float | None:
        """A figure of the line, None where there is none."""
        return _number(self.raw.get(key))

    def figure(self, key: str) -> float:
        """A figure that the line has."""
        value = self.number(key)
        return math.nan if value is None else value


@dataclass(frozen=True)
class Scan(Line):
    """A line of the bench, with what older versions did not write filled in.

    Attributes:
        detector: name and the settings that differ from the defaults.
        group: name of the attack, with options and training that are not numbers; "" for a clean net.
        kind: of the training (architecture and the like): which clean nets are comparable.
        raw: the line itself, for figures that enter no rate.
    """

    net: str
    task: str
    attack: str | None
    seed: int
    method: str
    detector: str
    verdict: str
    p_value: float | None
    score: float | None
    alpha: float
    targets: tuple[int, ...]
    suspected: tuple[int, ...]
    gate: str
    reason: str
    group: str
    kind: str
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def suspicion(self) -> tuple[float, float]:
        """See the top of `figures.py`; (-inf, -inf) where the scan gave no p-value."""
        if self.p_value is None:
            return (-math.inf, -math.inf)
        return (-math.log10(max(self.p_value, 1e-300)), -math.inf if self.score is None else self.score)

    @property
    def undecided(self) -> bool:
        """Neither backdoored nor clean: inconclusive, skipped or failed."""
        return self.verdict not in (BACKDOORED, CLEAN)


def scan_of(raw: Mapping[str, Any]) -> Scan | None:
    """The line as a `Scan`; None when it is not a line of the bench."""
    texts = [raw.get(k) for k in ("net", "task", "detector", "verdict")]
    seed, attack = raw.get("seed"), raw.get("attack")
    if not all(isinstance(t, str) and t for t in texts) or not isinstance(seed, int):
        return None
    if attack is not None and not isinstance(attack, str):
        return None
    net, task, method, verdict = (str(t) for t in texts)
    p = _number(raw.get("p_value"))
    alpha = _number(raw.get("alpha"))
    old_target = [raw["target"]] if raw.get("target") is not None else []
    kind = _words([_arch(raw, task), *_differing(_dict(raw, "recipe"), {})])
    options = _differing(_dict(raw, "options"), attack_defaults(attack))
    default = _detector_defaults(method)
    settings = [f"{k}={v}" for k, v in _dict(raw, "settings").items() if v != default.get(k, ...)]
    return Scan(
        net, task, attack, seed, method,
        _words([method, *settings]),
        verdict,
        p if p is not None and 0 <= p <= 1 else None,
        _number(raw.get("score")),
        alpha if alpha is not None and 0 < alpha < 1 else ALPHA,
        _classes(raw.get("targets", old_target)), _classes(raw.get("suspected")),
        str(raw.get("gate") or ""), str(raw.get("reason") or ""),
        _words([attack, *options, kind]) if attack else "", kind, raw,
    )  # fmt: skip


@dataclass(frozen=True)
class Fix(Line):
    """A line of the bench of repairs.

    Attributes:
        repair: name and the settings that differ from the defaults.
        share: of the training set that the repair was given.
        outcome: "repaired", "skipped" or "failed".
        reason: why it is not repaired.
        group: name of the attack, with options and training that are not numbers; "" for a clean net.
        raw: the line itself.
    """

    net: str
    task: str
    attack: str | None
    seed: int
    method: str
    repair: str
    share: float
    gate: str
    outcome: str
    reason: str
    group: str
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def lost(self) -> float:
        """Clean accuracy that the repair cost; negative where it gained."""
        return self.figure("accuracy_before") - self.figure("accuracy_after")

    @property
    def der(self) -> float:
        """Defence effectiveness rating of the repair of an attacked network."""
        return der(self.figure("success_before") - self.figure("success_after"), self.lost)


def der(removed: float, lost: float) -> float:
    """Defence effectiveness rating: what a repair removed of success, and what it cost of clean accuracy.

    DER = (max(0, ASR_before - ASR_after) - max(0, ACC_before - ACC_after) + 1) / 2
    """
    return (max(0.0, removed) - max(0.0, lost) + 1) / 2


def fix_of(raw: Mapping[str, Any]) -> Fix | None:
    """The line as a `Fix`; None when it is not a line of the bench of repairs."""
    texts = [raw.get(k) for k in ("net", "task", "repair")]
    seed, attack, share = raw.get("seed"), raw.get("attack"), _number(raw.get("share"))
    if not all(isinstance(t, str) and t for t in texts) or not isinstance(seed, int) or not share:
        return None
    if (attack is not None and not isinstance(attack, str)) or raw["repair"] == NO_REPAIR:
        return None
    net, task, method = (str(t) for t in texts)
    kind = _words([_arch(raw, task), *_differing(_dict(raw, "recipe"), {})])
    options = _differing(_dict(raw, "options"), attack_defaults(attack))
    default = _defaults(Repair, method)
    settings = [f"{k}={v}" for k, v in _dict(raw, "settings").items() if v != default.get(k, ...)]
    needed = ["accuracy_before", "accuracy_after"]
    needed += ["success_before", "success_after"] if attack else []
    outcome, reason = "repaired", ""
    if raw.get("skipped"):
        outcome, reason = "skipped", str(raw["skipped"])
    elif raw.get("error") or any(_number(raw.get(k)) is None for k in needed):
        outcome, reason = "failed", str(raw.get("error") or "figures are missing")
    return Fix(
        net, task, attack or None, seed, method, _words([method, *settings]), share,
        str(raw.get("gate") or ""), outcome, reason,
        _words([attack, *options, kind]) if attack else "", raw,
    )  # fmt: skip


@dataclass(frozen=True)
class Look(Line):
    """A line of the bench of audits or of guards.

    Attributes:
        detector: name and the settings that differ from the defaults.
        reason: why nothing was measured, "" when it was.
        group: name of the attack, with options and training that are not numbers; "" for a clean net.
        raw: the line itself.
    """

    net: str
    task: str
    attack: str | None
    seed: int
    method: str
    detector: str
    gate: str
    reason: str
    group: str
    raw: Mapping[str, Any] = field(repr=False)

    def classes(self, key: str) -> tuple[int, ...]:
        """The classes that the line names under `key`."""
        return _classes(self.raw.get(key))

    @property
    def rate(self) -> float | None:
        """The poison rate of the attack as it was set: of all samples, or of the target class (`share`)."""
        options = {**attack_defaults(self.attack), **_dict(self.raw, "options")}
        return next((n for k in ("rate", "share") if (n := _number(options.get(k))) is not None), None)


def audit_of(raw: Mapping[str, Any]) -> Look | None:
    """The line as a `Look`; None when it is not a line of the bench of audits."""
    bad = bool(raw.get("attack"))
    shares, counts = ["fpr"] + ["tpr", "auroc"] * bad, ["flagged", "samples"] + ["poisoned", "missed"] * bad
    return _look(raw, "audit", dict.fromkeys(counts, MOST) | dict.fromkeys(shares, 1))


def guard_of(raw: Mapping[str, Any]) -> Look | None:
    """The line as a `Look`; None when it is not a line of the bench of guards."""
    judged = raw.get("attack") and raw.get("auroc") is not None
    return _look(raw, "guard", dict.fromkeys(["frr", *(["auroc", "far"] if judged else [])], 1))


def _look(raw: Mapping[str, Any], key: str, needed: Mapping[str, float]) -> Look | None:
    """The line of a method called `key`; figures that it needs are from 0 to so much."""
    texts, seed, attack = [raw.get(k) for k in ("net", "task", key)], raw.get("seed"), raw.get("attack")
    if not all(isinstance(t, str) and t for t in texts) or not isinstance(seed, int):
        return None
    if attack is not None and not isinstance(attack, str):
        return None
    net, task, method = (str(t) for t in texts)
    default = {**_defaults(SetDetector, method), **_defaults(SampleDetector, method)}
    settings = [f"{k}={v}" for k, v in _dict(raw, "settings").items() if v != default.get(k, ...)]
    kind = _words([_arch(raw, task), *_differing(_dict(raw, "recipe"), {})])
    options = _differing(_dict(raw, "options"), attack_defaults(attack))
    reason = str(raw.get("skipped") or raw.get("error") or "")
    figures = {k: _number(raw.get(k)) for k in needed}
    if not reason and any(v is None or not 0 <= v <= needed[k] for k, v in figures.items()):
        reason = "figures are missing or impossible"
    return Look(
        net, task, attack or None, seed, method, _words([method, *settings]), str(raw.get("gate") or ""),
        reason, _words([attack, *options, kind]) if attack else "", raw,
    )  # fmt: skip


def strength(scans: Sequence[Line]) -> str:
    """ "rate 0.01 to 0.1, epochs 3": numbers among options and training, where any differs."""
    parts = []
    training = TASKS[scans[0].task].recipe if scans[0].task in TASKS else None
    attack = attack_defaults(scans[0].attack)
    for table, default in (("options", attack), ("recipe", vars(training) if training else {})):
        given = [_dict(s.raw, table) for s in scans]
        for key in sorted({k for g in given for k, v in g.items() if _number(v) is not None}):
            values = {n for g in given if (n := _number(g.get(key, default.get(key)))) is not None}
            if values - {_number(default.get(key))}:
                low, high = (f"{v:g}" for v in (min(values), max(values)))
                parts.append(f"{key} {low}" + (f" to {high}" if low != high else ""))
    return ", ".join(parts)


def _number(value: object) -> float | None:
    """A finite number, or None."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if usable and math.isfinite(value) else None  # type: ignore[arg-type]
    except OverflowError:
        return None


def _classes(value: object) -> tuple[int, ...]:
    return tuple(v for v in value if isinstance(v, int)) if isinstance(value, list) else ()


def _dict(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


@lru_cache(maxsize=256)
def attack_defaults(name: str | None) -> Mapping[str, Any]:
    """Settings of an attack as it comes; nothing for one that this version does not know."""
    return _defaults(Attack, name or "")


@lru_cache(maxsize=256)
def _detector_defaults(name: str) -> Mapping[str, Any]:
    return _defaults(ModelDetector, name)


def _defaults(kind: type[Method], name: str) -> Mapping[str, Any]:
    try:
        return make(kind, name).settings()
    except BadInput:
        return {}


def _differing(options: dict[str, Any], default: Mapping[str, Any]) -> list[str]:
    """Options that are not numbers and not the defaults, in words; numbers are strengths (`strength`)."""
    return [
        _word(k, v) for k, v in sorted(options.items()) if _number(v) is None and v != default.get(k, ...)
    ]


def _arch(raw: Mapping[str, Any], task: str) -> str:
    """Name of the network where it is not the task's own."""
    arch = raw.get("arch")
    own = TASKS[task].arch if task in TASKS else None
    return "" if arch in (None, own) else str(arch)


def _word(key: str, value: object) -> str:
    if isinstance(value, bool):
        return key if value else f"no {key}"
    return "" if value is None else f"{key}={value}"


def _words(parts: Iterable[str | None]) -> str:
    return " ".join(p for p in parts if p)
