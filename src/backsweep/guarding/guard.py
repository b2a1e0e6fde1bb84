"""`guard`: which inputs carry a trigger, while a model runs.

A guard is one or several fitted sample detectors, whose scores are brought to one scale, and a threshold
that a clean input exceeds with a chosen probability. It is saved as tensors and JSON.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from backsweep.core.discovery import drawn, make
from backsweep.core.equality import Same
from backsweep.core.errors import BadInput
from backsweep.core.files import writable_folder, write_bytes, write_json
from backsweep.core.progress import Event, OnEvent
from backsweep.core.provenance import chosen, failures, provenance, reason_of, remade
from backsweep.core.seeds import derive_seed
from backsweep.core.text import one_line
from backsweep.core.versions import versions
from backsweep.guarding.conformal import Drift, Surprise, compared, joint, left_out
from backsweep.guarding.detector import BATCH, SampleDetector, Scorer, threshold
from backsweep.guarding.guarded import Guarded
from backsweep.guarding.record import KIND, RECORD, SCHEMA, TENSORS, read_record
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.kinds import modality_named
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.checks import (
    answered,
    describe_data,
    describe_model,
    doubtful_accuracy,
    fitted,
    lacking,
    pick_device,
    too_few,
)
from backsweep.models.model import READING, Model
from backsweep.reports.report import Note

DEFAULT_GUARDS = ("confused_expert", "pupil")
BLACK_BOX_GUARDS = ("strip",)  # for a network that only answers
PARTS = 3  # from one of these parts of the clean samples nothing is learned
SETTINGS = ("shape", "classes", "mean", "std", "layer", *READING)  # of a model, that its guard hangs on
PROBES, PROBE_SLACK = 2, 0.01  # inputs by which a model is known again, and how far its logits may be off


class Answers(NamedTuple):
    """What a guarded model says of N inputs: classes (of flagged ones too), scores, and which are flagged."""

    labels: Tensor
    scores: Tensor
    flagged: Tensor


@dataclass(frozen=True, eq=False)
class Guard(Same):
    """Detectors fitted to one model, and the threshold of their joint score.

    The score of an input is the sum of the surprises of the detectors (Fisher's way to join p-values).

    Attributes:
        model: a frozen working copy.
        detectors: what looks at inputs.
        scorers: the same, fitted, by name.
        calibration: joint scores of clean samples that no detector has seen, each among the others.
        fpr: share of clean inputs that may be flagged.
        skipped: detectors that are left out, with the reason.
        about: model, data, versions, and whether surprises are bounded (`joint`), for the record.
    """

    model: Model
    detectors: Sequence[SampleDetector]
    scorers: Mapping[str, Scorer]
    calibration: Tensor
    fpr: float
    skipped: list[Note] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    threshold: float = field(init=False)
    _surprises: dict[str, Surprise] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_surprises", {n: Surprise(s.clean) for n, s in self.scorers.items()})
        object.__setattr__(self, "threshold", threshold(self.calibration, self.fpr))

    def __repr__(self) -> str:
        return f"Guard({', '.join(self.scorers)}; fpr={self.fpr}, threshold={self.threshold:.4g})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return drawn(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds what the scorers were made from; they themselves are functions."""
        made_from = {name: (s.learned, s.clean) for name, s in self.scorers.items()}
        rest = (self.calibration, self.fpr, self.skipped, self.about)
        return _again, (self.model, self.detectors, made_from, *rest)

    @property
    def passes(self) -> float:
        """Forward passes of the model that one guarded answer costs; 1 is the answer itself."""
        return 1 + sum(d.passes(self.model) for d in self.detectors)

    def score(self, x: Any) -> Tensor:
        """Scores (N,) of inputs x (N, *shape), float64 on the CPU, finite; higher = more suspicious.

        Args:
            x: floats in [0, 1], or bytes; a single input and grey images without a channel are understood.

        Raises:
            BadInput: x is of another shape, not finite or outside [0, 1].
        """
        return self.answers(self.inputs(x))[1]

    def flag(self, x: Any) -> Tensor:
        """Which inputs are suspicious (N,), a boolean tensor: their score is above the threshold."""
        return self.score(x) > self.threshold

    def predict(self, x: Any) -> Answers:
        """The model's classes together with scores and flags."""
        logits, scores = self.answers(self.inputs(x))
        return Answers(logits.argmax(1), scores, scores > self.threshold)

    def wrapped(self) -> Guarded:
        """A module that abstains from what is flagged."""
        return Guarded(self.inputs, self.answers, self.threshold)

    def drift(self, scores: Tensor) -> Drift:
        """Whether the inputs with these scores are still like the clean samples of the calibration."""
        return compared(scores, self.calibration, self.threshold, self.fpr)

    def inputs(self, x: Any) -> Tensor:
        """Inputs (N, *shape), float32 in [0, 1] on the CPU, from what a user has.

        Raises:
            BadInput: x is of another shape, not finite or outside [0, 1].
        """
        shape = self.model.shape
        try:
            x = torch.as_tensor(x).detach().cpu()
        except (TypeError, ValueError, RuntimeError, OverflowError) as e:
            raise BadInput(f"the inputs are not made of numbers ({one_line(str(e))[:120]})") from e
        have = tuple(x.shape)
        x = self.model.modality.batch(x, shape)
        if tuple(x.shape[1:]) != shape:
            raise BadInput(
                f"the inputs have shape {have}; this model takes (N, {', '.join(map(str, shape))})"
            )
        return self.model.modality.samples(x) if len(x) else x.float()

    @torch.no_grad()
    def answers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) and scores (N,) on the CPU of what `inputs` gave; the model is asked once."""
        logits, scores = [torch.empty(0, self.model.classes)], [torch.empty(0, dtype=torch.float64)]
        for b in (part.to(self.model.device) for part in x.split(BATCH) if len(part)):
            with self.model.kept.said(b, self.model.logits(b)) as said:
                parts = [self._surprises[name](scorer(b)) for name, scorer in self.scorers.items()]
            logits.append(said.float().cpu())
            scores.append(joint(parts, bool(self.about.get("bounded"))))
        return torch.cat(logits), torch.cat(scores)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write guard.json and guard.safetensors; returns the folder.

        Raises:
            BadInput: the folder cannot be written.
        """
        folder = writable_folder(Path(folder))
        tensors = {".calibration": self.calibration, ".probes": _probes(self.model)}
        for name, scorer in self.scorers.items():
            tensors[f".clean/{name}"] = scorer.clean
            tensors |= {f"{name}/{key}": value for key, value in scorer.learned.items()}
        blob = safetensors.torch.save({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()})
        write_bytes(folder / TENSORS, blob)
        record = {
            "kind": KIND, "schema": SCHEMA, "fpr": self.fpr, "threshold": self.threshold,
            "passes": self.passes, "detectors": {d.name: d.settings() for d in self.detectors},
            "skipped": [asdict(n) for n in self.skipped], **provenance(self.detectors),
            "tensors_sha256": hashlib.sha256(blob).hexdigest(), **self.about,
        }  # fmt: skip
        write_json(folder / RECORD, record)
        return folder

    @staticmethod
    def load(
        folder: str | os.PathLike[str],
        model: Model | nn.Module,
        device: str | torch.device | None = None,
        detectors: Sequence[SampleDetector] | SampleDetector = (),
    ) -> Guard:
        """Read a saved guard for the model that it was fitted to.

        Args:
            folder: what `save` wrote.
            model: the same model, loaded in the same way.
            device: where to compute; None takes a GPU when there is one.
            detectors: instances of those that no package brings and whose module has not been imported.

        Raises:
            BadInput: no guard there, damaged, of another schema or of another model, or a detector of it is
                not known here.
        """
        path = Path(folder)
        raw = read_record(path)
        shape = [int(n) for n in raw["model"]["shape"]]
        modality = modality_named(raw["model"].get("modality", IMAGE.name)).told(raw["model"])
        there = model if isinstance(model, Model) else Model(model, shape, modality=modality)
        try:
            given = [detectors] if isinstance(detectors, SampleDetector) else detectors
            return _restored(path, raw, there, pick_device(device), given)
        except OSError as e:
            raise BadInput(f"cannot read {path / TENSORS}: {e.strerror}; fit the guard again") from e
        except BadInput as e:
            raise BadInput(one_line(f"{path}: {e}")) from e
        except Exception as e:  # any error while foreign tensors are used means that they are damaged
            reason = one_line(f"{type(e).__name__}: {e}")[:200]
            raise BadInput(f"{path} is damaged ({reason}); fit the guard again") from e


def _again(
    model: Model, detectors: Sequence[SampleDetector], made_from: Mapping[str, tuple[Any, Tensor]], *rest: Any
) -> Guard:
    """The guard that was pickled."""
    scorers = {d.name: d.restored(model, *made_from[d.name]) for d in detectors}
    return Guard(model, detectors, scorers, *rest)


def guard(
    model: Model | nn.Module,
    clean_data: Any,
    detectors: Sequence[str | SampleDetector] | str | SampleDetector | None = None,
    fpr: float = 0.01,
    triggers: Sequence[Trigger] = (),
    device: str | torch.device | None = None,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> Guard:
    """Fit a guard that tells triggered inputs from clean ones while the model runs.

    Detectors learn from two thirds of the clean samples; the last third says what clean inputs score.

    Args:
        model: a `Model`, or any module over inputs in [0, 1].
        clean_data: a `Data`, an (x, y) pair or a torch `Dataset`, like what the model meets in service.
        detectors: names or instances; None takes the default ones. Those that do not apply are left out
            as long as one remains.
        fpr: share of clean inputs that may be flagged.
        triggers: what a scan recovered, for detectors that use it.
        device: where to compute; None takes a GPU when there is one.
        seed: of the parts of the samples.
        on_event: told about progress (`run.Event`).

    Raises:
        BadInput: model, data or settings cannot be used, there are too few samples for this `fpr`, or no
            detector applies.
    """
    if not 0 < fpr < 1:
        raise BadInput(f"fpr {fpr} is not between 0 and 1")
    model, data = fitted(model, clean_data)
    work = model.copy(pick_device(device))
    data = answered(work, data)
    if doubt := too_few(data):
        raise BadInput(f"{data.source}: {doubt}")
    methods = choose(usual(model) if detectors is None else detectors)
    begin = time.monotonic()
    calibration, rest = thirds(data, seed)
    if not math.isfinite(threshold(torch.zeros(len(calibration)), fpr)):
        need = PARTS * (math.ceil((1 - fpr) / fpr - 1e-9) - 1) + 1
        raise BadInput(f"fpr {fpr:g} needs at least {need} clean samples, there are {len(data)}")
    accuracy = work.accuracy(data.x, data.y) if data.labelled else None
    if accuracy is not None and (doubt := doubtful_accuracy(accuracy, data, model)):
        raise BadInput(doubt)
    scorers: dict[str, Scorer] = {}
    skipped: list[Note] = []
    for i, method in enumerate(methods):
        if on_event is not None:
            on_event(Event("guard", i, len(methods), 0, time.monotonic() - begin))
        try:
            reason = lacking(method, work) or method.applies(work, rest, triggers)
            if not reason:
                learned = method.learn(work, rest, triggers)
                scorers[method.name] = method.restored(work, learned, calibration)
                reason = _useless(scorers[method.name].clean)
        except failures(method, BadInput, IndexError) as e:
            reason = f"failed: {one_line(reason_of(e))[:300]}"
        if reason:
            scorers.pop(method.name, None)
            skipped.append(Note(method.name, reason))
    if not scorers:
        reasons = "; ".join(f"{n.what}: {n.reason}" for n in skipped)
        raise BadInput(f"no detector can guard this model: {reasons}")
    about = {
        "model": _about(model),
        "data": {
            **describe_data(data), "calibration_samples": len(calibration), "clean_accuracy": accuracy,
        },
        "seed": seed, "versions": versions(), "bounded": True,
    }  # fmt: skip
    used = [m for m in methods if m.name in scorers]
    scores = joint([left_out(s.clean) for s in scorers.values()])
    return Guard(work, used, scorers, scores, fpr, skipped, about)


def usual(model: Model) -> tuple[str, ...]:
    """Names of the detectors of a guard that is told none."""
    kind = model.modality
    return (kind.guards or DEFAULT_GUARDS) if model.gives else (kind.guards_of_answers or BLACK_BOX_GUARDS)


def choose(detectors: Sequence[str | SampleDetector] | str | SampleDetector | None) -> list[SampleDetector]:
    """Instances of the detectors asked for, each at most once."""
    return chosen((SampleDetector,), detectors, DEFAULT_GUARDS, partial(make, SampleDetector))


def thirds(data: Data, seed: int) -> tuple[Data, Data]:
    """A third of the samples, of every class its share, and the others.

    The first part has the classes as often as they are met, so its scores speak for fresh clean inputs.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "guard"))
    order = torch.randperm(len(data), generator=generator)
    order = order[data.y[order].argsort(stable=True)]
    first = torch.zeros(len(data), dtype=torch.bool)
    first[order[::PARTS]] = True
    return data[first], data[~first]


def _restored(
    path: Path, raw: dict[str, Any], model: Model, device: torch.device, given: Sequence[SampleDetector]
) -> Guard:
    """The guard from its record and its tensors, tried out on a few inputs."""
    blob = (path / TENSORS).read_bytes()
    if hashlib.sha256(blob).hexdigest() != raw["tensors_sha256"]:
        raise BadInput(f"{TENSORS} does not belong to {RECORD}, or is damaged; fit the guard again")
    said, here = raw["model"], _about(model)
    if said["sha256"] != here["sha256"] and said["weights_sha256"] != here["weights_sha256"]:
        raise BadInput("the guard is of another model than this one (their SHA-256 differ); fit one for this")
    if (own := said.get("tokenizer_sha256")) and own != here.get("tokenizer_sha256"):
        raise BadInput("the guard was fitted with another tokenizer; name its own (--tokenizer)")
    if other := [k for k in SETTINGS if said.get(k) != here.get(k)]:
        wanted = ", ".join(f"{k}={said.get(k)}" for k in other)
        raise BadInput(f"the guard was fitted to this model loaded with {wanted}; load it in the same way")
    work, tensors = model.copy(device), safetensors.torch.load(blob)
    logits, known = _probes(work), tensors[".probes"]
    if not torch.allclose(logits, known, rtol=0, atol=PROBE_SLACK * (1 + float(known.abs().max()))):
        raise BadInput("this model does not answer as the one that the guard was fitted to; load it likewise")
    methods = [remade((SampleDetector,), name, own, raw, given) for name, own in raw["detectors"].items()]
    scorers = {}
    for m in methods:
        learned = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{m.name}/")}
        scorers[m.name] = m.restored(work, learned, tensors[f".clean/{m.name}"])
        if reason := _useless(scorers[m.name].clean):
            raise BadInput(f"{m.name}: {reason}")
    skipped = [Note(str(n["what"]), str(n["reason"])) for n in raw["skipped"]]
    about = {k: raw[k] for k in ("model", "data", "seed", "versions")}
    about["bounded"] = bool(raw.get("bounded"))  # guards of before have no such word
    found = Guard(work, methods, scorers, tensors[".calibration"], float(raw["fpr"]), skipped, about)
    found.score(work.modality.blank(PROBES, work.shape))
    if found.threshold != raw["threshold"]:
        raise BadInput(
            f"its threshold is {found.threshold:.6g}, {RECORD} says {raw['threshold']}; fit it again"
        )
    return found


def _about(model: Model) -> dict[str, Any]:
    """What the record says of a model; its weights have a digest of their own, whatever file they came in."""
    digest = model.by_weights().digest
    return {**describe_model(model), "resize": model.resize, "weights_sha256": digest}


@torch.no_grad()
def _probes(model: Model) -> Tensor:
    """Logits of a few fixed inputs: a network of the same weights may still be another one."""
    x = model.modality.random(PROBES, model.shape, torch.Generator().manual_seed(0))
    return model.logits(x.to(model.device)).float().cpu()


def _useless(clean: Tensor) -> str:
    """Why scores of clean samples are none to compare with, "" when they are."""
    if not len(clean):
        return "it leaves no clean samples to compare with; give more"
    return "" if bool(torch.isfinite(clean).all()) else "its scores of clean samples are not finite"
