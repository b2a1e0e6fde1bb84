"""The front door: names, what `dir` lists, and types that a user's checker sees in the installed package."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import backsweep
from backsweep.core.discovery import own
from backsweep.core.method import Method

NAMESPACES = ("attacks", "detectors", "repairs")

SCRIPT = """
from dataclasses import dataclass
from typing import ClassVar

import torch

import backsweep
from backsweep import Audit, BadInput, Data, Guard, Model, Repaired, Report
from backsweep.attacks import BadNets
from backsweep.detectors import ModelDetector, NeuralCleanse, Strip
from backsweep.repairs import FinePruning


@dataclass(frozen=True)
class Mine(ModelDetector):
    name: ClassVar[str] = "mine"
    size: int = 3


def look(path: str, x: torch.Tensor, y: torch.Tensor) -> int:
    model: Model = backsweep.load(path, arch="backsweep.archs:digits_cnn", classes=10)
    data = Data(x, y)
    report: Report = backsweep.scan(
        model, data, [NeuralCleanse(steps=5), "cascade", Mine()], alpha=0.01, out="out"
    )
    again: Report = backsweep.judge(Report.load("out"), alpha=0.1, detectors=[Mine(size=2)])
    found: Audit = backsweep.audit(model, (x, y), "spectre")
    guard: Guard = backsweep.guard(model, data, [Strip()], fpr=0.05)
    repaired: Repaired = backsweep.repair(model, data, report, FinePruning())
    rates: list[float] = [f.p_value for f in report.findings if f.p_value is not None]
    print(BadNets(size=2).summary, rates, again.verdict, found.flagged, guard.flag(x), repaired.verified)
    return report.exit_status


try:
    look("net.pt", torch.zeros(1, 1, 8, 8), torch.zeros(1))
except BadInput as e:
    print(e)
"""
CONFIG = """
[mypy]
strict = true
follow_imports = skip
# what others' packages say is not read: with torch and all that is optional it takes minutes
[mypy-backsweep.*]
follow_imports = normal
"""
WRONG = (
    'backsweep.scan(Model, 3, alpha="much")',
    "NeuralCleanse(stepz=5)",
    "BadNets(size=None)",
    "FinePruning().apply(3)",
    "backsweep.judge(3)",
    "backsweep.scam",
    'guard: backsweep.Guard = backsweep.load("x")',
)


def test_dir_lists_the_public_names() -> None:
    assert set(backsweep.__all__) <= set(dir(backsweep))
    assert {"scan", "judge", "load", "audit", "guard", "repair", "Model", "Data", "Report"} <= set(
        dir(backsweep)
    )
    for name in backsweep.__all__:
        assert getattr(backsweep, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'scam'"):
        _ = backsweep.scam  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMESPACES)
def test_a_namespace_has_its_methods_what_they_are_made_of_and_types(name: str) -> None:
    """What type checkers are told is what is found; a method that was added is to be added there too."""
    module: ModuleType = importlib.import_module(f"backsweep.{name}")
    kinds: list[type[Method]] = module._KINDS
    classes = {cls.__name__: cls for kind in kinds for cls in own(kind).values()}
    assert classes.keys() <= set(dir(module))
    assert all(getattr(module, n) is not None for n in dir(module))
    assert all(getattr(module, n) is cls for n, cls in classes.items())
    body = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
    told = {
        f"{line.module}.{alias.asname}"
        for block in body if isinstance(block, ast.If)
        for line in block.body if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }  # fmt: skip
    assert told == {f"{cls.__module__}.{n}" for n, cls in classes.items()}


def test_a_users_script_is_checked_against_the_installed_package(tmp_path: Path) -> None:
    """Found by import and `py.typed`, not as source that is checked itself."""
    script = tmp_path / "script.py"
    lines = SCRIPT.strip().splitlines()
    script.write_text("\n".join([*lines, *(f"{wrong}  # wrong" for wrong in WRONG)]) + "\n")
    (tmp_path / "mypy.ini").write_text(CONFIG)
    words = [sys.executable, "-m", "mypy", "--cache-dir", "cache", "script.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert found == set(range(len(lines) + 1, len(lines) + 1 + len(WRONG))), done.stdout + done.stderr
