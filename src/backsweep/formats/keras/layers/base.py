"""What layers of Keras are here: modules of torch that keep their weights as PyTorch does, and know where
each lies in the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.keras.hdf5 import Dataset
from backsweep.formats.keras.layers import activations
from backsweep.formats.keras.layers.settings import TF2ONNX, Settings

# Names of weights that no training moves; what is `trainable` decides the order in HDF5 files.
STATISTICS = {"moving_mean", "moving_variance", "mean", "variance", "count"}


@dataclass(frozen=True)
class Held:
    """A weight as the file holds it."""

    dataset: Dataset
    value: Tensor


@dataclass(frozen=True)
class Kept:
    """How a weight of the file became one of the network: its axes turned, then given another shape.

    Attributes:
        dataset: where it is in the file.
        axes: of the file, in the order that the network has them.
    """

    dataset: Dataset
    axes: tuple[int, ...]

    def as_stored(self, value: Tensor) -> Tensor:
        """A weight of the network as the file has it."""
        turned = value.reshape([self.dataset.shape[a] for a in self.axes])
        back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return turned.permute(back)


class Layer(nn.Module):
    """A layer; subclasses read their settings in `read` and keep their weights in `keep_all`.

    Tensors have the axes that Keras gives them, the batch first. Parameters are named `weight`, `bias`,
    `running_mean` and `running_var` as in PyTorch, with outputs first.

    Args:
        settings: what the file says.
        held: its weights, by the names that `slots` gives them.

    Raises:
        BadInput: a setting that is not run here, or weights that do not fit.
    """

    passes: ClassVar[tuple[str, ...]] = ()  # arguments, beside the inputs, that are given to `forward`
    lenient: ClassVar[bool] = False  # whether settings that are not read do not matter

    def __init__(self, settings: Settings, held: dict[str, Held]) -> None:
        super().__init__()
        self.kept: dict[str, Kept] = {}
        self._about = f"its layer {settings.name[:60]!r} ({settings.kind[:40]})"
        if missing := set(self.slots(settings)) - held.keys():
            raise BadInput(f"{self._about} lacks its weights ({some(sorted(missing))}); get it again")
        self._held = held
        self.read(settings)
        if not self.lenient:
            settings.check_all_read()
        del self._held

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        """Names of the weights in the order in which Keras makes them; of a part of it, `part/name`."""
        return []

    def read(self, settings: Settings) -> None:
        """Take settings and weights."""

    def scores(self, *inputs: Any) -> Any:
        """What the layer yields before a softmax at its end, if it has one."""
        return self(*inputs)

    def keep(
        self, name: str, slot: str, axes: tuple[int, ...], shape: tuple[int, ...] | None = None
    ) -> Tensor:
        """Register a weight under a name; its axes are turned, then it gets a shape (None: as it is).

        Raises:
            BadInput: it has another number of axes.
        """
        held = self._held[slot]
        if held.value.ndim != len(axes) or not held.value.is_floating_point():
            raise BadInput(
                f"{self._about} has a weight {slot!r} of shape {tuple(held.value.shape)}; get it again"
            )
        value = held.value.float().permute(axes)
        value = (value if shape is None else value.reshape(shape)).contiguous().clone()
        if slot.rpartition("/")[2] in STATISTICS:
            self.register_buffer(name, value)
        else:
            self.register_parameter(name, nn.Parameter(value))
        self.kept[name] = Kept(held.dataset, axes)
        return value

    def check(self, key: str, said: int, found: int) -> None:
        """Make sure that a setting agrees with the weights.

        Raises:
            BadInput: it does not.
        """
        if said != found:
            raise BadInput(f"{self._about} has {key}={said}, and weights for {found}; get it again")


class Activated(Layer):
    """A layer with an activation at its end; subclasses say what is before it."""

    def read(self, settings: Settings) -> None:
        self.activation = activations.named(settings, "activation")

    def before(self, x: Tensor) -> Tensor:
        """What enters the activation."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.before(x))

    def scores(self, *inputs: Any) -> Any:
        return self.before(*inputs) if self.activation is activations.softmax else self(*inputs)


CLASSES: dict[str, type[Layer]] = {}


def known_as(*names: str) -> Callable[[type[Layer]], type[Layer]]:
    """Enter a class of layers under the names that Keras has for it."""

    def enter(kind: type[Layer]) -> type[Layer]:
        CLASSES.update(dict.fromkeys(names, kind))
        return kind

    return enter


def class_of(said: Any, version: int) -> tuple[type[Layer], Settings]:
    """The class and the settings of a layer in a file.

    Raises:
        BadInput: it is not one of Keras that is run here.
    """
    kind = kind_of(said)
    config = said.get("config")
    name = str(config.get("name", kind)) if isinstance(config, dict) else kind
    if kind not in CLASSES:
        raise BadInput(f"its layer {name[:60]!r} is a {kind[:60]}, which is not run here; {TF2ONNX}")
    return CLASSES[kind], Settings(kind, name, config, version)


def kind_of(said: Any) -> str:
    """Name of the class of a layer in a file; one that Keras does not bring itself is refused.

    Raises:
        BadInput: it is of a class of somebody's own, or runs code of the file.
    """
    if not isinstance(said, dict) or not isinstance(kind := said.get("class_name"), str):
        raise ValueError("a layer without a class")
    module, registered = said.get("module", "keras.layers"), said.get("registered_name")
    own = isinstance(module, str) and module.split(".")[0] in ("keras", "tf_keras")
    if kind == "Lambda":
        raise BadInput(f"it has a Lambda layer, and its code would have to be run; {TF2ONNX}")
    if not own or registered not in (None, kind) or ">" in kind:
        raise BadInput(
            f"it has a layer of somebody's own ({registered or kind!s:.60}), and its code would have to be "
            f"run; {TF2ONNX}"
        )
    return kind


def channels_first(x: Tensor) -> Tensor:
    """(N, ..., C) as (N, C, ...)."""
    return x.movedim(-1, 1)


def channels_last(x: Tensor) -> Tensor:
    """(N, C, ...) as (N, ..., C)."""
    return x.movedim(1, -1)


def same(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and behind that Keras puts for padding="same"; the odd one stands behind."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def padding(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> list[int]:
    """What `F.pad` wants for padding="same" of x (N, C, ...)."""
    parts = [same(*axis) for axis in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    return [n for pair in reversed(parts) for n in pair]


def plain(tensor: Any) -> Tensor:
    """An input that must be a tensor."""
    if not isinstance(tensor, Tensor):
        raise ValueError("an input that is no tensor")
    return tensor


def stacked(inputs: Any) -> list[Tensor]:
    """Inputs that must be a list of tensors."""
    parts = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if not parts or not all(isinstance(p, torch.Tensor) for p in parts):
        raise ValueError("inputs that are no tensors")
    return parts
