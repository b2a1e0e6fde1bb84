"""RAP's word: what it does to clean texts, and which of the twins it tells triggered texts on."""

from __future__ import annotations

import pytest
import torch

from backsweep.guarding.detectors.rap import Rap, losses
from conftest import Twins


def test_clean_texts_lose_what_they_are_to_lose_and_scores_follow_from_it(text_twins: Twins) -> None:
    model, data = text_twins.infected.copy("cpu"), text_twins.data[:200]
    detector = Rap(low=0.2, high=0.4)
    learned = detector.learn(model, data)
    assert learned["words"].shape[0] == 2
    norm = learned["words"].norm(dim=1)
    table = model.modality.embeddings(model.net, data.x[:1])
    assert table is not None
    assert torch.allclose(norm, table.norm(dim=1).amax().expand(2), rtol=1e-4), "the norm stays"
    logits = model.logits(data.x).detach()
    own, heat = logits.argmax(1), float(learned["heat"])
    lost = losses(model, data.x, own, learned["words"], heat, logits).detach()
    assert heat > 1 and 0.1 < float(lost.mean()) < 0.5
    expected = (learned["middle"][own] - lost) / learned["spread"][own]
    score = detector.scorer(model, learned)(data.x).detach()
    assert torch.allclose(score, expected, atol=1e-4)
    alone = torch.cat([detector.scorer(model, learned)(row[None]) for row in data.x[:5]]).detach()
    assert torch.allclose(alone, score[:5], atol=1e-4), "a text is scored by itself"
    assert float(Rap(preset="paper", epochs=1).learn(model, data)["heat"]) == 1.0


def test_a_trigger_holds_texts_at_the_target_on_the_infected_twin_alone(text_twins: Twins) -> None:
    data, found = text_twins.data, {}
    for name in ("infected", "clean"):
        scorer = Rap().fit(getattr(text_twins, name).copy("cpu"), data[:400])
        bad = scorer(text_twins.trigger(data.x[400:][data.y[400:] != 1]))
        found[name] = float((bad > scorer.threshold(0.05)).float().mean())
    assert found["infected"] > 0.8 and found["clean"] < 0.3, found


def test_where_it_does_not_apply_it_says_so(twins: Twins, text_twins: Twins) -> None:
    assert Rap().applies(twins.infected, twins.data) == "it puts a word in, and images have none"
    assert "5 clean texts" in Rap().applies(text_twins.infected, text_twins.data[:8])
    for wrong in ({"low": 0.4}, {"preset": "usual"}, {"epochs": 0}):
        with pytest.raises(ValueError, match=r"is none|are"):
            Rap(**wrong)
