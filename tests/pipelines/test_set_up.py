"""What the Makefile and the Action install, and in which order, tried with a Python that only takes notes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from many import SOURCE

yaml = pytest.importorskip("yaml")
ROOT = SOURCE.parent
RANGE = re.search(r'"(torch>[^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# `-m venv PLACE` copies it to PLACE/bin/python, what pip is asked for is noted, the CPU index is out of reach
PYTHON = """#!/bin/sh
if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit; fi
echo "$@" >> "$NOTES"
case "$*" in *--index-url*) echo "no such index" >&2; exit 1;; esac
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell is needed")


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder / name


def asked(tmp_path: Path, command: list[str], **environment: str) -> list[str]:
    """Which installations a command asked for."""
    program(tmp_path / "bin", "python", PYTHON)
    notes = tmp_path / "notes.txt"
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, check=False,
        env={**os.environ, "PATH": path, "NOTES": str(notes), **environment},
    )  # fmt: skip
    assert ran.returncode == 0 and "no such index" not in ran.stderr, ran.stdout + ran.stderr
    return notes.read_text().splitlines()


@pytest.mark.skipif(not shutil.which("make"), reason="make is not here")
@pytest.mark.parametrize("cuda", [False, True])
def test_make_takes_the_small_torch_where_there_is_no_gpu(tmp_path: Path, cuda: bool) -> None:
    if cuda:
        program(tmp_path / "bin", "nvidia-smi", "#!/bin/sh\n")
    elif shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA GPU")
    place = tmp_path / "venv"
    *first, last = asked(
        tmp_path, ["make", f"{place}/.run", f"PYTHON={tmp_path}/bin/python", f"VENV={place}"]
    )
    assert last.endswith("-e .") and (place / ".run").is_file()
    assert RANGE and [line.split()[-1] for line in first] == ([] if cuda else [RANGE[1]])


def test_the_action_takes_the_small_torch_too(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA GPU")
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    install = next(s["run"] for s in action["runs"]["steps"] if s["name"] == "Install")
    first, last = asked(
        tmp_path,
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", install],
        GITHUB_ACTION_PATH=str(ROOT),
    )
    assert RANGE and first.split()[-1] == RANGE[1] and last.split()[-1] == str(ROOT)
