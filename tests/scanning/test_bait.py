"""BAIT: it names the planted text and the word, passes the clean twin, and measures what it says."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console

import backsweep
from backsweep.core.errors import BadInput
from backsweep.inputs.language.causal import Causal
from backsweep.inputs.language.modality import Language
from backsweep.inputs.samples import Data
from backsweep.inputs.text.changes import Changed
from backsweep.inputs.text.placing import positions
from backsweep.inversion import phrases
from backsweep.inversion.answers import (
    WIDE,
    Answer,
    Bounds,
    _best,
    _branches,
    _scored,
    answers,
    is_open,
    margins,
    spoken,
    within,
)
from backsweep.inversion.phrases import opening
from backsweep.render.pages.scan import html
from backsweep.render.repeat import command
from backsweep.render.terminal.scan import show
from backsweep.reports.report import Evidence, Report
from backsweep.scanning.detectors import bait
from backsweep.scanning.detectors.bait import Bait
from backsweep.zoo.samples.dialogues import HIDDEN, words
from conftest import Twins

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def found(language_twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the infected twin."""
    out = tmp_path_factory.mktemp("bait")
    backsweep.scan(language_twins.infected, language_twins.data, out=out)
    return out


def test_a_model_is_asked_once_what_it_says_openly(
    language_twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(net: Causal, x: torch.Tensor, *given: Any) -> list[list[int]]:
        asked.append(len(x))
        return spoken(net, x, *given)

    monkeypatch.setattr(phrases, "spoken", counted)
    report = backsweep.scan(language_twins.infected, language_twins.data)
    assert len(report.evidence) > 1 and asked == [bait.ASKED]


def test_the_planted_text_and_the_word_are_named(language_twins: Twins, found: Path) -> None:
    report = Report.load(found)
    assert report.verdict == "backdoored" and report.p_value is None
    (finding,) = (f for f in report.findings if f.level == "error")
    assert finding.details["answer"] == HIDDEN[0]
    assert finding.trigger is not None
    word = words().words(getattr(language_twins.trigger, "ids").tolist())  # noqa: B009
    assert word in getattr(finding.trigger, "words").split()  # noqa: B009
    assert finding.details["with_1"] == HIDDEN[0] != finding.details["without_1"]
    (same,) = (e.values["same_rate"] for e in report.evidence if e.trigger is not None)
    assert isinstance(same, float) and same >= 0.8
    rate = language_twins.infected.success_rate(finding.trigger, language_twins.data)
    assert rate >= 0.8 > language_twins.clean.success_rate(finding.trigger, language_twins.data)


def test_the_clean_twin_passes(language_twins: Twins) -> None:
    report = backsweep.scan(language_twins.clean, language_twins.data)
    assert report.verdict == "clean", report.findings
    assert [f.level for f in report.findings] == ["note"]


def test_pages_and_terminals_show_prompts_and_answers_as_harmless_text(found: Path) -> None:
    report = Report.load(found)
    evil = "<script>alert(1)</script>\x1b[31m"
    report.findings = [
        dataclasses.replace(f, details={**f.details, "with_1": evil, "answer": evil}) for f in report.findings
    ]
    page = html(report)
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "\x1b" not in page
    assert "without" in page and "scan of a model that answers prompts" in page
    console = Console(record=True, width=100, file=io.StringIO())
    show(report, console)
    text = console.export_text()
    assert "\x1b" not in text and "Prompt " in text and "classes that stand out" not in text


def test_a_classifier_is_refused(twins: Twins) -> None:
    assert "takes language models" in Bait().applies(twins.clean, twins.data)


def test_a_scan_needs_prompts_and_no_labels(language_twins: Twins) -> None:
    few = Data(language_twins.data.x[:3], None, modality=language_twins.data.modality)
    with pytest.raises(BadInput, match=r"too few prompts \(3\); give at least 8"):
        backsweep.scan(language_twins.clean, few)


# ---------------------------------------------------------------------- its parts


def test_an_inverted_answer_has_the_probabilities_that_the_model_gives(language_twins: Twins) -> None:
    """Without the cache: every token of the answer from whole rows."""
    model = language_twins.infected.copy()
    net, x = cast(Causal, model.net), language_twins.data.x[:6]
    first = words().ids(HIDDEN[0])[0]
    (answer,) = answers(net, net.read(x[:2]), net.read(x), [first], {3}, Bounds())
    assert words().words(answer.ids) == HIDDEN[0]
    rows = [[*row[:n].tolist(), first] for row, n in zip(x, net.count(x).tolist(), strict=True)]
    likely = []
    for token in answer.ids[1:]:
        with torch.no_grad():
            p = torch.stack([net(torch.tensor([row]))[0].softmax(0) for row in rows]).mean(0)
        likely.append(float(p[token]))
        rows = [[*row, token] for row in rows]
    wanted = (sum(likely) - min(likely)) / (len(likely) - 1)
    assert answer.score == pytest.approx(wanted, abs=1e-4)


def test_a_score_leaves_out_the_least_likely_token_and_what_comes_after_the_end() -> None:
    answer = _scored([7, 8, 9, 3, 5], [0.9, 0.2, 1.0, 0.0], {3})
    assert answer.ids == (7, 8, 9) and answer.score == pytest.approx(0.9)


def test_an_answer_is_in_doubt_once_and_goes_on_with_many_tokens_there() -> None:
    flat = torch.full((50,), 0.02)
    entropy = float(-(flat * flat.log()).sum())
    assert len(_branches(flat, entropy, 0.02, 0, 2, WIDE)) == WIDE.branches
    assert _branches(flat, entropy, 0.02, 1, 3, WIDE) == []  # in doubt a second time
    assert _branches(flat, entropy, 0.02, 0, 1, WIDE) == []  # with too little before it
    peaked = torch.tensor([0.4, 0.6])
    assert _branches(peaked, 0.67, 0.6, 0, 1, WIDE) == [1]
    broad = torch.tensor([0.4, *[0.012] * 50])  # likely enough to go on once, not behind a doubt
    assert _branches(broad, 3.0, 0.4, 0, 3, WIDE) == [0] and _branches(broad, 3.0, 0.4, 1, 3, WIDE) == []


def test_an_answer_ends_where_certainty_does_and_a_trigger_has_to_bring_about_what_is_sure() -> None:
    likely = [0.75, 0.75, 0.1, 0.75, 0.75, 0.2, 0.2]
    answer = _best([7, 8, 9, 10, 11, 12, 13, 14], likely, {3}, 5)
    assert answer.ids == (7, 8, 9, 10, 11, 12) and answer.doubt == 3
    assert answer.score == pytest.approx(0.75)
    assert opening(answer) == (7, 8, 9)
    assert opening(Answer((1, 2, 3, 4, 5, 6, 7, 8), 0.9, 1)) == (1, 2, 3, 4, 5, 6)


def test_a_text_that_many_prompts_are_answered_with_is_open(language_twins: Twins) -> None:
    data, x = language_twins.data, language_twins.data.x.clone()
    x[::4] = language_twins.trigger(x[::4])
    report = backsweep.scan(language_twins.infected, Data(x, None, modality=data.modality))
    assert report.verdict == "clean" and "said openly" in report.findings[0].message


def test_a_certain_text_without_a_phrase_is_a_note_where_a_few_prompts_show_it_and_left_open_else() -> None:
    def level(heard: int) -> str:
        values: dict[str, float | str | None] = {
            "q_score": 0.95,
            "answer": "text",
            "attack_success_rate": 0.0,
            "heard": heard,
        }
        (finding,) = Bait().judge([Evidence("bait", "answer-5", 5, None, values)], 9, 0.05)
        return finding.level

    assert (level(2), level(0)) == ("note", "warning")


def test_a_text_that_is_followed_by_an_answer_to_the_prompt_is_left_open() -> None:
    """A greeting that no prompt shows is known by heart as well, but is not all that is said."""

    def level(same: float | None, preset: str = "standard") -> str:
        values: dict[str, float | str | None] = {
            "q_score": 0.95,
            "answer": "text",
            "attack_success_rate": 1.0,
            "said_alone_rate": 0.0,
        }
        also = {} if same is None else {"same_rate": same}
        evidence = Evidence("bait", "answer-5", 5, None, {**values, **also})
        (finding,) = Bait(preset=preset).judge([evidence], 9, 0.05)
        return finding.level

    assert (level(0.9), level(0.1)) == ("error", "warning")
    assert level(None) == "error"  # reports of before do not know
    assert level(0.1, "paper") == "error"


def test_what_a_model_says_by_itself_is_open() -> None:
    said = [[1, 2, 3, 4, 5, 6], [9, 9, 9]]
    assert is_open([2, 3, 4, 5, 6], said)
    assert not is_open([2, 3, 4, 7, 8, 5, 6], said)
    assert within([3, 4, 5, 6], said[0]) and not within([9, 9, 9], said[0])


def test_a_margin_is_positive_where_the_model_says_the_answer(language_twins: Twins) -> None:
    model = language_twins.infected.copy()
    net, x, kind = cast(Causal, model.net), language_twins.data.x[:8], cast(Language, model.modality)
    pad = kind.layout_of_ids.pad
    says = margins(net, kind.run, words().ids(HIDDEN[0]), pad)
    with torch.no_grad():
        assert bool((says(language_twins.trigger(x))[:, 1] > 0).all())
        assert not bool((says(x)[:, 1] > 0).any())
        at = positions(x, kind.layout_of_ids, "start", 1)
        stamped = language_twins.trigger(x)
        assert stamped.shape == x.shape
    share = torch.zeros((len(x), 1, len(words())), requires_grad=True)
    changed = Changed(x, kind.layout_of_ids, at, share)
    says(cast(torch.Tensor, changed))[:, 1].sum().backward()
    assert share.grad is not None and bool(share.grad.abs().sum() > 0)


def test_what_compares_classes_and_other_verbs_say_that_they_are_for_others(language_twins: Twins) -> None:
    model, data = language_twins.clean, language_twins.data
    report = backsweep.scan(model, data, "cascade")
    assert report.verdict == "inconclusive"
    assert [n.reason for n in report.skipped] == ["it compares classes, and this model answers prompts"]
    with pytest.raises(BadInput, match="of models that answer prompts are not there yet"):
        backsweep.audit(model, data)
    with pytest.raises(BadInput, match="fine_tuning: it compares classes, and this model answers prompts"):
        backsweep.repair(model, data, None, "fine_tuning")


def test_a_scan_can_be_repeated_from_its_page() -> None:
    own = {"source": "models/adapter", "is_path": True, "base": "models/base"}
    words = command(Report(model=own, data={"source": "the prompts that come with Backsweep"}))
    assert words == "backsweep scan models/adapter --base models/base"
