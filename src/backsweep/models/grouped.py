"""Several networks of one architecture side by side: channels in groups.

K networks with their weights stacked are one network whose convolutions have K times as many groups, whose
BatchNorms have K times as many channels and whose dense layers are batched products:

    x (B, K C, H, W) -> logits (B, K, classes)

What works on every channel by itself (activations, pooling, flattening, sums) stays as it is. An
architecture that this does not hold for runs one network after another behind the same interface.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

CPU_VALUES, GPU_VALUES = 2**18, 2**23  # input values that a pass over all networks takes at most
TOLERANCE = 1e-3  # of the largest logit


def nets_in_a_pass(shape: Sequence[int], inputs: int, device: str = "cpu") -> int:
    """How many networks share a pass of `inputs` inputs each.

    On a CPU as many as stay in the cache; networks for larger inputs run one after another. The same on
    every machine of a kind, so that results do not hang on how the work is spread.
    """
    most = CPU_VALUES if device == "cpu" else GPU_VALUES
    return max(1, most // (math.prod(shape) * inputs))


class Wide(nn.Module):
    """K networks side by side.

    Args:
        net: one network of the architecture, for its structure.
        states: weights and buffers by name, stacked: (K, ...).
        shape: of an input of one network, (channels, height, width).

    Attributes:
        count: K.
        grouped: whether they really run at once, or one after another.
    """

    def __init__(self, net: nn.Module, states: Mapping[str, Tensor], shape: Sequence[int]) -> None:
        super().__init__()
        self.count = len(next(iter(states.values())))
        self._shapes = {name: value.shape[1:] for name, value in states.items()}
        each = _Each(net, states, self.count)
        grouped = _grouped(net, states, self.count)
        self.grouped = grouped is not None and _alike(grouped, each, self.count, shape)
        self.body: nn.Module = grouped if grouped is not None and self.grouped else each

    @classmethod
    def of(cls, nets: Sequence[nn.Module], shape: Sequence[int]) -> Wide:
        """Networks that are there, side by side."""
        every = [net.state_dict() for net in nets]
        return cls(nets[0], {name: torch.stack([s[name] for s in every]) for name in every[0]}, shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, classes) for x (B, K C, H, W), the channels of the first network first."""
        return self.body(x).unflatten(1, (self.count, -1))

    def states(self) -> dict[str, Tensor]:
        """Weights and buffers by the names of a single network, stacked: (K, ...)."""
        if isinstance(self.body, _Each):
            return self.body.states()
        return {
            name: value.reshape(self.count, *self._shapes[name]) if value.ndim else value.expand(self.count)
            for name, value in self.body.state_dict().items()
        }


class _Linear(nn.Module):
    """K dense layers on x (B, K D), each on its own D features."""

    def __init__(self, count: int, before: int, after: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count * after, before))
        self.bias = nn.Parameter(torch.empty(count * after)) if bias else None
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        z = x.reshape(len(x), self.count, -1).transpose(0, 1)
        out = torch.bmm(z, self.weight.unflatten(0, (self.count, -1)).transpose(1, 2).to(z.dtype))
        out = out.transpose(0, 1).flatten(1)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Each(nn.Module):
    """K networks, one after another."""

    def __init__(self, net: nn.Module, states: Mapping[str, Tensor], count: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(copy.deepcopy(net) for _ in range(count))
        for k, one in enumerate(self.nets):
            one.load_state_dict({name: value[k] for name, value in states.items()})

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.nets), dim=1)
        return torch.cat([net(part) for net, part in zip(self.nets, parts, strict=True)], dim=1)

    def states(self) -> dict[str, Tensor]:
        every = [net.state_dict() for net in self.nets]
        return {name: torch.stack([s[name] for s in every]) for name in every[0]}


def _grouped(net: nn.Module, states: Mapping[str, Tensor], count: int) -> nn.Module | None:
    """The network with every layer made for K times as many channels; None when a layer has no such form."""
    body = copy.deepcopy(net)
    for name, layer in net.named_modules():
        if not any(True for _ in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))):
            continue
        wide = _widened(layer, count)
        if wide is None or not name:
            return None
        parent, _, attribute = name.rpartition(".")
        setattr(body.get_submodule(parent), attribute, wide.train(layer.training))
    flat = {name: value.flatten(0, 1) if value.ndim > 1 else value[0] for name, value in states.items()}
    body.load_state_dict(flat)
    return body


def _widened(layer: nn.Module, count: int) -> nn.Module | None:
    bias = getattr(layer, "bias", None) is not None
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
        return nn.Conv2d(
            layer.in_channels * count, layer.out_channels * count, layer.kernel_size, layer.stride,  # type: ignore[arg-type]
            layer.padding, layer.dilation, layer.groups * count, bias,  # type: ignore[arg-type]
        )  # fmt: skip
    if type(layer) is nn.Linear:
        return _Linear(count, layer.in_features, layer.out_features, bias)
    if type(layer) is nn.BatchNorm2d and layer.affine and layer.track_running_stats:
        return nn.BatchNorm2d(layer.num_features * count, layer.eps, layer.momentum)
    return None


@torch.no_grad()
def _alike(grouped: nn.Module, each: nn.Module, count: int, shape: Sequence[int]) -> bool:
    """Whether both forms give the same logits on noise."""
    channels, *sides = shape
    x = torch.rand((2, channels * count, *sides), generator=torch.Generator().manual_seed(0))
    modes = grouped.training, each.training
    try:
        wanted, got = each.eval()(x), grouped.eval()(x)
    except RuntimeError:
        return False
    finally:
        grouped.train(modes[0])
        each.train(modes[1])
    if wanted.shape != got.shape:
        return False
    return bool((wanted - got).abs().max() <= TOLERANCE * wanted.abs().max().clamp_min(1e-6))
