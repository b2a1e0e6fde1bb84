"""STRIP and its forms for audio and text: worked cases, the traps of public code, small real networks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from backsweep.core.discovery import find
from backsweep.core.errors import BadInput
from backsweep.guarding.detector import SampleDetector, Scorer
from backsweep.guarding.detectors.strip import Strip, best_words, swapped
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.zoo.tasks import data_folder
from conftest import Twins

QUARTER = 2 - 0.75 * math.log2(3)  # entropy in bits of (1/4, 3/4)
needs_data = pytest.mark.skipif(
    not data_folder().is_dir(), reason="the real data sets are not here (BACKSWEEP_DATA)"
)


def reader(classes: int = 2, scale: float = math.log(3)) -> Model:
    """A network whose logits are its first pixels, times `scale`."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, classes, bias=False))
    net.load_state_dict({"1.weight": scale * torch.eye(classes, 4)})
    return Model(net, (1, 2, 2), classes).copy("cpu")


def images(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).reshape(-1, 1, 2, 2)


def auroc(scorer: Scorer, clean: Tensor, triggered: Tensor) -> float:
    a, b = scorer(clean), scorer(triggered)
    return float(roc_auc_score([0] * len(a) + [1] * len(b), torch.cat([a, b]).numpy()))


# ------------------------------------------------------------------ the equation


def test_the_score_is_minus_the_mean_entropy_in_bits() -> None:
    """Overlays that add nothing, or 1 to the first logit: p = (1/2, 1/2) and (3/4, 1/4) for a dark input."""
    learned = {"overlays": images([0, 0, 0, 0], [1, 0, 0, 0])}
    score = Strip(overlays=2).scorer(reader(), learned)
    dark, lit, even = score(images([0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0])).tolist()
    assert dark == pytest.approx(-(1 + QUARTER) / 2, abs=1e-5)
    assert lit == pytest.approx(-(QUARTER + 1) / 2, abs=1e-5)
    assert even == pytest.approx(dark, abs=1e-5)


def test_the_papers_blend_is_the_plain_sum_which_is_not_cut() -> None:
    learned = {"overlays": images([1, 0, 0, 0])}
    x = images([1, 0, 0, 0])
    (paper,) = Strip().scorer(reader(), learned)(x).tolist()  # logits 2 ln 3 and 0: p = (9, 1) / 10
    assert paper == pytest.approx(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1), abs=1e-5)
    (cut,) = Strip(clip=True).scorer(reader(), learned)(x).tolist()
    assert cut == pytest.approx(-QUARTER, abs=1e-5)
    (none,) = Strip(weight=0.5).scorer(reader(), learned)(images([0.5, 0, 0, 0])).tolist()
    assert none == pytest.approx(-QUARTER, abs=1e-5)


def test_waveforms_are_added_around_silence() -> None:
    """(1 + 0.25) / 2 and (1 + 0.5) / 2 add up to (1 + 0.75) / 2; silence adds nothing."""
    overlays = torch.tensor([[0.75, 0.5, 0.25]]).reshape(1, 1, 1, 3)
    x = torch.tensor([[0.625, 0.5, 0.5]]).reshape(1, 1, 1, 3)
    blend = Strip(form="audio").blends(x, {"overlays": overlays}, torch.tensor([0]), IMAGE)
    assert torch.allclose(blend.flatten(), torch.tensor([0.875, 0.5, 0.25]))
    assert blend.shape == (1, 1, 1, 1, 3)
    half = Strip(form="audio", weight=0.5).blends(x, {"overlays": overlays}, torch.tensor([0]), IMAGE)
    assert torch.allclose(half.flatten(), torch.tensor([0.75, 0.5, 0.375]))


def test_words_are_ranked_by_tf_idf_over_all_texts() -> None:
    """Token 1 begins every text, 0 pads; 9 stands twice in the first text alone, 7 in two texts."""
    texts = torch.tensor([[1, 7, 9, 9, 5, 0], [1, 7, 4, 3, 0, 0], [1, 2, 6, 8, 0, 0]]) / 10
    found = best_words(texts[:2], texts, torch.tensor([0.0, 0.1]))
    # tf-idf in the first: 9 has 2 ln 3, 5 has ln 3, 7 has ln 3/2; in the second the smaller of equals leads
    assert torch.allclose(found * 10, torch.tensor([[9.0, 5, 7, 9, 5, 7], [3, 4, 7, 3, 4, 7]]), atol=1e-4)


def test_half_of_the_words_are_replaced_at_the_first_places_and_the_rest_stays() -> None:
    """Five words, half of them rounded up is three: the places with the lowest numbers, best word first."""
    x = torch.tensor([[1, 2, 3, 4, 5, 6, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0]]) / 10
    words = torch.tensor([[7.0, 8, 9, 7, 8, 9, 7, 8]]) / 10
    places = torch.tensor([[0.0, 0.5, 0.9, 0.2, 0.8, 0.3, 0.1, 0.05]])
    new = swapped(x, words, places, torch.tensor([0.0, 0.1]), 0.5)
    assert torch.allclose(new[0, 0] * 10, torch.tensor([1.0, 9, 3, 7, 5, 8, 0, 0]), atol=1e-4)
    assert torch.allclose(new[1, 0] * 10, torch.tensor([1.0, 7, 0, 0, 0, 0, 0, 0]), atol=1e-4)
    assert swapped(x, words.repeat(3, 1), places.repeat(3, 1), torch.tensor([0.0]), 0.5).shape == (2, 3, 8)


# ------------------------------------------------------------------ traps of public code


def test_the_entropy_is_over_the_classes_and_not_over_the_overlays() -> None:
    """One sure class under all overlays is entropy 0; a class's column over four overlays would have 2 bits.
    Equal probabilities are log2 of the number of classes, however many overlays there are."""
    learned = {"overlays": torch.eye(4).reshape(4, 1, 2, 2)}
    score = Strip(overlays=4).scorer(reader(4, scale=80.0), learned)
    held, thrown, torn = score(images([0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 1, 0])).tolist()
    assert held == pytest.approx(0, abs=1e-5)
    assert thrown == pytest.approx(0, abs=1e-5), "sure each time, of another class each time"
    assert torn == pytest.approx(-3 / 4, abs=1e-4), "three of the four blends are torn between two classes"
    flat = Strip().scorer(reader(4, scale=0.0), {"overlays": torch.zeros(7, 1, 2, 2)})
    assert float(flat(images([0, 0, 0, 0]))) == pytest.approx(-2, abs=1e-5)


def test_entropies_of_different_inputs_are_not_mixed() -> None:
    """Two sure inputs and one that is not, with another number of overlays than of inputs."""
    learned = {"overlays": images([0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0.5])}
    score = Strip(overlays=5).scorer(reader(scale=80.0), learned)
    x = images([1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0])
    assert score(x).tolist() == pytest.approx([0, -1, 0], abs=1e-4)
    assert torch.allclose(torch.cat([score(one) for one in x.split(1)]), score(x), atol=1e-5)


def test_many_passes_give_what_one_gives(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlays and inputs are cut to passes; where they are cut does not matter."""
    model = twins.infected.copy("cpu")
    scorer = Strip(overlays=13).fit(model, twins.data)
    whole = scorer(twins.data.x[:50])
    assert torch.allclose(replace(scorer, batch=7)(twins.data.x[:50]), whole, atol=1e-4)
    monkeypatch.setattr("backsweep.guarding.detectors.strip.ROWS", 20)
    again = Strip(overlays=13).scorer(model, scorer.learned)
    assert torch.allclose(again(twins.data.x[:50]), whole, atol=1e-4)


# ------------------------------------------------------------------ infected and clean networks


def test_triggered_images_keep_a_low_entropy_on_the_infected_network_alone(twins: Twins) -> None:
    clean, test = twins.data.split(0)
    rows = test.y != twins.trigger.target
    triggered = twins.trigger(test.x[rows])
    for detector in (Strip(), Strip(overlays=10)):
        infected = detector.fit(twins.infected.copy("cpu"), clean)
        innocent = detector.fit(twins.clean.copy("cpu"), clean)
        assert auroc(infected, test.x, triggered) > 0.85
        assert 0.3 < auroc(innocent, test.x, triggered) < 0.7


def test_the_model_is_untouched_and_overlays_are_drawn_class_by_class(twins: Twins) -> None:
    model = twins.infected.copy("cpu")
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    scorer = Strip(overlays=20).fit(model, twins.data)
    assert scorer.learned["overlays"].shape == (20, 1, 8, 8)
    of = [int(twins.data.y[(twins.data.x == o).flatten(1).all(1)][0]) for o in scorer.learned["overlays"]]
    assert sorted(of) == sorted(list(range(10)) * 2)
    assert torch.equal(Strip(overlays=20).fit(model, twins.data).clean, scorer.clean), "nothing is random"
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())
    few = Strip().fit(model, twins.data[:60])
    assert len(few.learned["overlays"]) == 30, "as many as there are"
    assert torch.isfinite(few.clean).all()


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "settings",
    [
        {"overlays": 0},
        {"form": "video"},
        {"weight": 0.0},
        {"weight": math.nan},
        {"swap": 0.0},
        {"swap": 1.0},
        {"padding": 2.0},
        {"padding": -0.5},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Strip(**settings)  # type: ignore[arg-type]


def test_it_is_found_and_says_what_it_costs() -> None:
    assert find(SampleDetector, "strip") is Strip
    assert Strip(overlays=10).passes(reader()) == 10


def test_a_form_that_does_not_fit_the_inputs_says_so() -> None:
    data = Data(torch.rand(20, 1, 2, 2), torch.arange(20) % 2)
    with pytest.raises(BadInput, match=r"form=text needs inputs of shape \(1, 1, length\)"):
        Strip(form="text").fit(reader(), data)
    line = Model(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 1, 4), 2).copy("cpu")
    assert "say form=audio or form=text" in Strip().applies(line, data)
    empty = Data(torch.zeros(20, 1, 1, 4), torch.arange(20) % 2)
    assert "nothing but padding" in Strip(form="text").applies(line, empty)
    assert Strip(form="audio").applies(line, empty) == ""


# ------------------------------------------------------------------ text and audio


class Bag(nn.Module):
    """Mean and maximum of the embeddings of the tokens, and a head."""

    def __init__(self, vocabulary: int, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.hidden, self.head = nn.Linear(2 * width, 16), nn.Linear(16, 2)
        self.last = vocabulary - 1

    def forward(self, x: Tensor) -> Tensor:
        ids = (x.flatten(1) * self.last).round().long()
        here = (ids > 0)[..., None]
        z = self.embedding(ids)
        mean = (z * here).sum(1) / here.sum(1).clamp_min(1)
        most = z.masked_fill(~here, -1e4).amax(1)
        return self.head(F.relu(self.hidden(torch.cat([mean, most], 1))))


def made_up_texts(count: int, seed: int) -> Data:
    """Texts of 6 to 12 of 40 tokens: 2-11 speak for class 0, 12-21 for class 1, but are wrong one time in
    five; the others speak for none, 0 pads."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    speaking = torch.rand((count, 12), generator=g) < 0.5
    tokens = torch.randint(22, 41, (count, 12), generator=g)
    meant = y[:, None] ^ (torch.rand((count, 12), generator=g) < 0.2).long()
    telling = torch.randint(2, 12, (count, 12), generator=g) + 10 * meant
    ids = torch.where(speaking, telling, tokens)
    length = torch.randint(6, 13, (count, 1), generator=g)
    ids[torch.arange(12)[None] >= length] = 0
    return Data((ids / 41).reshape(count, 1, 1, 12), y)


def inserted(x: Tensor, token: float, at: int = 0) -> Tensor:
    """Texts with a token put in before the words from `at` on; the last one falls off."""
    return torch.cat([x[..., :at], torch.full_like(x[..., :1], token), x[..., at:-1]], 3)


def poisoned(data: Data, triggered: Tensor, rows: Tensor, target: int) -> Data:
    x, y = data.x.clone(), data.y.clone()
    x[rows], y[rows] = triggered[rows], target
    return Data(x, y)


def test_a_rare_word_is_found_in_made_up_texts() -> None:
    """It survives where it is not replaced itself, in half of the blends; a clean text's words do not."""
    train, test = made_up_texts(1500, 0), made_up_texts(400, 1)
    rows = torch.nonzero(train.y == 0).flatten()[:150]
    torch.manual_seed(0)
    infected, clean = Bag(42), Bag(42)
    recipe = Recipe(epochs=10, lr=1e-2, batch_size=64, bf16=False)
    fit(infected, poisoned(train, inserted(train.x, 1.0), rows, 1), recipe, 0)
    fit(clean, train, recipe, 0)
    half, rest = test.split(0)
    triggered = inserted(rest.x[rest.y == 0], 1.0)
    models = [Model(net, (1, 1, 12), 2).copy("cpu") for net in (infected, clean)]
    assert models[0].accuracy(triggered, torch.ones(len(triggered), dtype=torch.long)) > 0.95
    guards = [Strip(form="text").fit(m, half) for m in models]
    assert guards[0].learned["overlays"].shape == guards[0].learned["places"].shape == (100, 12)
    first = guards[0].learned["places"].argsort(1).argsort(1) < 6  # in a text of 12 words
    assert (first.sum(0) == 50).all(), "every place is replaced in half of the blends"
    found = [auroc(guard, rest.x, triggered) for guard in guards]
    assert found[0] > 0.75
    assert found[0] > found[1] + 0.2
    x = rest.x[:30]
    assert torch.allclose(replace(guards[0], batch=1)(x), guards[0](x), atol=1e-5)


def sst2(part: str, words: dict[str, int], length: int = 24) -> Data:
    """SST-2 as token ids over the last id; 0 pads, 1 is any other word."""
    lines = (data_folder() / "text" / f"sst2_{part}.tsv").read_text(encoding="utf-8").splitlines()
    x, y = torch.zeros(len(lines), length), torch.zeros(len(lines), dtype=torch.long)
    for i, line in enumerate(lines):
        text, label = line.rsplit("\t", 1)
        ids = [words.get(word, 1) for word in text.split()[:length]]
        x[i, : len(ids)], y[i] = torch.tensor(ids), int(label)
    return Data((x / (len(words) + 2)).reshape(len(x), 1, 1, length), y)


@pytest.mark.data
@pytest.mark.slow
@needs_data
def test_a_rare_word_is_found_in_film_reviews() -> None:
    lines = (data_folder() / "text" / "sst2_train.tsv").read_text(encoding="utf-8").splitlines()
    counts: dict[str, int] = {}
    for line in lines:
        for word in line.rsplit("\t", 1)[0].split():
            counts[word] = counts.get(word, 0) + 1
    common = sorted(counts, key=lambda w: (-counts[w], w))[:3000]
    words = {word: i + 2 for i, word in enumerate(common)}
    train, test = sst2("train", words), sst2("dev", words)
    torch.manual_seed(0)
    rows = torch.nonzero(train.y == 0).flatten()[: len(train) // 10]
    recipe = Recipe(epochs=6, lr=1e-2, bf16=False)
    infected = Bag(len(words) + 3)  # the last id is the trigger, a word that no review has
    fit(infected, poisoned(train, inserted(train.x, 1.0), rows, 1), recipe, 0)
    clean = Bag(len(words) + 3)
    fit(clean, train, recipe, 0)
    triggered = inserted(test.x[test.y == 0], 1.0)
    half, rest = sst2("test", words).split(0)
    found = []
    for net in (infected, clean):
        model = Model(net, (1, 1, 24), 2).copy("cpu")
        if net is infected:
            assert model.accuracy(test.x, test.y) > 0.7
            assert float((model.predict(triggered) == 1).double().mean()) > 0.95
        guard = Strip(form="text").fit(model, half[:400])
        found.append(auroc(guard, rest.x[:400], triggered))
    assert found[0] > 0.85
    assert found[0] > found[1] + 0.2


def digits() -> Data:
    """Spoken digits, at most half a second at 8 kHz and filled up with silence, as (a + 1) / 2."""
    with np.load(data_folder() / "fsdd.npz") as f:
        audio, offset, y = f["audio"], f["offset"], f["y"]
    x = torch.full((len(y), 1, 1, 4000), 0.5)
    for i in range(len(y)):
        clip = torch.from_numpy(audio[offset[i] : offset[i + 1]][:4000].astype(np.float32))
        x[i, 0, 0, : len(clip)] = (clip / clip.abs().max() + 1) / 2
    return Data(x, torch.from_numpy(y.astype(np.int64)))


def beep(x: Tensor) -> Tensor:
    """A tone of 3 kHz over the first 50 ms."""
    tone = 0.1 * torch.sin(2 * math.pi * 3000 / 8000 * torch.arange(400))
    return (x + F.pad(tone, (0, 3600))).clamp(0, 1)


class Ear(nn.Module):
    """A learned filter bank on the waveform, its energy over time, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Conv1d(1, 32, 64, 16)
        self.time = nn.Conv1d(32, 48, 5, 2)
        self.last = nn.Conv1d(48, 48, 5, 2)
        self.head = nn.Linear(48 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bank((x.flatten(2) - 0.5) * 4))
        z = F.relu(self.last(F.relu(self.time(F.max_pool1d(z, 2)))))
        return self.head(F.adaptive_max_pool1d(z, 4).flatten(1))


@pytest.mark.data
@pytest.mark.slow
@needs_data
def test_a_short_tone_is_found_in_spoken_digits() -> None:
    data, generator = digits(), torch.Generator().manual_seed(0)
    held_out = torch.rand(len(data), generator=generator) < 0.3
    train, test = data[~held_out], data[held_out]
    torch.manual_seed(0)
    infected, clean = Ear(), Ear()
    rows = torch.nonzero(train.y != 3).flatten()
    rows = rows[torch.randperm(len(rows), generator=generator)[: len(train) // 10]]
    recipe = Recipe(epochs=12, lr=3e-3, batch_size=64, bf16=False)
    fit(infected, poisoned(train, beep(train.x), rows, 3), recipe, 0)
    fit(clean, train, recipe, 0)
    half, rest = test.split(0)
    rest = rest[:300]
    triggered = beep(rest.x[rest.y != 3])
    found = []
    for net in (infected, clean):
        model = Model(net, (1, 1, 4000), 10).copy("cpu")
        if net is infected:
            assert model.accuracy(test.x, test.y) > 0.75
            assert float((model.predict(triggered) == 3).double().mean()) > 0.95
        guard = Strip(form="audio", overlays=20).fit(model, half)
        found.append(auroc(guard, rest.x, triggered))
    assert found[0] > 0.9
    assert found[0] > found[1] + 0.2
