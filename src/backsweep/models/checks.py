"""What is made sure of before a model is judged, and what a report says of it."""

from __future__ import annotations

import copy
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backsweep.core.errors import BadInput
from backsweep.core.method import Method
from backsweep.core.text import one_line, some
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.samples import COME_ALONG, MIN_PER_CLASS, MIN_SAMPLES, Data
from backsweep.models.model import Model

ROWS = 4096  # inputs in one call of `predict_proba`


def classifies(model: Model | nn.Module, what: str) -> None:
    """Refuse models that do not classify, for what is not there for them yet.

    Raises:
        BadInput: it is one.
    """
    if isinstance(model, Model) and not model.modality.classified:
        raise BadInput(f"{what} of models that answer {model.modality.noun}s are not there yet; scan it")


def fitted(
    model: Model | nn.Module, data: Any, *, whole: bool = False, needs_labels: bool = False
) -> tuple[Model, Data]:  # fmt: skip
    """A model and data that it can be judged with.

    A path is opened as the model wants its inputs. Classes that the data name are matched with the model's
    labels; a class of a single sample is left out. What was done stands in the data's notes.

    Args:
        model: a `Model`, or a plain module.
        data: whatever `Data.of` takes.
        whole: keep every sample, as a training set must be.
        needs_labels: refuse data without labels.

    Raises:
        BadInput: they do not fit (`check_fit`), or labels are missing.
    """
    if data is None and isinstance(model, Model):
        data = shipped(model)
    if isinstance(data, str | os.PathLike) and isinstance(model, Model):
        data = Data.open(
            data, shape=model.shape, names=model.labels, resize=model.resize, modality=model.modality,
            whole=whole,
        )  # fmt: skip
    data = Data.of(data)
    model = as_model(model, data)
    if needs_labels and not data.labelled:
        raise BadInput(f"{data.source}: there are no labels in this data, and they are needed here")
    data = renumbered(model, data) if data.labelled else data
    check_fit(model, data)
    if (kind := model.modality.joined(data.modality)) is not model.modality:
        model = copy.copy(model)  # the lent one stays as it is
        model.modality = kind
    return model, data if whole or not data.labelled else without_rare(model, data)


def shipped(model: Model) -> Data:
    """The samples that come with Backsweep for inputs of this kind.

    Raises:
        BadInput: there are none.
    """
    path = model.modality.shipped()
    if path is None:
        raise BadInput(f"give clean {model.modality.noun}s of this model (--data); none come with Backsweep")
    data = Data.open(path, shape=model.shape, modality=model.modality)
    data.source = f"the {model.modality.noun}s {COME_ALONG}"
    return data


def answered(model: Model, data: Data) -> Data:
    """The model's own answers as labels of data that have none, where answers are classes.

    Args:
        model: a frozen working copy.

    Raises:
        BadInput: it gives one answer to all.
    """
    if data.labelled or not data.modality.classified:
        return data
    data = data.labelled_by(model.predict(data.x))
    if len(set(data.y.tolist())) < 2:
        raise BadInput(
            f"{data.source}: the model answers {model.label(int(data.y[0]))} to every sample; check the "
            "normalisation (mean, std), or give samples of other classes"
        )
    return without_rare(model, data)


def without_rare(model: Model, data: Data) -> Data:
    """The data without classes of a single sample, which serves neither to search with nor to measure on."""
    count = torch.bincount(data.y)
    rare = [c for c, n in enumerate(count.tolist()) if 0 < n < MIN_PER_CLASS]
    if not rare:
        return data
    named = ", ".join(model.label(c) for c in rare[:5]) + (f" and {len(rare) - 5} more" if rare[5:] else "")
    note = f"left out as a source, with one sample: class{'es' if len(rare) > 1 else ''} {named}"
    return data[count[data.y] >= MIN_PER_CLASS].noted(one_line(note))


def renumbered(model: Model, data: Data) -> Data:
    """The data with its classes numbered as the model's, where both have names and they match.

    Raises:
        BadInput: some classes match, others do not.
    """
    have, want = data.names, model.labels
    if not have or not want or have == tuple(want):
        return data
    folded = [w.casefold() for w in want]
    times = Counter(folded)
    index = {w: i for i, w in enumerate(folded) if times[w] == 1}
    places = [
        c if c < len(want) and folded[c] == name.casefold() else index.get(name.casefold())
        for c, name in enumerate(have)
    ]
    present = sorted(set(data.y.tolist()))
    named = [c for c in present if c < len(have)]
    moved = [c for c in named if places[c] not in (c, None)]
    if not moved:
        words = named and not any(have[c].isdecimal() for c in named)
        if not words or any(places[c] is not None for c in named):
            return data
        return data.noted("no class of the data is named after one of the model: taken by their numbers")
    if lost := [have[c] for c in named if places[c] is None] + [c for c in present if c >= len(have)]:
        raise BadInput(
            f"{data.source}: the classes {some(lost)} match none of the model's {len(want)} classes, "
            f"{some(want)}, while others do; name every class after one of them"
        )
    y = torch.tensor([places[c] or 0 for c in range(len(have))])[data.y]
    return data.called(y, want, "the classes were matched with the model's labels by name")


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
    if data.labelled and int((count > 0).sum()) < 2:
        raise BadInput(
            f"{data.source}: all samples are of class {model.label(int(data.y[0]))}; add other classes"
        )
    if len(data) < model.modality.fewest:
        if not model.modality.classified:
            few = f"{data.source}: too few {model.modality.noun}s ({len(data)})"
            raise BadInput(f"{few}; give at least {model.modality.fewest}")
        raise BadInput(
            f"{data.source}: too few samples ({len(data)} in all); give at least {MIN_PER_CLASS} of every "
            f"class and {MIN_SAMPLES} in all"
        )


def too_few(data: Data) -> str:
    """Why what is left of the data, without classes of one sample, is too little to judge on; "" if not."""
    present = len(set(data.y.tolist()))
    if not data.modality.classified or (present >= 2 and len(data) >= MIN_SAMPLES):
        return ""
    classes = "1 class" if present == 1 else f"{present} classes"
    return (
        f"too few samples to tell: {len(data)} of {classes}, without the classes of one sample; give at "
        f"least {MIN_PER_CLASS} of every class and {MIN_SAMPLES} in all"
    )


def as_model(model: Model | nn.Module, data: Data) -> Model:
    """A `Model` as it is; a plain module with the shape of the data and the classes of its output.

    Whatever has `predict_proba`, as classifiers of scikit-learn have, is a black box.
    """
    if isinstance(model, Model):
        return model
    answers = getattr(model, "predict_proba", None)
    if callable(answers) and not isinstance(model, nn.Module | type):
        shape, source = tuple(data.x.shape[1:]), type(model).__name__
        return Model.black_box(
            lambda x: answers(x.numpy()), shape, batch=ROWS, modality=data.modality, source=source
        )
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
    """Why a method cannot be used on a network that only answers, or does not classify; "" when it can."""
    if method.of_classes and not model.modality.classified:
        return f"it compares classes, and this model answers {model.modality.noun}s"
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
        raise BadInput(
            f"device {str(device)!r} cannot be used here; there {'is' if len(devices()) == 1 else 'are'} "
            f"{', '.join(devices())}"
        ) from e
    return chosen


def devices() -> list[str]:
    """Names of the devices that torch can use on this machine."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


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
        **(
            {} if model.modality == IMAGE else {"modality": model.modality.name, **model.modality.described()}
        ),
        **model.reading,
        **({"base": model.base} if model.base else {}),
        **({"notes": list(model.notes)} if model.notes else {}),
    }


def describe_data(data: Data) -> dict[str, Any]:
    """What a report says of samples."""
    return {
        "source": data.source,
        "is_path": Path(data.source).exists(),
        "sha256": data.digest,
        "samples": len(data),
        **({"told": dict(data.told)} if data.told else {}),
        **({"notes": list(data.notes)} if data.notes else {}),
    }
