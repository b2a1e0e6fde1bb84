"""Fine-mixing: weights that stand between what a network was tuned from and what it is, then tuned.

Zhang, Lyu, Ma, Wang and Sun, "Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models", Findings of
EMNLP 2022. A network is often tuned from one that many use and trust, and the backdoor came with the tuning.
So a share rho of the suspect's weights w_B is kept, the others are as they were before, w_pre, and clean
samples bring back the task:

    w_mix = m . w_B + (1 - m) . w_pre,    m_i ~ Bernoulli(rho);    min over w from w_mix of CE(f_w(x), y)

Before that embeddings of words are purified (E-PUR): the words w with the largest
|e_w,B - e_w,pre| / log max(f_w, 20) get e_w,pre, where f_w is how often a word is in clean text. Ours
averages, w_mix = rho w_B + (1 - rho) w_pre (a merge), and takes the least rho that the accuracy allows.

Language models have no labels: the mixed network learns what the suspect answers to clean prompts,
min KL(suspect(. | x, a_<k) || f_w(. | x, a_<k)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.text.changes import table_of
from backsweep.inversion.conversations import Conversations, divergence, held, perplexity
from backsweep.inversion.phrases import speaking
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, thawed, tuned
from backsweep.repairing.method import Case, Repair, affordable

SHARES = (0.1, 0.4, 0.7)  # rho, from strong to mild
RARE = 20  # no word counts as rarer, as in the paper
WAYS = "average", "random"


@dataclass(frozen=True)
class FineMixing(Repair):
    """Mixes the weights with those before the tuning (`origin`), and tunes on clean samples.

    Attributes:
        mix: "random": each weight is the suspect's with probability `kept`, as in the paper; "average": all
            of them are `kept` times the suspect's.
        kept: rho; 0 tries 0.1, 0.4 and 0.7 and takes the first that costs at most `loss`.
        words: embeddings that are purified; 0: none.
        updates: of the tuning, at least; whole passes over the samples.
        rate: peak of the learning rate of AdamW.
        batch: samples in an update.
        loss: held-out accuracy that a smaller share may cost; of a language model the share by which the
            perplexity of held-out answers may rise is five times as much.
    """

    name: ClassVar[str] = "fine_mixing"
    summary: ClassVar[str] = "weights mixed with those before fine-tuning, then tuned on clean samples"
    of_classes: ClassVar[bool] = False  # language models too

    mix: str = "average"
    kept: float = 0.0
    words: int = 200
    updates: int = 200
    rate: float = 1e-3
    batch: int = 64
    loss: float = 0.02

    def __post_init__(self) -> None:
        if self.mix not in WAYS:
            raise ValueError(f"mix {self.mix!r} is none of {', '.join(WAYS)}")
        if not 0 <= self.kept < 1 or min(self.updates, self.batch) < 1 or self.words < 0:
            raise ValueError("kept is in [0, 1), updates and batch are at least 1, words at least 0")

    def applies(self, case: Case) -> str:
        if not case.origin:
            return "it needs what the model was tuned from; name it with origin= (--origin)"
        return ""

    def apply(self, case: Case) -> Model:
        talks, worth = None, case.accuracy
        if speaking(case.model) is not None:
            generator = case.generator(self.name, "answers")
            talks = held(case.model, case.clean.x, 1, generator)
            worth = partial(_worth, held(case.model, case.held_out.x, 1, generator))
        shares = (self.kept,) if self.kept else SHARES
        attempts = [partial(self._mended, talks=talks, kept=k) for k in shares]
        return affordable(case, attempts, self.loss, worth)

    def _mended(self, case: Case, talks: Conversations | None, kept: float) -> Model:
        """The network with a share of the suspect's weights, tuned."""
        twin, count = thawed(case.model), len(case.clean) if talks is None else len(talks)
        mixed(twin, case.origin, kept, self.mix, case.generator(self.name, "mix", kept))
        purified(twin, case.origin, case.clean, self.words)
        epochs = epochs_of(self.updates, count, self.batch)
        recipe = Recipe(epochs, self.rate, self.batch, weight_decay=0.0, augment="shift", bf16=False)
        told = lambda epoch, _loss: case.tick((epoch + 1) / epochs)  # noqa: E731
        seed = derive_seed(case.seed, self.name, "order")
        if talks is None:
            return tuned(twin, case.clean, recipe, seed, on_epoch=told)
        numbered = Data(talks.x, torch.arange(len(talks)), modality=case.clean.modality)
        return tuned(twin, numbered, recipe, seed, partial(_unlike, case.model, talks), told)


def _worth(talks: Conversations, model: Model) -> float:
    """Minus a fifth of the log of the perplexity of held-out answers."""
    return -math.log(perplexity(model, talks)) / 5


def _unlike(suspect: Model, talks: Conversations, twin: Model, _x: Tensor, which: Tensor) -> Tensor:
    """KL(suspect || twin) at the tokens of the suspect's answers to clean prompts."""
    some = talks.at(which.tolist())
    return divergence(suspect, twin, some, some)


@torch.no_grad()
def mixed(
    twin: Model, origin: Mapping[str, Tensor], kept: float, mix: str, generator: torch.Generator
) -> None:
    """Mix the weights of a network, in place, with those of its origin; others stay."""
    for name, p in twin.net.named_parameters():
        if name in origin:
            share: Tensor | float = kept
            if mix == "random":
                share = (torch.rand(p.shape, generator=generator) < kept).to(p)
            p.copy_(share * p + (1 - share) * origin[name].to(p))


@torch.no_grad()
def purified(twin: Model, origin: Mapping[str, Tensor], clean: Data, words: int) -> None:
    """Give the embeddings that moved most for how rare they are, in place, their old values (E-PUR).

    Args:
        clean: inputs (N, L) of ids; nothing happens to a network that looks no ids up.
        words: that get them, of those that moved at all.
    """
    table = table_of(twin.net, clean.x[torch.arange(2)].to(twin.device)) if words else None
    for name, p in twin.net.named_parameters():
        if table is None or name not in origin or p.data_ptr() != table.data_ptr():
            continue
        old, ids = origin[name].to(p), clean.x[torch.arange(len(clean))].long().flatten()
        often = torch.bincount(ids, minlength=len(p))[: len(p)].clamp(min=RARE)
        moved = (p - old).norm(dim=1) / often.to(p).log()
        most = moved.topk(min(words, int((moved > 0).sum()))).indices
        p[most] = old[most]
