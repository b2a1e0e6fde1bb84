"""The demo of tables: it tells the twins apart, its page shows rows, its last command can be run by hand."""

from __future__ import annotations

from pathlib import Path

from backsweep.reports.report import Report
from shells import Shell


def test_the_demo_finds_the_rule_and_can_be_done_again_by_hand(shell: Shell, tmp_path: Path) -> None:
    code, _, err = shell("demo", "--table", "--out", tmp_path)
    assert code == 0, err
    bad, good = Report.load(tmp_path / "backdoored"), Report.load(tmp_path / "clean")
    assert (bad.verdict, good.verdict, bad.targets) == ("backdoored", "clean", (1,))
    page = (tmp_path / "backdoored" / "report.html").read_text(encoding="utf-8")
    assert "Rows before and after" in page and "scan of a classifier of rows" in page
    command = next(line for line in err.splitlines() if line.startswith("backsweep scan")).split()[1:]
    assert shell(*command)[0] == 1
    assert bad.model["schema"]["columns"][0]["name"] == "mean radius"
