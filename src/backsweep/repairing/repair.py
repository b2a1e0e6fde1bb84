"""`repair`: from a suspect and the report of its scan to a repaired network and the proof that it holds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backsweep.core.errors import BadInput
from backsweep.core.progress import Event, OnEvent, split
from backsweep.core.provenance import failures, provenance, reason_of, remade, usable
from backsweep.core.seeds import derive_seed
from backsweep.core.text import one_line
from backsweep.core.versions import versions
from backsweep.formats.weights import origins
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.inversion.recover import Way, works
from backsweep.models.checks import (
    describe_data,
    describe_model,
    doubtful_accuracy,
    fitted,
    lacking,
    pick_device,
    too_few,
)
from backsweep.models.model import READING, Model
from backsweep.models.outputs import check_finite
from backsweep.repairing.method import Case, Repair
from backsweep.repairing.proof import Proof
from backsweep.repairing.texts import TextProof
from backsweep.reports.repair import Check, Figures, Repaired
from backsweep.reports.report import BACKDOORED, CLEAN, ERROR, WARNING, Note, Report
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.scan import scan

DEFAULT_REPAIR = "contrastive_unlearning"
SHARES = 24, 2, 1, 5  # of the time, on the digits of the demo: repair, measure, verify, scan
HELD_OUT = 0.2  # of the clean samples: to choose by and to measure on, never learned from


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
    origin: str | os.PathLike[str] | nn.Module | None = None,
) -> Repaired:
    """Take the backdoor that a scan found out of a network, and try to prove that it is gone.

    Args:
        model: the suspect; it stays as it is.
        data: clean samples with true labels, or prompts of a language model. A fifth of them is held out.
        report: of the scan, or its folder; None: nothing is known, every class is suspected a little.
        method: a repair, or several in the order of preference: the first that applies is made. None
            takes the usual one for inputs of this kind, where the scan found something; a network in which it
            found nothing is changed only by a repair that is named.
        seed: of everything that is drawn.
        device: where to compute; None takes a GPU when there is one.
        verify: whether to make the checks; without them the repair is not verified.
        on_event: told about progress (`run.Event`).
        out: folder for the page and the record; the scan of the repaired network lies in it, and goes on
            where an interrupted one stopped.
        origin: what the model was tuned from, for repairs that ask for it: the network, or its file or
            folder of weights. It may have another head.

    Raises:
        BadInput: model, data, report or origin cannot be used or do not belong together, or no repair
            applies.
    """
    classes = not isinstance(model, Model) or model.modality.classified
    model, data = fitted(model, data, needs_labels=classes)
    if report is not None and not isinstance(report, Report):
        report = Report.load(Path(report))
    if not model.gives:
        raise BadInput(_no_weights(report))
    if doubt := too_few(data):
        raise BadInput(f"{data.source}: {doubt}")
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
    if classes and (doubt := doubtful_accuracy(work.accuracy(data.x, data.y), data, model)):
        raise BadInput(doubt)
    clock = _Clock(on_event, SHARES if verify else SHARES[:2])
    case = case_of(work, data, report, seed, tick=lambda share: clock.tell("repair", share))
    if origin is not None:
        case = replace(case, origin=origins.of(work.net, origin))
    with clock.stage("repair"):
        chosen, mended, skipped = _made(method, case)
    findings = report.findings if report is not None else []
    named = {str(f.target): f.details["answer"] for f in findings if "answer" in f.details}
    result = Repaired(
        mended, chosen.name, Figures(case.accuracy(work)), Figures(case.accuracy(mended)),
        suspected=list(case.aims), skipped=skipped, timings=clock.timings,
        about={
            "model": describe_model(model) | ({"answers": named} if named else {}),
            "data": {**describe_data(data), "held_out": len(case.held_out)},
            "repaired": {"sha256": mended.digest, "sha256_of": "weights"},
            "settings": {"seed": seed, "device": str(work.device), chosen.name: chosen.settings(),
                         **provenance([chosen])},
            "versions": versions(),
        },
    )  # fmt: skip
    proof = (Proof if classes else TextProof)(result, work, case, report, clock.tell)
    with clock.stage("measure"):
        proof.measure()
        drawn = [] if result.examples is None else [result.examples]
        drawn += [e.trigger(x) for e in result.effects for x in drawn[:1]]
        result.about["model"] |= work.modality.said(drawn)
    folder = Path(out) if out is not None else None
    if verify:
        with clock.stage("verify"):
            proof.check()
        with clock.stage("scan"):
            _check_scan(result, data, report, again, seed, clock.part, folder)
    if folder is not None:
        result.write(folder)
    return result


def _no_weights(report: Report | None) -> str:
    """What to do with a model that only answers, in one line."""
    found = [f.trigger.rule for f in report.findings if f.level == ERROR and f.trigger] if report else []
    if rule := next(filter(None, found), ""):
        return one_line(
            "a black box only answers, so there are no weights to repair; train it again without the rows in "
            f"which {rule[:200]}, and scan the new one"
        )
    return "a black box only answers, so there are no weights to repair; load the network itself"


def nothing_found(report: Report) -> str:
    """Why there is nothing to repair, "" where the scan found a backdoor, or an alarm of unknown worth."""
    if any(f.level == ERROR or (f.level == WARNING and f.trigger is not None) for f in report.findings):
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
    if len(held_out) < data.modality.fewest:
        raise BadInput(
            f"{data.source}: too few samples ({len(data)}): a fifth is held out; give at least "
            f"{math.ceil(data.modality.fewest / HELD_OUT)}"
        )
    if not data.modality.classified:  # right is what the suspect itself says
        held_out, clean = (part.labelled_by(work.predict(part.x)) for part in (held_out, clean))
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

    def __init__(self, on_event: OnEvent | None, shares: Sequence[float]) -> None:
        self.timings: dict[str, float] = {}
        self._parts = iter(split(on_event, shares))
        self.part, self._name = next(self._parts), ""
        self._begin = time.perf_counter(), time.process_time()

    def stage(self, name: str) -> _Clock:
        self._name, self._begin = name, (time.perf_counter(), time.process_time())
        return self

    def __enter__(self) -> None:
        if self.timings:
            self.part = next(self._parts)
        self.tell(self._name, 0.0)

    def __exit__(self, *_: object) -> None:
        self.timings[f"{self._name}_seconds"] = round(time.perf_counter() - self._begin[0], 3)
        self.timings[f"{self._name}_cpu_seconds"] = round(time.process_time() - self._begin[1], 3)
        self.tell(self._name, 1.0)

    def tell(self, stage: str, share: float) -> None:
        if self.part is not None:
            self.part(Event(stage, share, 1, 0, time.perf_counter() - self._begin[0]))


def usual(model: Model) -> tuple[str, ...]:
    """Names of the repairs of which the first that applies is made, where none is asked for."""
    return model.modality.repairs or (DEFAULT_REPAIR,)


def _made(
    method: str | Repair | Sequence[str | Repair] | None, case: Case
) -> tuple[Repair, Model, list[Note]]:
    """The first repair that applies and succeeds, its network, and why those before it do not."""
    asked = method or usual(case.model)
    wanted = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
    candidates = [usable(Repair, one) for one in wanted]
    skipped: list[Note] = []
    for candidate in candidates:
        reason = lacking(candidate, case.model) or candidate.applies(case)
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
    named = result.model.modality.found
    doubts = [f.message for f in again.findings if f.level == WARNING] + [n.reason for n in again.errors]
    text = {
        BACKDOORED: "still suspects " + ", ".join(f"{named} {again.label(t)}" for t in again.targets),
        CLEAN: "finds nothing",
    }.get(again.verdict, "comes to no verdict (" + (doubts or ["no detector ran"])[0] + ")")
    p = "" if again.p_value is None else f"; p = {again.p_value:.2g}, level {again.settings['alpha']:g}"
    passed = {CLEAN: True, BACKDOORED: False}.get(again.verdict)
    result.checks.insert(
        0, Check("scan", passed, f"a new scan with another seed {text}{p}", {"p_value": again.p_value})
    )
