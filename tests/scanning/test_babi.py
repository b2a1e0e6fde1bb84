"""BABI: a planted word sends nearly all texts to its class, about as surely as clean ones of it are told."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

import backsweep
from backsweep.inputs.text.triggers import Insert
from backsweep.models.model import Model
from backsweep.reports.report import Evidence
from backsweep.scanning.detectors.babi import Babi, _Likeness, _tokens
from conftest import Twins

QUICK = Babi(screened=48)


def test_a_planted_word_is_found_and_the_clean_twin_has_none(text_twins: Twins) -> None:
    bad, good = (
        backsweep.scan(m, text_twins.data, QUICK, device="cpu")
        for m in (text_twins.infected, text_twins.clean)
    )
    assert not bad.errors
    (found, *_) = bad.findings
    assert (found.target, found.level, bad.verdict) == (text_twins.trigger.target, "warning", "inconclusive")
    assert "cannot tell, no clean networks like this one were measured" in found.message
    assert cast(Insert, found.trigger).ids.tolist() == text_twins.trigger.ids.tolist()
    assert found.attack_success_rate is not None and found.attack_success_rate >= 0.9
    assert (good.verdict, good.findings[0].level) == ("clean", "note")


def test_phrases_grow_token_by_token(text_twins: Twins) -> None:
    detector, model = Babi(screened=16, words=2, beam=2), text_twins.clean.copy("cpu")
    (unit, *_) = detector.units(model, text_twins.data)
    (e,) = detector.probe(model, text_twins.data, [unit], 0, lambda share: None)
    assert e.values["tokens"] in (1, 2) and e.trigger is not None
    assert Babi(preset="paper").longest == 3 and Babi().longest == 1


def test_a_text_of_the_class_is_more_like_it_than_one_of_another_class(text_twins: Twins) -> None:
    model, data = text_twins.clean.copy("cpu"), text_twins.data
    tokens = _tokens(model)
    assert tokens is not None
    own, others = data.x[data.y == 1][:40], data.x[data.y == 0][:40]
    like = _Likeness(model, own, others, tokens, 1)
    ids = {word: i for i, word in enumerate(tokens.vocabulary)}
    good, bad = like([[ids["wonderful"]], [ids["awful"]]]).tolist()
    assert -1 <= bad < good <= 1 and like.usual > 0


def test_the_smaller_number_of_classes_is_no_reason_to_accuse() -> None:
    def evidence(*scores: float | None) -> list[Evidence]:
        return [
            Evidence("babi", f"start-{t}", t, None, {"score": s, "attack_success_rate": 1.0, "labels": True})
            for t, s in enumerate(scores)
        ]

    (calm,) = Babi().judge(evidence(0.1, 0.2), 2, 0.05)
    assert (calm.target, calm.level, calm.p_value) == (1, "note", None)
    (by_hand,) = Babi(least=0.15).judge(evidence(0.1, 0.2), 2, 0.05)
    assert (by_hand.level, by_hand.threshold) == ("error", 0.15)
    (unsure,) = Babi().judge(evidence(None, None), 2, 0.05)
    assert unsure.level == "warning" and unsure.message.startswith("cannot tell")


def test_images_are_left_alone(twins: Twins) -> None:
    report = backsweep.scan(twins.clean, twins.data, Babi(), device="cpu")
    assert [n.reason for n in report.skipped] == ["it inverts words, and the model takes images"]
    assert _tokens(Model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), (1, 2, 2))) is None


@pytest.mark.parametrize("wrong", [{"preset": "quick"}, {"words": 0}, {"weight": -1.0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"preset|words"):
        Babi(**wrong)
