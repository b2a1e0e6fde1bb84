"""`audit`: from a training set and the network that was trained on it to the samples that are poisoned."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.auditing.detector import SetDetector, TrainingSet
from backsweep.auditing.learning import doubt_of, fresh
from backsweep.auditing.nulls import Together, measured, together
from backsweep.auditing.screened import Screened
from backsweep.auditing.verifying import verified
from backsweep.core.discovery import configure, find, kind_of, make
from backsweep.core.errors import BadInput
from backsweep.core.files import writable_folder
from backsweep.core.method import Method
from backsweep.core.progress import OnEvent, Stage
from backsweep.core.provenance import chosen, failures, provenance, reason_of, remade
from backsweep.core.seeds import derive_seed
from backsweep.core.versions import versions
from backsweep.guarding.detector import SampleDetector
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.modality import Modality
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import spaces_of
from backsweep.models.checks import (
    classifies,
    describe_data,
    describe_model,
    doubtful_accuracy,
    fitted,
    pick_device,
)
from backsweep.models.model import Model
from backsweep.reports.audit import MAP_ROWS, SCORED, Audit, Examples, scored_by
from backsweep.reports.report import ERROR, Evidence, Finding, Note, worst_first
from backsweep.scanning.calibration import doubted
from backsweep.scanning.cascade import population
from backsweep.scanning.scan import checked_alpha, judged, saved_elsewhere

DEFAULT_AUDITS = ("cross_confusion", "contamination_analyzer")
SMALL_AUDITS = ("contamination_analyzer", "reclassification")  # of sets of up to SMALL samples
SECOND = "network_scan"  # beside them, where only sets of other kinds are known
SMALL = 5000
MOST_SHOWN, PICTURES = 6, 24  # classes on the page, pictures of each kind
BATCH = 512
Detector = SetDetector | SampleDetector
Asked = str | Detector
KINDS: tuple[type[Method], ...] = (SampleDetector, SetDetector)  # what an audit may be made with


def audit(
    model: Model | nn.Module,
    data: Any,
    detectors: Sequence[Asked] | Asked | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    device: str | torch.device | None = None,
    clean: Any = None,
    verify: bool = False,
    train: Callable[[Data, int], Model] | None = None,
    features: tuple[Tensor, Tensor] | None = None,
    on_event: OnEvent | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Audit:
    """Look for poisoned samples in a training set.

    Args:
        model: a network that was trained on the set.
        data: the training set, with the labels that were trained: a `Data`, an (x, y) pair, a `Dataset`.
        detectors: names or instances, of detectors of training sets or of inputs; None takes the default.
        alpha: share of unpoisoned sets that may be called poisoned.
        seed: of everything that is drawn.
        device: where to compute; None takes a GPU when there is one.
        clean: samples that are known to be clean; some detectors need them.
        verify: whether to train a fresh network without the flagged samples, to measure it and, with `out`,
            to scan it; network and kept samples then lie there.
        train: how to train a fresh network on other samples with a seed; None takes the network's own
            architecture with weights drawn anew.
        features: penultimate features (N, D) and logits (N, classes) of the samples, if they are known.
        on_event: told about progress (`run.Event`).
        out: folder for the report.

    Raises:
        BadInput: model, data or settings cannot be used.
    """
    checked_alpha(alpha)
    clock = time.perf_counter(), time.process_time()
    classifies(model, "audits")
    model, data = fitted(model, data, whole=True, needs_labels=True)
    if not model.gives:
        raise BadInput("a black box only answers, and audits need its layers; load the network itself")
    clean = None if clean is None else fitted(model, clean, needs_labels=True)[1]
    methods = choose(usual(len(data), model.modality, model) if detectors is None else detectors)
    work = model.copy(pick_device(device))
    if features is not None:
        features = checked_features(features, len(data), work.classes)
    if out is not None:
        writable_folder(Path(out))
    stage = Stage(on_event, 1 + len(methods) + 2 * verify)
    z, logits = features or streamed(work, data.x, stage.named("features"))
    given = TrainingSet(
        data, work.classes, z, logits, work, train or partial(_fresh, model, None), clean, seed
    )
    accuracy = float((logits.argmax(1) == data.y).double().mean())
    report = Audit(
        model=describe_model(model),
        data={
            **describe_data(data), "classes_present": int(data.y.unique().numel()),
            "training_accuracy": accuracy, "clean": None if clean is None else clean.source,
        },
        settings={"alpha": alpha, "seed": seed, "device": str(work.device),
                  "detectors": {m.name: m.settings() for m in methods}, **provenance(methods)},
        versions=versions(), labels=data.y,
    )  # fmt: skip
    if doubt := doubtful_accuracy(accuracy, data, model):
        report.errors.append(Note("training accuracy", doubt))
        methods = []
    elif unlearned := doubt_of(accuracy):
        report.errors.append(Note("training accuracy", unlearned))
    if few := given.too_small():
        report.skipped.append(Note("small classes", few))
    for method in methods:
        tick = stage.named(method.name)
        told = replace(given, tick=tick, train=train or partial(_fresh, model, tick))
        if reason := method.applies(told):
            report.skipped.append(Note(method.name, reason))
            continue
        begin = time.perf_counter(), time.process_time()
        try:
            scores, evidence = method.measure(told)
            if scores.shape != (len(data),):
                raise ValueError(
                    f"its scores have shape {tuple(scores.shape)}, there are {len(data)} samples"
                )
            report.scores[method.name] = scores.float().cpu()
            report.evidence += evidence
        except failures(method) as e:
            report.errors.append(Note(method.name, f"failed: {reason_of(e)}"))
        stage.done()
        report.timings[f"{method.name}_seconds"] = round(time.perf_counter() - begin[0], 3)
        report.timings[f"{method.name}_cpu_seconds"] = round(time.process_time() - begin[1], 3)
    judge(report, detectors=methods)
    report.pictures = examples(report, given)
    if out is not None:
        report.save(Path(out))  # what was found is kept, whatever the training comes to
    if verify and not doubt:
        tick = stage.named("verify")
        try:
            verified(report, replace(given, train=train or partial(_fresh, model, tick)), stage, out)
        except (BadInput, RuntimeError, ArithmeticError, ValueError, TypeError) as e:
            report.skipped.append(Note("verify", f"failed: {' '.join(str(e).split())[:300]}"))
    report.timings["total_seconds"] = round(time.perf_counter() - clock[0], 3)
    report.timings["total_cpu_seconds"] = round(time.process_time() - clock[1], 3)
    if out is not None:
        report.save(Path(out))
    return report


def _fresh(model: Model, tick: Callable[[float], None] | None, data: Data, seed: int) -> Model:
    """A network like the one that is audited, trained on other samples."""
    return fresh(model, data, seed, tick=tick)


def judge(report: Audit, alpha: float | None = None, detectors: Sequence[Detector] | Detector = ()) -> Audit:
    """Judge an audit's evidence, again if need be, in place; needs neither model nor data.

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
    given = [detectors] if isinstance(detectors, SetDetector | SampleDetector) else detectors
    said = report.settings
    with saved_elsewhere(not given):
        again = [remade(KINDS, name, said["detectors"][name], said, given) for name in by_detector]
        methods = [as_set_detector(m) for m in again]
        said["detectors"] |= {m.name: m.settings() for m in methods}
        findings: list[Finding] = []
        own = {
            name: max(float(e.values["statistic"] or 0) for e in some) for name, some in by_detector.items()
        }
        parting = next((m.name for m in methods if m.independent), None)
        groups, methods = _joined(methods, own, report, by_detector)
        of = {m.name: next((g for g in groups if m.name in g.names), None) for m in methods}
        # detectors without a common table share alpha; one that can only say "cannot tell" takes no share
        doubtful = {m.name for m in methods if getattr(m, "cautious", False)}
        able = [n for n, g in of.items() if (g.least <= said["alpha"] if g else n not in doubtful)]
        for method in methods:
            group = of[method.name]
            part = float(len(group.names) if group else 1)
            if method.name in able:
                part *= len(methods) / len(able)
            alone = said["alpha"] * part / len(methods)
            null = group.of(method.name) if group else None
            found = judged(report, method, by_detector[method.name], alone, null)
            if null is None and measured(method):  # on images: 3 of 8 unpoisoned sets of tables had an alarm
                found = [doubted(f) for f in found]
            scored = {SCORED: parting} if group and group.second else {}
            weight = part * len(by_detector) / len(methods)  # who only joins others costs nothing
            findings += [replace(f, details={**f.details, "together": weight, **scored}) for f in found]
    report.findings = worst_first(findings)
    return report


def _joined(
    methods: Sequence[SetDetector], own: Mapping[str, float], report: Audit,
    evidence: Mapping[str, list[Evidence]],
) -> tuple[list[Together], list[SetDetector]]:  # fmt: skip
    """The tables that speak of detectors, and who is judged: what one says that does not hang on the samples
    joins the tables over other kinds, where there are any, and is not judged by itself."""
    others = [m for m in methods if not m.independent]
    groups = together(others, own, report.model, len(report.labels))
    second = {
        int(e.target or 0): float(p)
        for m in methods if m.independent
        for e in evidence[m.name] if (p := e.values.get("p_value")) is not None
    }  # fmt: skip
    if not any(g.kinds for g in groups):
        return groups, list(methods)
    return [replace(g, second=second) if g.kinds else g for g in groups], others


def configured(names: Sequence[str], settings: Sequence[str]) -> list[Detector]:
    """Detectors from a command line: names and `NAME.FIELD=VALUE` settings, in the order of the names.

    Raises:
        BadInput: as `plugins.configure`.
    """

    def of_inputs(text: str) -> bool:
        return kind_of(KINDS, text.partition(".")[0]) is SampleDetector

    found: dict[str, Detector] = {}
    of_sets = [n for n in names if not of_inputs(n)]
    if of_sets:
        some = configure(SetDetector, of_sets, [s for s in settings if not of_inputs(s)])
        found |= {m.name: m for m in some}
    if len(of_sets) < len(names):
        others = [n for n in names if of_inputs(n)]
        found |= {m.name: m for m in configure(SampleDetector, others, [s for s in settings if of_inputs(s)])}
    stray = [s for s in settings if not any(of_inputs(n) is of_inputs(s) for n in names)]
    if stray:
        raise BadInput(f"{stray[0]!r} sets a detector that does not run; add it with --detector")
    return [found[made(n).name] for n in names]


def made(name: str, settings: dict[str, Any] | None = None) -> Detector:
    """The detector of training sets or of inputs that is called `name`."""
    if kind_of(KINDS, name) is SampleDetector:
        return make(SampleDetector, name, settings)
    return make(SetDetector, find(SetDetector, name).name, settings)


def usual(samples: int, kind: Modality = IMAGE, model: Model | None = None) -> tuple[str, ...]:
    """The default detectors for a set of so many samples of a kind.

    A network forgets a small set too fast for `cross_confusion`; to train one more on it costs little.

    Args:
        model: the network, which is scanned too where only sets of other kinds are known, in place of what
            no table speaks of.
    """
    if kind.audits:
        return kind.audits
    names = SMALL_AUDITS if samples <= SMALL else DEFAULT_AUDITS
    if model is None or not population.speaks(spaces_of(model), model.classes):
        return names
    known = together(choose(names), dict.fromkeys(names, 1.0), describe_model(model), samples)
    if not any(t.kinds for t in known):
        return names
    return (*(n for n in names if any(n in t.names for t in known)), SECOND)  # others could not decide here


def choose(detectors: Sequence[Asked] | Asked | None) -> list[SetDetector]:
    """Instances of the detectors asked for, each at most once."""
    return [as_set_detector(m) for m in chosen(KINDS, detectors, DEFAULT_AUDITS, made)]


def as_set_detector(detector: Method) -> SetDetector:
    """The detector as an audit asks it; one of inputs is asked about every sample."""
    if isinstance(detector, SampleDetector):
        return Screened(detector)
    assert isinstance(detector, SetDetector)  # noqa: S101 - KINDS has these two
    return detector


def checked_features(features: tuple[Tensor, Tensor], samples: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits (N, classes) that were given, float32 on the CPU.

    Raises:
        BadInput: they are not of these samples and classes.
    """
    z, logits = features
    if z.ndim != 2 or len(z) != samples or tuple(logits.shape) != (samples, classes):
        raise BadInput(
            f"features {tuple(z.shape)} and logits {tuple(logits.shape)} do not fit: there are {samples} "
            f"samples and {classes} classes; give (N, D) and (N, classes)"
        )
    return z.detach().float().cpu(), logits.detach().float().cpu()


@torch.no_grad()
def streamed(
    model: Model, x: Tensor, tick: Callable[[float], None] = lambda _: None
) -> tuple[Tensor, Tensor]:
    """Penultimate features (N, D) and logits (N, classes) of x, batch by batch, float32 on the CPU."""
    features, logits = [], []
    for i, batch in enumerate(x.split(BATCH)):
        out, z = model.logits_and_embedded(batch.to(model.device), None)
        features.append(z.float().cpu())
        logits.append(out.float().cpu())
        tick(min(1.0, (i + 1) * BATCH / len(x)))
    return torch.cat(features), torch.cat(logits)


def examples(report: Audit, given: TrainingSet) -> list[Examples]:
    """What the page draws: the classes found poisoned, else the most suspicious one."""
    found = list(dict.fromkeys(f.target for f in report.findings if f.level == ERROR))
    first = list(dict.fromkeys(f.target for f in report.findings))[:1]
    shown = []
    for label in [c for c in (found or first) if c is not None][:MOST_SHOWN]:
        by = next((scored_by(f) for f in report.findings if f.target == label), "")
        if by not in report.scores:
            continue
        rows = given.of(label)
        order = rows[report.scores[by][rows].argsort(descending=True, stable=True)]
        few = order if len(order) <= MAP_ROWS else _spread(order)
        z = given.features[rows] - given.features[rows].mean(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(given.seed, "map", label))
            _, _, axes = torch.pca_lowrank(z, q=min(2, *z.shape), center=False)
        places = (given.features[few] - given.features[rows].mean(0)) @ axes
        places = places if places.shape[1] == 2 else torch.cat([places, torch.zeros(len(places), 1)], 1)
        suspicious, typical = order[:PICTURES], order.flip(0)[:PICTURES]
        pictures = given.data.x[torch.cat([suspicious, typical])]
        shown.append(Examples(label, few, places, suspicious, typical, pictures))
    return shown


def _spread(order: Tensor) -> Tensor:
    """`MAP_ROWS` of the samples in the order of suspicion: the first third in full, the rest evenly."""
    head = MAP_ROWS // 3
    step = torch.linspace(head, len(order) - 1, MAP_ROWS - head).round().long()
    return order[torch.cat([torch.arange(head), step]).unique()]
