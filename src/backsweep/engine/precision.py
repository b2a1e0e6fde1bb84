"""Which precision is fast where a job runs: bfloat16 where there are instructions for it, else float32.

What is looked for in bfloat16 is a direction, or weights. So the precision changes how long it takes and the
last digits, not what is measured.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")  # as PyTorch names them


@functools.cache
def pays(device_type: str) -> bool:
    """Whether bfloat16 is faster than float32 on a kind of device.

    Its instructions say so, and no measurement, so that two runs on one machine are the same. A processor
    without them makes up each product from others: a training step of a small ResNet took ten times as long
    as in float32 (AVX2 alone, one core).
    """
    import torch

    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return True
    told = getattr(torch.cpu, "get_capabilities", None)
    if told is None:  # before PyTorch 2.11
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    there = told()
    return any(there.get(name, False) for name in INSTRUCTIONS)


def bfloat16(device_type: str, wanted: bool = True) -> torch.autocast:
    """Passes in bfloat16, where that is wanted and pays; parameters stay as they are."""
    import torch

    return torch.autocast(device_type, torch.bfloat16, enabled=wanted and pays(device_type))
