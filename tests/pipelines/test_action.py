"""The GitHub Action: its scan step runs here as it stands in action.yml, on real models."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from many import SOURCE, make_data, make_models

yaml = pytest.importorskip("yaml")
ROOT = SOURCE.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
SCAN = next(s for s in ACTION["runs"]["steps"] if s.get("id") == "scan")
QUICK = "--detector=mm_bd\n-pmm_bd.images=2\n-pmm_bd.steps=4\n--device=cpu\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a model, samples, and a `backsweep` on its path as the first step leaves it."""
    folder = tmp_path_factory.mktemp("action")
    make_models(folder / "nets", 1)
    make_data(folder)
    program = folder / "bin" / "backsweep"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m backsweep "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def step(place: Path, **inputs: str) -> tuple[int, dict[str, str], str]:
    """Run the step with these inputs: exit status, outputs, what it printed."""
    given = {k: v.get("default", "") for k, v in ACTION["inputs"].items()} | inputs
    names = {k: re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", v) for k, v in SCAN["env"].items()}
    outputs, summary = place / "outputs.txt", place / "summary.txt"
    outputs.write_text("")
    environment = {
        **os.environ, **{k: given[m[1]] for k, m in names.items() if m}, "OMP_NUM_THREADS": "1",
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "GITHUB_OUTPUT": str(outputs),
        "GITHUB_STEP_SUMMARY": str(summary), "PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT / 'tests'}",
    }  # fmt: skip
    ran = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", SCAN["run"]],
        cwd=place, env=environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    said = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    return ran.returncode, said, ran.stdout + ran.stderr


def test_the_action_scans_and_says_what_it_found(place: Path) -> None:
    model = str(Path("nets") / "0000.safetensors")
    status, said, text = step(place, model=model, data="digits.npz", arch="many:linear", options=QUICK)
    assert status == 0, text
    assert said == {"verdict": "clean", "status": "0", "sarif": "backsweep-report/report.sarif"}
    assert (place / said["sarif"]).is_file()
    assert "clean: no class; exit status 0" in (place / "summary.txt").read_text()


def test_what_cannot_be_read_fails_the_job(place: Path) -> None:
    status, said, text = step(place, model="nowhere.pt2", data="digits.npz", out="other")
    assert (status, said) == (2, {"verdict": "", "status": "2"}), text


def test_names_cannot_write_commands_or_options(place: Path) -> None:
    assert "${{" not in SCAN["run"]
    status, said, _ = step(
        place, model="--help", data="$(touch pwned)`touch pwned`; touch pwned", out="third"
    )
    assert status == 2 and said["status"] == "2"
    assert not (place / "pwned").exists()
