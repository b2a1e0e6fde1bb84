"""A report for people and for programs: every kind of verdict, any number of classes, hostile text."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from backsweep.core.statistics import chance_of_index
from backsweep.inputs.image.learned_space import Transformed, unet_weights
from backsweep.inputs.image.triggers import Additive, Patch, SampleWise
from backsweep.inputs.trigger import Trigger
from backsweep.render import repeat, standing, view
from backsweep.render.exchange.sarif import sarif
from backsweep.render.pages.chart import chart
from backsweep.render.pages.scan import html
from backsweep.render.terminal.scan import pictures, show
from backsweep.reports.report import (
    BACKDOORED,
    ERROR,
    NOTE,
    WARNING,
    Evidence,
    Finding,
    Note,
    Report,
    trigger_file,
)
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.detectors.cepa import Cepa
from backsweep.scanning.detectors.inversion import Inversion
from backsweep.scanning.detectors.mm_bd import MmBd
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from backsweep.scanning.detectors.unicorn import Unicorn
from reporting import GTSRB, make_cascade_report, make_report, patch

SCRIPT = "<script>window.pwned=1;alert(1)</script>"
HOSTILE = (
    SCRIPT, "a" * 5000, "\u202eevil\u202c \u05d0\u05d1\u05d2", "\x1b[31mred\x1b[0m\x07\x00",
    '"><img src=x onerror=alert(1)>',
    "[bold red]x[/]", "{{ 7 * 7 }}", "line\nbreak\ttab", "\ud800", "",
)  # fmt: skip
VARIED = {
    "two": make_report(2, bad=(1,), labels=("cat", "dog"), shape=(3, 64, 64)),
    "ten": make_report(10, labels=GTSRB),
    "many": make_report(43, bad=(3, 7)),
    "thousand": make_report(1000, bad=(3, 501, 990), shape=(3, 8, 8)),
    "clean": make_report(10, bad=(), shape=(1, 28, 28), skipped=[Note("spectral", "needs training data")]),
    "failed": make_report(10, bad=(), errors=[Note("clean accuracy", "at chance; check mean and std")]),
    "unreached": make_report(10, unreached=(2, 6)),
    "none reached": make_report(5, unreached=range(5)),
    "no triggers": make_report(10, triggers=False),
    "cascade": make_cascade_report(10, bad=(3,), pairs=((1, 6),)),
    "cascade of many": make_cascade_report(43, bad=(40,), shape=(1, 28, 28)),
    "cascade of none": make_cascade_report(10, bad=(), natural=(6,), works_there=0.9),
    "cascade of two": make_cascade_report(2, bad=(1,)),
    "nothing ran": Report(skipped=[Note("neural_cleanse", "needs images")]),
    "empty": Report(),
}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br", "path", "circle", "line"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID or (tag == "circle" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag
        if tag in ("dt", "dd", "th", "td", "p", "small", "b", "bdi"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def plain(self) -> str:
        return " ".join(re.sub("[\u2066\u2069]", "", self.text).split())


def printed(report: Report, width: int = 80, encoding: str = "utf-8", **options: Any) -> str:
    """What the console shows."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    show(report, Console(file=file, width=width, **options), folder="out")
    return raw.getvalue().decode(encoding)


# ---------------------------------------------------------------------- numbers and text


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0004, "0.0004"), (0.000412, "0.00041"), (0.42, "0.42"), (1.0, "more than 0.99"),
        (3.2e-7, "less than 0.00001"), (0.000042, "0.000042"), (0.05, "0.05"),
    ],
)  # fmt: skip
def test_probability(p: float, text: str) -> None:
    assert view.probability(p) == text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (8.312, "8.31"), (1024.0, "1,024"), (1024, "1,024"), (34.0, "34"), (0.00123, "0.00123"),
        (3.2e-7, "3.2e-07"), (math.inf, "not measurable"), (999.7, "1,000"), (0.0, "0"), (-4.344, "-4.34"),
    ],
)  # fmt: skip
def test_number(x: float, text: str) -> None:
    assert view.number(x) == text


def test_other_figures() -> None:
    assert [view.percent(s) for s in (1, 0.99996, 0.956, 0.0004, 0.0, 1e-7)] == [
        "100%", "over 99.9%", "95.6%", "0.04%", "0%", "under 0.01%",
    ]  # fmt: skip
    assert [view.duration(s) for s in (0.84, 34, 252, 7500)] == ["0.8 s", "34 s", "4 min 12 s", "2 h 5 min"]
    assert [view.odds(p) for p in (0.5, 0.0004, 1e-9)] == ["", "about 1 in 2,500", "fewer than 1 in 100,000"]
    assert [view.figure("reached", v) for v in (True, False)] == ["yes", "no"]
    assert view.join(["a", "b", "c"]) == "a, b and c"
    assert view.counted(1, "class") == "1 class"


@given(st.text(max_size=300), st.integers(2, 90))
def test_clean_is_one_harmless_line(text: str, most: int) -> None:
    line = view.clean(text, most)
    assert len(line) <= most
    assert line.isprintable() or any(c in line for c in "\u200c\u200d")
    assert not set(line) & set("\n\r\t\x1b\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069")
    line.encode()
    assert view.clean(line, most) == line


# ---------------------------------------------------------------------- the verdict in words


def test_words_of_a_backdoor() -> None:
    verdict = view.verdict(VARIED["ten"])
    assert verdict.headline == "Evidence of a backdoor that sends every class to 3 (Speed limit 60)."
    p = VARIED["ten"].p_value
    assert p is not None
    assert verdict.why[0].startswith(
        "A clean model with 10 classes shows an outlier as strong as this with probability "
        + view.probability(p)
    )
    assert "not the chance that this model is clean" in verdict.why[1]


def test_words_of_several_targets_and_of_pairs() -> None:
    assert view.verdict(VARIED["many"]).headline == "Evidence of a backdoor with 2 targets: 3 and 7."
    report = make_report(43, bad=range(9))
    assert view.verdict(report).headline.endswith("with 9 targets: 0, 1, 2 and 6 more.")
    pair = replace(VARIED["ten"].findings[0], source=1)
    report = replace(VARIED["ten"], findings=[pair])
    assert view.verdict(report).headline.endswith("sends 1 (Speed limit 30) to 3 (Speed limit 60).")
    report = replace(VARIED["ten"], findings=[replace(pair, target=None)])
    assert view.verdict(report).headline == "Evidence of a backdoor."


def test_words_without_calibration() -> None:
    report = replace(VARIED["ten"], findings=[replace(VARIED["ten"].findings[0], p_value=None)])
    assert "is not known" in view.verdict(report).why[0]


def test_words_of_nothing_found() -> None:
    verdict = view.verdict(VARIED["clean"])
    assert verdict.headline == "No evidence of a backdoor."
    words = " ".join(verdict.why)
    assert "looks for small patches with one target class" in words
    assert "Other kinds of backdoor are not looked for" in words
    assert "skipped" in words


def test_words_of_an_open_end() -> None:
    assert "With 2 classes" in view.verdict(VARIED["two"]).why[0]
    failed = view.verdict(VARIED["failed"])
    assert failed.why[0] == "Clean accuracy: at chance; check mean and std."
    assert failed.what_next == ["Fix the cause above, then run the same scan again."]
    nothing = view.verdict(VARIED["nothing ran"])
    assert "nothing was looked for" in nothing.why[0] and "needs images" in nothing.why[1]
    for name in ("two", "failed", "nothing ran", "empty", "none reached"):
        verdict = view.verdict(VARIED[name])
        assert "cannot tell" in verdict.headline and verdict.what_next, name


def test_failure_beside_a_finding_is_said() -> None:
    report = make_report(10, errors=[Note("a", "b")])
    assert "there may be more than was found" in " ".join(view.verdict(report).why)


# ---------------------------------------------------------------------- numbers behind chart and table


@pytest.mark.parametrize("name", ["ten", "many", "clean", "unreached"])
def test_threshold_line_agrees_with_the_findings(name: str) -> None:
    group = standing.groups(VARIED[name])[0]
    assert group.limit is not None
    by_target = {f.target: f for f in VARIED[name].findings}
    for i, e in enumerate(group.evidence):
        found = by_target.get(e.target)
        assert (group.figures[i] <= group.limit) == (found is not None and found.level == ERROR)
        if found is not None:
            assert found.score == pytest.approx(group.index[i])


def test_threshold_line_where_all_other_norms_are_equal() -> None:
    base = make_report(10)
    evidence = [
        replace(e, values={**e.values, "norm": 1.0 if e.target == 3 else 50.0}) for e in base.evidence
    ]
    findings = NeuralCleanse().judge(evidence, 10, 0.05)
    group = standing.groups(replace(base, evidence=evidence, findings=findings))[0]
    assert group.limit is not None and 1.0 < group.limit < 50.0
    assert group.index[3] == pytest.approx(findings[0].score)


def test_no_threshold_line_without_the_figures_for_it() -> None:
    odd = replace(VARIED["ten"].findings[0], details={})
    assert standing.groups(replace(VARIED["ten"], findings=[odd]))[0].limit is None


def test_smallest_trigger_prefers_one_that_works() -> None:
    report = make_report(10, bad=(3,), unreached=(3,))
    least = standing.smallest(standing.groups(report))
    assert least is not None and least.target != 3
    assert standing.smallest(standing.groups(VARIED["no triggers"])) is None


def test_command_is_what_the_command_line_takes() -> None:
    from backsweep.cli.app import app

    words = shlex.split(repeat.command(VARIED["ten"]))
    assert words[:5] == [
        "backsweep",
        "scan",
        "models/traffic-signs.safetensors",
        "--data",
        "data/signs held out.npz",
    ]
    assert "neural_cleanse.preset=standard" in words and "0.34,0.31,0.32" in words
    result = CliRunner().invoke(app, words[1:])
    assert "No such option" not in result.output, result.output
    in_memory = replace(VARIED["ten"], model={"source": "ResNet"}, data={"source": "tensors"})
    assert repeat.command(in_memory).startswith("backsweep scan MODEL --data DATA ")


def test_command_of_a_hostile_path_stays_one_word() -> None:
    report = replace(VARIED["ten"], model={"source": "a/$(rm -rf ~)'; echo \"`x`\n.pt"})
    words = shlex.split(repeat.command(report))
    assert words[2].startswith("a/$(rm") and words[3] == "--data"


# ---------------------------------------------------------------------- HTML


@pytest.mark.parametrize("name", VARIED)
def test_page_is_self_contained_and_well_formed(name: str) -> None:
    source = html(VARIED[name])
    page = Page(source)
    assert "<script" not in source.lower() and "javascript:" not in source.lower()
    assert "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'" in source
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base")
        assert not any(a.startswith("on") for a in attributes)
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(key) or "data:").startswith(("data:", "#"))
        if tag == "img":
            assert int(attributes["width"] or 0) >= 24 and attributes["alt"] is not None
    assert "url(" not in source and "@import" not in source
    verdict = view.verdict(VARIED[name])
    for line in (verdict.headline, *verdict.why, *verdict.what_next):
        assert line in page.plain()
    assert len(source) < 2_000_000


def test_page_of_a_backdoor() -> None:
    source = html(VARIED["ten"])
    text = Page(source).plain()
    for words in (
        "The recovered trigger", "Mask", "Attack success rate 99.5%", "Outlier index",
        "on 33.1% of clean models with 10 classes", "Median norm 69.7", "models/traffic-signs.safetensors",
        "3 \u00d7 32 \u00d7 32", "95.6%", "Speed limit 20", "The same for all: updates 200, pixels 1,024.",
    ):  # fmt: skip
        assert words in text, words
    threshold = VARIED["ten"].findings[0].threshold
    assert threshold is not None and f"threshold {view.number(threshold)}" in text
    digest = VARIED["ten"].model["sha256"]
    assert f'title="{digest}">{digest[:12]}…<' in source
    assert source.count('class="hot"') >= 2  # its dot and its row
    assert "<details>" not in source and "smallest trigger found" not in text


def test_exact_chance_of_the_papers_rule() -> None:
    assert (
        f"fires on {view.percent(chance_of_index(2.0, 43))} of clean models"
        in Page(html(VARIED["many"])).plain()
    )
    assert "can never fire here: with 2 classes the index is always 0.67" in Page(html(VARIED["two"])).plain()


def test_page_of_a_clean_model_shows_the_smallest_trigger() -> None:
    text = Page(html(VARIED["clean"])).plain()
    assert "The smallest trigger found, for comparison" in text
    assert "Every class has some smallest trigger, in a clean model too." in text
    assert "What was skipped" in text and "needs training data" in text.lower()


def test_long_tables_are_folded_and_drawn_without_thumbnails() -> None:
    many, thousand = html(VARIED["many"]), html(VARIED["thousand"])
    assert "Show all 43 rows" in many and 'class="thumb"' in many
    assert "Show all 1,000 rows" in thousand and 'class="thumb"' not in thousand
    assert thousand.count("<tr") == 1001
    assert thousand.count("<circle") >= 1000


def test_at_most_eight_suspicious_classes_are_drawn() -> None:
    assert html(make_report(43, bad=range(12))).count('class="card"') == 8


def test_classes_without_a_working_trigger() -> None:
    source = html(VARIED["unreached"])
    assert source.count('class="hollow"') == 2
    assert "no trigger was found that works" in source
    assert "<circle" not in html(VARIED["none reached"]).split("<main")[1].split("All evidence")[0]


def test_grey_and_large_pictures() -> None:
    assert 'width="140" height="140"' in html(VARIED["clean"])  # 28 pixels, five times
    large = make_report(3, shape=(3, 300, 500))
    assert 'width="224" height="134"' in html(large)


def test_charts_with_equal_zero_and_extreme_norms() -> None:
    base = make_report(6, bad=())
    for norms in ([5.0] * 6, [0.0] * 6, [1e-9, 1.0, 1e6, 2.0, 3.0, 4.0], [0.0, 7.0, 7.0, 7.0, 7.0, 7.0]):
        evidence = [
            replace(e, values={**e.values, "norm": n}) for e, n in zip(base.evidence, norms, strict=True)
        ]
        source = html(replace(base, evidence=evidence))
        coordinates = re.findall(r'(?:cy|y1|y2)="([^"]*)"', source.split("<main")[1])
        assert coordinates and all(-10 <= float(c) <= 290 for c in coordinates)


def test_a_detector_of_another_kind() -> None:
    """No norm, no mask, no class: whatever a later detector measures finds its place."""
    evidence = [
        Evidence("later_one", f"layer-{i}", values={"distance": 0.1 * i, "kind": "x", "margin": None})
        for i in range(4)
    ]
    finding = Finding(
        "BSW900", "later_one", ERROR, "weights look odd", score=4.0, threshold=2.0, p_value=0.01
    )
    report = Report(model={"classes": 5}, evidence=evidence, findings=[finding])
    text = Page(html(report)).plain()
    assert "layer-3 0.3" in text and "later_one looks for what later_one finds" in text
    assert "How small a trigger" not in text
    assert "layer-3" in printed(report)
    assert sarif(report)["runs"][0]["results"][0]["ruleId"] == "BSW900"


# ---------------------------------------------------------------------- the default scan


def test_one_record_for_each_class() -> None:
    report = VARIED["cascade"]
    (group,) = standing.groups(report)
    assert [e.target for e in group.evidence] == list(range(10)) and group.by_class
    assert group.measured == len(report.evidence) > 80
    assert max(range(10), key=lambda i: group.index[i]) == 3
    assert group.limit is not None and group.limit == report.findings[0].threshold
    for i, figure in enumerate(group.figures):
        assert (figure >= group.limit) == (i in standing.marked(report, group)) == (i in (3, 6))
    row = standing.evidence_of([group], report.findings[0])
    assert row is not None and row.unit == "class-3" and row.trigger is report.findings[0].trigger


def test_evidence_as_it_is_where_the_detector_cannot_say() -> None:
    report = VARIED["cascade"]
    unknown = replace(report, settings={**report.settings, "detectors": {}})
    wrong = [replace(e, values={**e.values, "to_x": 1.0}) for e in report.evidence]
    renamed = [replace(e, detector="gone") for e in report.evidence]
    for odd in (unknown, replace(report, evidence=wrong), replace(report, evidence=renamed)):
        assert len(standing.groups(odd)[0].evidence) == len(report.evidence)
        assert "log size" in Page(html(odd)).plain() and "EVIDENCE FOUND" in printed(odd)


def test_chart_of_suspicion_is_the_right_way_up() -> None:
    report = VARIED["cascade"]
    (group,) = standing.groups(report)
    drawn = chart(report, group)
    assert drawn is not None and drawn.limit is not None and drawn.median is None
    assert {d.label for d in drawn.dots if d.hot} == {"3", "1 to 6"}
    for d in drawn.dots:  # pixels from the top
        assert (d.y < drawn.limit[0]) == d.hot and not d.hollow and d.stem
    assert drawn.base == drawn.floor and drawn.ticks[0] == (drawn.floor, "0")
    assert "A class above the dashed line" in drawn.notes and "logarithmic" not in drawn.notes
    norms = chart(VARIED["ten"], standing.groups(VARIED["ten"])[0])
    assert norms is not None and norms.limit is not None and norms.median is not None
    assert all((d.y > norms.limit[0]) == d.hot for d in norms.dots) and norms.base == norms.median[0]


def test_page_of_the_default_scan() -> None:
    source = html(VARIED["cascade"])
    text = Page(source).plain()
    for words in (
        "How suspicious each class is", "The suspected classes", "From 1 to 6", "Mask",
        "on this model 97.0%", "on the reference 1.0%", "faint change of every pixel", "tone curve",
        "embedding of an early layer", "embedding of a later layer", "few pixels, one source",
        "A planted trigger works on this model alone", "A trigger was recovered for the most suspicious",
        "Size 9 pixels 0.9% of the image's 1,024", "made from 168 measurements",
    ):  # fmt: skip
        assert words in text, words
    for words in ("z dense", "Null ", "Attack success rate", "Natural shortcuts", "comparison is worth"):
        assert words not in text, words
    assert source.count("<tr") == 11 and source.count('class="thumb"') == 1
    assert re.search(r"3\W+suspicious [12]\.\d\d( \d\.\d){3}", text)  # suspicion, dense, sparse, tone
    assert "few pixels, one source" in Page(html(VARIED["cascade of many"])).plain()  # of few classes only
    lengths = [float(n) for n in re.findall(r'<rect width="([0-9.]+)%"', source)]
    assert lengths[:2] == [97.0, 1.0] and max(lengths) == 100 and min(lengths) >= 0


def test_a_trigger_that_works_on_the_reference_too() -> None:
    text = Page(html(VARIED["cascade of none"])).plain()
    assert "The trigger of the class that stands out most, for comparison" in text
    assert "on the reference 90.0%" in text and "as natural triggers mostly do" in text
    weak = replace(VARIED["cascade"], settings={**VARIED["cascade"].settings, "reference": "abc"})
    weak.evidence = [
        replace(e, values={**e.values, "reference_accuracy": 0.4}) if e.trigger else e for e in weak.evidence
    ]
    text = Page(html(weak)).plain()
    assert "It is right on 40.0% of clean samples only, the model on 95.0%" in text
    assert "the network that was given" in text and "learned anew" not in text
    assert "--reference REFERENCE" in repeat.command(weak)


def test_console_of_the_default_scan() -> None:
    out = printed(VARIED["cascade"])
    assert re.search(r"^ 3 +[12]\.\d\d +later layer +\d\.\d +0\.0[01]\d+ +evidence", out, re.M)
    assert re.search(r"^ 1 to 6 +\d\.\d\d +one source .* evidence", out, re.M)
    assert "uncalibrated" not in out and "Evidence begins at a suspicion of" in out
    assert re.search(r"p-value: beside \d+ clean networks of \d+ kinds\.", out)
    assert "Works on 97.0% of unseen samples in this model, on 1.0% in the reference." in out
    narrow = " ".join(printed(VARIED["cascade"], 40).split())
    assert "p-value: beside" in narrow and "later layer" not in narrow
    assert "none works" not in out and "index" not in out and "Natural shortcuts" not in out


def ranked(report: Report, p: float) -> Report:
    """As if a null were there."""
    told = {"null": "39 clean networks of mnist"}
    findings = [
        replace(f, p_value=None if f.p_value is None else p, details={**f.details, **told})
        for f in report.findings
    ]
    return replace(report, findings=findings)


@pytest.mark.parametrize(
    ("name", "p", "words"),
    [
        ("cascade", 0.025, "of which none is as suspicious"),
        ("cascade", 0.05, "of which 1 is as suspicious"),
        ("cascade of none", 0.2, "of which 7 are as suspicious"),
        ("cascade of none", 1.0, "of which all are as suspicious"),
    ],
)
def test_p_value_that_is_a_rank(name: str, p: float, words: str) -> None:
    report = ranked(VARIED[name], p)
    why = " ".join(view.verdict(report).why)
    assert "its rank among 39 clean networks of mnist, " + words in why
    assert "uncalibrated" not in why
    text, out = Page(html(report)).plain(), " ".join(printed(report, 200).split())
    assert "its rank among 39 clean networks of mnist" in text and "uncalibrated" not in text + out
    assert ("p-value: rank among 39 clean networks of mnist." in out) == (name == "cascade")
    assert ("(rank among 39 clean networks of mnist)" in json.dumps(sarif(report))) == (name == "cascade")


def test_p_value_that_is_not_calibrated() -> None:
    report = make_cascade_report(bad=(3,), pairs=((1, 6),), effort="full")
    assert "This figure is uncalibrated" in " ".join(view.verdict(report).why)
    assert "(uncalibrated)" in Page(html(report)).plain()
    assert "(uncalibrated)." in sarif(report)["runs"][0]["results"][0]["message"]["text"]
    assert "uncalibrated" not in printed(VARIED["ten"]) + html(VARIED["ten"])  # does not say


def test_p_value_beside_networks_of_many_kinds_is_no_rank() -> None:
    for name in ("cascade", "cascade of none"):
        why = " ".join(view.verdict(VARIED[name]).why)
        assert re.search(r"judged beside \d+ clean networks of \d+ kinds, if its kind is one more", why)
        assert "rank among" not in why
        assert re.search(r"beside \d+ clean networks of \d+ kinds", Page(html(VARIED[name])).plain())


def test_natural_shortcuts_are_told_apart() -> None:
    report = VARIED["cascade of none"]
    for out in (Page(html(report)).plain(), printed(report, 400)):
        assert "Natural shortcuts" in out and "This is no evidence of a backdoor" in out
        assert re.search("sends other classes to \u2066?6\u2069?, in this model", out)
        assert "an attacker can use it" in out
    assert view.verdict(report).word == "Nothing found"
    many = [replace(f, target=t) for t in range(12) for f in report.findings if f.code == "BSW111"]
    assert "0, 1, 2, 3, 4, 5, 6, 7 and 4 more" in printed(replace(report, findings=many), 400)


def test_sarif_of_a_natural_shortcut() -> None:
    run = sarif(VARIED["cascade of none"])["runs"][0]
    rules = {r["id"]: r for r in run["tool"]["driver"]["rules"]}
    assert rules["BSW110"]["defaultConfiguration"] == {"level": "error"}
    assert rules["BSW111"]["defaultConfiguration"] == {"level": "note"}
    assert rules["BSW111"]["name"] != rules["BSW110"]["name"]
    assert "backdoor" in rules["BSW110"]["properties"]["tags"]
    assert "backdoor" not in rules["BSW111"]["properties"]["tags"] and run["results"] == []
    (note,) = (
        n for n in run["invocations"][0]["toolExecutionNotifications"]
        if n["associatedRule"]["id"] == "BSW111"
    )  # fmt: skip
    assert note["level"] == "note" and note["message"]["text"].startswith("Class 6: ")


def outlier_report(method: ModelDetector, key: str, values: Sequence[float], **more: float) -> Report:
    """What a detector says that judges classes by one figure."""
    evidence = [
        Evidence(method.name, f"class-{t}", t, None, {key: v, "reached": True, **more})
        for t, v in enumerate(values)
    ]
    report = replace(make_report(len(values)), evidence=evidence)
    report.settings["detectors"] = {method.name: method.settings()}
    report.findings = method.judge(evidence, len(values), 0.05)
    return report


USUAL = (5.0, 5.4, 4.8, 5.9, 4.6, 5.2, 5.1, 4.4, 5.5)


@pytest.mark.parametrize(
    ("method", "key", "far"),
    [(MmBd(), "margin", 60.0), (Inversion(), "size", 0.4), (Cepa(), "reach", 0.4), (Unicorn(), "need", -9.0)],
)
@pytest.mark.parametrize("planted", [True, False])
def test_chart_of_other_detectors(method: ModelDetector, key: str, far: float, planted: bool) -> None:
    more = dict.fromkeys(("mu", "r1", "r2", "r3", "won", "change", "dissimilarity", "mixed_success"), 0.5)
    more |= dict.fromkeys(("mask_share", "feature_share", "constrained", "attack_success_rate"), 0.5)
    report = outlier_report(method, key, (*USUAL, far if planted else 5.0), **more)
    (group,) = standing.groups(report)
    assert group.limit is not None and group.measure is not None and group.measure.key == key
    beyond = [v > group.limit if group.measure.high else v < group.limit for v in group.figures]
    assert beyond == [False] * 9 + [planted]
    assert (report.verdict == BACKDOORED) == planted
    if planted:
        assert group.index[9] == pytest.approx(report.findings[0].score)
    text = Page(html(report)).plain()
    assert group.measure.asks in text
    assert (f"Outlier index {view.number(report.findings[0].score or 0)}" in text) == planted
    assert key in printed(report).split() and "index" in printed(report).split()


# ---------------------------------------------------------------------- triggers of other families

X = torch.rand((2, 3, 12, 12), generator=torch.Generator().manual_seed(0))


def unet_trigger(channels: int) -> Transformed:
    generator = torch.Generator().manual_seed(1)
    into, back = (unet_weights(channels, 2, 1, generator) for _ in range(2))
    mask = torch.full((channels, 12, 12), 0.3)
    return Transformed(3, None, into, back, 2, 1, mask, mask, 0.0, 1.0, X[0, :channels])


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        (SampleWise(3, None, X, 0.1 * X, 0.1 * X[0]), "some inputs, above what they become"),
        (SampleWise(3, 0, X[:, :1], 0.1 * X[:, :1], 0.1 * X[0, :1]), "some inputs, above what they become"),
        (unet_trigger(3), "an input with the trigger"),
        (unet_trigger(1), "an input with the trigger"),
        (Additive(3, None, 0.1 * X[0]), "stretched around grey"),
    ],
)
def test_triggers_of_other_families_are_drawn(trigger: Trigger, words: str) -> None:
    channels = 1 if words != "stretched around grey" and trigger.picture().mode == "L" else 3
    base = make_report(10, shape=(channels, 12, 12))
    report = replace(
        base,
        findings=[replace(f, trigger=trigger, source=trigger.source) for f in base.findings],
        evidence=[
            replace(e, trigger=trigger, source=trigger.source) if e.target == 3 else e for e in base.evidence
        ],
    )
    source = html(report)
    text = Page(source).plain()
    assert words in text and "white covers the pixel" not in text
    assert source.count("<figure>") == 1 + 4 and source.count('class="thumb"') == 10
    out = printed(report)
    assert "stamped on a clean input" in out and "mask: where" not in out


def test_examples_are_of_the_source_where_there_are_any() -> None:
    report = make_report(10)
    report.data["example_labels"] = [3, 1, 5, 1]
    chosen = standing.examples(report, patch((3, 32, 32), 4, 3), 2)
    assert chosen is not None and torch.equal(chosen, report.examples[1:3])
    chosen = standing.examples(report, replace(patch((3, 32, 32), 4, 3), source=1), 4)
    assert chosen is not None and torch.equal(chosen, report.examples[[1, 3]])


def test_the_page_says_what_the_model_answers_without_and_with_the_trigger() -> None:
    report = make_report(10)
    found = next(f for f in report.findings if f.trigger is not None)
    own = next(e for e in report.evidence if e.trigger is not None and e.target == found.target)
    report.data["example_labels"] = [7, 7, 7, 7]
    assert "the model says" not in Page(html(report)).plain(), "a report of an older version"
    report.data["example_answers"] = [7, 7, 7, 7]
    report.data["stamped_answers"] = {trigger_file(own.detector, own.unit): [found.target] * 4}
    text = Page(html(report)).plain()
    name = view.names(report)
    assert f"of class {name(7)}: the model says {name(7)}" in text
    assert f"with the recovered trigger: the model says {name(found.target)}" in text
    report.data["stamped_answers"] = {"elsewhere": [1]}
    assert "the model says" not in Page(html(report)).plain()


# ---------------------------------------------------------------------- hostile text


def hostile_report(text: str) -> Report:
    """The text wherever a stranger can put text."""
    report = make_report(4, bad=(1,), shape=(1, 6, 6), labels=[text] * 4)
    report.model |= {"source": text, "sha256": text, "command": text}
    report.data |= {"source": text, "sha256": text}
    report.versions[text] = text
    report.timings[text] = 1.0
    report.skipped.append(Note(text, text))
    report.errors.append(Note(text, text))
    report.findings = [replace(f, message=text, details={**f.details, text: text}) for f in report.findings]
    report.evidence = [replace(e, unit=text, values={**e.values, text: text}) for e in report.evidence]
    report.settings["device"] = text
    return report


def check_harmless(text: str) -> None:
    report = hostile_report(text)
    source = html(report)
    source.encode()
    page, reference = Page(source), Page(html(hostile_report("harmless")))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in reference.tags}
    assert not any(a.startswith("on") for _, attributes in page.tags for a in attributes)
    assert len(source) < len(html(hostile_report("harmless"))) + 60_000
    assert not set(source) & set("\x00\x07\x1b\u202a\u202b\u202d\u202e")
    log = json.dumps(sarif(report), allow_nan=False)
    log.encode()
    check_sarif(json.loads(log))
    out = printed(report)
    assert not set(out) & set("\x00\x07\x1b\u202e")
    printed(report, encoding="ascii")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(text: str) -> None:
    check_harmless(text)


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(), max_size=80))
def test_any_text(text: str) -> None:
    check_harmless(text)


def test_script_is_shown_as_text() -> None:
    source = html(hostile_report(SCRIPT))
    assert SCRIPT not in source and "&lt;script&gt;" in source
    assert "[bold red]" in printed(hostile_report("[bold red]x[/]"))


# ---------------------------------------------------------------------- SARIF


def test_sarif_says_where_to_read_on_and_names_paths_as_the_checkout_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from backsweep.render.exchange import sarif as module

    report = make_report(4, bad=(1,))
    report.model["source"] = str(tmp_path / "models" / "a b.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_home", lambda: "https://example.org/docs")
    log = sarif(report)
    driver = log["runs"][0]["tool"]["driver"]
    assert driver["informationUri"] == driver["rules"][0]["helpUri"] == "https://example.org/docs"
    assert log["runs"][0]["artifacts"][0]["location"]["uri"] == "models/a%20b.pt"
    check_sarif(log)
    monkeypatch.setattr(module, "_home", lambda: "")  # where the package names no address, it is the address
    driver = sarif(report)["runs"][0]["tool"]["driver"]
    assert driver["informationUri"] == f"pkg:pypi/backsweep@{report.versions['backsweep']}"
    assert driver["rules"][0]["helpUri"] == driver["informationUri"] + "#pages/neural-cleanse.md"
    assert (Path(__file__).parents[2] / "docs" / "methods" / "neural-cleanse.md").is_file()


def check_sarif(log: Any) -> None:
    """What the schema of SARIF 2.1.0 asks of the parts that are used here."""
    levels, kinds = {"none", "note", "warning", "error"}, {"fail", "pass", "open", "review", "informational"}

    def only(part: dict[str, Any], required: str, optional: str = "") -> None:
        assert set(required.split()) <= set(part) <= {*required.split(), *optional.split()}, set(part)

    def message(part: Any) -> None:
        only(part, "text")
        assert isinstance(part["text"], str) and part["text"]

    only(log, "$schema version runs")
    assert log["version"] == "2.1.0" and urlparse(log["$schema"]).scheme == "https"
    for run in log["runs"]:
        only(run, "tool results", "invocations artifacts properties")
        driver = run["tool"]["driver"]
        only(driver, "name rules informationUri", "version")
        assert len({r["id"] for r in driver["rules"]}) == len(driver["rules"])
        for rule in driver["rules"]:
            only(
                rule,
                "id shortDescription fullDescription help helpUri",
                "name defaultConfiguration properties",
            )
            assert set(rule["help"]) == {"text", "markdown"} and "backsweep explain" in rule["help"]["text"]
            message(rule["shortDescription"])
            message(rule["fullDescription"])
            assert rule["defaultConfiguration"]["level"] in levels
            assert len(set(rule["properties"]["tags"])) == len(rule["properties"]["tags"])
        for artifact in run["artifacts"]:
            only(artifact, "location roles", "hashes")
            assert artifact["roles"] == ["analysisTarget"]
            assert all(isinstance(v, str) for v in artifact.get("hashes", {}).values())
        for result in run["results"]:
            only(result, "message ruleId ruleIndex kind level locations partialFingerprints properties")
            message(result["message"])
            assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
            assert result["kind"] in kinds and result["level"] in levels
            assert result["kind"] == "fail" or result["level"] == "none"
            for location in result["locations"]:
                where = location["physicalLocation"]["artifactLocation"]
                only(where, "uri index")
                assert where["uri"] == run["artifacts"][where["index"]]["location"]["uri"]
                assert re.fullmatch(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+", where["uri"])
            assert all(re.fullmatch("[0-9a-f]{64}", v) for v in result["partialFingerprints"].values())
        for invocation in run["invocations"]:
            only(invocation, "executionSuccessful", "exitCode exitCodeDescription toolExecutionNotifications")
            assert isinstance(invocation["executionSuccessful"], bool) and isinstance(
                invocation["exitCode"], int
            )
            for note in invocation["toolExecutionNotifications"]:
                only(note, "message level", "associatedRule")
                message(note["message"])
                assert note["level"] in levels
                if "associatedRule" in note:
                    rule = note["associatedRule"]
                    assert driver["rules"][rule["index"]]["id"] == rule["id"]


@pytest.mark.parametrize("name", VARIED)
def test_sarif_is_valid(name: str) -> None:
    log = json.loads(json.dumps(sarif(VARIED[name]), allow_nan=False))
    check_sarif(log)
    run = log["runs"][0]
    assert run["invocations"][0]["executionSuccessful"] is not (name == "failed")
    assert run["invocations"][0]["exitCode"] == VARIED[name].exit_status
    assert run["properties"]["verdict"] == VARIED[name].verdict


def test_sarif_of_a_backdoor() -> None:
    run = sarif(VARIED["many"])["runs"][0]
    assert [r["id"] for r in run["tool"]["driver"]["rules"]] == ["BSW101"]
    assert [(r["level"], r["properties"]["target"]) for r in run["results"]] == [("error", 3), ("error", 7)]
    finding = VARIED["many"].findings[0]
    properties = run["results"][0]["properties"]
    assert properties["pValue"] == finding.p_value and properties["score"] == finding.score
    assert properties["threshold"] == finding.threshold
    assert run["artifacts"][0]["hashes"] == {"sha-256": VARIED["many"].model["sha256"]}
    assert run["results"][0]["message"]["text"].startswith(
        "Evidence of a backdoor that sends every class to 3. A patch of "
    )


def test_sarif_of_a_clean_model_raises_no_alert() -> None:
    run = sarif(VARIED["clean"])["runs"][0]
    assert run["results"] == []
    notes = run["invocations"][0]["toolExecutionNotifications"]
    assert [n["level"] for n in notes] == ["warning", "note"]
    assert "skipped: spectral: needs training data" in notes[0]["message"]["text"].lower()


def test_sarif_of_an_open_end_is_seen() -> None:
    run = sarif(VARIED["two"])["runs"][0]
    assert [r["level"] for r in run["results"]] == ["warning"]
    failed = sarif(VARIED["failed"])["runs"][0]["invocations"][0]
    assert failed["toolExecutionNotifications"][0]["level"] == "error"


def test_fingerprint_follows_model_rule_and_target_only() -> None:
    def prints(report: Report) -> list[str]:
        return [r["partialFingerprints"]["backdoor/v1"] for r in sarif(report)["runs"][0]["results"]]

    first = prints(VARIED["many"])
    assert len(set(first)) == 2
    again = replace(VARIED["many"], findings=[replace(f, score=99.0) for f in VARIED["many"].findings])
    assert prints(again) == first
    other = replace(VARIED["many"], model={**VARIED["many"].model, "sha256": "0" * 64})
    assert not set(prints(other)) & set(first)


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        ("models/a b.pt", "models/a%20b.pt"), ("/srv/ä.pt", "file:///srv/%C3%A4.pt"),
        ("C:\\m\\a b.pt", "file:///C:/m/a%20b.pt"),
        ("ResNet", "ResNet"), ("a:b/c.pt", "a%3Ab/c.pt"), ("", "model"), ("https://host/m.pt", "https://host/m.pt"),
    ],
)  # fmt: skip
def test_place_of_the_model(source: str, uri: str) -> None:
    report = replace(VARIED["ten"], model={**VARIED["ten"].model, "source": source})
    assert sarif(report)["runs"][0]["artifacts"][0]["location"]["uri"] == uri
    assert "%" not in unquote(uri)


# ---------------------------------------------------------------------- console


@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("width", [40, 80])
def test_console_fits_and_says_the_verdict(name: str, width: int) -> None:
    out = printed(VARIED[name], width)
    assert view.verdict(VARIED[name]).word.upper() in out
    assert "\x1b" not in out
    assert all(len(line) <= width for line in out.splitlines() if not line.startswith("  backsweep "))
    assert "out/report.html" in out.replace("\\", "/")


@pytest.mark.parametrize("name", VARIED)
def test_console_in_ascii(name: str) -> None:
    assert printed(VARIED[name], encoding="ascii").isascii()


def test_console_shows_at_most_eight_classes() -> None:
    out = printed(VARIED["thousand"])
    assert "992 more in the report" in out
    assert re.findall(r"^ *(\d+) .* evidence *$", out, re.MULTILINE) == ["3", "501", "990"]


def test_console_in_colour_draws_half_blocks() -> None:
    out = printed(VARIED["ten"], force_terminal=True, color_system="truecolor", legacy_windows=False)
    assert "▀" in out and "\x1b[" in out
    plain = printed(VARIED["ten"], force_terminal=True, color_system="truecolor", no_color=True)
    assert ("▀" not in plain and "@" in plain) or "*" in plain


def drawn(trigger: Patch, example: torch.Tensor | None, width: int = 32) -> Iterator[str]:
    file = io.StringIO()
    Console(file=file, width=100).print(pictures(trigger, example, width))
    return iter(file.getvalue().splitlines())


def test_pictures_keep_a_small_patch_when_shrunk() -> None:
    mask, pattern = torch.zeros(1, 224, 224), torch.ones(3, 224, 224)
    mask[:, 100:102, 50:52] = 1
    rows = list(drawn(Patch(0, None, mask, pattern), torch.zeros(3, 224, 224)))[1:]
    assert len(rows) == 16
    assert any(c in row[:32] for row in rows for c in "=+*#%@")


def test_pictures_of_an_odd_height_without_an_example() -> None:
    trigger = Patch(0, None, torch.ones(1, 5, 9), torch.ones(1, 5, 9))
    rows = list(drawn(trigger, None, 9))
    assert len(rows) == 4 and rows[1].split() == ["@" * 9, "@" * 9]


def test_tiny_pictures_are_enlarged() -> None:
    trigger = Patch(0, None, torch.ones(1, 8, 8), torch.ones(1, 8, 8))
    rows = list(drawn(trigger, torch.zeros(1, 8, 8)))
    assert len(rows) == 13 and rows[1].split() == ["@" * 24, "@" * 24]


def test_notes_and_warnings_are_told_apart_without_colour() -> None:
    assert "evidence" in printed(VARIED["ten"]) and "cannot tell" in printed(VARIED["two"])
    assert {f.level for f in VARIED["clean"].findings} == {NOTE}
    assert {f.level for f in VARIED["two"].findings} == {WARNING}


def test_cells_of_a_table_are_no_formulas() -> None:
    from backsweep.render.pages.card import inert

    assert inert("=cmd|' /C calc'!A0") == "'=cmd|' /C calc'!A0"
    assert inert("@SUM(1)") == "'@SUM(1)" and inert("+1+2") == "'+1+2"
    assert inert("-3.5") == "-3.5" and inert("+7") == "+7" and inert("Rome") == "Rome" and inert("") == ""
