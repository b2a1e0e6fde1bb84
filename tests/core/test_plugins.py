"""Packages from outside: the example is built and installed for real, and broken ones stop nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backsweep.auditing.audit import configured, made
from backsweep.auditing.detector import SetDetector
from backsweep.bench import detectors
from backsweep.core import discovery
from backsweep.core.discovery import make
from backsweep.core.provenance import provenance
from backsweep.guarding.detector import SampleDetector
from backsweep.inventory.sweep import Scan
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.zoo.build import Net

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
PLAN = """
[[nets]]
task = "digits"
attack = "bright_row"
seeds = [0]

[[detectors]]
name = "bright_pixels"

[[repairs]]
name = "shrink_and_tune"
share = 0.4
attacks = ["bright_row"]
"""
# Backsweep's command line, several times in one process: torch is imported once
RUN = """
import json, sys
from backsweep.cli.app import main

def run(*words):
    sys.argv = ["backsweep", *words]
    try:
        main()
    except SystemExit as stop:
        return stop.code
"""


def run(code: str, path: Path, cwd: Path, **env: str) -> tuple[Any, str]:
    """What a script prints last, as JSON, and all that it prints; another folder is on its path."""
    there = os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", RUN + code], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": there, "COLUMNS": "250", "BACKSWEEP_HOME": str(cwd),
             "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example was installed into, without a network."""
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "plugin")
    target = tmp_path_factory.mktemp("site")
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([sys.executable, "-m", "pip", *words, str(target), str(source)], check=True)
    return target


def package(folder: Path, name: str, group: str, *points: str, code: str = "") -> Path:
    """A distribution as an installer leaves it, with entry points in one group."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(points) + "\n")
    (folder / f"{name}.py").write_text(code)
    return folder


@pytest.mark.slow
def test_the_example_is_listed_scans_and_is_benched(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    said, text = run(
        """
import glob, numpy as np
from backsweep.zoo.tasks import TASKS
test = TASKS["digits"].load()[1]
np.savez("digits.npz", x=(test.x[:, 0].numpy() * 255).round().astype("uint8"), y=test.y.numpy())
status = {"list": run("list"), "build": run("zoo", "build", "plan.toml", "--zoo", "zoo")}
how = "--arch", "backsweep.archs:digits_cnn", "--data", "digits.npz", "--device", "cpu"
for name in ("clean", "bright_row"):
    (model,) = glob.glob(f"zoo/digits-{name}-*/model.safetensors")
    words = "scan", model, *how, "-d", "bright-pixels", "-p", "bright_pixels.pixels=4", "--out", name
    status[name] = run(*words)
status["show"] = run("show", "bright_row", "--alpha", "0.01")
status["bench"] = run("bench", "run", "plan.toml", "--zoo", "zoo", "--out", "lines.jsonl")
status["again"] = run("bench", "run", "plan.toml", "--zoo", "zoo", "--out", "lines.jsonl")
status["table"] = run("bench", "table", "lines.jsonl", "--split", "choosing", "--out", "table.md")
print(json.dumps(status))
""",
        installed, tmp_path,
    )  # fmt: skip
    assert said == {
        "list": 0, "build": 0, "clean": 0, "bright_row": 1, "show": 1, "bench": 0, "again": 0, "table": 0,
    }  # fmt: skip
    listed = [line for line in text.splitlines() if "backsweep-example 0.1.0" in line]
    assert [line.split()[1] for line in listed] == ["bright_pixels", "shrink_and_tune", "bright_row"]
    assert "pixels=3" in listed[0]
    report = json.loads((tmp_path / "bright_row" / "report.json").read_text())
    assert report["settings"]["packages"] == {"bright_pixels": "backsweep-example 0.1.0"}
    assert "origins" not in report["settings"]
    (manifest,) = tmp_path.glob("zoo/digits-bright_row-*/manifest.json")
    truth = json.loads(manifest.read_text())
    assert report["targets"] == [truth["triggers"][0]["target"]]
    assert truth["packages"] == {"bright_row": "backsweep-example 0.1.0"}
    assert "a few bright pixels lead to" in (tmp_path / "bright_row" / "report.html").read_text()
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    scans = {line["attack"]: line["verdict"] for line in lines if "detector" in line}
    assert scans == {None: "clean", "bright_row": "backdoored"}
    (fixed,) = [line for line in lines if "repair" in line]
    assert fixed["packages"] == {"shrink_and_tune": "backsweep-example 0.1.0"}
    assert "error" not in fixed
    assert fixed["success_after"] < fixed["success_before"]
    assert len(lines) == 3, "finished cells are not run again"
    assert "bright_pixels" in (tmp_path / "table.md").read_text()


@dataclass(frozen=True)
class Mine(ModelDetector):
    """Finds nothing."""

    name: ClassVar[str] = "mine"
    code: ClassVar[str] = "MINE1"


@dataclass(frozen=True)
class Spectre(SampleDetector):
    """A guard with the name of an audit of ours."""

    name: ClassVar[str] = "spectre"


def brought(monkeypatch: pytest.MonkeyPatch, package: str, *points: EntryPoint) -> None:
    """A package that brings some methods, in this process."""
    monkeypatch.setattr(discovery, "_PLUGINS", {})
    monkeypatch.setattr(
        discovery, "_entries", lambda group: tuple((p, package) for p in points if p.group == group)
    )


def test_a_new_version_of_a_package_makes_new_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A line or a verdict that is kept is not taken for one of another version of the method."""
    net = Net(tmp_path / "net", {"id": "net", "sha256": "0"})
    point = EntryPoint("mine", f"{__name__}:Mine", ModelDetector.group)
    data = tmp_path / "data.npz"
    data.write_bytes(b"")
    keys = []
    for version in ("1.0", "2.0"):
        brought(monkeypatch, f"pack {version}", point)
        mine = make(ModelDetector, "mine")
        assert provenance([mine, Cascade()]) == {"packages": {"mine": f"pack {version}"}}
        keys.append([
            detectors.cell_key(net, mine), detectors.cell_key(net, Cascade()),
            Scan(str(data), [mine], device="cpu").settings(),
            Scan(str(data), [Cascade()], device="cpu").settings(),
        ])  # fmt: skip
    assert [a == b for a, b in zip(*keys, strict=True)] == [False, True, False, True]
    brought(monkeypatch, "none")
    assert provenance([mine]) == {"origins": {"mine": f"{__name__}:Mine"}}


def test_a_guard_from_outside_does_not_hide_an_audit_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    brought(monkeypatch, "pack 1.0", EntryPoint("spectre", f"{__name__}:Spectre", SampleDetector.group))
    assert discovery.discover(SampleDetector)["spectre"] is Spectre
    (configured_one,) = configured(["spectre"], ["spectre.eps=0.2"])
    assert isinstance(made("spectre"), SetDetector)
    assert configured_one.settings()["eps"] == 0.2


def test_broken_packages_are_named_and_stop_nothing(tmp_path: Path) -> None:
    site, group = tmp_path / "site", "backsweep.detectors"
    fine = (
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from backsweep.detectors import ModelDetector, NeuralCleanse\n"
        "@dataclass(frozen=True)\n"
        "class Fine(ModelDetector):\n"
        "    name: ClassVar[str] = 'fine'\n"
        "    summary: ClassVar[str] = '[red]red[/red]'\n"
        "    code: ClassVar[str] = 'FINE1'\n"
        "@dataclass(frozen=True)\n"
        "class Needy(ModelDetector):\n"
        "    name: ClassVar[str] = 'needy'\n"
        "    size: int\n"
    )
    package(site, "a_good", group, "fine = a_good:Fine", "needy = a_good:Needy", code=fine)
    package(site, "b_gone", group, "gone = nowhere:Gone", "odd = json:loads", "fine = a_good:Fine")
    package(site, "c_quits", group, "quits = c_quits:X", code="import sys\nsys.exit('bye')")
    package(site, "d_takes", group, "cascade = a_good:Fine", "other = a_good:Fine")
    package(site, "e_guards", "backsweep.guards", "spectre = e_guards:X", code="raise ValueError('a\\nb')")
    (said, text) = run(
        """
import backsweep
from backsweep.core.discovery import find
from backsweep.core.errors import BadInput
from backsweep.scanning.detector import ModelDetector
status = [run("list")]
assert backsweep.detectors.Fine is find(ModelDetector, "fine")
assert {"Fine", "NeuralCleanse", "Strip", "Spectre"} <= set(dir(backsweep.detectors))
for name in ("gone", "quits"):
    try:
        find(ModelDetector, name)
    except BadInput as e:
        status.append(str(e))
print(json.dumps(status))
""",
        site, tmp_path,
    )  # fmt: skip
    assert said == [
        0,
        "the detector 'gone' of b_gone 1.0 is broken: nowhere:Gone cannot be used (ModuleNotFoundError: No "
        "module named 'nowhere')",
        "the detector 'quits' of c_quits 1.0 is broken: c_quits:X cannot be used (SystemExit: bye)",
    ]
    broken = dict(
        line.removeprefix("broken: ").split(": ", 1)
        for line in text.splitlines()
        if line.startswith("broken: ")
    )
    assert broken.keys() == {
        "needy of a_good 1.0", "gone of b_gone 1.0", "odd of b_gone 1.0", "fine of b_gone 1.0",
        "quits of c_quits 1.0", "cascade of d_takes 1.0", "other of d_takes 1.0", "spectre of e_guards 1.0",
    }  # fmt: skip
    assert "size" in broken["needy of a_good 1.0"]
    assert broken["odd of b_gone 1.0"] == "json:loads is no ModelDetector"
    assert broken["fine of b_gone 1.0"] == "the name is taken by a method of a_good 1.0"
    assert broken["cascade of d_takes 1.0"] == "the name is taken by a method of Backsweep"
    assert "is named 'fine'" in broken["other of d_takes 1.0"]
    assert broken["spectre of e_guards 1.0"].endswith("(ValueError: a b)")
    assert "[red]red[/red]" in text
