"""`repair`: from a suspect and the report of its scan to a repaired network and the proof that it holds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backsweep.core.errors import BadInput
from backsweep.core.progress import Event, OnEvent
from backsweep.core.provenance import failures, provenance, reason_of, remade, usable
from backsweep.core.seeds import derive_seed
from backsweep.core.versions import versions
from backsweep.inputs.samples import MIN_SAMPLES, Data
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.inversion.recover import Way, recover, works
from backsweep.models.checks import (
    classifies,
    describe_model,
    doubtful_accuracy,
    fitted,
    pick_device,
    too_few,
)
from backsweep.models.model import READING, Model
from backsweep.models.outputs import check_finite
from backsweep.models.washing import reference_of
from backsweep.repairing.method import Case, Repair
from backsweep.repairing.relapse import POISONS, retuned
from backsweep.reports.repair import Answers, Check, Effect, Figures, Repaired
from backsweep.reports.report import BACKDOORED, CLEAN, ERROR, WARNING, Note, Report
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.scan import scan

DEFAULT_REPAIR = "contrastive_unlearning"
HELD_OUT = 0.2  # of the clean samples: to choose by and to measure on, never learned from
MOST_LOSS = 0.015  # clean accuracy that a verified repair may cost
MOST_SUCCESS, MOST_RELAPSE = 0.10, 0.20  # attack success rates that a verified repair may leave
BEYOND_NATURAL = 0.05  # or so much more than on the washed reference, which no backdoor helps
NATURAL = 0.25  # triggers that work on more of the samples on the washed reference are natural shortcuts
MOST_RETUNED = 3  # triggers that re-tuning is tried with
EXAMPLES, STRIPS = 4, 3


def repair(
    model: Model | nn.Module,
    data: Any,
    report: Report | str | os.PathLike[str] | None,
    method: str | Repair | Sequence[str | Repair] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    verify: bool = True,
    on_event: OnEvent | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Repaired:
    """Take the backdoor that a scan found out of a network, and try to prove that it is gone.

    Args:
        model: the suspect; it stays as it is.
        data: clean samples with true labels. A fifth of them is held out.
        report: of the scan, or its folder; None: nothing is known, every class is suspected a little.
        method: a repair, or several in the order of preference: the first that applies is made. None
            takes the default one, where the scan found something; a network in which it found nothing is
            changed only by a repair that is named.
        seed: of everything that is drawn.
        device: where to compute; None takes a GPU when there is one.
        verify: whether to make the checks; without them the repair is not verified.
        on_event: told about progress (`run.Event`).
        out: folder for the page and the record; the scan of the repaired network lies in it, and goes on
            where an interrupted one stopped.

    Raises:
        BadInput: model, data or report cannot be used or do not belong together, or no repair applies.
    """
    classifies(model, "repairs")
    model, data = fitted(model, data, needs_labels=True)
    if not model.gives:
        raise BadInput("a black box only answers, so there are no weights to repair; load the network itself")
    if doubt := too_few(data):
        raise BadInput(f"{data.source}: {doubt}")
    if report is not None and not isinstance(report, Report):
        report = Report.load(Path(report))
    if report is not None and report.model.get("sha256") != model.digest:
        raise BadInput(
            "the report is of another model than this one (their SHA-256 differ); scan this model first, "
            "and give that report"
        )
    if report is not None and any(report.model.get(k) != model.reading.get(k) for k in READING):
        raise BadInput(
            "the report is of this file read in another way; give the same weights= (--weights), "
            "pixel_range= (--input-range) and layout= (--layout) as in the scan"
        )
    if method is None and report is not None and (reason := nothing_found(report)):
        raise BadInput(f"{reason}; name a method to repair it all the same (--method)")
    again = detectors_of(report) if verify else []
    work = model.copy(pick_device(device))
    if doubt := doubtful_accuracy(work.accuracy(data.x, data.y), data, model):
        raise BadInput(doubt)
    clock = _Clock(on_event)
    case = case_of(work, data, report, seed, tick=lambda share: clock.tell("repair", share))
    with clock.stage("repair"):
        chosen, mended, skipped = _made(method, case)
    result = Repaired(
        mended, chosen.name, Figures(case.accuracy(work)), Figures(case.accuracy(mended)),
        suspected=list(case.aims), skipped=skipped, timings=clock.timings,
        about={
            "model": describe_model(model),
            "data": {"source": data.source, "sha256": data.digest, "samples": len(data),
                     "is_path": Path(data.source).exists(), "held_out": len(case.held_out)},
            "repaired": {"sha256": mended.digest, "sha256_of": "weights"},
            "settings": {"seed": seed, "device": str(work.device), chosen.name: chosen.settings(),
                         **provenance([chosen])},
            "versions": versions(),
        },
    )  # fmt: skip
    with clock.stage("measure"):
        _measure(result, work, case, report, clock)
    folder = Path(out) if out is not None else None
    if verify:
        with clock.stage("verify"):
            _check_figures(result, case)
            _check_retuning(result, work, case, clock)
        with clock.stage("scan"):
            _check_scan(result, data, report, again, seed, on_event, folder)
    if folder is not None:
        result.write(folder)
    return result


def nothing_found(report: Report) -> str:
    """Why there is nothing to repair, "" where the scan found a backdoor."""
    if any(f.level == ERROR for f in report.findings):
        return ""
    found = "could not tell" if report.verdict != CLEAN else "found no backdoor"
    return f"the scan {found}, so there is nothing to take out: the model stays as it is"


def detectors_of(report: Report | None) -> list[ModelDetector]:
    """The detectors that the suspect was scanned with, for the scan of the repaired network.

    Raises:
        BadInput: one is not known here.
    """
    said: dict[str, Any] = report.settings if report is not None else {}
    return [remade((ModelDetector,), name, own, said) for name, own in said.get("detectors", {}).items()]


def case_of(
    work: Model,
    data: Data,
    report: Report | None,
    seed: int,
    tick: Callable[[float], None] = lambda _share: None,
) -> Case:
    """What a repair may know: the samples, a fifth of them held out, and what the scan suspects.

    Of the triggers that the scan recovered it gets those that work on these samples.
    """
    held_out, clean = data.parted(HELD_OUT, derive_seed(seed, "held out"))
    if len(held_out) < MIN_SAMPLES:
        raise BadInput(
            f"{data.source}: too few samples ({len(data)}): a fifth is held out; give at least "
            f"{math.ceil(MIN_SAMPLES / HELD_OUT)}"
        )
    ways: list[Way] = []
    triggers: list[Trigger] = []
    if report is not None:
        flagged = [f for f in report.findings if f.level == ERROR]
        ways = list(dict.fromkeys((f.source, f.target) for f in flagged))
        named = {c for way in ways for c in way if c is not None}
        if not named <= set(range(work.classes)):
            raise BadInput(f"the report suspects class {max(named)}, the model has {work.classes} classes")
        targets = {t for _, t in ways}
        recovered = [e.trigger for e in report.evidence if e.trigger is not None and e.target in targets]
        try:
            triggers = [t for t in recovered if works(work, t, clean)]
        except (RuntimeError, ValueError, IndexError) as e:
            raise BadInput(f"a trigger of the report does not fit the model's inputs {work.shape}") from e
    return Case(work, clean, held_out, triggers, ways, seed, tick)


class _Clock:
    """Progress and the time that every stage takes."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self.timings: dict[str, float] = {}
        self._on_event, self._name = on_event, ""
        self._begin = time.perf_counter(), time.process_time()

    def stage(self, name: str) -> _Clock:
        self._name, self._begin = name, (time.perf_counter(), time.process_time())
        return self

    def __enter__(self) -> None:
        self.tell(self._name, 0.0)

    def __exit__(self, *_: object) -> None:
        self.timings[f"{self._name}_seconds"] = round(time.perf_counter() - self._begin[0], 3)
        self.timings[f"{self._name}_cpu_seconds"] = round(time.process_time() - self._begin[1], 3)
        self.tell(self._name, 1.0)

    def tell(self, stage: str, share: float) -> None:
        if self._on_event is not None:
            self._on_event(Event(stage, share, 1, 0, time.perf_counter() - self._begin[0]))


def _made(
    method: str | Repair | Sequence[str | Repair] | None, case: Case
) -> tuple[Repair, Model, list[Note]]:
    """The first repair that applies and succeeds, its network, and why those before it do not."""
    wanted = (
        method if isinstance(method, Sequence) and not isinstance(method, str) else [method or DEFAULT_REPAIR]
    )
    candidates = [usable(Repair, one) for one in wanted]
    skipped: list[Note] = []
    for candidate in candidates:
        reason = candidate.applies(case)
        if not reason:
            try:
                return candidate, applied(candidate, case), skipped
            except failures(candidate, BadInput) as e:
                reason = f"failed: {reason_of(e)}"
        skipped.append(Note(candidate.name, reason))
    raise BadInput("no repair could be made: " + "; ".join(f"{n.what}: {n.reason}" for n in skipped))


def applied(method: Repair, case: Case) -> Model:
    """The repaired network, known by a digest of its own; it may share the suspect's weights.

    Raises:
        BadInput: a weight is NaN or infinite.
    """
    mended = method.apply(case).by_weights()
    mended.references, mended.changes = {}, {}
    check_finite(mended.net)
    return mended


# ---------------------------------------------------------------------- figures


def _measure(result: Repaired, work: Model, case: Case, report: Report | None, clock: _Clock) -> None:
    """Every recovered trigger, of the scan and fresh, on the held-out samples before and after."""
    reference = reference_of(work, case.clean, derive_seed(case.seed, "measure"))
    clock.tell("measure", 0.4)
    fresh = recover(work, case.clean, case.aims, derive_seed(case.seed, "fresh"))
    clock.tell("measure", 0.8)
    found_by = {id(e.trigger): e.detector for e in report.evidence} if report is not None else {}
    for name, is_fresh, trigger in (
        *((f"{found_by[id(t)]}, {t.family}", False, t) for t in case.triggers),
        *((n, True, t) for n, t in fresh),
    ):
        there = case.held_out[acted_on(trigger, case.held_out.y, work.classes)]
        if len(there) == 0:
            continue
        rates = [m.success_rate(trigger, there) for m in (work, result.model, reference)]
        if rates[2] > NATURAL:  # it says nothing of a backdoor
            continue
        robust = [m.accuracy(trigger(there.x), there.y) for m in (work, result.model)]
        result.effects.append(
            Effect(name, is_fresh, trigger, rates[0], rates[1], robust[0], robust[1], rates[2])
        )
    if result.effects:
        all_of = result.effects
        before, after = result.before.clean_accuracy, result.after.clean_accuracy
        result.before = Figures(before, max(e.before for e in all_of), min(e.robust_before for e in all_of))
        result.after = Figures(after, max(e.after for e in all_of), min(e.robust_after for e in all_of))
    _answer(result, work, case)


def _answer(result: Repaired, work: Model, case: Case) -> None:
    """What both networks say of a few held-out examples, with the triggers that worked best."""
    shown: list[int] = []
    best = sorted(range(len(result.effects)), key=lambda i: -result.effects[i].before)[:STRIPS]
    for i in best:
        trigger = result.effects[i].trigger
        rows = torch.nonzero(acted_on(trigger, case.held_out.y, work.classes)).flatten()
        y = case.held_out.y[rows]
        first = torch.stack([rows[y == c][0] for c in y.unique()])  # of every class, or of the only one
        some = spread(first if len(first) > 1 else rows, EXAMPLES).tolist()
        x, labels = case.held_out.x[some], case.held_out.y[some].tolist()
        said = [m.predict(v).tolist() for v in (x, trigger(x)) for m in (work, result.model)]
        for k, row in enumerate(some):
            if row not in shown:
                shown.append(row)
            before, after, triggered_before, triggered_after = (s[k] for s in said)
            result.answers.append(
                Answers(shown.index(row), i, before, after, triggered_before, triggered_after, labels[k])
            )
    if shown:
        result.examples = case.held_out.x[shown]


def spread(rows: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of the rows, evenly spread."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]


# ---------------------------------------------------------------------- checks


def _limit(effect: Effect) -> float:
    return max(MOST_SUCCESS, (effect.natural or 0.0) + BEYOND_NATURAL)


def _check_figures(result: Repaired, case: Case) -> None:
    """Clean accuracy, and the triggers, old and fresh."""
    before, after = result.before.clean_accuracy, result.after.clean_accuracy
    limit = max(MOST_LOSS, 2 / len(case.held_out))  # two samples tell nothing
    result.checks.append(Check(
        "clean accuracy", after >= before - limit,
        f"{after:.1%} of {len(case.held_out)} held-out samples are right, {before:.1%} before; "
        f"at most {100 * limit:.1f} points may be lost",
        {"before": before, "after": after, "limit": limit},
    ))  # fmt: skip
    for name, is_fresh in (("old triggers", False), ("fresh triggers", True)):
        some = [e for e in result.effects if e.fresh == is_fresh]
        if not some:
            passed = None if case.aims and (is_fresh or not result.effects) else True
            why = "none was recovered that works" if case.aims else "the scan suspects nothing"
            result.checks.append(Check(name, passed, f"there is no trigger to try: {why}"))
            continue
        worst = max(some, key=lambda e: e.after - _limit(e))
        result.checks.append(Check(
            name, all(e.after <= _limit(e) for e in some),
            f"of {len(some)}, the worst ({worst.name}) works on {worst.after:.1%} of the samples, "
            f"{worst.before:.1%} before; the limit is {_limit(worst):.1%}"
            + (f", as {worst.natural:.1%} fall for it by nature" if _limit(worst) > MOST_SUCCESS else ""),
            {"before": worst.before, "after": worst.after, "natural": worst.natural, "limit": _limit(worst)},
        ))  # fmt: skip


def _check_retuning(result: Repaired, work: Model, case: Case, clock: _Clock) -> None:
    """Whether a few poisoned samples, made with a recovered trigger, bring the backdoor back."""
    best: dict[Way, Effect] = {}
    for e in sorted(result.effects, key=lambda e: -(e.before - (e.natural or 0.0))):
        best.setdefault((e.trigger.source, e.trigger.target), e)
    if not best:
        passed = None if case.aims else True
        result.checks.append(Check("re-tuning", passed, "there is no trigger to re-tune with"))
        return
    reference = reference_of(work, case.clean, derive_seed(case.seed, "measure"))
    outcomes: list[tuple[float, float, float, float, str]] = []
    for way, effect in list(best.items())[:MOST_RETUNED]:
        seed = derive_seed(case.seed, "verify", *way)
        rates = [
            retuned(m, case.clean, effect.trigger, seed).success_rate(effect.trigger, case.held_out)
            for m in (result.model, reference)
        ]
        limit = max(MOST_RELAPSE, rates[1] + 2 * BEYOND_NATURAL)
        outcomes.append((rates[0] - limit, rates[0], rates[1], limit, effect.name))
        clock.tell("verify", len(outcomes) / min(len(best), MOST_RETUNED))
    excess, rate, natural, limit, name = max(outcomes)
    result.checks.append(Check(
        "re-tuning", excess <= 0,
        f"after re-tuning on {POISONS} poisoned samples the trigger ({name}) works on {rate:.1%} of the "
        f"samples, on the washed reference after the same on {natural:.1%}; the limit is {limit:.1%}",
        {"after": rate, "reference": natural, "limit": limit, "triggers": float(len(outcomes))},
    ))  # fmt: skip


def _check_scan(
    result: Repaired,
    data: Data,
    report: Report | None,
    detectors: list[ModelDetector],
    seed: int,
    on_event: OnEvent | None,
    folder: Path | None,
) -> None:
    """A scan of the repaired network like the one of the suspect, with another seed."""
    settings = report.settings if report is not None else {}
    place = folder / "scan" if folder is not None else None
    result.scan = again = scan(
        result.model, data, detectors or None, alpha=settings.get("alpha", 0.05),
        seed=derive_seed(seed, "scan", settings.get("seed", 0)), device=result.model.device,
        on_event=on_event, out=place,
    )  # fmt: skip
    doubts = [f.message for f in again.findings if f.level == WARNING] + [n.reason for n in again.errors]
    text = {
        BACKDOORED: "still suspects " + ", ".join(f"class {again.label(t)}" for t in again.targets),
        CLEAN: "finds nothing",
    }.get(again.verdict, "comes to no verdict (" + (doubts or ["no detector ran"])[0] + ")")
    p = "" if again.p_value is None else f"; p = {again.p_value:.2g}, level {again.settings['alpha']:g}"
    passed = {CLEAN: True, BACKDOORED: False}.get(again.verdict)
    result.checks.insert(
        0, Check("scan", passed, f"a new scan with another seed {text}{p}", {"p_value": again.p_value})
    )
