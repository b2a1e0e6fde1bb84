"""Samples that are kept smaller than they are used: bytes in memory, float32 where they are looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

LARGE = 2**28  # bytes as float32; a smaller set is a plain tensor
_OPERATORS = (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "neg", "abs", "matmul",
    "lt", "le", "gt", "ge", "eq", "ne", "bool", "float", "int",
)  # fmt: skip


class Held:
    """Stands in for a float32 tensor (N, *shape) that is larger than one likes to have.

    `x[rows]`, `x.split(n)`, `x.mean(0)`, `x.to(device)`, `shape` and `len` unpack no more than they return;
    everything else that a tensor can do is done on the whole tensor, which is unpacked for it.

    Args:
        kept: what is in memory, (M, *shape).
        values: turns some of it into float32, element by element.
        rows: which rows of `kept` these samples are; None: all.
    """

    dtype = torch.float32
    __hash__ = object.__hash__

    def __init__(
        self, kept: Tensor, values: Callable[[Tensor], Tensor], rows: Tensor | None = None
    ) -> None:  # fmt: skip
        self._kept, self._values, self._rows = kept, values, rows

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self._kept.shape[1:]))

    @property
    def ndim(self) -> int:
        return self._kept.ndim

    @property
    def device(self) -> torch.device:
        return self._kept.device

    def __len__(self) -> int:
        return len(self._kept if self._rows is None else self._rows)

    def __getitem__(self, rows: Any) -> Tensor:
        if isinstance(rows, int):
            return self._values(self._kept[rows if self._rows is None else self._rows[rows]][None])[0]
        if isinstance(rows, slice | Tensor | list | np.ndarray):
            return self._values(self._kept[rows if self._rows is None else self._rows[rows]])
        return self.whole()[rows]

    def at(self, rows: Any) -> Held:
        """The samples at `rows`, still packed; nothing is copied."""
        have = torch.arange(len(self)) if self._rows is None else self._rows
        return Held(self._kept, self._values, have[rows])

    def whole(self) -> Tensor:
        """All of it, as float32."""
        return self[:]

    def split(self, size: int, dim: int = 0) -> Iterator[Tensor]:
        """Parts of `size` samples, unpacked one after another."""
        if dim:
            return iter(self.whole().split(size, dim))
        return (self[start : start + size] for start in range(0, len(self), size))

    def mean(self, *args: Any, **kwargs: Any) -> Tensor:
        """As of a tensor; the mean sample is found some columns at a time."""
        if args not in ((0,), ([0],), ((0,),)) or kwargs:
            return self.whole().mean(*args, **kwargs)
        flat = self._kept.flatten(1)
        width = max(1, LARGE // (4 * max(1, len(self))) // 256) * 256
        parts = [
            self._values(columns if self._rows is None else columns[self._rows]).mean(0)
            for columns in flat.split(width, dim=1)
        ]
        return torch.cat(parts).reshape(self.shape[1:])

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """On another device, still packed."""
        where = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(where, str | torch.device):
            rows = self._rows
            moved = self._kept.to(where)
            return self if moved is self._kept else Held(moved, self._values, _moved(rows, where))
        return self.whole().to(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.whole().numpy().astype(dtype or np.float32, copy=bool(copy))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        args, kwargs = tree_map(lambda v: v.whole() if isinstance(v, Held) else v, (args, kwargs or {}))
        return func(*args, **kwargs)


def _moved(rows: Tensor | None, device: str | torch.device) -> Tensor | None:
    return None if rows is None else rows.to(device)


def _on_the_whole(name: str) -> Callable[..., Any]:
    def operator(self: Held, *others: Any) -> Any:
        return getattr(self.whole(), name)(*others)

    return operator


for _name in _OPERATORS:
    setattr(Held, f"__{_name}__", _on_the_whole(f"__{_name}__"))


def laid(kept: Tensor | Held, values: Callable[[Tensor], Tensor]) -> Tensor:
    """Kept samples as a tensor: float32 where that is small, else something that acts like it."""
    if 4 * math.prod(kept.shape) <= LARGE:
        return kept.whole() if isinstance(kept, Held) else values(kept)
    if isinstance(kept, Held) or kept.dtype == torch.float32:
        return cast(Tensor, kept)
    return cast(Tensor, Held(kept.contiguous(), values))


def part_of(shape: Sequence[int], multiple: int = 1) -> int:
    """How many samples of a tensor of this shape are unpacked at once: all that make a small set.

    Args:
        shape: of all samples, (N, *shape).
        multiple: parts of a large set have a multiple of so many samples.
    """
    width = 4 * max(1, math.prod(shape[1:]))
    if width * shape[0] <= LARGE:
        return max(1, shape[0])
    return max(1, LARGE // 4 // width // multiple) * multiple
