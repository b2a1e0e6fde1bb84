"""The tensors of a checkpoint by their names, out of dictionaries, pickled modules and other objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.archives import WAY_OUT
from backsweep.formats.pickles.machine import Placeholder

_MOST_PARTS = 200_000  # of modules and containers: a file can name one of them again and again
_DEEPEST = 100
_MODULE = ("_parameters", "_modules")  # attributes that a pickled module has


@dataclass(frozen=True)
class Leaf:
    """One tensor of a checkpoint.

    Attributes:
        place: where the dictionary or module that holds it is, "" for the top.
        key: its name there.
        tensor: it, or an array as one that shares its memory.
        holder, slot: where a new value would be put; None: in a module, which is not written back.
        kind: of the pickled module that holds it, untrusted text; "" for a dictionary.
    """

    place: str
    key: str
    tensor: Tensor
    holder: Any = None
    slot: Any = None
    kind: str = ""

    @cached_property
    def name(self) -> str:
        """The whole name, without what torch.compile puts into it."""
        return ".".join(p for p in f"{self.place}.{self.key}".split(".") if p not in ("", "_orig_mod"))


def leaves(value: Any) -> list[Leaf]:
    """All tensors that have a name, in dictionaries and pickled modules, nearest to the top first.

    Raises:
        BadInput: there are more parts than a checkpoint has.
    """
    found: list[Leaf] = []
    seen: set[int] = set()
    level = [("", value)]
    while level:
        deeper = []
        for place, part in level:
            if id(part) in seen or place.count(".") > _DEEPEST:
                continue
            seen.add(id(part))
            if isinstance(part, dict):
                found += _of_dictionary(place, part)
            elif isinstance(part, Placeholder):
                found += _of_module(place, part)
                found += _of_dictionary(place, dict(_texts(part.entries)), part)
            deeper += [(f"{place}.{k}" if place else k, inner) for k, inner in _inside(part)]
            if len(seen) > _MOST_PARTS or len(found) > _MOST_PARTS:
                raise BadInput(f"it has more than {_MOST_PARTS:,} parts; save the weights alone: {WAY_OUT}")
        level = deeper
    return found


def _texts(pairs: Any) -> Iterator[tuple[str, Any]]:
    """Entries whose keys are names or small numbers."""
    for key, value in pairs:
        if type(key) is str or (type(key) is int and abs(key) < 2**31):
            yield str(key), value


def _inside(part: Any) -> Iterator[tuple[str, Any]]:
    """The containers in a container."""
    inner: Any = ()
    if isinstance(part, dict):
        inner = _texts(part.items())
    elif type(part) in (list, tuple):
        inner = ((str(i), v) for i, v in enumerate(part))
    elif isinstance(part, Placeholder):
        inner = [*_texts(_attributes(part).items()), *_texts(part.entries), *_texts(enumerate(part.items))]
        inner += _texts(enumerate(part.args or ()))
        if _is_module(part):
            inner = [(k, v) for k, v in inner if k not in (*_MODULE, "_buffers")]
    for key, value in inner:
        if isinstance(value, dict | list | tuple | Placeholder):
            yield key, value


def _attributes(part: Placeholder) -> dict[Any, Any]:
    """Of an object; those in slots are the second of two."""
    states = part.state if type(part.state) is tuple else (part.state,)
    return {k: v for state in states if isinstance(state, dict) for k, v in state.items()}


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value)
        except TypeError:  # texts
            return None
    return value if isinstance(value, Tensor) else None


def _of_dictionary(place: str, part: Mapping[Any, Any], made: Any = None) -> Iterator[Leaf]:
    for key, value in part.items():
        tensor = _tensor(value)
        if tensor is not None and isinstance(key, str):
            yield Leaf(place, key, tensor, part if made is None else None, key)


def _is_module(part: Any) -> bool:
    return isinstance(part, Placeholder) and all(
        isinstance(_attributes(part).get(name), dict) for name in _MODULE
    )


def _of_module(place: str, root: Placeholder) -> Iterator[Leaf]:
    """Parameters and buffers of a pickled module, named as its state dict would name them."""
    left, parts = [("", root, 0)], 0
    while left:
        prefix, module, depth = left.pop()
        if not _is_module(module) or depth > _DEEPEST:
            continue
        about = _attributes(module)
        for kind in ("_parameters", "_buffers"):
            for name, value in _texts(about[kind].items() if isinstance(about.get(kind), dict) else ()):
                tensor = _tensor(value)
                if tensor is not None:
                    yield Leaf(place, prefix + name, tensor, kind=root.name)
        inner = list(_texts(about["_modules"].items()))
        parts += 1 + len(inner)
        if parts > _MOST_PARTS:
            raise BadInput(f"its modules have more than {_MOST_PARTS:,} parts; {WAY_OUT}")
        left += [(f"{prefix}{name}.", child, depth + 1) for name, child in reversed(inner)]
