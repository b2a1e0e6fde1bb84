"""Whether two results are the same: records with tensors in them, as they come out of a pickle again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


class Same:
    """Base of a dataclass (`eq=False`) whose instances are equal when all that they hold is the same."""

    def __eq__(self, other: object) -> bool:
        return same(self, other)

    def __hash__(self) -> int:
        return hash(type(self))  # records differ in what cannot be hashed


def same(a: Any, b: Any) -> bool:
    """Equal all the way down: tensors by their numbers, models by their digest, not-a-number like itself.

    Neither imports torch nor needs it: what has a shape is compared as arrays are.
    """
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "shape") and hasattr(a, "dtype"):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if hasattr(a, "digest"):
        return bool(a.digest == b.digest)
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.compare)
    return bool(a == b) or (isinstance(a, float) and a != a and b != b)
