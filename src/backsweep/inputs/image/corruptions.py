"""Fifteen common corruptions of images (the list of Hendrycks & Dietterich, ICLR 2019), in five severities.

Everything is written anew in batched torch, for grey and colour images of any size. The strengths are
ours: those of ImageNet-C where a corruption acts on single pixels, and where it has a size (blurs, warps)
lengths that suit a side of 28-32 pixels, which grow with the side. What is random is drawn once per
corruption and shape, shared by all images and all severities, so that the result for an image depends on
that image alone and a higher severity is the same corruption, stronger. There are no picture files: frost
and fog are made of noise.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SEVERITIES = 5
SIDE = 32  # of an image to which the lengths below refer, in pixels


def corrupt(x: Tensor, name: str, severity: int) -> Tensor:
    """The images x (N, C, H, W) in [0, 1] under corruption `name` at `severity` 1..5: a new tensor in [0, 1].

    Raises:
        ValueError: there is no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name!r} is none of {', '.join(CORRUPTIONS)}")
    if not 1 <= severity <= SEVERITIES:
        raise ValueError(f"severity {severity} is not in 1..{SEVERITIES}")
    return CORRUPTIONS[name](x, severity - 1).clamp(0, 1) if len(x) else x.clone()


# ------------------------------------------------------------------ tools


def _generator(name: str) -> torch.Generator:
    """On the CPU: what is drawn is the same on every device."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _uniform(x: Tensor, name: str, *shape: int) -> Tensor:
    return torch.rand(shape, generator=_generator(name)).to(x.device)


def _normal(x: Tensor, name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator(name)).to(x.device)


def _scale(x: Tensor) -> float:
    return min(x.shape[-2:]) / SIDE


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Every channel convolved with one kernel of odd size; the border is continued."""
    height, width = (n // 2 for n in kernel.shape)
    z = F.pad(x.flatten(0, 1)[:, None], (width, width, height, height), mode="replicate")
    return F.conv2d(z, kernel.to(x)[None, None]).reshape(x.shape)


def _offsets(reach: float) -> tuple[Tensor, Tensor]:
    """Rows and columns of a kernel that reaches `reach` pixels from its middle."""
    r = torch.arange(-math.ceil(reach), math.ceil(reach) + 1.0)
    rows, columns = torch.meshgrid(r, r, indexing="ij")
    return rows, columns


def _gauss(sigma: float) -> Tensor:
    rows, columns = _offsets(3 * sigma)
    kernel = torch.exp(-(rows**2 + columns**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def _disk(radius: float) -> Tensor:
    """A disk, its rim by the share of a pixel that it covers (about)."""
    rows, columns = _offsets(radius)
    kernel = (radius + 0.5 - (rows**2 + columns**2).sqrt()).clamp(0, 1)
    return kernel / kernel.sum()


def _line(length: float, angle: float) -> Tensor:
    """A straight line through the middle."""
    rows, columns = _offsets(length / 2)
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = (rows * math.cos(angle) - columns * math.sin(angle)).abs()
    kernel = (length / 2 + 0.5 - along.abs()).clamp(0, 1) * (1 - across).clamp(0, 1)
    return kernel / kernel.sum()


def _clouds(x: Tensor, name: str, roughness: float) -> Tensor:
    """Fractal noise (1, 1, H, W) in [0, 1]: each octave is twice as fine and `roughness` times as strong."""
    height, width = x.shape[-2:]
    generator, total = _generator(name), torch.zeros(1, 1, height, width)
    for octave in range(max(1, math.ceil(math.log2(max(height, width))))):
        cells = torch.rand((1, 1, 2 ** (octave + 1), 2 ** (octave + 1)), generator=generator)
        fine = F.interpolate(cells, (height, width), mode="bilinear", align_corners=True)
        total += roughness**octave * fine
    return ((total - total.min()) / (total.max() - total.min()).clamp_min(1e-6)).to(x.device)


def _moved(x: Tensor, flow: Tensor | float = 0.0, zoom: float = 1.0) -> Tensor:
    """The images enlarged by `zoom`, read at places moved by flow (H, W, 2): right, down, in half sides."""
    n, _, height, width = x.shape
    plain = torch.tensor([[[1 / zoom, 0.0, 0.0], [0.0, 1 / zoom, 0.0]]], device=x.device)
    grid = F.affine_grid(plain, [1, 1, height, width], align_corners=False) + flow
    return F.grid_sample(x, grid.expand(n, -1, -1, -1), padding_mode="border", align_corners=False)


# ------------------------------------------------------------------ noise


def _gaussian_noise(x: Tensor, s: int) -> Tensor:
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[s] * _normal(x, "gaussian_noise", *x.shape[1:])


def _shot_noise(x: Tensor, s: int) -> Tensor:
    """Poisson counts: arrivals of one Poisson process per pixel, up to the time that the image says."""
    rate = (60, 25, 12, 5, 3)[s]
    most = int(rate + 6 * math.sqrt(rate) + 10)
    steps = -_uniform(x, "shot_noise", *x.shape[1:], 120).clamp_min(1e-12).log()
    arrivals = steps[..., :most].cumsum(-1)
    counts = torch.searchsorted(arrivals, (rate * x).permute(1, 2, 3, 0).contiguous())
    return counts.permute(3, 0, 1, 2).to(x) / rate


def _impulse_noise(x: Tensor, s: int) -> Tensor:
    amount, u = (0.03, 0.06, 0.09, 0.17, 0.27)[s], _uniform(x, "impulse_noise", *x.shape[1:])
    salted = torch.where(u > 1 - amount / 2, torch.ones_like(x), x)
    return torch.where(u < amount / 2, torch.zeros_like(x), salted)


# ------------------------------------------------------------------ blur


def _defocus_blur(x: Tensor, s: int) -> Tensor:
    return _filtered(x, _disk((0.6, 1.0, 1.5, 2.0, 2.8)[s] * _scale(x)))


def _glass_blur(x: Tensor, s: int) -> Tensor:
    """Every pixel is read from a place nearby, some times over, with a blur before and after."""
    sigma, reach, times = ((0.3, 1, 1), (0.4, 1, 2), (0.5, 1, 3), (0.5, 2, 2), (0.6, 2, 3))[s]
    reach, (height, width) = max(1, round(reach * _scale(x))), x.shape[-2:]
    u = _uniform(x, "glass_blur", 3, 2, height, width)
    rows = torch.arange(height, device=x.device)[:, None].expand(height, width)
    columns = torch.arange(width, device=x.device).expand(height, width)
    z = _filtered(x, _gauss(sigma * max(1, _scale(x))))
    for step in ((2 * reach + 1) * u[:times]).floor().long() - reach:
        z = z[..., (rows + step[0]).clamp(0, height - 1), (columns + step[1]).clamp(0, width - 1)]
    return _filtered(z, _gauss(sigma * max(1, _scale(x))))


def _motion_blur(x: Tensor, s: int) -> Tensor:
    return _filtered(x, _line((2.5, 4.0, 5.5, 7.5, 10.0)[s] * _scale(x), math.pi / 5))


def _zoom_blur(x: Tensor, s: int) -> Tensor:
    """The mean of the image and of ten enlargements of it."""
    most = (0.12, 0.2, 0.3, 0.42, 0.6)[s]
    return (x + sum(_moved(x, zoom=1 + most * i / 10) for i in range(1, 11))) / 11


# ------------------------------------------------------------------ weather


def _snow(x: Tensor, s: int) -> Tensor:
    """A paler image with flakes that fall at a slant."""
    share, kept, fall = ((0.015, 0.95, 2), (0.03, 0.9, 2), (0.06, 0.8, 2.5), (0.09, 0.75, 3), (0.13, 0.7, 3))[
        s
    ]
    size = max(1, round(_scale(x)))
    height, width = (math.ceil(n / size) for n in x.shape[-2:])
    flakes = (_uniform(x, "snow", 1, 1, height, width) < share).to(x)
    flakes = F.interpolate(flakes, x.shape[-2:], mode="nearest")
    flakes = _filtered(flakes, fall * _line(fall * size, math.pi / 3)).clamp(0, 1)
    pale = torch.maximum(x, 0.7 * x.mean(1, keepdim=True) + 0.3)
    return kept * x + (1 - kept) * pale + flakes


def _frost(x: Tensor, s: int) -> Tensor:
    """Crystals: sharp ridges of fractal noise, denser where other noise is high, and bluish."""
    kept, laid = ((0.95, 0.25), (0.9, 0.4), (0.8, 0.5), (0.75, 0.6), (0.65, 0.7))[s]
    ridges = (1 - 6 * (_clouds(x, "frost", 0.8) - 0.5).abs()).clamp(0, 1)
    ice = (0.6 * ridges + 0.6 * _clouds(x, "frost cover", 0.5)).clamp(0, 1)
    tint = torch.tensor([0.85, 0.95, 1.0], device=x.device) if x.shape[1] == 3 else torch.ones(1).to(x)
    return kept * x + laid * ice * tint[:, None, None]


def _fog(x: Tensor, s: int) -> Tensor:
    thick, roughness = ((0.4, 0.6), (0.7, 0.6), (1.1, 0.6), (1.6, 0.6), (2.5, 0.6))[s]
    top = x.amax((1, 2, 3), keepdim=True)
    return (x + thick * _clouds(x, "fog", roughness)) * top / (top + thick)


def _brightness(x: Tensor, s: int) -> Tensor:
    """The value of hue, saturation and value is raised."""
    value = x.amax(1, keepdim=True)
    raised = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[s]).clamp(max=1)
    return torch.where(value > 0, x / value.clamp_min(1e-6), torch.ones_like(x)) * raised


# ------------------------------------------------------------------ digital


def _contrast(x: Tensor, s: int) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[s] * (x - mean)


def _elastic(x: Tensor, s: int) -> Tensor:
    """Moved by a smooth random field; its root mean square is given in pixels."""
    height, width = x.shape[-2:]
    field = _filtered(_normal(x, "elastic", 1, 2, height, width), _gauss(2.5 * _scale(x)))
    pixels = field / field.square().mean().sqrt().clamp_min(1e-6) * (0.5, 0.9, 1.4, 2.0, 2.8)[s] * _scale(x)
    return _moved(x, pixels[0].permute(1, 2, 0) * 2 / torch.tensor([width, height], device=x.device))


def _pixelate(x: Tensor, s: int) -> Tensor:
    share, (height, width) = (0.75, 0.6, 0.45, 0.33, 0.25)[s], x.shape[-2:]
    small = F.interpolate(x, (max(1, round(share * height)), max(1, round(share * width))), mode="area")
    return F.interpolate(small, (height, width), mode="nearest")


def _jpeg(x: Tensor, s: int) -> Tensor:
    """Through Pillow, as RGB with three channels, else every channel as a grey image."""
    pixels = (255 * x).round().clamp(0, 255).byte().cpu()
    pixels = pixels.permute(0, 2, 3, 1) if x.shape[1] == 3 else pixels.flatten(0, 1)
    out = []
    for image in pixels.contiguous().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[s])
        with Image.open(file) as read:
            out.append(torch.from_numpy(np.array(read)))
    z = torch.stack(out).to(x) / 255
    return z.permute(0, 3, 1, 2) if x.shape[1] == 3 else z.reshape(x.shape)


CORRUPTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "gaussian_noise": _gaussian_noise, "shot_noise": _shot_noise, "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur, "glass_blur": _glass_blur, "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur, "snow": _snow, "frost": _frost, "fog": _fog, "brightness": _brightness,
    "contrast": _contrast, "elastic": _elastic, "pixelate": _pixelate, "jpeg": _jpeg,
}  # fmt: skip
