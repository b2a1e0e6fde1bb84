"""STRIP (Gao et al., ACSAC 2019) and STRIP-ViTA (TDSC 2021): a triggered input is sure of its class.

Other inputs are blended into the one that is looked at. The predictions of a clean input then wander and
are unsure; a trigger survives the blend and holds them at its target: their entropy is low.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector, Score
from backsweep.inputs.modality import Modality
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model

FORMS = ("image", "audio", "text")
SILENCE = 0.5  # of a waveform a in [-1, 1] that is stored as x = (a + 1) / 2
ROWS, VALUES = 512, 2**22  # blends in a pass, and their values together, at most
SAME = 1e-6  # tokens id / (V - 1) that differ by less are one token


@dataclass(frozen=True)
class Strip(SampleDetector):
    """Scores an input by how low the entropy of its predictions is when clean samples are blended in.

    Attributes:
        overlays: N, the number of clean samples that are blended in, one at a time; 10 is cheap.
        form: what an input is: an `image`; `audio`, a waveform with silence at 0.5; or `text`, token
            ids divided by the largest one.
        weight: of the sample that is blended in; the input has weight 1. Not used by `text`.
        clip: whether blends are cut to [0, 1]. Not used by `text`.
        swap: share of the tokens of a text that are replaced, rounded up. Only used by `text`.
        padding: value of the token that fills up a text, which is never replaced; -1: there is none.
    """

    name: ClassVar[str] = "strip"
    summary: ClassVar[str] = "predictions that stay sure when other inputs are blended in (STRIP)"
    needs: ClassVar[tuple[str, ...]] = ()
    batch: ClassVar[int] = 128

    overlays: int = 100
    form: str = "image"
    weight: float = 1.0
    clip: bool = False
    swap: float = 0.5
    padding: float = 0.0

    def __post_init__(self) -> None:
        if self.overlays < 1:
            raise ValueError(f"overlays {self.overlays} is below 1: nothing would be blended in")
        if self.form not in FORMS:
            raise ValueError(f"form {self.form!r} is none of {', '.join(FORMS)}")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight {self.weight} is not above 0 and finite")
        if not 0 < self.swap < 1:
            raise ValueError(f"swap {self.swap} is not between 0 and 1")
        if not (self.padding == -1 or 0 <= self.padding <= 1):
            raise ValueError(f"padding {self.padding} is neither a token in [0, 1] nor -1 for none")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        flat = len(model.shape) == 3 and model.shape[:2] == (1, 1)
        if self.form == "image":
            return "inputs of shape (1, 1, length) are no images; say form=audio or form=text" if flat else ""
        if not flat:
            return f"form={self.form} needs inputs of shape (1, 1, length); the model takes {model.shape}"
        if self.form == "text" and not len(self.usable(self.halves(data)[0])[0]):
            return "the clean texts hold nothing but padding and tokens that all of them share"
        return ""

    def passes(self, model: Model) -> float:
        return self.overlays

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """The overlays x_n; for texts the words that each of them gives, and the places in their order."""
        seed = derive_seed(0, self.name, "overlays")
        if self.form != "text":
            return {"overlays": data.sample(self.overlays, seed).x.clone()}
        usable, fixed = self.usable(data)
        overlays = best_words(usable.sample(self.overlays, seed).x.flatten(1), data.x.flatten(1), fixed)
        generator = torch.Generator().manual_seed(derive_seed(0, self.name, "places"))
        places = torch.rand(overlays.shape, generator=generator)
        # an overlay and the next in opposite orders: no place is replaced more often than any other
        places[1::2] = 1 - places[: 2 * (len(places) // 2) : 2]
        return {"overlays": overlays, "places": places, "fixed": fixed}

    def usable(self, data: Data) -> tuple[Data, Tensor]:
        """The texts that hold words, and the tokens that are none and stay where they are.

        Those are padding, and what stands in every text: marks of its beginning and end.
        """
        x = data.x.flatten(1)
        tokens, texts = frequencies(x)
        fixed = torch.cat([torch.tensor([self.padding]), tokens[texts == len(x)]])
        return data[~among(x, fixed).all(1)], fixed

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        """Minus the mean entropy of the predictions for the blends, in bits."""
        known = {k: v.to(model.device) for k, v in learned.items()}
        count = len(known["overlays"])
        rows = max(1, min(ROWS, VALUES // math.prod(model.shape)))

        def total(x: Tensor) -> Tensor:
            """Sum over the overlays of the entropies of inputs x (B, *shape), (B,)."""
            total = torch.zeros(len(x), device=x.device)
            for part in torch.arange(count, device=x.device).split(max(1, rows // len(x))):
                blends = self.blends(
                    x, known, part, model.modality
                )  # (B, n, *shape): the overlays of an input lie together
                logits = model.logits(blends.flatten(0, 1)).float()
                total += entropy(logits).reshape(len(x), len(part)).sum(1)
            return total

        return lambda x: -torch.cat([total(part) for part in x.split(rows)]) / count

    def blends(self, x: Tensor, known: dict[str, Tensor], part: Tensor, modality: Modality) -> Tensor:
        """Each input x (B, *shape) blended with each of the overlays `part` (n,): (B, n, *shape)."""
        overlays = known["overlays"][part]
        if self.form == "text":
            texts = swapped(x.flatten(1), overlays, known["places"][part], known["fixed"], self.swap)
            return texts.reshape(len(x), len(part), *x.shape[1:])
        if self.form == "audio":
            overlays = overlays - SILENCE
        blended = modality.mix(x, overlays, self.weight)
        return modality.clip(blended) if self.clip else blended


def entropy(logits: Tensor) -> Tensor:
    """Entropy (N,) in bits over the classes of the softmax of logits (N, classes)."""
    return torch.special.entr(logits.softmax(1)).sum(1) / math.log(2)


def among(x: Tensor, tokens: Tensor) -> Tensor:
    """Which values of x are one of `tokens`."""
    found = torch.zeros_like(x, dtype=torch.bool)
    for token in tokens:
        found |= (x - token).abs() < SAME
    return found


def frequencies(x: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens (U,), sorted, of texts x (N, L), and in how many of the texts each stands."""
    tokens, index = x.unique(return_inverse=True)
    rows = torch.arange(len(x))[:, None]
    once = (rows * len(tokens) + index).unique()
    return tokens, (once % len(tokens)).bincount(minlength=len(tokens))


def best_words(chosen: Tensor, x: Tensor, fixed: Tensor) -> Tensor:
    """The words of each chosen text by falling TF-IDF, those of the highest first, repeated to length L.

    tf is the count in the text (its length is the same for all of its words), idf = ln(N / df) over the N
    texts x (N, L), to which the chosen belong.
    """
    tokens, texts = frequencies(x)
    idf = (len(x) / texts).log()
    found = []
    for text in chosen:
        words, tf = text[~among(text, fixed)].unique(return_counts=True)
        score = tf * idf[torch.searchsorted(tokens, words)]
        words = words[score.argsort(descending=True, stable=True)]
        found.append(words.repeat(math.ceil(len(text) / len(words)))[: len(text)])
    return torch.stack(found)


def swapped(x: Tensor, words: Tensor, places: Tensor, fixed: Tensor, share: float) -> Tensor:
    """Texts x (B, L) with a share of their words replaced by those of each overlay, (B, n, L).

    Args:
        x: the texts.
        words: of the overlays (n, L), the best first.
        places: a number (n, L) for every place; those with the lowest are replaced first, by the best words.
        fixed: tokens that are no words.
        share: of the words of a text, rounded up.
    """
    fixed_here = among(x, fixed)
    keys = torch.where(fixed_here[:, None], math.inf, places[None])
    rank = keys.argsort(dim=2, stable=True).argsort(dim=2)
    count = (share * (~fixed_here).sum(1).double() - SAME).ceil()
    new = words[None].expand(len(x), -1, -1).gather(2, rank)
    return torch.where(rank < count[:, None, None], new, x[:, None])
