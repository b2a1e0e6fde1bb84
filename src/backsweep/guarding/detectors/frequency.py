"""Frequency detector (Zeng et al., ICCV 2021): a trigger leaves traces in the spectrum of an image.

A small network learns to tell the cosine transforms of clean images from those of the same images with
made-up triggers. The model that is guarded is never asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector, Score
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, fit

LEAST_SIDE = 4  # pixels of an image; and what is smaller is not pooled any further
LEAST_SAMPLES = 20
DROPOUT = (0.2, 0.3, 0.4)
WIDTHS = {"standard": ((16,), (32,), (64,)), "paper": ((32, 32), (64, 64), (128, 128))}
MOST = 2000  # samples that the standard preset learns from
UPDATES = 200  # of the standard preset, in whole epochs
STANDARD = Recipe(lr=5e-3, batch_size=64, weight_decay=1e-4, bf16=False)
ROUNDS, EPOCHS, BATCH, LR, DECAY = 5, 10, 64, 0.05, 1e-4  # of the paper, with Adadelta
BLOCK, MARGIN = (2, 7), 5  # pixels, both ends included
NOISE_MEAN, NOISE_VARIANCE = 25 / 255, (10 / 255**2, 70 / 255**2)
SHADE, ADDED = 0.5, 0.3  # what a shadow leaves; weight of the image that is added
CORNERS = 5  # of the polygon that a shadow is; one image in two has a second one


@dataclass(frozen=True)
class Frequency(SampleDetector):
    """Scores an input by how much its spectrum looks like that of an image with a trigger.

    Attributes:
        preset: "paper" is the authors' network and training; "standard" a smaller one, for a CPU.
    """

    name: ClassVar[str] = "frequency"
    summary: ClassVar[str] = "images with a trigger's traces in their spectrum (Zeng et al.)"
    needs: ClassVar[tuple[str, ...]] = ()

    preset: str = "standard"

    def __post_init__(self) -> None:
        if self.preset not in WIDTHS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(WIDTHS)}")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if not model.modality.grid or len(model.shape) != 3 or min(model.shape[1:]) < LEAST_SIDE:
            return f"it needs images of at least {LEAST_SIDE} x {LEAST_SIDE} pixels; inputs are {model.shape}"
        count = len(self.halves(data)[0])
        return "" if count >= LEAST_SAMPLES else f"it needs {LEAST_SAMPLES} clean images; it has {count}"

    def passes(self, model: Model) -> float:
        return 0

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """The weights of the classifier: 0 is clean, 1 triggered."""
        seed = derive_seed(0, self.name)
        device = model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(seed)  # start weights and dropout
            net = self.net(model).to(device)
            if self.preset == "paper":
                train(net, data.x, seed)
            else:
                train_briefly(net, data.sample(MOST, seed), seed)
        return {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        """Logit of "triggered" minus that of "clean"."""
        net = self.net(model)
        net.load_state_dict(learned)
        net.requires_grad_(False).eval().to(model.device)

        def score(x: Tensor) -> Tensor:
            clean, bad = net(x.float()).unbind(1)
            return bad - clean

        return score

    def net(self, model: Model) -> nn.Sequential:
        """The classifier for images of the model's shape, not trained."""
        channels, height, width = model.shape
        layers: list[nn.Module] = [Spectrum(height, width)]
        for widths, dropout in zip(WIDTHS[self.preset], DROPOUT, strict=True):
            for wide in widths:
                layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ELU(), nn.BatchNorm2d(wide)]
                channels = wide
            if min(height, width) >= LEAST_SIDE:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            layers.append(nn.Dropout(dropout))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, 2))


class Spectrum(nn.Module):
    """Cosine transform of each channel of an image whose values are 0..255.

    They are rounded, so that what stands between two grey levels gives no made-up trigger away.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", dct_matrix(height), persistent=False)
        self.register_buffer("columns", dct_matrix(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ (255 * x).round() @ self.columns.T


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II matrix D (n, n): D x is the transform of a column x."""
    k, i = torch.arange(n)[:, None], torch.arange(n)[None]
    d = (math.pi * (2 * i + 1) * k / (2 * n)).to(torch.float64).cos() * math.sqrt(2 / n)
    d[0] = math.sqrt(1 / n)
    return d.float()


def truth(x: Tensor) -> Tensor:
    """Labels of as many clean images as there are x, and of a triggered copy of each."""
    return torch.arange(2, device=x.device).repeat_interleave(len(x))


def train(net: nn.Module, x: Tensor, seed: int) -> None:
    """The paper's training: in each of five rounds every image gets a new trigger."""
    device = next(net.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adadelta(net.parameters(), LR, weight_decay=DECAY)
    net.train()
    for _ in range(ROUNDS):
        both, y = torch.cat([x, triggered(x, x, generator)]), truth(x.cpu())
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(both), generator=generator).split(BATCH):
                if len(rows) == 1:
                    continue
                loss = F.cross_entropy(net(both[rows].to(device)), y[rows].to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
    net.eval()


def train_briefly(net: nn.Module, data: Data, seed: int) -> None:
    """The standard training: every image gets a new trigger each time that it is seen."""
    generator = torch.Generator().manual_seed(seed)

    def loss(net: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        both = torch.cat([x, triggered(x.cpu(), data.x, generator).to(x.device)])
        return F.cross_entropy(net(both), truth(x))

    epochs = epochs_of(UPDATES, len(data), STANDARD.batch_size)
    fit(net, data, replace(STANDARD, epochs=epochs), seed, loss_of=loss)


def triggered(x: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Images x (N, C, H, W) on the CPU, each with one of five made-up triggers.

    A white block, a block of noise, Gaussian noise, a shadow, or one of `others` is added.
    """
    kind = torch.randint(5, (len(x),), generator=generator)
    added = others[torch.randint(len(others), (len(x),), generator=generator)]
    where = blocks(x, generator)
    white, noise = torch.ones_like(x), torch.rand(x.shape, generator=generator)
    low, high = NOISE_VARIANCE
    sigma = (low + (high - low) * torch.rand((len(x), 1, 1, 1), generator=generator)).sqrt()
    made = torch.stack([
        torch.where(where, white, x),
        torch.where(where, noise, x),
        x + NOISE_MEAN + sigma * torch.randn(x.shape, generator=generator),
        torch.where(shadows(x, generator), SHADE * x, x),
        x + ADDED * added,
    ])  # fmt: skip
    return made[kind, torch.arange(len(x))].clamp(0, 1)


def blocks(x: Tensor, generator: torch.Generator) -> Tensor:
    """Where a block lies in each image, (N, 1, H, W): in a corner, a margin away from both edges.

    On images below 28 pixels it is smaller: at most a quarter of a side, and a margin of a fifth.
    """
    n, sides = len(x), x.shape[2:]
    margin = torch.randint(min(MARGIN, min(sides) // 5) + 1, (n, 1), generator=generator)
    spans = []
    for side in sides:
        largest = min(BLOCK[1], side // 4)
        size = torch.randint(min(BLOCK[0], largest), largest + 1, (n, 1), generator=generator)
        far = torch.rand((n, 1), generator=generator) < 0.5
        start = torch.where(far, side - margin - size, margin)
        at = torch.arange(side)
        spans.append((at >= start) & (at < start + size))
    rows, columns = spans
    return rows[:, None, :, None] & columns[:, None, None, :]


def shadows(x: Tensor, generator: torch.Generator) -> Tensor:
    """Where the shadow lies, (N, 1, H, W): one or two polygons in the lower half of each image."""
    n, _, height, width = x.shape
    corner = torch.rand((n, 2, CORNERS, 2), generator=generator)
    corner = torch.stack([(0.5 + 0.5 * corner[..., 0]) * height, corner[..., 1] * width], -1)
    dark = inside(corner, height, width)
    dark[:, 1] &= (torch.rand(n, generator=generator) < 0.5)[:, None, None]
    return dark.any(1, keepdim=True)


def inside(corner: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in polygons with corners (..., K, 2) of (y, x), by the even-odd rule."""
    y = torch.arange(height)[:, None] + 0.5
    x = torch.arange(width)[None] + 0.5
    (y0, x0), (y1, x1) = (c[..., None, None].unbind(-3) for c in (corner, corner.roll(1, -2)))
    crosses = (y0 > y) != (y1 > y)
    left = x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return (crosses & left).sum(-3) % 2 == 1
