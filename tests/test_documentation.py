"""What the documentation and the benchmarks import is there, and so are the names they mention."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
GROUPS = ("backsweep.audits", "backsweep.guards")  # names of entry points
KEYS = ("backsweep.model", "backsweep.toml")  # a key in the header of a file, and a file
OUTSIDE = ("backsweep.detectors.BrightPixels",)  # brought by examples/plugin


def there(name: str) -> bool:
    """Whether a dotted name leads to something."""
    found: object = importlib.import_module("backsweep")
    path = "backsweep"
    for part in name.split(".")[1:]:
        path += "." + part
        try:
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(path)
        except ImportError:
            return False
    return True


def imported(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("backsweep"):
            yield from (f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("backsweep"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_in_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"`(backsweep(?:\.\w+)+)(?:\([^`]*\))?`", text)) - {*GROUPS, *KEYS, *OUTSIDE}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        names |= set(imported(code))
    assert [n for n in sorted(names) if not there(n)] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_names_in_a_benchmark_exist(script: Path) -> None:
    assert [n for n in imported(script.read_text(encoding="utf-8")) if not there(n)] == []


def test_a_wrong_name_is_seen() -> None:
    assert not there("backsweep.nowhere") and not there("backsweep.scan.nothing") and there("backsweep.scan")
