"""Keras models in files: `.keras` archives, and whole models in HDF5."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from backsweep.core.errors import BadInput
from backsweep.formats.archives import members
from backsweep.formats.keras import graph, weights
from backsweep.formats.keras.hdf5 import Hdf5
from backsweep.formats.keras.network import Network

WEIGHTS = "model.weights.h5"
CONFIG, METADATA = "config.json", "metadata.json"
_MOST_VALUES = 2**25  # made of one image, or in it
_LONGEST = 2**26  # bytes of a configuration
_AGAIN = "save it again with model.save"
_NAMES = {"f2": "float16", "f8": "float64"}


def open_file(blob: bytes) -> tuple[Any, str, Hdf5]:
    """Configuration, version of Keras, and the file of weights, of an archive or of HDF5.

    Raises:
        BadInput: it is no whole model, or leads out of itself. Any other error means damage.
    """
    if blob[:2] == b"PK":
        names = members(blob)
        if any(n.startswith("/") or ".." in n.replace("\\", "/").split("/") for n in names):
            raise BadInput("it holds a member with a path that leads out of it; do not use it")
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            if archive.getinfo(CONFIG).file_size > _LONGEST:
                raise BadInput("its configuration is longer than that of any network; do not use it")
            config = json.loads(archive.read(CONFIG))
            about = json.loads(archive.read(METADATA)) if METADATA in names else {}
            inner = archive.read(WEIGHTS)
        if inner[:2] == b"PK":
            raise BadInput(f"its weights are an archive in an archive; {_AGAIN}")
        return config, str(about.get("keras_version", "3")), Hdf5(inner)
    file = Hdf5(blob)
    text = file.root.attributes.get("model_config")
    if not isinstance(text, str):
        raise BadInput(
            "it is an HDF5 file without a Keras model (no model_config); if it holds weights alone, save "
            'the whole model: model.save("model.keras")'
        )
    return json.loads(text), str(file.root.attributes.get("keras_version", "2")), file


def network(blob: bytes) -> tuple[Network, list[str]]:
    """The network of a file, and what should be known of it, a line each.

    Raises:
        BadInput: layers that are not run here, code of somebody's own, or weights that do not fit.
    """
    config, version, file = open_file(blob)
    root = graph.read(config, 2 if version.split(".")[0] in ("1", "2") else 3)
    found = weights.of_archive(root, file) if blob[:2] == b"PK" else weights.of_hdf5(root, file)
    net = Network(root, found)
    kinds = {k.dataset.kind for k in net.kept().values()} - {"<f4", ">f4"}
    names = sorted({_NAMES.get(k.strip("<>"), k) for k in kinds})
    notes = [f"its {' and '.join(names)} weights are computed with in float32"] if names else []
    computed = {n.settings.precision for n in graph.layers(root) if n.settings is not None} - {"float32"}
    if computed and not kinds:
        notes.append(f"it computes in {' and '.join(sorted(computed))}; here that is done in float32")
    if isinstance(root.outputs, list) and len(root.outputs) > 1:
        notes.append(f"it has {len(root.outputs)} outputs; the first one is read")
    if net.raw:
        notes.append(
            "its first layers take pixels of 0 to 255, and get them; for others say --input-range 0-1"
        )
    return net, notes


def read(blob: bytes, shape: Sequence[int] | None = None) -> tuple[Network, list[str]]:
    """The network in the bytes of a file, tried with a few images; and notes.

    Args:
        shape: of one input (C, H, W), used where the file leaves it open.

    Raises:
        BadInput: as `network`, or it does not answer each image on its own.
    """
    net, notes = network(blob)
    net.shape = _shape(net, shape)
    if net.shape is not None:
        _try(net, net.shape)
    return net, notes


def _shape(net: Network, wanted: Sequence[int] | None) -> tuple[int, ...] | None:
    """Shape of one input, channels first: as the file says, and where it says nothing, as wanted."""
    sizes = net.sizes
    if sizes is None:
        return None if wanted is None else tuple(wanted)
    if len(sizes) == 3:
        sizes = [sizes[2], *sizes[:2]] if net.last else sizes
    elif len(sizes) == 2:
        sizes = [1, *sizes]
    elif wanted is not None and len(wanted) == 3 and sizes[0] in (None, math.prod(wanted)) and wanted[0] == 1:
        net.flat = True
        return tuple(wanted)
    fits = wanted is not None and len(wanted) == len(sizes)
    if fits and all(s in (None, w) for s, w in zip(sizes, wanted or (), strict=True)):
        return tuple(wanted or ())
    known = tuple(s for s in sizes if s is not None)
    return known if len(known) == len(sizes) else None


class _Sized(TorchFunctionMode):
    """Looks at all that is computed on the way: a few bytes of settings can ask for any number of values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_meta and out.numel() > _MOST_VALUES:
            raise BadInput(f"it makes {out.numel():,} values of one image; do not use it")
        return out


def _check_sizes(net: Network, shape: tuple[int, ...]) -> None:
    """Go through the network without any numbers, to see how many there would be."""
    tensors = [*net.model.named_parameters(), *net.model.named_buffers()]
    bare = {name: tensor.detach().to("meta") for name, tensor in tensors}
    with _Sized():
        functional_call(net.model, bare, (net.turned(torch.empty((1, *shape), device="meta")),))


def _try(net: Network, shape: tuple[int, ...]) -> None:
    """Answers for a few images, together and one after another, must be the same."""
    if math.prod(shape) > _MOST_VALUES:
        raise BadInput(f"its inputs, {shape}, are too large to be images; get it again")
    x = torch.rand((3, *shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            _check_sizes(net, shape)
            want = torch.cat([net(x[i : i + 1]) for i in range(3)])
            got = net(x)
        except BadInput:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as e:
            line = next(iter(str(e).strip().splitlines()), type(e).__name__)
            raise BadInput(
                f"it cannot be run for images of shape {shape} ({line[:160]}); check the shape (--shape), or "
                "convert the model to ONNX with tf2onnx"
            ) from e
    if got.ndim != 2 or len(got) != 3:
        raise BadInput(
            f"it yields {tuple(got.shape)} for 3 inputs, not (3, classes); give the part of it that yields "
            "the scores of classes"
        )
    if not _near(got, want):
        raise BadInput("its answer for an image depends on the others of a batch; rebuild it without that")


def _near(got: Tensor, want: Tensor) -> bool:
    near = 1e-4 * max(1.0, float(want.abs().max()))
    return got.shape == want.shape and torch.allclose(got, want, rtol=1e-3, atol=near, equal_nan=True)
