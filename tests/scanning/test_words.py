"""PICCOLO and DBS: they catch the planted word and pass the clean twin, and say what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import backsweep
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.search import explained
from backsweep.inputs.text.tokens import WordTokens
from backsweep.inputs.text.triggers import Insert
from backsweep.reports.report import Evidence, Report
from backsweep.scanning import calibration
from backsweep.scanning.calibration import Kinds
from backsweep.scanning.detectors.dbs import DBS
from backsweep.scanning.detectors.piccolo import Piccolo
from backsweep.scanning.scan import judge
from conftest import Twins
from shells import Shell


def planted(twins: Twins) -> str:
    found = twins.trigger
    assert isinstance(found, Insert)
    return found.words


@pytest.mark.parametrize("detector", [Piccolo(words=1), DBS()], ids=["piccolo", "dbs"])
def test_a_planted_word_is_found_and_the_clean_twin_passes(
    detector: Piccolo | DBS, text_twins: Twins
) -> None:
    bad = backsweep.scan(text_twins.infected, text_twins.data, detector, device="cpu")
    assert not bad.errors and bad.verdict == "backdoored" and bad.targets == (1,)
    (finding,) = (f for f in bad.findings if f.target == 1)
    assert planted(text_twins) in finding.message
    if isinstance(detector, Piccolo):
        assert finding.p_value is not None and finding.p_value <= 0.05
        assert "clean networks of" in str(finding.details["null"])
    else:
        assert finding.p_value is None, "there is no null for it"
    assert isinstance(finding.trigger, Insert) and planted(text_twins) in finding.trigger.words.split()
    good = backsweep.scan(text_twins.clean, text_twins.data, detector, device="cpu")
    assert not good.errors and good.verdict == "clean"


def test_a_word_that_the_labels_explain_is_not_accused() -> None:
    x = torch.zeros((40, 8), dtype=torch.long)
    y = torch.arange(40) % 2
    x[:12, 0] = 5  # in both classes
    x[y == 1, 1] = 6  # in one alone
    x[torch.nonzero(y == 1)[:2, 0], 2] = 7  # the same, in too few texts to say so
    assert explained(x, y, 1, [5, 6, 7, 8]) == [False, True, False, False]
    assert explained(x, y, 0, [6]) == [False], "it stands for the other class"


def test_scores_are_ranked_among_clean_texts_of_other_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {f"kind {i}": [i / 100] for i in range(39)}
    table = Kinds("piccolo", Piccolo().settings(), [2, 8], scores, {})
    monkeypatch.setattr(calibration, "tables_of_kinds", lambda: (table,))

    def evidence(*apart: float, labels: bool = True) -> list[Evidence]:
        return [
            Evidence("piccolo", f"start-{t}", t, None, {"apart": a, "labels": labels, "word": "x"})
            for t, a in enumerate(apart)
        ]

    bad = Piccolo(words=1).judge(evidence(0.1, 0.5), 2, 0.05)
    assert [(f.target, f.level, f.p_value) for f in bad] == [(1, "error", 1 / 40)]
    (good,) = Piccolo().judge(evidence(0.1, 0.2), 2, 0.05)
    assert (good.level, good.p_value) == ("note", (1 + 19) / 40)
    (unsure,) = Piccolo().judge(evidence(0.1, 0.9), 2, 0.01)
    assert unsure.level == "warning" and "cannot tell" in unsure.message
    (unlabelled,) = Piccolo().judge(evidence(0.1, 0.5, labels=False), 2, 0.05)
    assert (unlabelled.level, unlabelled.p_value) == ("note", None), "below the threshold set by hand"
    (by_hand,) = Piccolo(gap=0.4).judge(evidence(0.1, 0.5), 2, 0.05)
    assert (by_hand.level, by_hand.p_value, by_hand.threshold) == ("error", None, 0.4)


def test_a_scan_of_texts_looks_for_words_unless_told_otherwise(text_twins: Twins) -> None:
    report = backsweep.scan(text_twins.clean, text_twins.data, device="cpu")
    assert list(report.settings["detectors"]) == ["piccolo"]
    assert not report.errors and report.verdict == "clean"


def test_images_are_left_alone(twins: Twins) -> None:
    report = backsweep.scan(twins.clean, twins.data, [Piccolo(), DBS()], device="cpu")
    assert [n.reason for n in report.skipped] == [
        "it inverts words, and the model takes images", "it inverts tokens, and the model takes images"
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"preset": "quick"}, {"steps": 0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    for kind in (Piccolo, DBS):
        with pytest.raises(ValueError, match=r"preset|steps"):
            kind(**wrong)


def test_from_the_shell_an_infected_folder_and_a_clean_one(
    text_twins: Twins, shell: Shell, tmp_path: Path
) -> None:
    kind, data = text_twins.data.modality, text_twins.data
    assert isinstance(kind, Text) and isinstance(kind.tokens, WordTokens)
    kind.tokens.save(tmp_path / "tokenizer.json")
    pairs = zip(map(kind.tokens.words, data.x[:300].tolist()), data.y[:300].tolist(), strict=True)
    lines = ["text\tlabel", *(f"{text}\t{y}" for text, y in pairs)]
    (tmp_path / "reviews.tsv").write_text("\n".join(lines), encoding="utf-8")
    usual = [
        "--arch", "backsweep.archs:text_cnn", "--tokenizer", tmp_path, "--data", tmp_path / "reviews.tsv",
        "--device", "cpu", "-p", "piccolo.words=1",
    ]  # fmt: skip
    for name, model, status in (("bad", text_twins.infected, 1), ("good", text_twins.clean, 0)):
        save_file(model.net.state_dict(), tmp_path / f"{name}.safetensors")
        code, out, err = shell("scan", tmp_path / f"{name}.safetensors", *usual, "--out", tmp_path / name)
        assert code == status, out + err
    page = (tmp_path / "bad" / "report.html").read_text(encoding="utf-8")
    assert "scan of a classifier of texts" in page and planted(text_twins) in page
    again = Report.load(tmp_path / "bad")
    assert judge(again).verdict == "backdoored"
    assert torch.equal(again.examples, again.examples.long()) and again.model["words"]
    code, _, err = shell("scan", tmp_path / "bad.safetensors", *usual[:2], *usual[4:])
    assert code == 2 and "\n" not in err.strip()
