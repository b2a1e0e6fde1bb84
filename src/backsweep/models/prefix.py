"""What a frozen network computes for clean inputs up to one of its operations: passes go on from there.

A pass is a sequence of calls of torch functions, the same for every batch. What the calls after a cut use of
those before it is kept for all inputs; a pass that resumes meets the same calls again, is given what was
kept (or, where nothing later looks at it, an empty shell of the right shape), and computes from the cut on.
It works below the level of modules, as `Tap` does: residual paths that cross the cut, exported programs and
networks written as functions are all the same to it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from backsweep.engine.precision import bfloat16
from backsweep.models.layers import AFFINE, added
from backsweep.models.model import Model

MOST_BYTES = 2**28  # that are kept at one cut; of more inputs than fit, some
BATCH_VALUES = 2**20  # input values in a pass that fills it
_lock = threading.Lock()  # what several threads ask for is computed once
VALUES = ("__bool__", "__int__", "__float__", "item", "tolist")  # calls that look at what a tensor holds
TOLERANCE = 0.05  # of the largest logit: bfloat16 rounds otherwise in another batch


Mix = Callable[[Tensor], Tensor]


class Inputs(Protocol):
    """Inputs (N, *shape) that are looked up some at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


class Unkept(Exception):
    """Passes of this network cannot be resumed at this place; says why."""


class _Reached(Exception):
    """The cut of a pass that only has to come so far."""


@dataclass(frozen=True)
class _Part:
    """One tensor among the results of a call.

    Attributes:
        shape: for two inputs.
        dim, each: the dimension in which inputs lie, and how many places each has there; None: none.
        live: whether a call after the cut uses it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    dim: int | None
    each: int
    live: bool

    @property
    def is_map(self) -> bool:
        """Whether it is (N, D, H, W): kept with the channels last."""
        return len(self.shape) == 4 and self.dim == 0 and self.each == 1

    def shell(self, count: int) -> Tensor:
        """A tensor that takes no room, in the shape for `count` inputs."""
        shape = list(self.shape)
        if self.dim is not None:
            shape[self.dim] = self.each * count
        return torch.empty((), dtype=self.dtype, device=self.device).expand(shape)


class _Recorder(TorchFunctionMode):
    """Notes every call: its name, the tensors it used, what it gave; all stay alive, so that ids differ."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Tensor], list[Any], Any]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        used = [v for v in tree_flatten((args, kwargs or {}))[0] if isinstance(v, Tensor)]
        leaves, spec = tree_flatten(out)
        self.calls.append((getattr(func, "__name__", "").split(".")[0], used, leaves, spec))
        return out


class _Filler(TorchFunctionMode):
    """Lets a pass run to the cut and takes what is live there."""

    def __init__(self, prefix: Prefix) -> None:
        super().__init__()
        self.prefix = prefix
        self.count = 0
        self.leaves: list[list[Any]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.leaves.append(tree_flatten(out)[0])
        self.count += 1
        if self.count > self.prefix.cut:
            raise _Reached
        return out


class _Resumer(TorchFunctionMode):
    """Gives the calls up to the cut what was kept; those after it compute."""

    def __init__(self, prefix: Prefix, rows: Tensor, shift: Tensor | None, mix: Mix) -> None:
        super().__init__()
        self.prefix, self.rows, self.shift, self.mix = prefix, rows, shift, mix
        self.count = -1
        self.taken: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        if self.count > self.prefix.cut:
            return func(*args, **(kwargs or {}))
        parts, spec = self.prefix.calls[self.count]
        if parts is None:  # shapes and numbers, asked of shells
            return func(*args, **(kwargs or {}))
        leaves: list[Any] = [self._leaf(p, (self.count, i)) for i, p in enumerate(parts)]
        if self.count == self.prefix.cut and self.shift is not None:
            leaves[0] = added(leaves[0], self.shift)
        return tree_unflatten(leaves, spec)

    def _leaf(self, part: Any, place: tuple[int, int]) -> Any:
        if not isinstance(part, _Part):
            return part
        if not part.live:
            return part.shell(len(self.rows))
        which = self.prefix.places[place]
        if which not in self.taken:
            self.taken[which] = self._rows(part, self.prefix.kept[which])
        return self.taken[which]

    def _rows(self, part: _Part, kept: Tensor) -> Tensor:
        if part.dim is None:
            return kept
        chosen = self.mix(kept.index_select(0, self.rows))
        return _inputs_inside(chosen, part)


def _inputs_first(t: Tensor, part: _Part, count: int) -> Tensor:
    """(count, ...), laid out so that one input is one piece of memory."""
    dim = part.dim or 0
    t = t.unflatten(dim, (count, part.each)).movedim(dim, 0)
    return (t.permute(0, 1, 3, 4, 2) if part.is_map else t).contiguous()


def _inputs_inside(t: Tensor, part: _Part) -> Tensor:
    """The inverse of `_inputs_first`."""
    dim = part.dim or 0
    t = t.permute(0, 1, 4, 2, 3) if part.is_map else t
    return t.movedim(0, dim).flatten(dim, dim + 1)


class Prefix:
    """Kept results of a frozen network for inputs x (N, *shape), up to a cut.

    Args:
        model: a frozen working copy.
        x: clean inputs, a tensor or what else gives some of them for indices.
        layer: the cut lies behind this affine operation, whose output can be shifted.
        before: instead, the cut lies before the first call that uses one of these tensors.
        bf16: whether passes run in bfloat16 where that pays.
        most_bytes: that are kept.

    Raises:
        Unkept: passes cannot be resumed there.

    Attributes:
        rows: indices of the inputs that are kept, all or as many as fit, evenly spread (M,).
        size: mean distance of the embedding at the cut from the mean embedding.
        start: logits (M, classes) of the untouched network for the inputs that are kept.
    """

    def __init__(
        self, model: Model, x: Inputs, layer: int | None = None, before: Sequence[Tensor] = (),
        bf16: bool = True, most_bytes: int = MOST_BYTES,
    ) -> None:  # fmt: skip
        self.bf16 = bf16
        self._type, self._modality, self._x = model.device.type, model.modality, x
        self._shifted = layer is not None
        try:
            two, three = (self._record(model, x[torch.arange(n) % len(x)]) for n in (2, 3))
        except (RuntimeError, TypeError, ValueError) as e:
            raise Unkept(str(e)) from e
        if [c[0] for c in two] != [c[0] for c in three]:
            raise Unkept("its calls hang on the batch")
        self.cut = _cut(two, layer, before)
        if not 0 <= self.cut < len(two) - 1:
            raise Unkept("there is nothing on one side of the cut")
        self.places: dict[tuple[int, int], int] = {}
        self.calls = self._structure(two, three)
        parts = {which: self.calls[index][0][i] for (index, i), which in self.places.items()}  # type: ignore[index]
        each = sum(math.prod(p.shape) // 2 * p.dtype.itemsize for p in parts.values() if p.dim is not None)
        room = max(2, min(len(x), most_bytes // max(1, each)))
        self.rows = torch.linspace(0, len(x) - 1, room).round().long()
        self.kept: dict[int, Tensor] = {}
        self._fill(model, x)
        self._check(model, x)

    def _record(self, model: Model, x: Tensor) -> list[Any]:
        recorder = _Recorder()
        x = x.to(model.device)
        with torch.no_grad(), bfloat16(self._type, self.bf16), recorder:
            model.logits(x)
        return recorder.calls

    def _structure(self, two: list[Any], three: list[Any]) -> list[tuple[list[Any] | None, Any]]:
        """For every call up to the cut its results, as parts; None where none of them is a tensor."""
        later = {id(t) for _, used, _, _ in two[self.cut + 1 :] for t in used}
        numbers: dict[int, int] = {}
        found: list[tuple[list[Any] | None, Any]] = []
        for index, (call, other) in enumerate(zip(two[: self.cut + 1], three, strict=False)):
            name, _, leaves, spec = call
            if name in VALUES:  # what code decides by: it must not ask empty shells
                if leaves != other[2]:
                    raise Unkept("its calls hang on the inputs")
                found.append((leaves, spec))
                continue
            if not any(isinstance(v, Tensor) for v in leaves):
                found.append((None, spec))
                continue
            parts: list[Any] = []
            for i, (a, b) in enumerate(zip(leaves, other[2], strict=True)):
                if not isinstance(a, Tensor):
                    parts.append(a)
                    continue
                live = id(a) in later or (index == self.cut and i == 0)
                dim, each = _inputs_dim(tuple(a.shape), tuple(b.shape), live)
                parts.append(_Part(tuple(a.shape), a.dtype, a.device, dim, each, live))
                if live:  # a tensor that is changed in place is the result of several calls
                    self.places[index, i] = numbers.setdefault(id(a), len(numbers))
            found.append((parts, spec))
        return found

    def _fill(self, model: Model, x: Inputs) -> None:
        """Keep what is live at the cut."""
        size = max(1, BATCH_VALUES // model.modality.numbers(model.shape))
        for start in range(0, len(self.rows), size):
            part = self.rows[start : start + size]
            filler, there = _Filler(self), x[part].to(model.device)
            with torch.no_grad(), bfloat16(self._type, self.bf16):
                try:
                    with filler:
                        model.logits(there)
                except _Reached:
                    pass
            for which, (index, i) in {which: place for place, which in self.places.items()}.items():
                p, leaf = self.calls[index][0][i], filler.leaves[index][i]  # type: ignore[index]
                if p.dim is None:
                    self.kept[which] = leaf.clone()
                    continue
                piece = _inputs_first(leaf, p, len(part))
                if start == 0:
                    self.kept[which] = piece.new_empty((len(self.rows), *piece.shape[1:]))
                self.kept[which][start : start + size] = piece

    def _check(self, model: Model, x: Inputs) -> None:
        """Resumed passes must give what whole ones give."""
        some = torch.linspace(0, len(self.rows) - 1, min(8, len(self.rows))).long()
        with torch.no_grad():
            with bfloat16(self._type, self.bf16):
                whole = model.logits(x[self.rows[some]].to(model.device)).float()
            try:
                with torch.enable_grad():  # as it is used; some code of others asks for that
                    shift = self.zeros(len(some)).requires_grad_() if self._shifted else None
                    resumed = self.logits(model, some, shift).float().detach()
            except (RuntimeError, TypeError, ValueError, IndexError) as e:
                raise Unkept(str(e)) from e
        if not float((whole - resumed).abs().max()) <= TOLERANCE * max(1.0, float(whole.abs().max())):
            raise Unkept("resumed passes give something else")

    @property
    def size(self) -> float:
        z = self._consensus(self.kept[self.places[self.cut, 0]].float()).flatten(1)
        return float((z - z.mean(0)).norm(dim=1).mean())

    def _consensus(self, kept: Tensor) -> Tensor:
        """Kept embeddings (N, ...) at the cut as one shift for all inputs sees them."""
        part = self.calls[self.cut][0][0]  # type: ignore[index]
        plain = part.dim == 0 and part.each == 1 and not part.is_map
        z = kept.squeeze(1) if plain else kept
        return self._modality.consensus(z, lambda: self._x[self.rows[: len(z)]])

    def zeros(self, count: int) -> Tensor:
        """Shifts of the output at the cut, (count, ...), all zero."""
        part = self.calls[self.cut][0][0]  # type: ignore[index]
        shape = part.shape[1:]
        if part.dim == 0 and not part.is_map:
            shape = self._consensus(self.kept[self.places[self.cut, 0]][:1]).shape[1:]
        return torch.zeros((count, *shape), device=part.device)

    def logits(
        self, model: Model, rows: Tensor, shift: Tensor | None = None,
        mix: Mix = lambda t: t,
    ) -> Tensor:  # fmt: skip
        """Logits (B, classes) of inputs that are kept.

        Args:
            model: the network, or another that is like it up to the cut.
            rows: which, indices (B,) into `rows`.
            shift: added to the output at the cut, (B, ...).
            mix: what is done with kept values (B, ...) before the pass goes on.
        """
        rows = rows.to(model.device)
        shell = model.modality.blank(1, model.shape).to(model.device).expand(len(rows), *model.shape)
        resumer = _Resumer(self, rows, shift, mix)
        with bfloat16(self._type, self.bf16), resumer:
            return model.logits(shell)


def _inputs_dim(two: tuple[int, ...], three: tuple[int, ...], live: bool) -> tuple[int | None, int]:
    """The dimension that grows with the batch, and by how much for each input."""
    if len(two) != len(three):
        raise Unkept("its results hang on the batch")
    grows = [d for d, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if not grows:
        return None, 1
    d = grows[0]
    if len(grows) > 1 or two[d] % 2 or three[d] * 2 != two[d] * 3:
        raise Unkept("inputs lie in several dimensions")
    return d, two[d] // 2


def _cut(calls: list[Any], layer: int | None, before: Sequence[Tensor]) -> int:
    """Index of the last call before the cut."""
    places = {t.untyped_storage().data_ptr() for t in before}
    affine = -1
    for index, (name, used, _, _) in enumerate(calls):
        if layer is None:
            if any(t.untyped_storage().data_ptr() in places for t in used):
                return index - 1
        elif name in AFFINE and used:
            affine += 1
            if affine == layer:
                return index
    return -1


def prefix_of(model: Model, x: Tensor, layer: int) -> Prefix | None:
    """The prefix of a working copy for its clean inputs, kept with it; None where passes cannot be resumed.

    A network that is like another up to a cut shares what lies before it (`Model.alike`).
    """
    if model.alike is not None:
        other, cut = model.alike
        shared = prefix_of(other, x, layer)
        if shared is not None and shared.cut <= cut:
            return shared
    key = (layer, torch.is_autocast_enabled(model.device.type))
    with _lock:
        if key not in model.kept or model.kept[key][0] is not x:
            try:
                model.kept[key] = (x, Prefix(model, x, layer, bf16=key[1]))
            except Unkept:
                model.kept[key] = (x, None)
        found: Prefix | None = model.kept[key][1]
    return found
