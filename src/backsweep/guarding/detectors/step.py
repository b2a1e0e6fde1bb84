"""STEP (arXiv 2603.18103, 2026): a triggered sound keeps its label where others lose it, or the reverse.

Two branches of changes: such that break what is said, after which a trigger still rules, and such that
preserve it, after which a brittle trigger is gone. Only labels are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector, Score, answer
from backsweep.inputs.modality import Change
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model

OTHERS = 3  # clean inputs that are mixed in
BATCH = 64
LEAST = 1e-4  # variance of a branch's score


@dataclass(frozen=True)
class Step(SampleDetector):
    """Scores an input by how surprising it is which changes move its label, and which do not.

    On clean inputs it is learned how often each change leaves the label. A branch's score is the surprise of
    what a trigger does there, the mean of -log P: of labels that stay under breaking changes, and of labels
    that are lost under preserving ones; the branches are joined with weights 1 / variance on clean inputs.
    """

    name: ClassVar[str] = "step"
    summary: ClassVar[str] = "labels that stay under breaking changes, or go under preserving (STEP)"
    needs: ClassVar[tuple[str, ...]] = ()
    batch: ClassVar[int] = BATCH

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        both = branches(model)
        kind = f"{model.modality.noun}s of shape {model.shape}"
        return "" if all(both) else f"there are no changes that break and preserve {kind}"

    def passes(self, model: Model) -> float:
        return sum(map(len, branches(model)))

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """Clean inputs to mix in, how often each change leaves a label, and the weights of the branches."""
        others = data.sample(OTHERS, derive_seed(0, self.name, "others")).x.clone()
        parts = [stays(model, x.to(model.device), others).cpu() for x in data.x.split(BATCH)]
        bits = torch.cat(parts).double()
        share = (bits.sum(0) + 1) / (len(bits) + 2)
        both = surprises(bits, share, len(branches(model)[0]))
        weights = 1 / both.var(0).clamp_min(LEAST)
        return {
            "others": others, "share": share.float(), "mean": both.mean(0).float(),
            "weights": (weights / weights.sum()).float(),
        }  # fmt: skip

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        """The surprise of both branches, each less its mean on clean inputs."""
        known = {k: v.to(model.device) for k, v in learned.items()}
        first = len(branches(model)[0])

        def score(x: Tensor) -> Tensor:
            both = surprises(stays(model, x, known["others"]), known["share"], first)
            return ((both - known["mean"]) * known["weights"]).sum(1)

        return score


def branches(model: Model) -> tuple[Mapping[str, Change], Mapping[str, Change]]:
    """Breaking and preserving changes of a model's inputs."""
    return model.modality.breaking(model.shape), model.modality.preserving(model.shape)


@torch.no_grad()
def stays(model: Model, x: Tensor, others: Tensor) -> Tensor:
    """Whether each change leaves the label of each input, (N, changes) of 0 and 1; breaking ones first."""
    label = answer(model, x).argmax(1)
    found = [
        model.logits(change(x, others.to(x.device))).argmax(1) == label
        for branch in branches(model)
        for change in branch.values()
    ]
    return torch.stack(found, 1).float()


def surprises(bits: Tensor, share: Tensor, first: int) -> Tensor:
    """Mean surprise of each branch (N, 2), in nats: labels that stay in the first, that go in the second.

    Args:
        bits: of `stays`.
        share: how often each change leaves a clean label, (changes,).
        first: how many changes break.
    """
    stayed = -bits[:, :first] * share[:first].log()
    gone = -(1 - bits[:, first:]) * (1 - share[first:]).log()
    return torch.stack([stayed.mean(1), gone.mean(1)], 1)
