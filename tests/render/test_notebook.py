"""Results in a notebook: a small box of harmless HTML, a short repr; the example notebook runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from backsweep.guarding.guard import guard
from backsweep.reports.audit import Audit
from backsweep.reports.report import Finding
from conftest import Twins
from reporting import GTSRB, make_report

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))
SHOWN = {
    "find-and-repair": "Evidence of a backdoor",
    "audit-a-training-set": "Poison found",
    "guard-a-served-model": "Flags 5.0% of clean inputs",
}
HOSTILE = "<script>alert(1)</script>\u202e"


def harmless(box: str) -> None:
    """One closed element, without scripts, and nothing from elsewhere."""
    assert box.startswith("<div") and box.rstrip().endswith("</div>")
    assert box.count("<div") == box.count("</div>")
    assert not re.search(r"<script|<link|https?:|@import|\son\w+=", box) and "\u202e" not in box


def run(cells: list[str]) -> list[Any]:
    """Run cells as a notebook does; what it would show of each: the value of a last expression."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in cells:
        tree = ast.parse(cell)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)  # noqa: S102
        shown.append(
            None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # type: ignore[attr-defined]  # noqa: S307
        )
    return shown


def test_a_report_shows_its_verdict_pictures_and_figures() -> None:
    report = make_report(10, bad=(3,), labels=GTSRB)
    box = report._repr_html_()
    harmless(box)
    assert "Evidence of a backdoor" in box and box.count("data:image/png") == 2
    assert "neural cleanse" in box and "Speed limit 60" in box
    assert repr(report).startswith("Report(backdoored, targets=(3,), p_value=") and len(repr(report)) < 200
    assert "Nothing found" in make_report(10, bad=())._repr_html_()
    harmless(make_report(3, bad=(1,), labels=(HOSTILE,) * 3)._repr_html_())


def test_an_audit_a_trigger_and_a_guard(twins: Twins) -> None:
    found = Finding(
        "BSW200", "cross_confusion", "error", f"poisoned {HOSTILE}", target=1, score=3.0, threshold=2.0
    )
    audit = Audit(
        findings=[found], labels=torch.tensor([0, 1, 1]), model={"classes": 2, "labels": [HOSTILE, HOSTILE]}
    )
    harmless(audit._repr_html_())
    assert repr(audit).startswith("Audit(backdoored, targets=(1,)")
    trigger = twins.trigger
    harmless(trigger._repr_html_())
    assert "data:image/png" in trigger._repr_html_()
    assert repr(trigger) == f"Patch(target={trigger.target}, source=None, size={trigger.size:.4g})"
    fitted = guard(twins.clean, twins.data, ["strip"], fpr=0.05, seed=0)
    harmless(fitted._repr_html_())
    assert "5" in fitted._repr_html_() and "strip" in fitted._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_example_notebooks_run(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(c.get("outputs") == [] for c in notebook["cells"] if c["cell_type"] == "code")
    boxes = [shown._repr_html_() for shown in run(cells) if shown is not None]
    for box in boxes:
        harmless(box)
    assert len(boxes) >= 2 and SHOWN[path.stem] in "".join(boxes)
    assert "accuracy" in capsys.readouterr().out
