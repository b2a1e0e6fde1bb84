"""PICCOLO and DBS: they catch the planted word and pass the clean twin, and say what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import backsweep
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.tokens import WordTokens
from backsweep.inputs.text.triggers import Insert
from backsweep.reports.report import Report
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
    assert planted(text_twins) in finding.message and finding.p_value is None
    assert isinstance(finding.trigger, Insert) and planted(text_twins) in finding.trigger.words.split()
    good = backsweep.scan(text_twins.clean, text_twins.data, detector, device="cpu")
    assert not good.errors and good.verdict == "clean"


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
