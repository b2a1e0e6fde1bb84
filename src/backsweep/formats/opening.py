"""Reading a model that a stranger made, without running any code of theirs.

The only code that runs beside this library's own is what the user names with `arch=`. The kind of
a file is told from its content, never from its extension.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line
from backsweep.formats import exported, predicting, sounds, trees
from backsweep.formats.archives import WAY_OUT, members
from backsweep.formats.building import build
from backsweep.formats.hugging_face import files as folders
from backsweep.formats.hugging_face import hub
from backsweep.formats.hugging_face import reading as hugging_face
from backsweep.formats.hugging_face.preprocessing import numbers
from backsweep.formats.keras import reading as keras_reading
from backsweep.formats.keras.hdf5 import SIGNATURE
from backsweep.formats.keras.network import Network as KerasNetwork
from backsweep.formats.onnx import reading as onnx_reading
from backsweep.formats.onnx import tensors as onnx_tensors
from backsweep.formats.pickles.checkpoints import open_checkpoint
from backsweep.formats.torchscript import module as torchscript
from backsweep.formats.weights import sharded, state_dicts
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.modality import Modality
from backsweep.inputs.sound.modality import Sound
from backsweep.inputs.table.modality import Table
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.readers import TOKENS
from backsweep.inputs.text.tokens import Tokens
from backsweep.inputs.text.tokens import read as read_tokens
from backsweep.models.black_box import NOTE, Asked
from backsweep.models.model import Model

_AGAIN = "it is damaged or cut short; get it again"
_EXPORT = f"from PyTorch, {WAY_OUT}; or torch.export.save(torch.export.export(net.eval(), (x,)), path)"
_TO_ONNX = "convert it (pip install tf2onnx): python -m tf2onnx.convert"
_NOT_YET = {
    "TensorFlow": f"a SavedModel of TensorFlow is not read; {_TO_ONNX} --saved-model . --output model.onnx",
    "TFLite": f"a model of TensorFlow Lite is not read; {_TO_ONNX} --tflite model.tflite --output model.onnx",
    "NumPy": "this is a NumPy archive, which is data and not a model; name the model",
}
_NO_ENTRIES = "it has no entries to choose from; leave out weights= (--weights)"
_EXPORTED = (exported.Program, onnx_reading.Network, torchscript.Script, KerasNetwork)
_ROWS = 4096  # of a table in one call of trees
_MOST_VALUES = 2**26  # in one input; beyond it a shape is an error, not an image


@dataclass
class _Found:
    """A network with what its file says about it; None where it says nothing."""

    net: nn.Module
    shape: Sequence[int] | None = None
    classes: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    layer: str | None = None
    labels: Sequence[str] | None = None
    pixel_range: float | None = None
    layout: str | None = None
    resize: bool = False
    modality: Modality = IMAGE
    notes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def load(
    path: str | os.PathLike[str],
    arch: str | Callable[[], nn.Module] | None = None,
    *,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layer: str | None = None,
    labels: Sequence[str] | None = None,
    weights: str | None = None,
    pixel_range: float | None = None,
    layout: str | None = None,
    data_shape: Sequence[int] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    schema: str | os.PathLike[str] | None = None,
    rate: int | None = None,
    data_modality: Modality = IMAGE,
    base: str | os.PathLike[str] | None = None,
) -> Model:
    """Read a model file or folder; what is given here stands above what the file says.

    Readable are weights together with `arch` (safetensors, also in shards with an index; checkpoints of
    torch.save and pickle, whatever else they hold), programs of torch.export (.pt2), ONNX and Keras models,
    TorchScript modules, and folders of Hugging Face classifiers and language models. What was done to make
    weights fit stands in `Model.notes`. Trees of XGBoost and LightGBM, and models of scikit-learn in skops,
    are black boxes over rows of a table. No host is asked unless one is named. `mean`, `std`, `layer`,
    `labels`, `pixel_range` and `layout` are as in `Model`.

    Args:
        path: the file or folder; hf://owner/name@revision of the Hugging Face hub; predict:ADDRESS of a
            service that answers with scores.
        arch: the code that builds the network for weights, "package.module:factory", imported with
            the current folder on the path and called without arguments; or the factory itself.
        shape: shape of one input, (channels, height, width). None: as the file or the network says.
        classes: number of classes. None: as many as the network yields.
        weights: the entry of a checkpoint to take, such as "ema", where several fit.
        data_shape: shape of the samples at hand, for a model that does not say its own.
        tokenizer: a tokenizer.json, or the folder that holds one: the network takes ids of its tokens.
        schema: a JSON file that says what the columns are, or "infer": the network takes rows of a table.
        rate: samples a second: the network takes waveforms in [-1, 1].
        data_modality: what the samples at hand are, for a model that does not say what it takes.
        base: the folder of the language model that a LoRA adapter belongs to, where `path` is the adapter.

    Raises:
        BadInput: the file is missing, damaged, of an unknown kind, would run code when read, or
            does not fit `arch`, `shape` or `classes`.
    """
    name = str(path)
    if name.startswith(predicting.PREFIX):
        told = {"mean": mean, "std": std, "labels": labels, "pixel_range": pixel_range, "layout": layout}
        size = shape if shape is not None else data_shape
        return predicting.model(name, size, classes, given=(arch, weights, layer), **told)
    fetched = hub.fetch(name) if name.startswith(hub.PREFIX) else None
    path, name = (fetched.folder, fetched.name) if fetched is not None else (Path(path), name)
    try:
        tokens = None if tokenizer is None else read_tokens(Path(tokenizer))
        if path.is_dir():
            found, digest = _folder(path, arch, weights, tokens, base)
        elif base is not None:
            raise BadInput("base= (--base) is for the folder of a LoRA adapter; leave it out, or name that")
        else:
            found, digest = _file(path, arch, shape, data_shape, weights)
        if tokens is not None and not isinstance(found.modality, Text):
            found.modality, found.shape = Text(tokens), found.shape or (TOKENS,)
        if tokens is not None and isinstance(found.modality, Text):
            found.modality = replace(found.modality, place=str(tokenizer))
        if tokens is None and schema is not None:
            found.modality = Table.given(str(schema))
        sounds.settle(found, rate, data_modality)
        size = next((s for s in (shape, found.shape, data_shape) if s is not None), None)
        if size is None:
            raise BadInput("the shape of its inputs is not known; say shape=(3, 32, 32) (--shape 3,32,32)")
        if isinstance(found.net, KerasNetwork) and layout is not None:
            raise BadInput("a Keras model says itself where it has channels; leave out layout= (--layout)")
        if math.prod(size) > _MOST_VALUES:
            raise BadInput(f"inputs of shape {tuple(size)} are no images; say the true shape= (--shape)")
        if layer is not None and isinstance(found.net, _EXPORTED):
            raise BadInput("an exported network has no layers to name; leave out layer= (--layer)")
        model = Model(
            found.net,
            size,
            classes if classes is not None else found.classes,
            mean=mean if mean is not None else found.mean,
            std=std if std is not None else found.std,
            layer=layer if layer is not None else found.layer,
            labels=labels if labels is not None else found.labels,
            pixel_range=pixel_range if pixel_range is not None else found.pixel_range,
            layout=layout if layout is not None else found.layout,
            source=name,
            digest=digest,
            modality=found.modality,
        )
    except BadInput as e:
        raise BadInput(one_line(f"{name}: {e}")) from e
    model.resize = found.resize
    model.place = str(path)
    model.origin = digest
    model.arch = arch if isinstance(arch, str) else None
    model.base = None if base is None else str(base)
    model.entry = weights
    model.unknown = tuple(one_line(name) for name in found.unknown)
    model.notes = (*map(one_line, found.notes), *model.notes)
    return model


def digest(path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> str:
    """The digest that the model of a file or folder will have, without loading it.

    Args:
        base: as in `load`.

    Raises:
        BadInput: it is missing or cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_dir() and not path.is_file():
            raise BadInput("there is no such file or folder; check the path")
        if (index := sharded.index_at(path)) is not None:
            with _damage("an index of weights"):
                return sharded.digest(index)
        if path.is_dir():
            with _damage("a Hugging Face folder"):
                return folders.digest(path, None if base is None else Path(base))
        found = hashlib.sha256()
        with path.open("rb") as file:
            if _is_onnx(file.read(3)):
                return onnx_tensors.digest(path.read_bytes(), path.parent)
            file.seek(0)
            while part := file.read(2**20):
                found.update(part)
        return found.hexdigest()
    except OSError as e:
        raise BadInput(f"{path}: it cannot be opened ({e.strerror}); check its permissions") from e
    except BadInput as e:
        raise BadInput(one_line(f"{path}: {e}")) from e


@contextlib.contextmanager
def _damage(kind: str) -> Iterator[None]:
    """Any error while foreign bytes are read means that the bytes are damaged."""
    try:
        yield
    except BadInput:
        raise
    except Exception as e:
        reason = f"{type(e).__name__}: {str(e).strip()[:120]}"
        raise BadInput(f"cannot be read as {kind} ({reason}); {_AGAIN}") from e


# ---------------------------------------------------------------------- files


def _folder(
    path: Path, arch: Any, wanted: str | None, tokens: Tokens | None, base: Any
) -> tuple[_Found, str]:
    if (index := sharded.index_in(path)) is not None:
        return _sharded(index, arch, wanted)
    if arch is not None:
        raise BadInput("this is a folder, and arch= (--arch) is for files of weights; name the file")
    if wanted is not None:
        raise BadInput(_NO_ENTRIES)
    if (path / "saved_model.pb").exists():
        raise BadInput(_NOT_YET["TensorFlow"])
    with _damage("a Hugging Face folder"):
        net, said, digest = hugging_face.read(path, tokens, None if base is None else Path(base))
    return _Found(net, resize=True, **said), digest


def _file(path: Path, arch: Any, shape: Any, data_shape: Any, wanted: str | None) -> tuple[_Found, str]:
    try:
        if not path.is_file():
            raise BadInput("there is no such file or folder; check the path")
        if sharded.index_at(path) is not None:
            return _sharded(path, arch, wanted)
        blob = path.read_bytes()  # once: what is vetted is what is loaded
    except OSError as e:
        raise BadInput(f"it cannot be opened ({e.strerror}); check its permissions") from e
    kind = kind_of(blob)
    if kind in _NOT_YET:
        raise BadInput(_NOT_YET[kind])
    if kind in ("ONNX", "TorchScript", "Keras") and wanted is not None:
        raise BadInput(_NO_ENTRIES)
    if kind in trees.KINDS:
        if arch is not None or wanted is not None:
            raise BadInput(
                f"a model of {kind} only answers; leave out arch= and weights= (--arch, --weights)"
            )
        model = trees.read(blob, kind)
        net = Asked(model.answer, _ROWS)
        found = _Found(
            net, (model.columns,), model.classes, labels=model.labels, modality=Table(), notes=[NOTE]
        )
        return found, hashlib.sha256(blob).hexdigest()
    if kind == "ONNX":
        return _onnx(blob, path.parent, arch, shape, data_shape)
    digest = hashlib.sha256(blob).hexdigest()
    if kind == "TorchScript":
        if arch is not None:
            raise BadInput("a TorchScript module brings its own network; leave out arch= (--arch)")
        with _damage("a TorchScript archive"):
            return _Found(torchscript.read(blob, shape if shape is not None else data_shape)), digest
    if kind == "Keras":
        return _keras(blob, arch, shape, data_shape), digest
    if kind == "program":
        if arch is not None:
            raise BadInput("an exported program brings its own network; leave out arch= (--arch)")
        if wanted is not None:
            raise BadInput(_NO_ENTRIES)
        with _damage("an exported program"):
            program = exported.read(blob, shape if shape is not None else data_shape)
        if shape is not None and tuple(shape) != program.shape:
            raise BadInput(f"it was exported for inputs of shape {program.shape}, not {tuple(shape)}")
        return _Found(program, program.shape), digest
    if kind == "safetensors":
        with _damage("safetensors"):
            return _weights(safetensors.torch.load(blob), [], arch, wanted, _said(blob)), digest
    checkpoint = open_checkpoint(blob)
    trees.refused(checkpoint.unknown())
    return _weights(checkpoint.value, checkpoint.unknown(), arch, wanted, {}), digest


def _sharded(index: Path, arch: Any, wanted: str | None) -> tuple[_Found, str]:
    with _damage("an index of weights"):
        value, digest = sharded.read(index)
    return _weights(value, [], arch, wanted, {}), digest


def _weights(value: Any, unknown: list[str], arch: Any, wanted: str | None, said: dict[str, Any]) -> _Found:
    """The network of the user's code with the weights that a file holds."""
    if arch is None:
        state_dicts.check(value)
        raise BadInput(
            "it holds weights but no network; name the code that builds it with "
            'arch="package.module:factory" (--arch package.module:factory)'
        )
    net = build(arch)
    fit = state_dicts.find(net, value, wanted)
    notes = state_dicts.notes(net, fit, unknown)
    state_dicts.put(net, fit)
    said.setdefault("shape", getattr(net, "input_shape", None))
    said.setdefault("modality", sounds.said_by(net))
    return _Found(net, notes=notes, unknown=unknown, **said)


def kind_of(blob: bytes) -> str:
    """What the bytes are; BadInput when they are nothing that is known."""
    if (forest := trees.kind_of(blob, tuple(members(blob)) if blob[:2] == b"PK" else ())) is not None:
        return forest
    if blob[:2] == b"PK":
        names = members(blob)
        inner = {n.split("/", 1)[-1] for n in names}
        if "serialized_exported_program.json" in names or "archive_format" in inner:
            return "program"
        if "constants.pkl" in inner or any(n.startswith("code/") for n in inner):
            return "TorchScript"
        if "data.pkl" in inner:
            return "checkpoint"
        if keras_reading.WEIGHTS in names:
            return "Keras"
        if names and all(n.endswith(".npy") for n in names):
            return "NumPy"
        raise BadInput(f"a zip archive of no known kind; {_EXPORT}")
    if blob[8:9] == b"{":  # first, as the length of the header may begin with any byte
        return "safetensors"
    if blob[:1] == b"\x80":
        return "checkpoint"
    if blob[:8] == SIGNATURE:
        return "Keras"
    if blob[4:8] == b"TFL3":
        return "TFLite"
    if _is_onnx(blob):
        return "ONNX"
    if not blob:
        raise BadInput("the file is empty; get it again")
    raise BadInput(f"not a model file of a known kind; {_EXPORT}")


def _is_onnx(blob: bytes) -> bool:
    """Whether bytes begin as an ONNX model does: a small version number, then another field."""
    return blob[:1] == b"\x08" and blob[1:2] < b"\x20" and blob[2:3] in b"\x12\x1a\x22\x28\x32\x3a\x42"


def _onnx(blob: bytes, folder: Path, arch: Any, shape: Any, data_shape: Any) -> tuple[_Found, str]:
    if arch is not None:
        raise BadInput("an ONNX model brings its own network; leave out arch= (--arch)")
    with _damage("an ONNX model"):
        net = onnx_reading.read(blob, folder, shape if shape is not None else data_shape)
        digest = onnx_tensors.digest(blob, folder)
    if shape is not None and net.shape is not None and tuple(shape) != net.shape:
        raise BadInput(f"it was exported for inputs of shape {net.shape}, not {tuple(shape)}")
    return _Found(net, net.shape, labels=net.labels or None), digest


def _keras(blob: bytes, arch: Any, shape: Any, data_shape: Any) -> _Found:
    if arch is not None:
        raise BadInput("a Keras model brings its own network; leave out arch= (--arch)")
    with _damage("a Keras model"):
        net, notes = keras_reading.read(blob, shape if shape is not None else data_shape)
    if shape is not None and net.shape is not None and tuple(shape) != net.shape:
        raise BadInput(f"it takes inputs of shape {net.shape}, not {tuple(shape)}")
    return _Found(net, net.shape, pixel_range=255 if net.raw else None, notes=notes)


def _said(blob: bytes) -> dict[str, Any]:
    """What the header of a safetensors file says of the model, as JSON under "backsweep.model"."""
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    said = json.loads(header.get("__metadata__", {}).get("backsweep.model", "{}"))
    kinds: dict[str, Callable[[Any], Any]] = {
        "shape": lambda sizes: tuple(int(n) for n in sizes), "classes": int, "layer": str,
        "mean": numbers, "std": numbers, "pixel_range": float, "layout": str,
        "labels": lambda names: tuple(str(n) for n in names), "rate": Sound,
    }  # fmt: skip
    found = {name: read(said[name]) for name, read in kinds.items() if said.get(name) is not None}
    return {"modality" if name == "rate" else name: value for name, value in found.items()}
