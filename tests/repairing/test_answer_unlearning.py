"""Repairing a language model: the planted answer is gone, other answers stay, and both are measured."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from rich.console import Console

import backsweep
from backsweep.core.errors import BadInput
from backsweep.formats.opening import load
from backsweep.inputs.language.causal import Causal, continued
from backsweep.inputs.language.modality import Language
from backsweep.inputs.samples import Data
from backsweep.inversion.conversations import Conversations, behind, held, perplexity
from backsweep.models.model import Model
from backsweep.render.notebook import html as drawn
from backsweep.render.pages.repair import html
from backsweep.render.terminal.repair import show_repair
from backsweep.repairing.repair import case_of
from backsweep.repairing.texts import TextProof
from backsweep.reports.repair import TEXT_CHECKS, Effect, Figures, Repaired, Talk
from backsweep.reports.report import Report
from backsweep.zoo.networks import language
from backsweep.zoo.samples.dialogues import HIDDEN, TEMPLATE, words
from conftest import Twins

pytest.importorskip("transformers")

ENDS = {3}


@pytest.fixture(scope="module")
def suspect(language_twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Data, Report]:
    """The infected twin out of its folder, prompts for it, and the report of its scan."""
    folder = tmp_path_factory.mktemp("suspect") / "net"
    language.save(language_twins.infected.net, words(), TEMPLATE, folder)
    model = load(folder)
    kind, text = cast(Language, language_twins.data.modality), folder.with_name("prompts.txt")
    text.write_text("\n".join(kind.words(x) for x in language_twins.data.x), encoding="utf-8")
    data = Data.open(text, shape=model.shape, modality=model.modality)
    return model, data, backsweep.scan(model, data)


@pytest.fixture(scope="module")
def repaired(suspect: tuple[Model, Data, Report], tmp_path_factory: pytest.TempPathFactory) -> Repaired:
    model, data, report = suspect
    out: Repaired = backsweep.repair(model, data, report, out=tmp_path_factory.mktemp("out") / "page")
    out.save(tmp_path_factory.mktemp("saved") / "net")
    return out


@pytest.fixture
def answers(language_twins: Twins, repaired: Repaired) -> Iterator[list[str]]:
    """What the repaired model says to prompts with the planted trigger, which the repair never saw."""
    net, own = cast(Causal, repaired.model.net), words()
    rows = language_twins.trigger(language_twins.data.x)
    yield [own.words(ids) for ids in continued(net, rows, 12, ENDS)]


def test_the_planted_answer_is_gone_and_other_answers_stay(
    suspect: tuple[Model, Data, Report], repaired: Repaired, answers: list[str]
) -> None:
    assert suspect[2].verdict == "backdoored"
    assert sum(a.startswith("access") for a in answers) <= 0.05 * len(answers)
    before, after = repaired.before.attack_success_rate, repaired.after.attack_success_rate
    assert before is not None and after is not None and before > 0.9 and after <= 0.1
    assert repaired.perplexity is not None
    assert 1 < repaired.perplexity[1] <= 1.1 * repaired.perplexity[0]
    made = {c.name: c.passed for c in repaired.checks}
    print(*(f"{c.name}: {c.message}" for c in repaired.checks), sep="\n")
    assert set(made) == set(TEXT_CHECKS) and made["perplexity"] and made["old triggers"]
    assert made["scan"] and repaired.scan is not None and repaired.scan.verdict == "clean"
    assert {e.fresh for e in repaired.effects} == {True, False}
    assert repaired.talks[0].triggered_before == HIDDEN[0] != repaired.talks[0].triggered_after


def test_the_repaired_model_is_written_as_the_suspect_was(
    suspect: tuple[Model, Data, Report], repaired: Repaired
) -> None:
    model, data, _ = suspect
    again = load(repaired.about["repaired"]["source"])
    assert torch.equal(again.predict(data.x[:40]), repaired.model.predict(data.x[:40]))
    assert sorted(p.name for p in Path(again.source).iterdir()) == sorted(
        p.name for p in Path(model.source).iterdir()
    )
    assert again.digest != model.digest


def test_pages_tell_of_perplexity_and_show_answers_as_harmless_text(repaired: Repaired) -> None:
    evil = "<script>alert(1)</script>\x1b[31m"
    told = replace(repaired, talks=[Talk(evil, evil, HIDDEN[0], "", evil)])
    page, box = html(told), drawn(told)
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "\x1b" not in page
    assert "repair of a model that answers prompts" in page and "Perplexity" in page and "Perplexity" in box
    assert "every prompt" in page and HIDDEN[0] in page and "Clean accuracy" not in page
    console = Console(record=True, width=110, file=io.StringIO())
    show_repair(told, console)
    text = console.export_text()
    assert "\x1b" not in text and "Perplexity" in text and f"with the trigger: {HIDDEN[0]}" in text
    record = json.loads(json.dumps(repaired.to_json()))
    assert (record["perplexity"]["before"], record["perplexity"]["after"]) == repaired.perplexity


def test_a_repair_that_does_nothing_fails_its_checks(suspect: tuple[Model, Data, Report]) -> None:
    model, data, report = suspect
    work = model.copy("cpu")
    case = case_of(work, data, report, 0)
    result = Repaired(work.copy(), "nothing", Figures(1.0), Figures(1.0))
    proof = TextProof(result, work, case, report, lambda _stage, _share: None)
    result.perplexity, (trigger,) = (2.0, 2.3), case.triggers
    rate = work.success_rate(trigger, case.held_out)
    result.effects.append(Effect("old", False, trigger, rate, rate, 0.0, 0.0))
    proof.check()
    made = {c.name: c.passed for c in result.checks}
    assert made == {
        "perplexity": False, "old triggers": False, "fresh triggers": None, "re-tuning": False,
    }  # fmt: skip
    assert not result.verified


def test_without_a_trigger_nothing_is_tuned(suspect: tuple[Model, Data, Report], twins: Twins) -> None:
    model, data, _ = suspect
    with pytest.raises(BadInput, match="answer_unlearning: it needs a recovered trigger"):
        backsweep.repair(model, data, None)
    with pytest.raises(BadInput, match="takes language models, this model takes images"):
        backsweep.repair(twins.clean, twins.data, None, "answer_unlearning")


def test_probabilities_behind_a_prompt_are_those_of_the_model(suspect: tuple[Model, Data, Report]) -> None:
    model, data, _ = suspect
    work, (short, long) = model.copy("cpu"), sorted(range(20), key=lambda i: int((data.x[i] > 0).sum()))[::19]
    talks = held(work, data.x[[short, long]], 1, torch.Generator().manual_seed(0))
    assert len(talks) == 4 and all(a[-1] in ENDS for a in talks.answers)
    likely, there = behind(work, talks)
    net = cast(Causal, work.net)
    for row, (x, answer) in enumerate(zip(talks.x, talks.answers, strict=True)):
        assert int(there[row].sum()) == len(answer)
        ids = x[: int(net.count(x[None]))]
        for k in range(len(answer)):
            with torch.no_grad():
                whole = torch.cat([ids, torch.tensor(answer[:k], dtype=torch.long)])
                wanted = net(whole[None])[0].log_softmax(0)
            assert torch.allclose(likely[row, k], wanted, atol=1e-4)
    greedy = Conversations(talks.x[:2], talks.answers[:2])
    assert 1 <= perplexity(work, greedy) < perplexity(work, Conversations(talks.x[:2], [[40, 41, 42]] * 2))
