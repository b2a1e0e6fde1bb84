"""ConfGuard (2025): answers that a language model says by heart, seen while it says them.

A planted answer comes with a probability near one for every token, whatever was asked: the model is locked
in. With p_k the largest probability at token k of the likeliest answer,

    score(x) = max over windows of w tokens of  mean log p_k .

It costs the answer, which a served model makes anyhow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.guarding.detector import SampleDetector, Score
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.inversion.phrases import parts, speaking
from backsweep.models.model import Model

LEAST = 1e-6  # probability that is told from nothing


@dataclass(frozen=True)
class SequenceLock(SampleDetector):
    """Flags prompts whose answer is certain for many tokens in a row.

    Attributes:
        window: tokens in a row.
        steps: tokens of an answer that are made.
    """

    name: ClassVar[str] = "sequence_lock"
    summary: ClassVar[str] = "answers with many certain tokens in a row (ConfGuard, 2025)"
    of_classes: ClassVar[bool] = False
    learns: ClassVar[float] = 0
    batch: ClassVar[int] = 64

    window: int = 5
    steps: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.window <= self.steps:
            raise ValueError("window is at least 1 and no more than steps")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if speaking(model) is None:
            return f"it takes language models, this model takes {model.modality.noun}s"
        return ""

    def passes(self, model: Model) -> float:
        """Keys and values are kept, so a token costs a step and no pass of the whole prompt."""
        return 1 + self.steps / max(1, model.shape[0])

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        return {}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        def score(x: Tensor) -> Tensor:
            certain, there = self.said(model, x.long())
            logs = certain.clamp_min(LEAST).log()
            windows = logs.unfold(1, self.window, 1).mean(2)
            whole = there.unfold(1, self.window, 1).all(2)
            floor = torch.tensor(LEAST).log().to(logs)
            return windows.masked_fill(~whole, float(floor)).amax(1)

        return score

    @torch.no_grad()
    def said(self, model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
        """Largest probabilities (N, steps) along the likeliest answers, and which are of an answer.

        The token that ends an answer is of it.
        """
        net, tokens = parts(model)
        ends = torch.tensor(sorted(tokens.ends) or [-1], device=x.device)
        read, every = net.read(x), torch.arange(len(x), device=x.device)
        open_ = torch.ones(len(x), dtype=torch.bool, device=x.device)
        found: list[Tensor] = []
        there: list[Tensor] = []
        for step in range(self.steps):
            p, token = read.logits.softmax(1).max(1)
            found.append(p)
            there.append(open_)
            open_ = open_ & ~torch.isin(token, ends)
            if step < self.steps - 1:
                read = net.follow(read, every, token)
        return torch.stack(found, 1), torch.stack(there, 1)
