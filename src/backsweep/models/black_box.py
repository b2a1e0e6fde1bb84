"""A network of which only the answers are to be had: a function from inputs to class scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BacksweepError, BadInput
from backsweep.core.text import one_line

NOTE = "black box: answers only; what needs gradients, layers or weights of the network is left out"
EVERYTHING = frozenset({"gradients", "layers", "weights"})  # what a network gives beside its answers
Answers = Callable[[Tensor], Any]


class Asked(nn.Module):
    """A network in the place of a function that answers; it has no weights, layers or gradients.

    Args:
        answer: from inputs (N, *shape), float32 on the CPU, to class scores (N, classes): a tensor, an array
            or lists; logits, probabilities or their logarithms.
        batch: most inputs in a call.
    """

    def __init__(self, answer: Answers, batch: int) -> None:
        super().__init__()
        self.answer = answer
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [self._scores(part.contiguous()) for part in x.detach().float().cpu().split(self.batch)]
            return torch.cat(parts).to(x.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Asked:
        """A copy asks the same function, which may be anything."""
        return Asked(self.answer, self.batch)

    def _scores(self, x: Tensor) -> Tensor:
        """Scores of one batch.

        Raises:
            BadInput: the function fails, or answers with something else than numbers for every image.
        """
        try:
            with torch._C.DisableTorchFunction():  # whoever looks into networks is not to see into this one
                found = self.answer(x)
                scores = torch.as_tensor(found, dtype=torch.float32, device="cpu").detach()
        except BacksweepError:
            raise
        except Exception as e:
            reason = one_line(f"{type(e).__name__}: {e}")[:200]
            raise BadInput(f"the black box fails on {tuple(x.shape)} inputs ({reason}); mend it") from e
        if scores.ndim not in (1, 2) or len(scores) != len(x) or not bool(torch.isfinite(scores).all()):
            raise BadInput(
                f"the black box answers {tuple(scores.shape)} for {len(x)} inputs; it is to give a finite "
                "number for every class of every input"
            )
        return scores


class Learner(Asked):
    """A black box that its own library trains."""

    def learn(self, x: Tensor, y: Tensor, seed: int) -> None:
        """Learn rows x (N, *shape) of classes y (N,)."""
        raise NotImplementedError


def digest_of(what: nn.Module | Tensor) -> str:
    """SHA-256 of the weights of a network, or of its answers (logits), as coarse as machines may differ."""
    h = hashlib.sha256()
    if isinstance(what, Tensor):
        shares = (what.double().softmax(1) * 100).round().int()
        h.update(repr((tuple(shares.shape), shares.tolist())).encode())
        return h.hexdigest()
    for name, tensor in sorted(what.state_dict().items()):
        h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        h.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()
