"""A verdict as a section of a model card."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from backsweep.render import view
from backsweep.render.exchange.model_card import model_card
from backsweep.reports.report import Report
from reporting import make_cascade_report, make_report

HOSTILE = "[x](http://evil.example) ![y](//e/z.png) <script>alert(1)</script> # big | cell ` www.evil.example"


def kinds(text: str) -> set[str]:
    """What the Markdown is made of."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return {t.type for token in tokens for t in (token, *(token.children or ()))}


@pytest.mark.parametrize(
    "report", [make_report(), make_cascade_report(), Report()], ids=["patches", "spaces", "empty"]
)
def test_it_is_one_section_with_a_table_and_says_the_verdict(report: Report) -> None:
    card = model_card(report)
    assert view.verdict(report).word in card and str(report.versions.get("backsweep", "")) in card
    assert card.startswith("## Backdoor scan\n") and card.count("\n## ") == 0
    assert {"heading_open", "table_open", "paragraph_open"} <= kinds(card)
    assert not kinds(card) & {"link_open", "image", "html_inline", "html_block", "bullet_list_open"}


def test_nothing_of_a_model_becomes_markup() -> None:
    report = Report(
        model={"source": HOSTILE, "sha256": "`](" + "a" * 64, "sha256_of": HOSTILE, "labels": [HOSTILE] * 3},
        settings={"detectors": {HOSTILE: {}}, "alpha": 0.05},
        versions={"backsweep": HOSTILE},
        data={"samples": 10},
    )
    found = kinds(model_card(report))
    assert not found & {"link_open", "image", "html_inline", "html_block"}
    assert "code_inline" in found, "the digest"
    assert "evil" in model_card(report), "it is shown, as words"
    rows = [line for line in model_card(report).splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)
