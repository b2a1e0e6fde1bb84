"""The import rules of ARCHITECTURE.md, read from the source: a detector cannot know the truth."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "backsweep"

# a module may import modules of its own layer's number or below
LAYERS = {
    "errors": 0, "files": 0, "report": 1, "stats": 1, "trigger": 1, "tap": 1, "families": 2, "transformed": 2,
    "archive": 1, "pt2": 2, "hf": 2, "readers": 1, "data": 2, "model": 2, "loading": 3, "archs": 2,
    "train": 3, "base": 3, "invert": 3, "budget": 3, "contrast": 3, "inversion_families": 4, "outliers": 4,
    "reference": 4, "calibration": 4, "screens": 5, "run": 4, "plugins": 4, "detectors": 5, "attacks": 5,
    "neurons": 4, "repairs": 5, "repaired": 5, "retune": 4, "recover": 5, "mending": 6, "api": 6, "tasks": 6,
    "zoo": 7, "lines": 8, "leaderboard": 8, "bench": 8, "bench_repairs": 8, "repairboard": 8, "render": 8,
    "demo": 9, "terminal": 9, "cli_bench": 9, "cli": 10, "__init__": 10, "__main__": 10, "save": 4,
    "claims": 1, "store": 2, "sources": 2, "registry": 2, "sweep": 7, "cli_store": 9,
    "screening": 4, "confusion": 4, "surprise": 4, "audited": 5, "components": 1, "corruptions": 2,
    "auditing": 6, "guarding": 6, "serving": 7, "bench_samples": 8, "sampleboard": 8, "cli_samples": 9,
    "engine": 1, "pools": 1, "clusters": 1, "cli_options": 9, "wide": 2, "jumbo": 2, "shadows": 4, "meta": 3,
    "bank": 4, "shelf": 4, "cli_bank": 9,
}  # fmt: skip
METHODS = ("detectors", "attacks", "repairs")
LAZY = {
    "backsweep.render.html",
    "backsweep.render.sarif",
    "backsweep.render.repair",
    "backsweep.render.audit",
}  # Report.save calls them when it is called


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports when it runs, type-checking blocks left out."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for n in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("backsweep"):
            base = node.module or ""
            found |= {base} if base != "backsweep" else {f"backsweep.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("backsweep.")}
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for module in imports(path) - LAZY:
        other = module.split(".")[1]
        if other in ("__version__",):
            continue
        assert LAYERS[other] <= LAYERS[own], f"{path.name} imports {module}"
        if own in METHODS and path.stem != "__init__":
            assert other not in METHODS, "a method never imports another"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_report_needs_the_standard_library_only() -> None:
    tree = ast.parse((SOURCE / "report.py").read_text(encoding="utf-8"))
    top = {n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)}
    top |= {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    assert {t.split(".")[0] for t in top} <= set(sys.stdlib_module_names) | {"backsweep"}


def test_import_and_help_do_not_import_torch() -> None:
    code = (
        "import sys, backsweep, backsweep.cli\n"
        "try:\n    backsweep.cli.app(['--help'], standalone_mode=False)\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    begin = time.process_time()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.process_time() - begin < 5
