"""Reading a model that a stranger made, without running any code of theirs.

The only code that runs beside this library's own is what the user names with `arch=`. The kind of
a file is told from its content, never from its extension.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line, some
from backsweep.formats import exported, huggingface
from backsweep.formats.archives import WAY_OUT, members, unpickle
from backsweep.models import architectures
from backsweep.models.model import Model

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_AGAIN = "it is damaged or cut short; get it again"
_EXPORT = f"from PyTorch, {WAY_OUT}; or torch.export.save(torch.export.export(net.eval(), (x,)), path)"
_REBUILD = (
    "rebuild the network in PyTorch, save its weights as safetensors and name its code with "
    'arch="package.module:factory" (--arch)'
)
_NOT_YET = {
    "TorchScript": f"TorchScript archives are not readable yet; {_EXPORT}",
    "ONNX": f"ONNX files are not readable yet; {_EXPORT}",
    "Keras": f"Keras and HDF5 files are not readable yet; {_REBUILD}",
    "TensorFlow": f"TensorFlow models are not readable yet; {_REBUILD}",
    "NumPy": "this is a NumPy archive, which is data and not a model; name the model",
}
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
    resize: bool = False


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
    data_shape: Sequence[int] | None = None,
) -> Model:
    """Read a model file or folder; what is given here stands above what the file says.

    Readable are weights (.safetensors, or .pt/.pth that hold tensors only) together with `arch`,
    programs of torch.export (.pt2), and folders of Hugging Face image classifiers.

    Args:
        path: the file or folder.
        arch: the code that builds the network for weights, "package.module:factory", imported with
            the current folder on the path and called without arguments; or the factory itself.
        shape: shape of one input, (channels, height, width). None: as the file or the network says.
        classes: number of classes. None: as many as the network yields.
        mean, std, layer, labels: as in `Model`.
        data_shape: shape of the samples at hand, for a model that does not say its own.

    Raises:
        BadInput: the file is missing, damaged, of an unknown kind, would run code when read, or
            does not fit `arch`, `shape` or `classes`.
    """
    path = Path(path)
    try:
        if path.is_dir():
            found, digest = _folder(path, arch)
        else:
            found, digest = _file(path, arch, shape, data_shape)
        size = next((s for s in (shape, found.shape, data_shape) if s is not None), None)
        if size is None:
            raise BadInput("the shape of its inputs is not known; say shape=(3, 32, 32) (--shape 3,32,32)")
        if math.prod(size) > _MOST_VALUES:
            raise BadInput(f"inputs of shape {tuple(size)} are no images; say the true shape= (--shape)")
        if isinstance(found.net, exported.Program) and layer is not None:
            raise BadInput("an exported program has no layers to name; leave out layer= (--layer)")
        model = Model(
            found.net,
            size,
            classes if classes is not None else found.classes,
            mean=mean if mean is not None else found.mean,
            std=std if std is not None else found.std,
            layer=layer if layer is not None else found.layer,
            labels=labels if labels is not None else found.labels,
            source=str(path),
            digest=digest,
        )
    except BadInput as e:
        raise BadInput(one_line(f"{path}: {e}")) from e
    model.resize = found.resize
    model.origin = digest
    model.arch = arch if isinstance(arch, str) else None
    return model


def digest(path: str | os.PathLike[str]) -> str:
    """The digest that the model of a file or folder will have, without loading it.

    Raises:
        BadInput: it is missing or cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            with _damage("a Hugging Face folder"):
                return huggingface.digest(path)
        if not path.is_file():
            raise BadInput("there is no such file or folder; check the path")
        found = hashlib.sha256()
        with path.open("rb") as file:
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


def _folder(path: Path, arch: Any) -> tuple[_Found, str]:
    if arch is not None:
        raise BadInput("this is a folder, and arch= (--arch) is for files of weights; name the file")
    if (path / "saved_model.pb").exists():
        raise BadInput(_NOT_YET["TensorFlow"])
    with _damage("a Hugging Face folder"):
        net, said, digest = huggingface.read(path)
    return _Found(net, resize=True, **said), digest


def _file(path: Path, arch: Any, shape: Any, data_shape: Any) -> tuple[_Found, str]:
    try:
        if not path.is_file():
            raise BadInput("there is no such file or folder; check the path")
        blob = path.read_bytes()  # once: what is vetted is what is loaded
    except OSError as e:
        raise BadInput(f"it cannot be opened ({e.strerror}); check its permissions") from e
    kind = _kind(blob)
    digest = hashlib.sha256(blob).hexdigest()
    if kind in _NOT_YET:
        raise BadInput(_NOT_YET[kind])
    if kind == "program":
        if arch is not None:
            raise BadInput("an exported program brings its own network; leave out arch= (--arch)")
        with _damage("an exported program"):
            program = exported.read(blob, shape if shape is not None else data_shape)
        if shape is not None and tuple(shape) != program.shape:
            raise BadInput(f"it was exported for inputs of shape {program.shape}, not {tuple(shape)}")
        return _Found(program, program.shape), digest
    if kind == "safetensors":
        with _damage("safetensors"):
            weights, said = safetensors.torch.load(blob), _said(blob)
    else:
        with _damage("a checkpoint of torch.save"):
            weights, said = _state_dict(unpickle(blob)), {}
    if arch is None:
        raise BadInput(
            "it holds weights but no network; name the code that builds it with "
            'arch="package.module:factory" (--arch package.module:factory)'
        )
    net = build(arch)
    _fit(net, weights)
    said.setdefault("shape", getattr(net, "input_shape", None))
    return _Found(net, **said), digest


def _kind(blob: bytes) -> str:
    """What the bytes are; BadInput when they are nothing that is known."""
    if blob[:2] == b"PK":
        names = members(blob)
        inner = {n.split("/", 1)[-1] for n in names}
        if "serialized_exported_program.json" in names or "archive_format" in inner:
            return "program"
        if "constants.pkl" in inner or any(n.startswith("code/") for n in inner):
            return "TorchScript"
        if "data.pkl" in inner:
            return "checkpoint"
        if "model.weights.h5" in names:
            return "Keras"
        if names and all(n.endswith(".npy") for n in names):
            return "NumPy"
        raise BadInput(f"a zip archive of no known kind; {_EXPORT}")
    if blob[8:9] == b"{":  # first, as the length of the header may begin with any byte
        return "safetensors"
    if blob[:1] == b"\x80":
        return "checkpoint"
    if blob[:8] == b"\x89HDF\r\n\x1a\n":
        return "Keras"
    if blob[4:8] == b"TFL3":
        return "TensorFlow"
    if blob[:1] == b"\x08" and blob[1:2] < b"\x20" and blob[2:3] in b"\x12\x1a\x22\x28\x32\x3a\x42":
        return "ONNX"
    if not blob:
        raise BadInput("the file is empty; get it again")
    raise BadInput(f"not a model file of a known kind; {_EXPORT}")


def _said(blob: bytes) -> dict[str, Any]:
    """What the header of a safetensors file says of the model, as JSON under "backsweep.model"."""
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    said = json.loads(header.get("__metadata__", {}).get("backsweep.model", "{}"))
    kinds: dict[str, Callable[[Any], Any]] = {
        "shape": lambda sizes: tuple(int(n) for n in sizes), "classes": int, "layer": str,
        "mean": huggingface.numbers, "std": huggingface.numbers,
        "labels": lambda names: tuple(str(n) for n in names),
    }  # fmt: skip
    return {name: read(said[name]) for name, read in kinds.items() if said.get(name) is not None}


# ---------------------------------------------------------------------- weights with an architecture


def _state_dict(found: Any) -> dict[str, Tensor]:
    """The weights in a checkpoint, out of the dictionaries that training scripts put around them."""
    for _ in _WRAPPERS:
        if isinstance(found, dict):
            inner = (found[k] for k in _WRAPPERS if isinstance(found.get(k), dict))
            found = next(inner, found)
    if not isinstance(found, dict):
        raise BadInput(f"it holds a {type(found).__name__} and no weights; {WAY_OUT}")
    weights = {k: v for k, v in found.items() if isinstance(v, Tensor) and isinstance(k, str)}
    if not weights:
        raise BadInput(f"it holds no weights, only {some(found)}; {WAY_OUT}")
    return weights


def build(arch: str | Callable[[], nn.Module]) -> nn.Module:
    """The network that the code named by the user makes."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        factory: Any = arch
        if isinstance(arch, str):
            module, _, name = arch.partition(":")
            if not module or not name:
                raise BadInput(f"arch {arch!r} is not of the form package.module:factory")
            importlib.invalidate_caches()
            factory = getattr(importlib.import_module(module), name)
        with torch.random.fork_rng(devices=[]):
            net = factory()
    except BadInput:
        raise
    except Exception as e:
        raise BadInput(
            f"arch {arch!r} fails ({type(e).__name__}: {e}); name a function that takes no arguments, in a "
            "module that can be imported from the current folder"
        ) from e
    finally:
        sys.path.remove(here)
    if not isinstance(net, nn.Module):
        raise BadInput(f"arch {arch!r} returns {type(net).__name__}, not a torch.nn.Module")
    return net


def named(arch: str, classes: int, shape: Sequence[int], seed: int) -> nn.Module:
    """A fresh network for a number of classes and a shape of input, its weights drawn from `seed`.

    Args:
        arch: name of a network in `backsweep.archs`, or "package.module:factory" of the user's own code.

    Raises:
        BadInput: there is no such network, or it does not take such inputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in arch:
            return build(arch)
        known = {
            n: f for n, f in vars(architectures).items() if inspect.isfunction(f) and not n.startswith("_")
        }
        if arch not in known:
            raise BadInput(
                f"there is no network {arch!r}; there are {', '.join(known)}, or give package.module:factory"
            )
        channels, height, width = shape
        if height != width:
            raise BadInput(f"{arch} takes square images, these are {height} x {width}; resize them")
        net: nn.Module = known[arch](classes, channels, height)
        return net


def _fit(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put the weights into the network, all of them, or say which do not fit."""
    want = {k: v for k, v in net.state_dict().items() if isinstance(v, Tensor)}
    weights = {k if k in want else _bare(k): v for k, v in weights.items()}
    shared = {v.data_ptr() for k, v in want.items() if k in weights} - {0}  # tied weights are saved once
    missing = [
        k for k, v in want.items()
        if k not in weights and v.data_ptr() not in shared and not k.endswith("num_batches_tracked")
    ]  # fmt: skip
    extra = [k for k in weights if k not in want]
    other = [
        f"{k} {tuple(v.shape)} for {tuple(want[k].shape)}" for k, v in weights.items()
        if k in want and (v.shape != want[k].shape or v.is_floating_point() != want[k].is_floating_point())
    ]  # fmt: skip
    lists = (("missing", missing), ("unexpected", extra), ("of another shape", other))
    if problems := [f"{problem} {some(names)}" for problem, names in lists if names]:
        raise BadInput(
            f"its weights do not fit the network of arch= ({'; '.join(problems)}); "
            "name the code that they were trained with"
        )
    with _damage("weights"):
        net.load_state_dict(weights, strict=False)


def _bare(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return key.replace("._orig_mod.", ".")
