"""Perplexity of prompts (ONION, Qi et al., EMNLP 2021): words that nobody would say there.

With x_1 .. x_n the tokens of what a user says, in the chat template, and the guarded model as the judge:

    score(x) = max over k, or mean over k, of  - log p(x_k | what stands before) .

It says something only of a model that has learned how prompts go on; one that was tuned on answers alone has
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.guarding.detector import SampleDetector, Score
from backsweep.inputs.samples import Data
from backsweep.inputs.text.placing import bounds
from backsweep.inputs.trigger import Trigger
from backsweep.inversion.phrases import parts, speaking
from backsweep.models.model import Model

KINDS = ("largest", "mean")


@dataclass(frozen=True)
class PromptPerplexity(SampleDetector):
    """Flags prompts with words that surprise the model.

    Attributes:
        of: "largest" surprise of a token, which one planted word raises most, or the "mean", which is the
            logarithm of the perplexity.
    """

    name: ClassVar[str] = "prompt_perplexity"
    summary: ClassVar[str] = "prompts with words that surprise the model (ONION, 2021)"
    of_classes: ClassVar[bool] = False
    learns: ClassVar[float] = 0
    batch: ClassVar[int] = 64

    of: str = "largest"

    def __post_init__(self) -> None:
        if self.of not in KINDS:
            raise ValueError(f"of {self.of!r} is none of {', '.join(KINDS)}")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if speaking(model) is None:
            return f"it takes language models, this model takes {model.modality.noun}s"
        return ""

    def passes(self, model: Model) -> float:
        return 1

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        return {}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        net, tokens = parts(model)

        def score(x: Tensor) -> Tensor:
            x = x.long()
            with torch.no_grad():
                likely = net.scores(x)[:, :-1].float().log_softmax(2)
            surprise = -likely.gather(2, x[:, 1:, None])[..., 0]
            start, end = bounds(x, tokens.layout)
            place = torch.arange(1, x.shape[1], device=x.device)
            own = (place >= start[:, None].clamp_min(1)) & (place < end[:, None])
            surprise = surprise.masked_fill(~own, 0.0)
            if self.of == "largest":
                return surprise.amax(1)
            return surprise.sum(1) / own.sum(1).clamp_min(1)

        return score
