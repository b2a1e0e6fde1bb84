"""The pre-commit hook, the GitLab job and the container: what they call is there, and does what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from many import SOURCE, make_data, make_models

yaml = pytest.importorskip("yaml")
ROOT = SOURCE.parent
QUICK = ["--arch=many:linear", "--detector=mm_bd", "-pmm_bd.images=2", "-pmm_bd.steps=4", "--device=cpu"]


def backsweep(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{SOURCE}{os.pathsep}{ROOT / 'tests'}"
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_hook_scans_what_is_committed(tmp_path: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    make_models(tmp_path / "nets", 2)
    make_data(tmp_path)
    named = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "nets").iterdir())
    chosen = [n for n in [*named, "README.md", "data/x.npz"] if re.search(hook["files"], n)]
    assert chosen == named and len(named) == 2
    ran = backsweep([*shlex.split(hook["entry"]), "--data=digits.npz", *QUICK, *chosen], tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ran = backsweep([*shlex.split(hook["entry"]), "--data=nowhere.npz", *QUICK, *chosen], tmp_path)
    assert ran.returncode == 2


def test_the_gitlab_job_scans_and_keeps_the_report(tmp_path: Path) -> None:
    job = yaml.safe_load((ROOT / "examples" / "gitlab-ci.yml").read_text(encoding="utf-8"))["backsweep"]
    make_models(tmp_path / "nets", 1)
    make_data(tmp_path)
    variables = {"MODEL": "nets/0000.safetensors", "DATA": "digits.npz"}
    assert set(variables) == set(job["variables"])
    install, scan = job["script"]
    assert install.split()[:4] == ["python", "-m", "pip", "install"]
    words = [re.sub(r"\$(\w+)", lambda m: variables[m[1]], w) for w in shlex.split(scan)]
    ran = backsweep([*words, *QUICK], tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [(tmp_path / p / "report.sarif").is_file() for p in job["artifacts"]["paths"]] == [True]


def test_the_container_copies_what_is_there_and_runs_as_nobody_special() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    kept = {x.removeprefix("!") for x in (ROOT / ".dockerignore").read_text().split() if x.startswith("!")}
    copied = [w for line in lines if line.startswith("COPY") for w in line.split()[1:-1]]
    assert copied and set(copied) == kept and all((ROOT / c).exists() for c in copied)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.search(r'"/source\[(.*?)\]"', "\n".join(lines))
    assert extras and all(re.search(rf"^{e} = \[", project, re.MULTILINE) for e in extras[1].split(","))
    torch = re.search(r'"(torch[^"]+)"', project)
    assert torch and f'"{torch[1]}"' in "\n".join(lines)
    assert lines.index("USER backsweep") < lines.index('ENTRYPOINT ["backsweep"]')
