"""Networks that are built by code the user names, or that come with the package."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backsweep.core.errors import BadInput
from backsweep.models import architectures
from backsweep.models.outputs import unwrapped


def build(arch: str | Callable[[], nn.Module]) -> nn.Module:
    """The network that the code named by the user makes."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        factory: Any = arch
        if isinstance(arch, str):
            module, _, name = arch.partition(":")
            if not module or not name:
                raise BadInput(f"arch {arch!r} is not of the form package.module:factory")
            importlib.invalidate_caches()
            factory = getattr(importlib.import_module(module), name)
        with torch.random.fork_rng(devices=[]):
            net = factory()
    except BadInput:
        raise
    except Exception as e:
        raise BadInput(
            f"arch {arch!r} fails ({type(e).__name__}: {e}); name a function that takes no arguments, in a "
            "module that can be imported from the current folder"
        ) from e
    finally:
        sys.path.remove(here)
    if not isinstance(net, nn.Module):
        raise BadInput(f"arch {arch!r} returns {type(net).__name__}, not a torch.nn.Module")
    return unwrapped(net)[0]


def named(arch: str, classes: int, shape: Sequence[int], seed: int) -> nn.Module:
    """A fresh network for a number of classes and a shape of input, its weights drawn from `seed`.

    Args:
        arch: name of a network in `backsweep.archs`, or "package.module:factory" of the user's own code.

    Raises:
        BadInput: there is no such network, or it does not take such inputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in arch:
            return build(arch)
        known = {
            n: f for n, f in vars(architectures).items() if inspect.isfunction(f) and not n.startswith("_")
        }
        if arch not in known:
            raise BadInput(
                f"there is no network {arch!r}; there are {', '.join(known)}, or give package.module:factory"
            )
        channels, height, width = shape
        if height != width:
            raise BadInput(f"{arch} takes square images, these are {height} x {width}; resize them")
        net: nn.Module = known[arch](classes, channels, height)
        return net
