"""What a network answers with, read as the logits of classes.

Networks return tensors, tuples or dictionaries; logits, probabilities or their logarithms; and for two
classes often one number. How they are to be read is found out once, from a pass over a few inputs, and
kept as an `Answer`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput

LOGITS = "logits"
PROBABILITIES = "probabilities"
LOG_PROBABILITIES = "log-probabilities"
ONE_LOGIT = "one logit"
ONE_PROBABILITY = "one probability"


@dataclass(frozen=True)
class Answer:
    """How the answers of a network are read.

    Attributes:
        part: key, attribute or index of the class scores in what is returned; None: all of it.
        kind: what they are.
        head: index of the affine operation whose output is the logits; None: it was not seen.
    """

    part: str | int | None = None
    kind: str = LOGITS
    head: int | None = None

    @property
    def at_head(self) -> bool:
        """Whether the logits are read off before a softmax or sigmoid."""
        return self.kind != LOGITS and self.head is not None

    def taken(self, out: Any) -> Tensor:
        """The class scores in what a network returned.

        Raises:
            BadInput: they are not there.
        """
        if self.part is None:
            scores = out
        elif isinstance(self.part, str) and not isinstance(out, Mapping):
            scores = getattr(out, self.part, None)
        else:
            try:
                scores = out[self.part]
            except (KeyError, IndexError, TypeError):
                scores = None
        if not isinstance(scores, Tensor):
            raise BadInput(f"the network returns {type(out).__name__}, not a tensor of class scores")
        return scores if scores.dtype == torch.float32 or not scores.is_floating_point() else scores.float()

    def logits(self, scores: Tensor) -> Tensor:
        """Logits (N, classes) from the class scores, or from the output of the head if `at_head`."""
        if self.kind in (ONE_LOGIT, ONE_PROBABILITY):
            one = scores.reshape(len(scores), 1)
            if self.kind == ONE_PROBABILITY and not self.at_head:
                one = one.clamp(1e-30, 1).log() - (1 - one).clamp_min(1e-7).log()
            return torch.cat([one * 0, one], 1)
        if self.at_head:
            return scores.flatten(1)
        return scores.clamp_min(1e-30).log() if self.kind == PROBABILITIES else scores

    def note(self) -> str:
        """What a user should know of it; "" if there is nothing."""
        if self.kind in (ONE_LOGIT, ONE_PROBABILITY):
            return f"the network yields {self.kind}; it is read as the second of two classes, logits [0, z]"
        if self.kind == LOG_PROBABILITIES and self.at_head:
            return "the network yields log-probabilities; the logits before them are read"
        return f"of what the network returns, {self.part!r} is read" if isinstance(self.part, str) else ""


def part_of(out: Any, count: int, classes: int) -> str | int | None:
    """Where in an output the class scores are.

    Args:
        out: what a network returned for `count` inputs.
        classes: how many scores an input has, 0: not known.

    Raises:
        BadInput: several parts could be meant, or none.
    """
    if isinstance(out, Tensor):
        return None
    parts: dict[str | int, Any]
    if isinstance(out, Mapping):
        parts = dict(out)
    elif isinstance(out, tuple | list):
        parts = dict(enumerate(out))
    else:
        parts = dict(vars(out)) if hasattr(out, "__dict__") else {}
    tensors = {k: v for k, v in parts.items() if isinstance(v, Tensor)}
    logits = getattr(out, "logits", None)
    if "logits" in tensors or isinstance(logits, Tensor):
        return "logits"
    scores = [k for k, v in tensors.items() if v.ndim == 2 and v.shape == (count, classes or v.shape[1])]
    if isinstance(out, tuple | list) and tensors:  # by custom the first is the answer
        return (scores or list(tensors))[0]
    if len(scores) == 1 or len(tensors) == 1:
        return (scores or list(tensors))[0]
    if scores:
        raise BadInput(
            f"the network returns several tensors that may be class scores ({', '.join(map(repr, scores))}); "
            "say classes= (--classes), or return the scores under the key 'logits'"
        )
    raise BadInput(f"the network returns {type(out).__name__}, not a tensor of class scores")


def classes_of(scores: Tensor, classes: int) -> int:
    """How many classes there are, from the class scores of two inputs.

    Args:
        scores: one number for each input, which is for two classes, or one for each class.
        classes: how many there should be, 0: not known.

    Raises:
        BadInput: there are not that many.
    """
    if scores.shape in ((2,), (2, 1)) and classes in (0, 1, 2):
        return 2
    if scores.ndim == 2 and len(scores) == 2 and scores.shape[1] == (classes or scores.shape[1]):
        return scores.shape[1]
    raise BadInput(
        f"the network yields {tuple(scores.shape)} for 2 inputs, not (2, {classes or 'classes'}); "
        f"say classes={scores.shape[-1] if scores.ndim == 2 else '...'} (--classes)"
    )


def kind_of(
    scores: Tensor, affine: Sequence[Tensor], classes: int, more: Callable[[], Tensor]
) -> tuple[str, int | None]:
    """What the class scores are, and the affine operation that yields the logits.

    Args:
        scores: of a few inputs.
        affine: outputs of the affine operations for the same inputs, in the order in which they ran.
        classes: how many there are.
        more: class scores of inputs that are very different.

    Raises:
        BadInput: they are independent of each other, one for each label.
    """
    columns = 1 if scores.ndim == 1 else scores.shape[1]
    scores = scores.float()
    flat = scores.reshape(len(scores), columns)
    found = [(i, z.flatten(1)) for i, z in enumerate(affine) if z.numel() == flat.numel() and z.ndim > 1]
    heads = [(i, z) for i, z in reversed(found) if len(z) == len(flat)]

    def where(function: Callable[[Tensor], Tensor]) -> int | None:
        return next((i for i, z in heads if torch.allclose(function(z.float()), flat, atol=1e-4)), None)

    inside = bool((flat >= 0).all() and (flat <= 1).all())
    plain = where(lambda z: z)
    if columns == 1:
        if plain is None and inside:
            head = where(torch.sigmoid)
            if head is not None or _inside(more()):
                return ONE_PROBABILITY, head
        return ONE_LOGIT, plain
    if inside and torch.allclose(flat.sum(1), torch.ones_like(flat[:, 0]), atol=1e-3):
        return PROBABILITIES, where(lambda z: z.softmax(1))
    if bool((flat <= 1e-6).all()) and torch.allclose(
        flat.exp().sum(1), torch.ones_like(flat[:, 0]), atol=1e-3
    ):
        return LOG_PROBABILITIES, where(lambda z: z.log_softmax(1))
    if inside and plain is None and classes > 2 and (where(torch.sigmoid) is not None or _inside(more())):
        raise BadInput(
            "its outputs are probabilities that do not sum to 1, one for each label (multi-label); only "
            "networks with one class for each input are judged: give one that ends in logits or a softmax"
        )
    return LOGITS, heads[0][0] if heads else None


def extremes(x: Tensor, more: Tensor) -> Tensor:
    """Inputs that differ as much as inputs can: `more`, and inputs x at the ends of their range."""
    ends = [more.round(), x.round(), 1 - x.round(), x * 0 + 1] if x.is_floating_point() else []
    return torch.cat([more, x * 0, *ends])


def _inside(scores: Tensor) -> bool:
    return bool((scores >= 0).all() and (scores <= 1).all())


# ---------------------------------------------------------------------- the network itself


def unwrapped(net: nn.Module) -> tuple[nn.Module, list[str]]:
    """The network in wrappers that change how it is run and not what it computes, and a line for each.

    A network that was compiled in place comes back as a copy: what is compiled cannot be looked into.
    """
    said = []
    while True:
        if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
            said.append(f"looked inside {type(net).__name__}")
            net = net.module
        elif isinstance(inner := getattr(net, "_orig_mod", None), nn.Module):
            said.append("looked inside torch.compile; it runs as it was before")
            net = inner
        else:
            break
    if any(getattr(m, "_compiled_call_impl", None) is not None for m in net.modules()):
        said.append("it was compiled; it runs as it was before")
        net = copy.deepcopy(net)
    return net, said


def in_float32(net: nn.Module) -> tuple[nn.Module, list[str]]:
    """The network, or a copy in float32 if it has other weights, and a line that says so."""
    tensors = [*net.parameters(), *net.buffers()]
    others = sorted({str(t.dtype)[6:] for t in tensors if t.is_floating_point() and t.dtype != torch.float32})
    if not others:
        return net, []
    return copy.deepcopy(net).float(), [f"its {' and '.join(others)} weights are computed with in float32"]


def check_finite(net: nn.Module) -> None:
    """Make sure that the weights are numbers.

    Raises:
        BadInput: one is NaN or infinite.
    """
    for name, tensor in net.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BadInput(
                f"weight {name!r} holds NaN or infinite values; "
                "the file is damaged or training diverged: get the model again"
            )


def check_settings(
    shape: Sequence[int], mean: Sequence[float] | None, std: Sequence[float] | None, layout: str | None
) -> None:
    """Whether inputs can have this shape, normalisation and layout.

    Raises:
        BadInput: they cannot.
    """
    if not shape or min(shape) < 1:
        raise BadInput(f"shape {tuple(shape)} is not the shape of an input, e.g. (3, 32, 32)")
    for name, value in (("mean", mean), ("std", std)):
        if value is not None and len(value) not in (1, shape[0]):
            raise BadInput(f"{name} has {len(value)} values; the input has {shape[0]} channels")
    if std is not None and min(std) <= 0:
        raise BadInput(f"std {tuple(std)} must be above zero")
    if layout not in (None, "NCHW", "NHWC") or (layout == "NHWC" and len(shape) != 3):
        raise BadInput(f"layout {layout!r} is not known for such inputs; images have NCHW or NHWC (--layout)")
