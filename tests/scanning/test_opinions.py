"""A second opinion: what both call is called, and what they differ in is left open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from backsweep.cli.app import app
from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.render.repeat import command
from backsweep.reports.report import ERROR, NOTE, WARNING, Finding, Report
from backsweep.scanning import opinions
from backsweep.scanning.opinions import joined, parts
from backsweep.scanning.scan import judge, scan
from poisoned import DIGITS, poisoned_digits


def finding(level: str, target: int | None, p_value: float | None) -> Finding:
    return Finding("BSW999", "some", level, "it stands out", target, p_value=p_value)


FINDINGS = st.builds(
    finding, st.sampled_from([ERROR, WARNING, NOTE]), st.integers(0, 3),
    st.one_of(st.none(), st.floats(0, 1)),
)  # fmt: skip
OPINIONS = st.lists(FINDINGS, max_size=4, unique_by=lambda f: f.target)


@given(OPINIONS, OPINIONS)
def test_only_what_both_call_is_called(first: list[Finding], second: list[Finding]) -> None:
    found = joined(first, second)
    both = {f.target for f in first if f.level == ERROR} & {f.target for f in second if f.level == ERROR}
    assert {f.target for f in found if f.level == ERROR} == both
    alone = {f.target for f in (*first, *second) if f.level == ERROR} - both
    assert alone <= {f.target for f in found if f.level == WARNING}
    for f in found:
        if f.level == ERROR and f.p_value is not None:
            assert f.p_value == max(float(f.details[k] or 0) for k in ("first_opinion", "second_opinion"))
    kept = {f.target for f in second if f.level == WARNING}
    assert kept <= {f.target for f in found if f.level != NOTE} | {f.target for f in first}


def test_few_samples_are_not_divided() -> None:
    few, many = (Data(torch.zeros(n, 1, 8, 8), torch.arange(n) % 2) for n in (1999, 2000))
    assert parts(few, 2, 0) == (few, few)
    assert [len(p) for p in parts(many, 2, 0)] == [1000, 1000]
    assert parts(many, 40, 0)[0] is many


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    model, _, _, _ = poisoned_digits(size=3, rate=0.1)
    _, clean = DIGITS.load()
    folder = tmp_path_factory.mktemp("confirmed") / "report"
    return scan(model, clean, "dfb_scanner", out=folder, confirm=True), folder


def test_what_a_second_opinion_says_is_kept_and_judged_again(opened: tuple[Report, Path]) -> None:
    report, folder = opened
    assert report.second is not None and report.second.settings["seed"] != report.settings["seed"]
    again = Report.load(folder)
    assert again.second is not None and again.second.findings == report.second.findings
    assert [(f.level, f.message) for f in again.findings] == [(f.level, f.message) for f in report.findings]
    assert "--confirm" in command(again).split() and "--confirm" not in command(again.second).split()
    before = [(f.level, f.target, f.p_value) for f in report.findings]
    assert [(f.level, f.target, f.p_value) for f in judge(again).findings] == before


def test_what_fails_in_the_second_is_not_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    train, clean = DIGITS.load()
    model = Model(fit(DIGITS.net(1), train, replace(DIGITS.recipe, epochs=5), 1), DIGITS.shape, 10)
    wrong = Data(clean.x, (clean.y + 1) % 10)  # the model is never right on them
    monkeypatch.setattr(opinions, "parts", lambda data, *_: (data, wrong))
    report = scan(model, clean, "dfb_scanner", confirm=True)
    assert report.errors[0].what.startswith(opinions.SECOND)
    assert report.verdict == "inconclusive"


def test_many_models_are_not_confirmed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    names = [str(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    result = CliRunner().invoke(app, ["scan", *names, "--data", "x", "--confirm"])
    assert isinstance(result.exception, BadInput) and "one model" in str(result.exception)
