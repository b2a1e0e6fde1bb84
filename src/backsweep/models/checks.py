"""What is made sure of before a model is judged, and what a report says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from backsweep.core.errors import BadInput
from backsweep.core.method import Method
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.samples import MIN_PER_CLASS, MIN_SAMPLES, Data
from backsweep.models.model import Model


def check_fit(model: Model, data: Data) -> None:
    """Make sure that a model can be judged with some data.

    Raises:
        BadInput: samples of another shape than the model takes, labels that it has no class
            for, a single class, or too few samples.
    """
    if data.modality != model.modality:
        kinds = f"{data.modality.noun}s, the model takes {model.modality.noun}s"
        raise BadInput(f"{data.source}: the samples are {kinds}; say modality= for both")
    have, want = tuple(data.x.shape[1:]), tuple(model.shape)
    if have != want:
        raise BadInput(f"{data.source}: {model.modality.mismatch(have, want)}")
    count = torch.bincount(data.y)
    if len(count) > model.classes:
        raise BadInput(
            f"{data.source}: labels run to {len(count) - 1}, the model has {model.classes} classes; "
            "number the classes from 0, as the model does"
        )
    if int((count > 0).sum()) < 2:
        raise BadInput(
            f"{data.source}: all samples are of class {model.label(int(data.y[0]))}; add other classes"
        )
    few = [c for c, n in enumerate(count.tolist()) if 0 < n < MIN_PER_CLASS]
    if len(data) < MIN_SAMPLES or few:
        found = f"one of class {model.label(few[0])}" if few else f"{len(data)} in all"
        raise BadInput(
            f"{data.source}: too few samples ({found}); give at least {MIN_PER_CLASS} of every class "
            f"and {MIN_SAMPLES} in all"
        )


def as_model(model: Model | nn.Module, data: Data) -> Model:
    """A `Model` as it is; a plain module with the shape of the data and the classes of its output."""
    if isinstance(model, Model):
        return model
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}; give a backsweep.Model or a torch module")
    return Model(model, tuple(data.x.shape[1:]), None, modality=data.modality)


def as_reference(reference: Model | nn.Module, model: Model, data: Data) -> Model:
    """The reference, checked against the model it is to be compared with.

    Raises:
        BadInput: other inputs or classes, or the very same weights.
    """
    there = as_model(reference, data)
    if (there.shape, there.classes) != (model.shape, model.classes):
        raise BadInput(
            f"the reference takes {there.shape} and has {there.classes} classes, the model takes "
            f"{model.shape} and has {model.classes}; give a network for the same task"
        )
    if there.digest == model.digest:
        raise BadInput("the reference is the model itself; give an independent network, or none")
    doubt = doubtful_accuracy(there.copy().accuracy(data.x, data.y), data, there)
    if doubt:
        raise BadInput(f"the reference cannot be used: {doubt}")
    return there


def lacking(method: Method, model: Model) -> str:
    """Why a method cannot be used on a network of which only the answers are known, "" when it can."""
    missing = [what for what in method.needs if what not in model.gives]
    return f"it needs {' and '.join(missing)} of the network, and a black box only answers" if missing else ""


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else a GPU when there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as e:
        raise BadInput(f"device {device!r} cannot be used here; try cpu or cuda") from e
    return chosen


def doubtful_accuracy(accuracy: float, data: Data, model: Model) -> str:
    """Why the model cannot be judged on this data: it is at chance there. "" when it is not.

    Chance is the share of the most frequent class (one constant answer reaches it), plus two standard
    errors. A wrong input range is known to turn Neural Cleanse's verdict round.
    """
    n = len(data)
    common = float(torch.bincount(data.y).max()) / n
    chance = max(common, 1 / model.classes)
    if accuracy > chance + 2 * (chance * (1 - chance) / n) ** 0.5:
        return ""
    causes = "the normalisation (mean, std), the channel order (RGB or BGR) or the order of the labels"
    return (
        f"the model is right on {accuracy:.1%} of this data, no better than one constant answer "
        f"({chance:.1%}); check {causes}"
    )


def describe_model(model: Model) -> dict[str, Any]:
    """What a report says of a model."""
    return {
        "source": model.source,
        "sha256": model.digest,
        "sha256_of": ("file" if Path(model.source).is_file() else "weights") if model.gives else "answers",
        "is_path": Path(model.source).exists(),
        "arch": model.arch,
        "layout": model.layout,
        "layer": model.layer,
        "shape": list(model.shape),
        "classes": model.classes,
        "labels": list(model.labels) if model.labels else None,
        "mean": list(model.mean) if model.mean is not None else None,
        "std": list(model.std) if model.std is not None else None,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        **({} if model.modality == IMAGE else {"modality": model.modality.name}),
        **model.reading,
        **({"notes": list(model.notes)} if model.notes else {}),
    }
