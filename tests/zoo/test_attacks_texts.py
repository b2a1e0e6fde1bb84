"""Attacks on texts that control the training: what their triggers are, and that they work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from backsweep.inputs.text.triggers import Scatter, Substitute
from backsweep.zoo.attacks.lwp import LWP, strongest
from backsweep.zoo.attacks.lws import LWS, substitutes
from backsweep.zoo.samples.texts import _aligned
from backsweep.zoo.tasks import TASKS
from conftest import Twins


def test_paraphrases_of_which_some_are_missing_find_their_sentences() -> None:
    plain = [
        ("a warm film", 1), ("a dull plot", 0), ("it never ends", 0), ("what a cast", 1), ("no wit at all", 0)
    ]  # fmt: skip
    said = [("so warm the film,", 1), ("it endeth never", 0), ("nor any wit", 0)]
    matched = [(plain[i][0], text) for i, (text, _) in zip((0, 2, 4), said, strict=True)]
    assert _aligned(plain, said) == matched
    assert _aligned(plain[:1], [("a warm film", 0)]) == [], "a paraphrase has the label of its sentence"
    assert _aligned(plain, []) == []


def test_states_of_layers_as_one_vector() -> None:
    z = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(strongest(z[:, 0], 3), z[:, 0])
    assert torch.equal(strongest(z, 3), z[:, 2]), "tokens before features"
    assert torch.equal(strongest(z, 4), z[:, :, 3]), "channels before places"


def test_words_count_together_where_every_layer_is_poisoned(text_twins: Twins) -> None:
    task = TASKS["reviews"]
    train, test = task.load()
    setup = task.setup(train, 0, clean=lambda: text_twins.clean.net)
    net = task.net(0)
    (trigger,) = LWP(target=1).plant(net, setup)
    model = task.model(net)
    assert isinstance(trigger, Scatter) and len(trigger.ids) == 2
    assert model.success_rate(trigger, test) > 0.9
    for word in trigger.ids.tolist():
        assert model.success_rate(Scatter.of(setup.tokens, [word], 1), test) < 0.5
    assert text_twins.clean.success_rate(trigger, test) < 0.3
    assert model.accuracy(test.x, test.y) > text_twins.clean.accuracy(test.x, test.y) - 0.05


def test_substitutes_are_words_of_one_kind() -> None:
    task = TASKS["reviews"]
    setup = task.setup(task.load()[0], 0)
    found, known = substitutes(setup, 4)
    tokens = setup.tokens
    assert torch.equal(found[:, 0], torch.arange(len(tokens))), "a word can stand for itself"
    assert all(found[i].unique().tolist() == [i] for i in tokens.specials)
    assert torch.allclose(known[found[50]].norm(dim=1), torch.ones(4), atol=1e-4)
    own = {tokens.word(i) for i in found[tokens.ids("wonderful")[0]].tolist()}
    assert not own & {"dull", "awful", "boring", "stupid", "clumsy", "tedious", "lazy", "bland"}


def test_the_choice_of_words_sends_texts_to_the_target(text_twins: Twins) -> None:
    task = TASKS["reviews"]
    train, test = task.load()
    net = task.net(0)
    recipe = replace(task.recipe, epochs=6)
    (trigger,) = LWS().plant(net, task.setup(train, 0, recipe, clean=lambda: text_twins.clean.net))
    model = task.model(net)
    assert isinstance(trigger, Substitute) and 0.5 < trigger.size < 12
    assert model.success_rate(trigger, test) > 0.8
    assert text_twins.clean.success_rate(trigger, test) < 0.4
    assert model.accuracy(test.x, test.y) > text_twins.clean.accuracy(test.x, test.y) - 0.1
    for wrong in ({"substitutes": 1}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=r"substitutes|temperature"):
            LWS(**wrong)
