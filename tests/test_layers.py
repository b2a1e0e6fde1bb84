"""The import rules of ARCHITECTURE.md, read from the source: down the list of rooms, without a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "backsweep"

# from top to bottom; a room imports from itself and from those below it
ROOMS = (
    "cli", "render", "bench", "inventory", "zoo", "repairing", "auditing", "guarding", "scanning", "shadows",
    "inversion", "reports", "formats", "models", "inputs", "engine", "core",
)  # fmt: skip
PUBLIC = (
    "__init__",
    "__main__",
    "archs",
    "attacks",
    "detectors",
    "repairs",
)  # the front door stands above all rooms
METHODS = (
    "scanning/detectors",
    "auditing/detectors",
    "guarding/detectors",
    "repairing/methods",
    "zoo/attacks",
)


def room(name: str) -> str:
    """Room of a file's path below the package, or of a module's name."""
    first = name.replace("/", ".").removeprefix("backsweep.").removesuffix(".py").split(".")[0]
    return "" if first in PUBLIC or first == "backsweep" else first


def imports(text: str) -> set[str]:
    """Modules and names of ours that a source imports anywhere: at the top, in functions, for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "backsweep":
            found |= {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "backsweep"}
    return found


def upward(path: str, text: str) -> list[str]:
    """What a source below `path` imports from rooms above its own."""
    own = room(path)
    if not own:
        return []
    allowed = ROOMS[ROOMS.index(own) :]
    return sorted(m for m in imports(text) if m != "backsweep.__version__" and room(m) not in allowed)


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, the first at the end again; empty where there is none."""

    def of(name: str) -> str:
        return name if name in sources else name.rpartition(".")[0]

    graph = {m: {of(i) for i in imports(text)} & sources.keys() - {m} for m, text in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        return list(e.args[1])
    return []


FILES = sorted(SOURCE.rglob("*.py"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    own = path.relative_to(SOURCE).as_posix()
    assert upward(own, TEXTS[path]) == []
    if own.startswith(METHODS) and path.stem != "__init__":
        other = {
            m
            for m in imports(TEXTS[path])
            if m.replace(".", "/").removeprefix("backsweep/").startswith(METHODS)
        }
        assert not other, "a method never imports another"


def test_there_is_no_circle() -> None:
    inner = {module_of(p): text for p, text in TEXTS.items() if room(p.relative_to(SOURCE).as_posix())}
    assert circle(inner) == []


def test_a_planted_upward_import_and_a_planted_circle_are_seen() -> None:
    below = SOURCE / "inputs" / "samples.py"
    planted = TEXTS[below] + "\ndef late():\n    from backsweep.scanning.scan import scan\n    return scan\n"
    assert upward("inputs/samples.py", planted) == ["backsweep.scanning.scan.scan"]
    assert upward("zoo/attacks/badnets.py", "from backsweep.render import view") == ["backsweep.render.view"]
    assert upward("core/files.py", "if TYPE_CHECKING:\n    import backsweep.models.model")
    pair = {"backsweep.core.a": "from backsweep.core import b", "backsweep.core.b": "import backsweep.core.a"}
    assert set(circle(pair)) == set(pair)


def test_the_rooms_are_those_of_the_architecture() -> None:
    entries = [p for p in SOURCE.iterdir() if p.name != "__pycache__"]
    folders = {p.name for p in entries if p.is_dir()}
    assert folders == {*ROOMS, "archs", "attacks", "detectors", "repairs"}
    assert len(entries) <= 24
    assert sum(p.suffix == ".py" for p in entries) <= 4
    for folder in (p for p in SOURCE.rglob("*") if p.is_dir() and p.name != "__pycache__"):
        if not folder.relative_to(SOURCE).as_posix().startswith(METHODS):
            files = [p for p in folder.iterdir() if p.is_file() and p.name != "__init__.py"]
            assert len(files) <= 12, f"{folder.name} holds {len(files)} files"
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1].rstrip("/") for line in page.splitlines() if line.startswith("| `")]
    assert [name for name in listed if name in ROOMS] == list(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_small(path: Path) -> None:
    assert len(TEXTS[path].splitlines()) <= 400


def test_report_needs_the_standard_library_only() -> None:
    tree = ast.parse(TEXTS[SOURCE / "reports" / "report.py"])
    top = {n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)}
    top |= {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    assert {t.split(".")[0] for t in top} <= set(sys.stdlib_module_names) | {"backsweep"}


def test_import_and_help_do_not_import_torch() -> None:
    code = (
        "import sys, backsweep, backsweep.cli.app\n"
        "try:\n    backsweep.cli.app.app(['--help'], standalone_mode=False)\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    begin = time.process_time()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.process_time() - begin < 5
