"""Finding the weights in whatever a checkpoint holds, and fitting them to a network.

Training scripts put weights under names of their own, and wrappers put prefixes before every key. No list of
such names is needed: a dictionary, or a pickled module, fits if under one prefix it has all that the network
asks for, and nothing else under that prefix.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.archives import WAY_OUT
from backsweep.formats.pickles.machine import Placeholder
from backsweep.formats.weights.leaves import Leaf, leaves

_DEEPEST = 100  # parts of a name
_STATISTICS = ("running_mean", "running_var")  # that no network has of its own
_COUNT = "num_batches_tracked"
_PROFILED = ("total_ops", "total_params")  # what counters of operations leave behind


@dataclass
class Fit:
    """A way to put a checkpoint's weights into a network.

    Attributes:
        prefix: what stands before the name of every weight.
        leaves: the weights by their names in the network.
        missing, extra, other: what does not fit.
        kept: buffers that the network makes itself, and the file lacks.
        unused: of the file, under the prefix, but nothing that the network keeps.
        outside: of the same dictionary, under other prefixes.
        twins: other ways that have the very same values.
    """

    prefix: str
    leaves: dict[str, Leaf] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unused: dict[str, Leaf] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    twins: list[Fit] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.missing or self.extra or self.other)

    @property
    def entry(self) -> str:
        """What a user calls it: the place of the weights, "." for the top."""
        places = {leaf.place for leaf in self.leaves.values()}
        return (places.pop() if len(places) == 1 else self.prefix.rstrip(".")) or "."


class Misfit(BadInput):
    """The weights do not fit.

    Attributes:
        names: of those that do not.
    """

    names: tuple[str, ...] = ()


# ---------------------------------------------------------------------- what of it fits


def check(value: Any) -> list[Leaf]:
    """All tensors that have a name.

    Raises:
        BadInput: there are none.
    """
    if there := leaves(value):
        return there
    if isinstance(value, Placeholder):
        held = [value.name]
    else:
        held = list(value) if isinstance(value, dict) else [type(value).__name__]
    raise BadInput(f"it holds no weights, only {some(held)}; {WAY_OUT}")


def find(net: nn.Module, value: Any, wanted: str | None = None) -> Fit:
    """The weights for a network.

    Args:
        net: the network.
        value: what a file holds.
        wanted: the entry to take (`weights=`).

    Raises:
        BadInput: there are no weights, none that fit, or several that differ.
    """
    there = check(value)
    asked = _asked(there, wanted)
    tried = _tried(net, asked)
    good = [fit for fit in tried if fit.fits]
    if not good:
        raise _misfit(tried[0])
    chosen = good[0]
    different = [f for f in good if not _same(f, chosen)]
    if different:
        names = [f.entry for f in (chosen, *different)]
        if len(set(names)) < len(names):
            names = [f.prefix.rstrip(".") or "." for f in (chosen, *different)]
        names = sorted(dict.fromkeys(names), key=lambda n: not _is_average(n))
        raise BadInput(
            "it holds several sets of weights that fit; say which with weights= (--weights): "
            f"{some(names, 8)}"
        )
    every = good if asked is there else [f for f in _tried(net, there) if f.fits]
    chosen.twins = [f for f in every if f.prefix != chosen.prefix and _same(f, chosen)]
    return chosen


def _is_average(name: str) -> bool:
    return any(word in name.lower() for word in ("ema", "shadow", "averag", "swa"))


def _asked(there: list[Leaf], wanted: str | None) -> list[Leaf]:
    """The tensors of the entry that was asked for."""
    if wanted is None:
        return there
    top = wanted.strip(".")
    found = [v for v in there if (v.name.startswith(f"{top}.") if top else not v.place)]
    if not found:
        places = sorted({leaf.place or "." for leaf in there}, key=lambda n: not _is_average(n))
        raise BadInput(
            f"it holds no weights under {wanted!r} (weights=, --weights), only in {some(places, 8)}"
        )
    return found


def _tried(net: nn.Module, there: list[Leaf]) -> list[Fit]:
    """Every prefix that could be meant, those that fit best first."""
    want = {k: v for k, v in net.state_dict().items() if isinstance(v, Tensor)}
    counts: Counter[str] = Counter()
    for leaf in there:
        parts = leaf.name.split(".")
        for i in range(min(len(parts), _DEEPEST)):
            if ".".join(parts[i:]) in want:
                counts[".".join([*parts[:i], ""])] += 1
    if not counts:  # the largest set of weights is the one that was meant
        place = Counter(leaf.place for leaf in there).most_common(1)[0][0]
        counts[f"{place}." if place else ""] = 0
    most = max(counts.values())
    near = [p for p, n in counts.items() if 2 * n >= most]
    by_name: dict[str, Leaf] = {}
    by_place: dict[str, list[Leaf]] = defaultdict(list)
    for leaf in there:
        by_name.setdefault(leaf.name, leaf)
        by_place[leaf.place].append(leaf)
    fits = [_fit(net, want, prefix, by_name, by_place) for prefix in near[:100]]
    return sorted(fits, key=lambda f: (not f.fits, len(f.missing) + len(f.extra) + len(f.other)))


def _fit(
    net: nn.Module, want: dict[str, Tensor], prefix: str, by_name: dict[str, Leaf],
    by_place: dict[str, list[Leaf]],
) -> Fit:  # fmt: skip
    """What there is under one prefix, beside what the network asks for."""
    fit = Fit(prefix, {k: by_name[prefix + k] for k in want if prefix + k in by_name})
    weights = {k for k, _ in net.named_parameters(remove_duplicate=False)}
    shared = {want[k].data_ptr() for k in fit.leaves} - {0}  # tied weights are saved once
    for name, tensor in want.items():
        if name in fit.leaves:
            if problem := _problem(name, fit.leaves[name].tensor, tensor):
                fit.other.append(problem)
        elif tensor.data_ptr() not in shared or tensor.numel() == 0:
            own = name not in weights and not name.endswith(_STATISTICS)
            (fit.kept if own else fit.missing).append(name)
    made = {k: v for k, v in net.named_buffers(remove_duplicate=False) if k not in want}
    for place in {leaf.place for leaf in fit.leaves.values()} or by_place:
        for leaf in by_place[place]:
            name = leaf.name.removeprefix(prefix)
            if not leaf.name.startswith(prefix):
                fit.outside.append(leaf.name)
            elif name in made and made[name].shape == leaf.tensor.shape:
                fit.unused[name] = leaf
            elif name not in fit.leaves and not name.endswith(_PROFILED):
                fit.extra.append(name)
    return fit


def _problem(name: str, tensor: Tensor, into: Tensor) -> str:
    """Why a tensor cannot become another; "" if it can."""
    if tensor.shape != into.shape:
        return f"{name} {tuple(tensor.shape)} for {tuple(into.shape)}"
    if tensor.layout != torch.strided or tensor.is_meta:
        return f"{name}, which has no values"
    kinds = [(t.is_floating_point(), t.is_complex()) for t in (tensor, into)]
    whole = name.endswith(_COUNT) and not tensor.is_complex()  # turned to half with all the others
    return "" if kinds[0] == kinds[1] or whole else f"{name} {tensor.dtype} for {into.dtype}"


def _misfit(fit: Fit) -> Misfit:
    lists = (("missing", fit.missing), ("unexpected", fit.extra), ("of another shape", fit.other))
    problems = "; ".join(f"{problem} {some(names)}" for problem, names in lists if names)
    where = f" in {fit.entry!r}" if fit.entry != "." and fit.leaves else ""
    error = Misfit(
        f"its weights{where} do not fit the network of arch= ({problems}); "
        "name the code that they were trained with"
    )
    error.names = (*fit.missing, *fit.extra, *fit.other)
    return error


def _same(a: Fit, b: Fit) -> bool:
    """Whether two ways lead to the same values."""
    if a.leaves.keys() != b.leaves.keys():
        return False
    for name, leaf in a.leaves.items():
        one, two = leaf.tensor.detach(), b.leaves[name].tensor.detach()
        place = (one.data_ptr(), one.stride(), one.dtype) == (two.data_ptr(), two.stride(), two.dtype)
        if not place and (one.dtype != two.dtype or not torch.equal(one, two)):
            return False
    return True


# ---------------------------------------------------------------------- putting it in


def put(net: nn.Module, fit: Fit) -> None:
    """Give a network its weights.

    Raises:
        BadInput: they cannot be copied.
    """
    try:
        net.load_state_dict({k: leaf.tensor.detach() for k, leaf in fit.leaves.items()}, strict=False)
        with torch.no_grad():
            for name, leaf in fit.unused.items():
                if leaf.kind:  # a pickled module runs with its own; of a state dict torch ignores them
                    net.get_buffer(name).copy_(leaf.tensor)
    except Exception as e:
        raise BadInput(f"cannot be read as weights ({type(e).__name__}: {str(e).strip()[:120]})") from e


def notes(net: nn.Module, fit: Fit, unknown: list[str]) -> list[str]:
    """What was done to make the weights fit, a line each; untrusted text.

    Args:
        net: with the weights.
        fit: where they were.
        unknown: names of the objects that the file holds beside them.
    """
    said = []
    entry = fit.entry
    kinds = sorted({leaf.kind for leaf in fit.leaves.values()} - {""})
    if kinds:
        said.append(f"read the weights of a pickled {kinds[0][:80]}; none of its code was run")
    elif entry != ".":
        said.append(f"took the weights from {entry[:80]!r}")
    prefix = fit.prefix.removeprefix("" if entry == "." else f"{entry}.")
    if prefix:
        said.append(f"dropped the prefix {prefix[:80]!r} of all weights")
    for line, names in (
        ("left out what is under other prefixes", fit.outside),
        (
            "the network has buffers of its own that the file lacks",
            [n for n in fit.kept if not n.endswith(_COUNT)],
        ),
        ("left out buffers that the network makes itself", [n for n, v in fit.unused.items() if not v.kind]),
        ("left objects unread that are not made", [] if kinds else unknown),
        ("the same weights are in the file once more, as", [f.entry for f in fit.twins]),
    ):
        if names:
            said.append(f"{line}: {some(names)}")
    own = {k: v.dtype for k, v in net.state_dict().items() if isinstance(v, Tensor)}
    turned = {
        (_short(leaf.tensor.dtype), _short(own[k])) for k, leaf in fit.leaves.items()
        if leaf.tensor.is_floating_point() and leaf.tensor.dtype != own[k] and not k.endswith(_COUNT)
    }  # fmt: skip
    said += [f"turned {old} weights to {new}" for old, new in sorted(turned)]
    return said


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
