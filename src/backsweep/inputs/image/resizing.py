"""Images at another height and width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Images (N, C, H, W) at the height and width of `shape`; bytes stay bytes."""
    parts = []
    for part in torch.split(x, 256):
        y = F.interpolate(part.float(), tuple(shape[1:]), mode="bilinear", antialias=True)
        parts.append(y.round().clamp(0, 255).byte() if x.dtype == torch.uint8 else y)
    return torch.cat(parts)
