"""What a result was made with."""

from __future__ import annotations

import platform

import torch

from backsweep import __version__


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {
        "backsweep": __version__, "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
