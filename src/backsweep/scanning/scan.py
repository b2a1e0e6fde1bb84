"""`scan`: from a model and clean data to a report."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backsweep.core.discovery import find, make
from backsweep.core.errors import BadInput
from backsweep.core.files import writable_folder
from backsweep.core.method import Method
from backsweep.core.progress import OnEvent, Stage, split
from backsweep.core.provenance import chosen, failures, is_own, provenance, reason_of, remade
from backsweep.core.seeds import derive_seed, run_key
from backsweep.core.text import one_line
from backsweep.core.versions import versions
from backsweep.engine.engine import Engine
from backsweep.engine.jobs import Lost, cores
from backsweep.formats.opening import kind_of, load
from backsweep.formats.predicting import PREFIX
from backsweep.formats.tables import kind_told
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.kinds import recognised
from backsweep.inputs.modality import Modality
from backsweep.inputs.samples import Data, as_told
from backsweep.models.checks import (
    answered,
    as_reference,
    describe_data,
    describe_model,
    doubtful_accuracy,
    fitted,
    lacking,
    pick_device,
    too_few,
)
from backsweep.models.model import Model
from backsweep.models.washing import GIVEN, accuracy_of
from backsweep.reports.report import (
    SECOND,
    Evidence,
    Finding,
    Note,
    Report,
    checked_findings,
    trigger_file,
    worst_first,
)  # fmt: skip
from backsweep.scanning import calibration, opinions
from backsweep.scanning.collect import OutOfTime, collect
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.planning import told_of_all

DEFAULT_DETECTORS = ("cascade",)
TOLD = ("schema", "rate")  # settings of `load` that a report of the model does not hold
BLACK_BOX_DETECTORS = ("black_box_path",)  # of a network that only answers
EXAMPLES = 8
SHARES = 1, 40  # of the time: samples and accuracy; the detectors
OVER = "the budget of {:g} s ended: {}; of a part nothing is concluded, a scan with an output folder goes on"


def scan(
    model: Model | nn.Module,
    data: Any = None,
    detectors: Sequence[str | ModelDetector] | str | ModelDetector | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    device: str | torch.device | None = None,
    engine: str | Engine | None = None,
    on_event: OnEvent | None = None,
    out: str | os.PathLike[str] | None = None,
    reference: Model | nn.Module | None = None,
    effort: str | None = None,
    budget: float | None = None,
    confirm: bool = False,
) -> Report:
    """Look for a backdoor in a model.

    Args:
        model: a `Model`, or any module over inputs in [0, 1] (its classes are then read from its
            output).
        data: clean samples: a `Data`, an (x, y) pair, a torch `Dataset`, or a path, which is read as the
            model wants its inputs. Without labels the model's own answers take their place. None: those that
            come with Backsweep, for language models.
        detectors: names or instances, of classes that may stand anywhere; None takes the default ones.
        alpha: false-alarm rate that is accepted.
        seed: of everything that is drawn.
        device: where to compute; None takes a GPU when there is one.
        engine: where units of work are computed: an `Engine`, or "dask" or "ray" for one on this machine;
            None is this process, with a thread for every core (one for a GPU).
        on_event: told about progress (`run.Event`).
        out: folder for the report; a second scan with the same settings goes on where an
            interrupted one stopped.
        reference: an independent network for the same classes that is known to be clean, to compare
            with; None makes one from the suspect and the clean samples (`models/washing.py`).
        effort: "quick", "standard" or "thorough", for detectors that know it; None: as they are set.
        budget: seconds after which nothing is begun any more. What was not covered by then makes the report
            inconclusive; with `out` another scan goes on from there.
        confirm: ask for a second opinion (`opinions.py`), with another seed and, where there are enough,
            other samples; a class is called only where both call it.

    Raises:
        BadInput: model, data or settings cannot be used.
    """
    checked_alpha(alpha)
    clock = time.perf_counter(), time.process_time(), time.monotonic()
    model, data = fitted(model, data)
    methods = choose(usual(model) if detectors is None else detectors)
    methods = [with_effort(m, effort) for m in methods]
    until = math.inf if budget is None else clock[2] + checked_budget(budget)
    device = pick_device(device)
    engine = Engine(threads=cores() if device.type == "cpu" else 1) if engine is None else Engine.of(engine)
    work = model.copy(device)
    data = answered(work, data)
    data, others = opinions.parts(data, model.classes, seed) if confirm else (data, None)
    there = None if reference is None else as_reference(reference, model, data).copy(device)
    work.references = {} if there is None else {GIVEN: there}
    ready, first, again = split(on_event, (*SHARES, SHARES[1] * confirm))
    Stage(ready).named("clean samples")
    accuracy = accuracy_of(work, data) if data.labelled else None
    examples = data.sample(EXAMPLES, derive_seed(seed, "examples"))
    report = Report(
        model=describe_model(model),
        data={
            **describe_data(data),
            "classes_present": int(data.y.unique().numel()), "clean_accuracy": accuracy,
            "example_labels": examples.y.tolist() if data.modality.classified else [],
        },
        settings={
            "alpha": alpha, "seed": seed, "device": str(device),
            "detectors": {m.name: m.settings() for m in methods},
            "reference": there.digest if there else None,
            **({"confirm": True} if confirm else {}),
            **({"unranked": unranked} if (unranked := [m.name for m in methods if not m.ranked]) else {}),
            **provenance(methods),
        },
        versions=versions(),
        examples=examples.x,
    )  # fmt: skip
    folder = writable_folder(Path(out)) if out is not None else None
    doubt = too_few(data)
    if doubt:
        report.errors.append(Note("clean samples", doubt))
    elif accuracy is not None and (doubt := doubtful_accuracy(accuracy, data, model)):
        report.errors.append(Note("clean accuracy", doubt))
    usable = []
    for method in [] if doubt else methods:
        if reason := lacking(method, work) or method.applies(work, data):
            report.skipped.append(Note(method.name, reason))
        else:
            usable.append(method)
    listening = told_of_all(usable, work, data, engine.workers or engine.threads or 1, first)
    for method, heard in zip(usable, listening, strict=True):
        key = run_key(
            model=model.digest, data=data.digest, detector=method.name, settings=method.settings(),
            files=method.depends_on(), seed=seed, versions=report.versions, device=device.type,
            chunk=method.chunk(work),
            preprocessing=[model.mean, model.std, model.layer, *model.reading.items()],
            reference=there.digest if there else None, **provenance([method]),
        )  # fmt: skip
        begin = time.perf_counter(), time.process_time()
        try:
            for evidence in collect(method, work, data, seed, key, folder, heard, engine, until):
                report.evidence.append(evidence)
        except OutOfTime as e:
            report.evidence = [x for x in report.evidence if x.detector != method.name]
            report.errors.append(Note(method.name, OVER.format(budget, e)))
        except failures(method, Lost) as e:
            report.errors.append(Note(method.name, f"failed: {reason_of(e)}"))
        report.timings[f"{method.name}_seconds"] = round(time.perf_counter() - begin[0], 3)
        report.timings[f"{method.name}_cpu_seconds"] = round(time.process_time() - begin[1], 3)
    stamped = {
        trigger_file(e.detector, e.unit): e.trigger(examples.x)
        for e in report.evidence
        if e.trigger is not None
    }
    report.model |= model.modality.said([examples.x, *stamped.values()])
    report.data["example_answers"] = work.predict(examples.x).tolist()
    report.data["stamped_answers"] = {key: work.predict(x).tolist() for key, x in stamped.items()}
    if others is not None:
        report.second = scan(
            model, others, methods, alpha, derive_seed(seed, opinions.SECOND), device, engine,
            opinions.retold(again), folder / SECOND if folder else None, reference,
            budget=None if budget is None else max(1e-3, until - time.monotonic()),
        )  # fmt: skip
        report.errors += opinions.failed(report)
    judge(report, detectors=methods)
    report.timings["total_seconds"] = round(time.perf_counter() - clock[0], 3)
    report.timings["total_cpu_seconds"] = round(time.process_time() - clock[1], 3)
    if folder is not None:
        report.save(folder)
    return report


def judge(
    report: Report,
    alpha: float | None = None,
    detectors: Sequence[ModelDetector] | ModelDetector = (),
) -> Report:
    """Judge a report's evidence, again if need be, in place; needs neither model nor data.

    Args:
        report: with evidence.
        alpha: another false-alarm rate than the one it was made with.
        detectors: instances that judge as they are. Others are made from the settings in the report: by
            name, or from the class that the report names where its module has been imported.

    Raises:
        BadInput: a detector of the report is not known here.
    """
    if alpha is not None:
        report.settings["alpha"] = checked_alpha(alpha)
    by_detector: dict[str, list[Evidence]] = {}
    for e in report.evidence:
        by_detector.setdefault(e.detector, []).append(e)
    given = [detectors] if isinstance(detectors, ModelDetector) else detectors
    said = report.settings
    with saved_elsewhere(not given):
        methods = [
            remade((ModelDetector,), name, said["detectors"][name], said, given) for name in by_detector
        ]
        for m in methods:  # what an older version did not record is not added
            recorded = m.settings() if m in given else said["detectors"][m.name]
            said["detectors"][m.name] = {k: v for k, v in m.settings().items() if k in recorded}
        findings: list[Finding] = []
        share = said["alpha"] / max(1, sum(m.ranked for m in methods))
        for method in methods:
            findings += judged(report, method, by_detector[method.name], share)
    if report.second is not None:
        findings = opinions.joined(findings, judge(report.second, alpha, detectors).findings)
    report.findings = worst_first(findings)
    return report


@contextlib.contextmanager
def saved_elsewhere(read: bool = True) -> Iterator[None]:
    """What goes wrong while the evidence of a report is judged that was read: the report is damaged.

    Args:
        read: False where the evidence was just measured; then it is a defect of ours.

    Raises:
        BadInput: anything went wrong.
    """
    try:
        yield
    except Exception as e:
        if isinstance(e, BadInput) or not read:
            raise
        reason = one_line(f"{type(e).__name__}: {e}")[:200]
        raise BadInput(
            f"the evidence of this report cannot be judged ({reason}); it is damaged, or of another version"
        ) from e


def judged(
    report: Report,
    method: calibration.Judging,
    evidence: Sequence[Evidence],
    alpha: float,
    null: calibration.Standard | None = None,
) -> list[Finding]:
    """What one detector finds. Where one from outside fails, that is an error in the report."""
    own = isinstance(method, Method) and is_own(method)
    try:
        findings = calibration.judge(method, evidence, report.model, alpha, null)
        return findings if own else checked_findings(method.name, findings)
    except Exception as e:
        if own:
            raise
        note = Note(method.name, f"its judging failed: {reason_of(e)}")
        report.errors = [n for n in report.errors if n != note] + [note]
        return []


def with_effort(method: ModelDetector, effort: str | None) -> ModelDetector:
    """A detector with another effort, if it knows what that is.

    Raises:
        BadInput: there is no such effort.
    """
    if effort is None or "effort" not in method.settings():
        return method
    try:
        return replace(method, effort=effort)  # type: ignore[call-arg]
    except ValueError as e:
        raise BadInput(str(e)) from e


def checked_budget(budget: float) -> float:
    """A number of seconds that can be.

    Raises:
        BadInput: it is not positive.
    """
    if not 0 < budget < math.inf:
        raise BadInput(f"a budget of {budget} s is none: give some time, such as 10m")
    return budget


def checked_alpha(alpha: float) -> float:
    """A false-alarm rate that can be.

    Raises:
        BadInput: not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise BadInput(f"alpha {alpha} is not between 0 and 1")
    return alpha


def open_both(
    model: str, data: str | None, *, shape: Sequence[int] | None = None, resize: bool = False,
    split: str | None = None, labels: str | None = None, whole: bool = False, **settings: Any,
) -> tuple[Model, Data]:  # fmt: skip
    """Load a model file and open clean data for it.

    A file that says its own input shape decides how the data is read; one that does not takes the
    shape of the data.

    Args:
        model, data: paths; without data those that come with Backsweep for inputs of this kind.
        shape: of one input, if it is to be forced.
        resize: resize images to the model's input; models that say so themselves need no asking.
        split, labels, whole: of `Data.open`.
        settings: of `load`.
    """
    told_of_model = {key: settings.get(key) for key in TOLD}
    how: dict[str, Any] = {"split": split, "labels": labels, "whole": whole}
    said = shape is not None or settings.get("tokenizer") is not None or settings.get("rate") is not None
    told = said or resize or data is None
    unknown = not told and (settings.get("arch") is not None or _sizeless(model))
    table = kind_told(data, settings.pop("schema", None)) if data is not None else None
    if table is not None:
        unknown, (kind, settings["schema"]) = True, table
    elif data is None or (said and settings.get("rate") is None):
        kind = IMAGE
    else:
        kind = recognised(Path(data)) or IMAGE
    found = Data.open(data, modality=kind, **how) if unknown and data is not None else None
    data_shape = tuple(found.x.shape[1:]) if found is not None else None
    loaded = load(model, **settings, shape=shape, data_shape=data_shape, data_modality=kind)
    if data is None:
        return fitted(loaded, None, whole=whole)
    same = found is not None and loaded.shape == data_shape and loaded.modality == found.modality
    if found is None or not same or loaded.labels is not None:
        found = Data.open(
            data, shape=loaded.shape, names=loaded.labels, resize=resize or loaded.resize,
            modality=loaded.modality, **how,
        )  # fmt: skip
    found.told = as_told(**told_of_model, resize=resize, split=split, labels=labels)
    return fitted(loaded, found, whole=whole)


def _sizeless(model: str) -> bool:
    """Whether a model may leave the shape of its inputs to the samples: a service, a program of any size."""
    if model.startswith(PREFIX):
        return True
    path = Path(model)
    try:
        return path.is_file() and kind_of(path.read_bytes()) in ("ONNX", "TorchScript")
    except (OSError, BadInput):  # which reading it says better
        return False


def usual_of(modality: Modality, adapter: bool = False) -> tuple[str, ...]:
    """Names of the detectors of a scan that is told none, for networks over a modality, or adapters."""
    return (modality.detectors or DEFAULT_DETECTORS) + (modality.of_adapters if adapter else ())


def usual(model: Model) -> tuple[str, ...]:
    """Names of the detectors of a scan that is told none."""
    if model.gives:
        return usual_of(model.modality, model.base is not None)
    own = model.modality.detectors
    return tuple(n for n in own if not find(ModelDetector, n).needs) or BLACK_BOX_DETECTORS


def choose(detectors: Sequence[str | ModelDetector] | str | ModelDetector | None) -> list[ModelDetector]:
    """Instances of the detectors asked for, each at most once."""
    return chosen((ModelDetector,), detectors, DEFAULT_DETECTORS, partial(make, ModelDetector))
