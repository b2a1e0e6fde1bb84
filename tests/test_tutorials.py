"""The tutorials work as they stand: their blocks are run in order, in an empty folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STATUS = re.compile(r"^(.*?)(?:\s+# exit status (\d))?$")
DEMO = "backsweep demo --out demo"


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo writes: two tutorials begin with it."""
    folder = tmp_path_factory.mktemp("tutorials")
    done = run([sys.executable, "-m", *DEMO.split()], folder)
    assert done.returncode == 0, done.stderr
    return folder / "demo"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_tutorial_works_as_it_stands(page: Path, demo: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert {language for language, _ in blocks} >= {"python"} or len(blocks) > 3
    for language, code in blocks:
        if language == "python" and (name := re.match(r"# (\w+\.py)\n", code)):
            (tmp_path / name[1]).write_text(code, encoding="utf-8")
        elif language == "python":
            done = run([sys.executable, "-c", code], tmp_path)
            assert done.returncode == 0, done.stderr
        else:
            for line in code.splitlines():
                found = STATUS.match(line)
                assert found is not None
                if found[1] == DEMO:
                    shutil.copytree(demo, tmp_path / "demo")
                    continue
                done = run([sys.executable, "-m", *found[1].split()], tmp_path)
                assert done.returncode == int(found[2] or 0), f"{line}\n{done.stdout}\n{done.stderr}"
