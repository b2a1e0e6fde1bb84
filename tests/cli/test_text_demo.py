"""The demo of texts: it tells the twins apart, names the word, and its last command can be run by hand."""

from __future__ import annotations

from pathlib import Path

from backsweep.reports.report import Report
from shells import Shell


def test_the_demo_names_the_word_and_can_be_done_again_by_hand(shell: Shell, tmp_path: Path) -> None:
    code, _, err = shell("demo", "--text", "--out", tmp_path)
    assert code == 0, err
    bad, good = Report.load(tmp_path / "backdoored"), Report.load(tmp_path / "clean")
    assert (bad.verdict, good.verdict, bad.targets) == ("backdoored", "clean", (1,))
    word = err.split("“")[1].split("”")[0]
    (finding,) = (f for f in bad.findings if f.level == "error")
    assert word in finding.message
    command = next(line for line in err.splitlines() if line.startswith("backsweep scan")).split()[1:]
    assert shell(*command)[0] == 1
