"""Small networks of many architectures, and how they become ONNX files."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """A block of ResNet, or of PreActResNet."""

    def __init__(self, channels: int, early: bool = False) -> None:
        super().__init__()
        self.early = early
        self.conv1, self.bn1 = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.conv2, self.bn2 = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.early:
            return x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Dense(nn.Module):
    """A block of DenseNet."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(torch.relu(self.bn(x)))], 1)


class Attention(nn.Module):
    """Attention by products and a softmax, before it a LayerNorm, behind it an MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        score = q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5
        score = score if mask is None else score + mask
        x = x + self.proj((score.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Patches, a class token, positions, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(Attention(16, 4), Attention(16, 2))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


class Mixer(nn.Module):
    """MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(approximate="tanh"), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.head((x + self.channels(self.norm(x))).mean(1))
        return out


class ConvNext(nn.Module):
    """A block of ConvNeXt: a deep convolution, a LayerNorm over channels, a scale for each of them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.gamma = nn.Parameter(torch.rand(dim))

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.deep(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(z)))).permute(0, 3, 1, 2)


class Swin(nn.Module):
    """Attention in windows that are rolled, with a mask and a table of relative positions."""

    mask: Tensor
    index: Tensor

    def __init__(self, roll: int = 2) -> None:
        super().__init__()
        self.roll = roll
        self.patch, self.block = nn.Conv2d(3, 16, 2, 2), Attention(16, 2)
        self.table = nn.Parameter(torch.randn(49, 1))
        mask = torch.zeros(4, 1, 16, 16)
        mask[1, :, :8, 8:] = -torch.inf
        self.register_buffer("mask", mask)
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        gap = (place[:, :, None] - place[:, None] + 3).permute(1, 2, 0)
        self.register_buffer("index", gap[..., 0] * 7 + gap[..., 1])
        self.merge, self.head = nn.Linear(64, 32, bias=False), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        x = torch.roll(x, (-self.roll, -self.roll), (1, 2))
        x = x.reshape(b, 2, 4, 2, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        bias = self.table[self.index.reshape(-1)].reshape(1, 16, 16)
        x = self.block(x, self.mask.repeat(b, 1, 1, 1) + bias)
        x = x.reshape(b, 2, 2, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = torch.roll(x, (self.roll, self.roll), (1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        out: Tensor = self.head(self.merge(x).mean((1, 2)))
        return out


class Mha(nn.Module):
    """PyTorch's own attention, with the batch on the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attend = nn.Conv2d(3, 16, 4, 4), nn.MultiheadAttention(16, 4)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).permute(2, 0, 1)
        out: Tensor = self.head(self.attend(x, x, x, need_weights=False)[0].mean(0))
        return out


class UpDown(nn.Module):
    """Down by strides, up by resizing and by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(4, 8)
        self.up, self.last = (
            nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1),
            nn.Conv2d(6, 6, 3, padding=1),
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.silu(self.norm(self.down(x))))
        x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        x = F.interpolate(F.elu(self.last(x)), size=(12, 12), mode="nearest")
        x = F.pad(
            F.interpolate(x, size=(9, 7), mode="bilinear", align_corners=True), (1, 1, 1, 1), mode="reflect"
        )
        out: Tensor = self.head(torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1))
        return out


class Shuffle(nn.Module):
    """Groups, a channel shuffle, splits, pixel shuffles."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.group = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm, self.act, self.head = nn.InstanceNorm2d(8, affine=True), nn.PReLU(8), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.act(self.norm(self.stem(x))).chunk(2, 1)
        x = torch.cat([a, self.group(b)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2)
        x = F.avg_pool2d(F.leaky_relu(x), 3, 2, 1, count_include_pad=False)
        out: Tensor = self.head(torch.flatten(x, 1))
        return out


class Einsum(nn.Module):
    """Bilinear pooling by einsum, logarithms, norms, comparisons."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = F.softplus(self.stem(x)).flatten(2)
        z = torch.einsum("nit,njt->nij", z, z).flatten(1)
        z = torch.where(z > 0.5, z.clamp(max=4.0).sqrt(), z.abs().log1p())
        out: Tensor = self.head(F.normalize(z, dim=1)) / 0.3
        return out.log_softmax(1)


def _stack(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def _tail(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


def _mobile() -> nn.Module:
    return _stack(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        Squeeze(8),
        nn.Conv2d(8, 12, 1),
        nn.Hardswish(),
        *_tail(12),
    )


def _vgg() -> nn.Module:
    return _stack(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(12 * 25, 20),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(20, 5),
    )


def _hugging_face(name: str) -> Callable[[], nn.Module]:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            import transformers

            t: Any = transformers

            small = {
                "vit": lambda: t.ViTForImageClassification(
                    t.ViTConfig(
                        hidden_size=16,
                        num_hidden_layers=2,
                        num_attention_heads=2,
                        intermediate_size=32,
                        image_size=16,
                        patch_size=4,
                        num_labels=5,
                        attn_implementation="eager",
                    )
                ),
                "resnet": lambda: t.ResNetForImageClassification(
                    t.ResNetConfig(
                        embedding_size=8,
                        hidden_sizes=[8, 16],
                        depths=[1, 1],
                        layer_type="basic",
                        num_labels=5,
                    )
                ),
                "convnext": lambda: t.ConvNextForImageClassification(
                    t.ConvNextConfig(
                        num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=16, num_labels=5
                    )
                ),
            }
            self.net = small[name]()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(pixel_values=x).logits
            return out

    return Logits


NETS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: _stack(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 49, 5)),
    "bn_gap": lambda: _stack(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.SiLU(), *_tail(6)),
    "resnet": lambda: _stack(nn.Conv2d(3, 8, 3), Residual(8), nn.MaxPool2d(3, 2, 1), Residual(8), *_tail(8)),
    "preact": lambda: _stack(
        nn.Conv2d(3, 8, 3), Residual(8, True), Residual(8, True), nn.BatchNorm2d(8), *_tail(8)
    ),
    "vgg": _vgg,
    "mlp": lambda: _stack(nn.Flatten(), nn.Linear(768, 20), nn.Tanh(), nn.Linear(20, 5), nn.Softmax(1)),
    "vit": Vit,
    "mixer": Mixer,
    "convnext": lambda: _stack(nn.Conv2d(3, 8, 2, 2), ConvNext(8), ConvNext(8), *_tail(8)),
    "mobile": _mobile,
    "dense": lambda: _stack(nn.Conv2d(3, 6, 3), Dense(6, 4), Dense(10, 4), nn.AvgPool2d(2), *_tail(14)),
    "swin": Swin,
    "mha": Mha,
    "updown": UpDown,
    "shuffle": Shuffle,
    "einsum": Einsum,
    "hf_vit": _hugging_face("vit"),
    "hf_resnet": _hugging_face("resnet"),
    "hf_convnext": _hugging_face("convnext"),
}
SHAPE = (3, 16, 16)


def net(name: str, seed: int = 0) -> nn.Module:
    """A network with random weights and batch statistics that are not the initial ones, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = NETS[name]()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
            if isinstance(
                module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
            ):  # the same ones would be shared
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias, std=0.1)
    return made.eval()


def exported(
    made: nn.Module,
    opset: int,
    *,
    dynamo: bool = False,
    batch: int = 0,
    shape: tuple[int, ...] = SHAPE,
    **more: Any,
) -> bytes:
    """The file that an exporter of PyTorch writes, for one batch size or for any (0)."""
    buffer = io.BytesIO()
    target: Any = buffer
    if dynamo:
        more["dynamic_shapes"] = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    else:
        more["input_names"] = ["x"]
        more["dynamic_axes"] = None if batch else {"x": {0: "batch"}}
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = torch.rand((batch or 2, *shape), generator=torch.Generator().manual_seed(1))
            torch.onnx.export(made, (x,), target, opset_version=opset, dynamo=dynamo, verbose=False, **more)
    finally:
        logging.disable(level)
    return buffer.getvalue()
