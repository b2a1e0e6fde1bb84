"""Ours, for language models: unlearns a planted answer and its trigger, and keeps the rest by distillation.

A conversation is a clean prompt x with an answer a that the suspect itself gives. With T a recovered trigger
and h the planted answer, the repaired model f is to say at every token of a what the suspect says there,
whatever of T and h is put into the conversation:

    min  KL(suspect(. | x, a_<k) || f(. | x', a'_<k)),   x' = x or T(x),   a' = a or h_<j followed by a_>=j

So prompts with the trigger are answered as those without it, and h no longer goes on once it has begun.
Tokens of T that stand in no conversation begin with the mean embedding of those that do: what was planted
there would outlive all tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.language.triggers import InPrompt
from backsweep.inputs.samples import Data
from backsweep.inputs.text.changes import table_of
from backsweep.inputs.text.placing import PLACES
from backsweep.inversion.conversations import Conversations, divergence, held, perplexity
from backsweep.inversion.phrases import by_heart, speaking
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, thawed, tuned
from backsweep.repairing.method import Case, Repair

SLOWER = 3.0  # what the rate is divided by where it costs too much


@dataclass(frozen=True)
class AnswerUnlearning(Repair):
    """Unlearns what a language model says after a recovered trigger, and keeps what it says without.

    Attributes:
        updates: of the weights, at least; whole passes over the conversations.
        rate: peak of the learning rate.
        batch: conversations in an update.
        samples: drawn answers for each prompt, beside the likeliest one.
        share: of the conversations with the trigger, and, drawn apart, of those with the planted answer.
        loss: share by which the perplexity of held-out answers may rise; else it is tried with a lower rate.
    """

    name: ClassVar[str] = "answer_unlearning"
    summary: ClassVar[str] = "a language model unlearns a planted answer and its trigger (ours)"
    of_classes: ClassVar[bool] = False

    updates: int = 160
    rate: float = 2e-3
    batch: int = 32
    samples: int = 3
    share: float = 0.5
    loss: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.updates < 1 or self.batch < 1 or self.samples < 0:
            raise ValueError("share is in (0, 1], updates and batch are at least 1, samples at least 0")

    def applies(self, case: Case) -> str:
        if speaking(case.model) is None:
            return f"it takes language models, this model takes {case.model.modality.noun}s"
        if not any(isinstance(t, InPrompt) for t in case.triggers):
            return "it needs a recovered trigger; the scan recovered none"
        return ""

    def apply(self, case: Case) -> Model:
        generator = case.generator(self.name, "answers")
        talks = held(case.model, case.clean.x, self.samples, generator)
        judged = held(case.model, case.held_out.x, 1, generator)
        triggers = [t for t in case.triggers if isinstance(t, InPrompt)]
        firsts = dict.fromkeys(t.target for t in triggers if t.target is not None)
        planted = [by_heart(case.model, case.clean.x.long(), first).ids for first in firsts]
        stamps = [replace(t, place=place) for t in triggers for place in PLACES]
        most = perplexity(case.model, judged) * (1 + self.loss)
        repaired: list[tuple[float, Model]] = []
        for rate in (self.rate, self.rate / SLOWER):
            model = self._tuned(case, talks, stamps, planted, rate)
            repaired.append((perplexity(model, judged), model))
            if repaired[-1][0] <= most:
                break
        return min(repaired, key=lambda pair: pair[0])[1]

    def _tuned(
        self,
        case: Case,
        talks: Conversations,
        stamps: Sequence[InPrompt],
        planted: Sequence[Sequence[int]],
        rate: float,
    ) -> Model:
        generator = case.generator(self.name, "changes", rate)

        def loss(twin: Model, _x: Tensor, which: Tensor) -> Tensor:
            some = talks.at(which.tolist())
            return divergence(case.model, twin, some, self._changed(some, stamps, planted, generator))

        numbered = Data(talks.x, torch.arange(len(talks)), modality=case.clean.modality)
        epochs = epochs_of(self.updates, len(talks), self.batch)
        recipe = Recipe(epochs=epochs, lr=rate, batch_size=self.batch, weight_decay=0.0, bf16=False)
        start, seed = self._start(case, talks, stamps), derive_seed(case.seed, self.name, "order", rate)
        return tuned(
            start, numbered, recipe, seed, loss,
            on_epoch=lambda epoch, _loss: case.tick((epoch + 1) / epochs),
        )  # fmt: skip

    @torch.no_grad()
    def _start(self, case: Case, talks: Conversations, stamps: Sequence[InPrompt]) -> Model:
        """A copy of the suspect to be tuned, without what it knows of words that only the trigger has."""
        twin = thawed(case.model)
        rows = talks.rows(twin).to(twin.device)
        table = table_of(twin.net, rows[:2])
        there = rows.unique()
        hidden = sorted({int(i) for t in stamps for i in t.ids} - set(there.tolist()))
        for p in twin.net.parameters():
            if hidden and table is not None and p.data_ptr() == table.data_ptr():
                p[hidden] = p[there].mean(0)
        return twin

    def _changed(
        self,
        talks: Conversations,
        stamps: Sequence[InPrompt],
        planted: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> Conversations:
        """Conversations, some with the trigger in the prompt, some with the planted answer's beginning."""

        def drawn(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        chance = torch.rand((2, len(talks)), generator=generator) < self.share
        x = torch.where(chance[0][:, None], stamps[drawn(len(stamps))](talks.x), talks.x)
        answers = []
        for put, answer in zip(chance[1].tolist(), talks.answers, strict=True):
            ids = planted[drawn(len(planted))]
            most = min(len(answer) - 1, len(ids))
            many = 1 + drawn(most) if put and most > 0 else 0
            answers.append([*ids[:many], *answer[many:]])
        return Conversations(x, answers)
