"""How an image is shown to a person."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def to_image(x: Tensor) -> Image.Image:
    """Picture of a tensor (C, H, W) or (H, W) in [0, 1]; one or three channels."""
    a = (x.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    if a.ndim == 3:
        a = a[0] if a.shape[0] != 3 else a.permute(1, 2, 0)
    return Image.fromarray(a.contiguous().numpy())
