"""BadActs' neuron ranges and ONION's words: worked cases, and one infected classifier of texts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from backsweep.guarding.detectors.bad_acts import BadActs
from backsweep.guarding.detectors.onion import Onion, Trigrams
from backsweep.inputs.samples import Data
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.tokens import WordTokens
from backsweep.models.model import Model
from conftest import Twins

CORPUS = ["the film is good", "the film is bad", "the cast is good", "a plot is bad", "the film is good"] * 8
TOKENS = WordTokens.built([*CORPUS, "zebra"])


def rows(*texts: str) -> Tensor:
    return torch.tensor([TOKENS.encode(t, None, 12) for t in texts])


class Counts(nn.Module):
    """How often every token stands in a text, and a head on that."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(TOKENS), len(TOKENS), padding_idx=0)
        self.embedding.weight = nn.Parameter(torch.eye(len(TOKENS)))
        self.head = nn.Linear(len(TOKENS), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).sum(1))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(Counts(), (12,), 2, modality=Text(TOKENS)).copy("cpu")


def test_the_share_of_neurons_outside_their_range(model: Model) -> None:
    learned = {"mean": torch.zeros(len(TOKENS)), "spread": torch.ones(len(TOKENS))}
    score = BadActs(delta=1.5).scorer(model, learned)
    one, two = score(rows("good good", "good good bad bad is")).tolist()
    padding = 1 / len(TOKENS)  # padding is a token of this network, 8 times and more
    assert one - padding == pytest.approx(1 / len(TOKENS)) and two - padding == pytest.approx(2 / len(TOKENS))


@pytest.mark.parametrize("preset", ["standard", "paper"])
def test_a_word_that_does_not_belong_is_what_lowers_the_perplexity(model: Model, preset: str) -> None:
    detector, data = Onion(preset=preset), Data(rows(*CORPUS), [0, 1] * 20, modality=model.modality)
    learned = detector.learn(model, data)
    score, chance = detector.scorer(model, learned), Trigrams(learned)

    def perplexity(words: list[str]) -> float:
        """By the definition, one word after the other."""
        from backsweep.guarding.detectors.onion import END, START

        ids = [START, START, *(TOKENS.index[w] for w in words), END]
        total = sum(-float(chance.log_of(torch.tensor([ids[i : i + 3]]))[0, 2]) for i in range(len(ids) - 2))
        return total / (len(words) + 1) if preset == "standard" else math.exp(total / (len(words) + 1))

    for text in ("the film is good", "the film zebra is good", "zebra a plot", "good is film the film"):
        words = text.split()
        drops = [
            perplexity(words) - perplexity([w for j, w in enumerate(words) if j != i])
            for i in range(len(words))
        ]
        assert float(score(rows(text))[0]) == pytest.approx(max(drops), rel=1e-4), text
    assert float(score(rows("the film zebra is good"))[0]) > float(score(rows("the film is good"))[0]) + 0.3
    assert score(rows("", "film")).tolist() == [0.0, 0.0], "of no word, or of one, none can be left out"


def test_all_chances_after_two_words_add_up_to_one_or_less(model: Model) -> None:
    data = Data(rows(*CORPUS), [0, 1] * 20, modality=model.modality)
    learned = Onion().learn(model, data)
    chance = Trigrams(learned)
    seen = learned["key1"]
    for before in ([5, 6], [4, 5], [7, 11]):
        ids = torch.stack([torch.tensor([*before, int(w)]) for w in seen])
        total = float(chance.log_of(ids)[:, 2].exp().sum())
        assert 0.5 < total <= 1 + 1e-9


def test_neurons_tell_triggered_texts_from_clean_ones_on_the_infected_twin_alone(text_twins: Twins) -> None:
    data = text_twins.data
    found = {}
    for name in ("infected", "clean"):
        scorer = BadActs().fit(getattr(text_twins, name).copy("cpu"), data[:400])
        bad = scorer(text_twins.trigger(data.x[400:][data.y[400:] != 1]))
        found[name] = float((bad > scorer.threshold(0.05)).float().mean())
    assert found["infected"] > 0.8 and found["clean"] < 0.3, found


def test_what_is_no_text_is_said(twins: Twins, text_twins: Twins) -> None:
    assert Onion().applies(twins.infected, twins.data) == "it leaves words out, and images have none"
    assert "not there" in BadActs(layer=-9).applies(text_twins.infected.copy("cpu"), text_twins.data)
    for wrong in ({"delta": 0.0}, {"layer": 0}):
        with pytest.raises(ValueError, match="is"):
            BadActs(**wrong)
