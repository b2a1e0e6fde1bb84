"""Layers over sequences: attention, recurrent layers, and layers that are put to each step."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.formats.keras.layers import activations
from backsweep.formats.keras.layers.base import Held, Layer, class_of, known_as, stacked
from backsweep.formats.keras.layers.settings import Settings

_MOST_STEPS = 4096  # of a recurrent layer


@known_as("MultiHeadAttention")
class MultiHeadAttention(Layer):
    """Attention of several heads over sequences (N, T, D)."""

    passes = ("query", "value", "key")
    output_weight: Tensor

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        parts = ("kernel", "bias") if settings.flag("use_bias", True) else ("kernel",)
        return [f"{name}_dense/{part}" for name in ("query", "key", "value", "output") for part in parts]

    def read(self, settings: Settings) -> None:
        self.heads, self.wide = settings.whole("num_heads"), settings.whole("key_dim")
        wide = {"query": self.wide, "key": self.wide, "value": settings.whole("value_dim", self.wide)}
        for told in ("attention_axes", "output_shape"):  # the weights and the inputs tell
            settings.get(told)
        for name in ("query", "key", "value", "output"):
            slot = f"{name}_dense/kernel"
            kernel = self._held[slot].value
            if name == "output":
                self.keep(f"{name}_weight", slot, (2, 0, 1), (kernel.shape[-1], -1))
            else:
                self.keep(f"{name}_weight", slot, (1, 2, 0), (-1, kernel.shape[0]))
                self.check("num_heads", self.heads, kernel.shape[1])
                self.check("key_dim or value_dim", wide[name], kernel.shape[2])
            if (bias := f"{name}_dense/bias") in self._held:
                count = self._held[bias].value.ndim
                self.keep(f"{name}_bias", bias, tuple(range(count)), (-1,))

    def _projected(self, name: str, x: Tensor) -> Tensor:
        """x (N, T, D) as (N, heads, T, width)."""
        out = F.linear(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias", None))
        return out.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, query: Tensor, value: Tensor, key: Tensor | None = None) -> Tensor:
        if query.ndim != 3 or value.ndim != 3:
            raise ValueError("attention over more than one axis")
        q, v = self._projected("query", query), self._projected("value", value)
        k = self._projected("key", value if key is None else key)
        weights = (q / math.sqrt(self.wide) @ k.transpose(-1, -2)).softmax(-1)
        out = (weights @ v).transpose(1, 2).flatten(2)
        return F.linear(out, self.output_weight, getattr(self, "output_bias", None))


@known_as("Attention")
class Attention(Layer):
    """Attention without weights of its own: inputs are query, value and maybe key."""

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        return ["scale"] if settings.flag("use_scale", False) else []

    def read(self, settings: Settings) -> None:
        settings.choice("score_mode", ("dot",), "dot")
        if "scale" in self._held:
            self.keep("scale", "scale", ())

    def forward(self, inputs: Any) -> Tensor:
        query, value, *rest = stacked(inputs)
        scores = query @ (rest[0] if rest else value).transpose(-1, -2)
        scale = getattr(self, "scale", None)
        return (scores if scale is None else scale * scores).softmax(-1) @ value


# ---------------------------------------------------------------------- recurrent layers


class Recurrent(Layer):
    """A layer that goes through a sequence (N, T, D) step by step.

    Weights are kept as (gates of all units, inputs), in the order of gates that Keras has.
    """

    gates: int
    weight: Tensor
    state_weight: Tensor
    bias: Tensor | None

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        names = ["cell/kernel", "cell/recurrent_kernel"]
        return [*names, "cell/bias"] if settings.flag("use_bias", True) else names

    def read(self, settings: Settings) -> None:
        self.activation = activations.named(settings, "activation", "tanh")
        self.all, self.back = settings.flag("return_sequences", False), settings.flag("go_backwards", False)
        self.units = settings.whole("units")
        weight = self.keep("weight", "cell/kernel", (1, 0))
        self.check("units", self.gates * self.units, len(weight))
        self.keep("state_weight", "cell/recurrent_kernel", (1, 0))
        if "cell/bias" in self._held:
            self.keep("bias", "cell/bias", tuple(range(self._held["cell/bias"].value.ndim)))
        else:
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[1] > _MOST_STEPS:
            raise ValueError(f"a sequence of shape {tuple(x.shape)}")
        state = [x.new_zeros(len(x), self.units)] * 2
        own = self.bias if self.bias is None or self.bias.ndim == 1 else self.bias[0]
        steps = F.linear(x, self.weight, own).unbind(1)
        outs = []
        for step in reversed(steps) if self.back else steps:
            state = self.stepped(step, *state)
            outs.append(state[0])
        return torch.stack(outs, 1) if self.all else outs[-1]

    def stepped(self, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        """The next output and memory, for what the step brings (N, gates x units) and those before."""
        raise NotImplementedError


@known_as("SimpleRNN")
class SimpleRNN(Recurrent):
    """Without gates."""

    gates = 1

    def stepped(self, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        return [self.activation(x + F.linear(h, self.state_weight)), c]


@known_as("LSTM")
class LSTM(Recurrent):
    """Gates for input, forgetting and output around a memory."""

    gates = 4

    def read(self, settings: Settings) -> None:
        super().read(settings)
        self.gate = activations.named(settings, "recurrent_activation", "sigmoid")

    def stepped(self, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        i, f, new, o = (x + F.linear(h, self.state_weight)).chunk(4, 1)
        c = self.gate(f) * c + self.gate(i) * self.activation(new)
        return [self.gate(o) * self.activation(c), c]


@known_as("GRU")
class GRU(Recurrent):
    """Gates for what is kept and what is looked at."""

    gates = 3

    def read(self, settings: Settings) -> None:
        super().read(settings)
        self.gate = activations.named(settings, "recurrent_activation", "sigmoid")
        self.after = settings.flag("reset_after", settings.version > 2)

    def stepped(self, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        z, r, new = x.chunk(3, 1)
        if self.after:
            late = None if self.bias is None else self.bias[1]
            hz, hr, hn = F.linear(h, self.state_weight, late).chunk(3, 1)
            z, r = self.gate(z + hz), self.gate(r + hr)
            new = self.activation(new + r * hn)
        else:
            wz, wr, wn = self.state_weight.chunk(3)
            z, r = self.gate(z + F.linear(h, wz)), self.gate(r + F.linear(h, wr))
            new = self.activation(new + F.linear(r * h, wn))
        return [z * h + (1 - z) * new, c]


# ---------------------------------------------------------------------- layers around layers


class Wrapper(Layer):
    """A layer around others, whose weights have the names of these before theirs."""

    def inner(self, settings: Settings, key: str, place: str) -> Layer:
        """The layer in a setting, with the weights that are held under the name of its place."""
        kind, own = class_of(settings.get(key), settings.version)
        own.precision  # noqa: B018
        held: dict[str, Held] = {
            slot.removeprefix(f"{place}/"): h
            for slot, h in self._held.items()
            if slot.startswith(f"{place}/")
        }
        return kind(own, held)

    @staticmethod
    def inside(settings: Settings, key: str, place: str) -> list[str]:
        """Slots of the layer in a setting."""
        kind, own = class_of(settings.get(key), settings.version)
        return [f"{place}/{slot}" for slot in kind.slots(own)]


@known_as("TimeDistributed")
class TimeDistributed(Wrapper):
    """A layer put to each step of a sequence."""

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        return cls.inside(settings, "layer", "layer")

    def read(self, settings: Settings) -> None:
        self.layer = self.inner(settings, "layer", "layer")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@known_as("Bidirectional")
class Bidirectional(Wrapper):
    """A recurrent layer forwards, and another one backwards."""

    @classmethod
    def slots(cls, settings: Settings) -> list[str]:
        behind = "backward_layer" if settings.get("backward_layer") else "layer"
        return [
            *cls.inside(settings, "layer", "forward_layer"),
            *cls.inside(settings, behind, "backward_layer"),
        ]

    def read(self, settings: Settings) -> None:
        self.mode = settings.choice("merge_mode", ("concat", "sum", "ave", "mul"))
        behind = "backward_layer" if settings.get("backward_layer") else "layer"
        one = self.inner(settings, "layer", "forward_layer")
        two = self.inner(settings, behind, "backward_layer")
        if not isinstance(one, Recurrent) or not isinstance(two, Recurrent):
            raise settings.wrong("layer", type(one).__name__)
        self.forward_layer, self.backward_layer = one, two
        if behind == "layer":  # made from the other one
            two.back = not one.back

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.forward_layer(x), self.backward_layer(x)
        if self.forward_layer.all:
            two = two.flip(1)
        if self.mode == "concat":
            return torch.cat([one, two], -1)
        if self.mode == "mul":
            return one * two
        return one + two if self.mode == "sum" else (one + two) / 2
