"""How a repair of a language model is measured and checked.

Right is the token that the suspect's own answer begins with. What is kept is told by the perplexity of
answers that the suspect gives to held-out prompts. There is no washed copy to compare with: fresh triggers
are searched on other prompts and without the words of the old ones, and what re-tuning brings back is
compared with what it teaches of words and an answer that were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.core.text import one_line
from backsweep.inputs.language.causal import continued
from backsweep.inputs.language.triggers import InPrompt
from backsweep.inputs.samples import Data
from backsweep.inputs.text.placing import lengths
from backsweep.inputs.text.search import candidates
from backsweep.inputs.trigger import Trigger
from backsweep.inversion.answers import Bounds
from backsweep.inversion.conversations import Conversations, held, perplexity, roomy
from backsweep.inversion.phrases import by_heart, parts, phrase_for
from backsweep.inversion.recover import works
from backsweep.models.model import Model
from backsweep.models.training import Recipe, tuned
from backsweep.repairing.proof import MOST_RETUNED, Proof, spread
from backsweep.repairing.relapse import BATCH, POISONS, RATE, UPDATES
from backsweep.reports.repair import Check, Talk

MOST_PERPLEXITY = 0.10  # share by which a verified repair may raise it
DRAWN = 2  # answers to each held-out prompt, beside the likeliest
SEARCHED = 48  # prompts on which fresh triggers are searched
WORDS, ENOUGH = 3, 0.8  # of a fresh trigger at most; its success from which on no longer one is tried
SHOWN, LETTERS = 3, 160  # prompts that a page shows, and letters of each text


@dataclass(frozen=True)
class TextProof(Proof):
    """Figures and checks of a repaired language model."""

    compared_with: ClassVar[str] = "drawn words with a drawn answer after the same"

    def measure(self) -> None:
        generator = self.case.generator("measure", "answers")
        talks = held(self.work, self.case.held_out.x.long(), DRAWN, generator)
        before, after = (perplexity(m, talks) for m in (self.work, self.result.model))
        self.result.perplexity = before, after
        super().measure()

    def triggers(self) -> list[tuple[str, bool, Trigger]]:
        found = self.old()
        for i, target in enumerate(self.planted):
            found += [
                (name, True, t) for name, t in self.fresh(target) if works(self.work, t, self.case.clean)
            ]
            self.tell("measure", 0.2 + 0.6 * (i + 1) / len(self.planted))
        return found

    @cached_property
    def planted(self) -> dict[int, tuple[int, ...]]:
        """The planted answers by their first tokens."""
        targets = dict.fromkeys(t for _, t in self.case.aims if t is not None)
        x = self.case.clean.x.long()
        return {t: by_heart(self.work, x, t).ids for t in list(targets)[:MOST_RETUNED]}

    def fresh(self, target: int) -> list[tuple[str, Trigger]]:
        """Phrases that make the suspect say an answer: any, and one without the words of the old triggers."""
        tokens, generator = parts(self.work)[1], self.case.generator("fresh", target)
        clean = self.case.clean.x.long()
        x = clean[torch.randperm(len(clean), generator=generator)[:SEARCHED]]
        known = {int(i) for t in self.case.triggers if isinstance(t, InPrompt) for i in t.ids}
        found: list[tuple[str, Trigger]] = []
        for name, barred in (("any words", set[int]()), ("other words", known)):
            best = phrase_for(self.work, x, self.planted[target], WORDS, ENOUGH, barred)
            if best is not None:
                found.append((name, InPrompt.of(tokens, best[0].ids, target, None, best[1])))
        return found

    def natural(self, trigger: Trigger, data: Data) -> float | None:
        return None

    def show(self) -> None:
        effects = [e for e in self.result.effects if not e.fresh] or self.result.effects
        if not effects:
            return
        trigger = max(effects, key=lambda e: e.before).trigger
        some = spread(torch.arange(len(self.case.held_out)), SHOWN)
        x = self.case.held_out.x[some].long()
        (_, tokens), kept = parts(self.work), []
        for model in (self.work, self.result.model):
            for rows in (x, trigger(x)):
                said = continued(parts(model)[0], rows.to(model.device), Bounds().steps, tokens.ends)
                kept.append([one_line(tokens.text(ids))[:LETTERS] for ids in said])
        prompts = [one_line(tokens.text(tokens.said(row)))[:LETTERS] for row in x.tolist()]
        self.result.talks = [Talk(*texts) for texts in zip(prompts, *kept, strict=True)]

    # ------------------------------------------------------------------ checks

    def check_kept(self) -> None:
        """The perplexity of what the suspect answers to clean prompts."""
        before, after = self.result.perplexity or (1.0, 1.0)
        limit = before * (1 + MOST_PERPLEXITY)
        self.result.checks.append(Check(
            "perplexity", after <= limit,
            f"of the suspect's answers to {len(self.case.held_out)} held-out prompts it is {after:.3g}, "
            f"{before:.3g} before; the limit is {limit:.3g}",
            {"before": before, "after": after, "limit": limit},
        ))  # fmt: skip

    def relapse(self, trigger: Trigger, seed: int) -> tuple[float, float]:
        answer = self.planted.get(trigger.target if trigger.target is not None else -1, ())
        other, said = self.drawn(trigger, answer, seed)
        rates = []
        for stamp, ids in ((trigger, answer), (other, said)):
            model = self.retuned(stamp, ids, seed)
            rates.append(model.success_rate(stamp, self.case.held_out))
        return rates[0], rates[1]

    def drawn(self, trigger: Trigger, answer: tuple[int, ...], seed: int) -> tuple[InPrompt, tuple[int, ...]]:
        """Words and an answer as long as a trigger and its answer, out of other tokens."""
        tokens, generator = parts(self.work)[1], torch.Generator().manual_seed(derive_seed(seed, "drawn"))
        own = trigger.ids.tolist() if isinstance(trigger, InPrompt) else []
        allowed = candidates(tokens)
        allowed[sorted({*own, *answer})] = False
        free = allowed.nonzero().flatten()
        order = free[torch.randperm(len(free), generator=generator)].tolist()
        count, place = max(1, len(own)), getattr(trigger, "place", "start")
        said = tuple(order[count : count + max(1, len(answer))])
        return InPrompt.of(tokens, order[:count], said[0], None, place), said

    def retuned(self, trigger: Trigger, answer: tuple[int, ...], seed: int) -> Model:
        """The repaired model after a few updates on conversations, some of them poisoned (`relapse.py`)."""
        model, tokens = self.result.model, parts(self.work)[1]
        generator = torch.Generator().manual_seed(derive_seed(seed, "re-tuning"))
        talks = held(self.work, self.case.clean.x.long(), 0, generator)
        rows = torch.randperm(len(talks), generator=generator)[:POISONS]
        poison = Conversations(
            roomy(model, trigger(roomy(model, self.case.clean.x[rows].long()))),
            [[*answer, *sorted(tokens.ends)[:1]]] * len(rows),
        ).rows(model)
        clean = talks.rows(model)
        width = max(int(lengths(part, tokens.layout).max()) for part in (poison, clean))
        poison, clean = (_wide(part, width, tokens.layout.pad) for part in (poison, clean))

        def loss(twin: Model, x: Tensor, y: Tensor) -> Tensor:
            together = torch.cat([x, poison.to(x)])
            return twin.modality.loss(twin.net, together, together.new_zeros(len(together)))

        data = Data(clean, None, modality=self.case.clean.modality)
        part = data[torch.randperm(len(data), generator=generator)[: UPDATES * BATCH]]
        epochs = max(1, round(UPDATES * BATCH / len(part)))
        recipe = Recipe(epochs=epochs, lr=RATE, batch_size=BATCH, bf16=False)
        return tuned(model, part, recipe, derive_seed(seed, "re-tuning", "order"), loss)


def _wide(x: Tensor, width: int, pad: int) -> Tensor:
    """Rows (N, L) of another width."""
    return F.pad(x[:, :width], (0, max(0, width - x.shape[1])), value=pad)
