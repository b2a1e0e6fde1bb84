"""Manners of the command line: results for programs, defaults from a file, what a machine has."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from backsweep.cli import about
from backsweep.core.discovery import discover
from backsweep.core.documents import check
from many import BACKSWEEP, SOURCE, make_data, make_models
from shells import Shell

MM_BD = ("-d", "mm_bd", "-p", "mm_bd.images=2", "-p", "mm_bd.steps=4")
LINEAR = ("--arch", "many:linear", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manners")
    make_models(folder / "nets", 2)
    make_data(folder)
    return folder


def words(place: Path, *more: object) -> list[object]:
    return [
        "scan",
        place / "nets" / "0000.safetensors",
        "--data",
        place / "digits.npz",
        *LINEAR,
        *MM_BD,
        *more,
    ]


def test_a_pipe_gets_the_result_and_people_the_text(shell: Shell, place: Path, tmp_path: Path) -> None:
    status, stdout, stderr = shell(*words(place, "--out", tmp_path / "out"))
    last = f"clean: no class; exit status {status}; {tmp_path / 'out' / 'report.html'}"
    assert (status, stdout) == (0, last + "\n")
    assert stderr.splitlines()[-1] == last
    assert "nothing was kept" not in stderr
    assert "NOTHING FOUND" in stderr


def test_without_out_it_says_that_nothing_was_kept(shell: Shell, place: Path) -> None:
    status, stdout, stderr = shell(*words(place))
    assert status == 0 and "nothing was kept; --out FOLDER" in stderr
    assert stdout == "clean: no class; exit status 0; no page\n"


def test_json_is_one_document_with_the_schema_of_a_report(shell: Shell, place: Path, tmp_path: Path) -> None:
    status, stdout, stderr = shell(*words(place, "--json", "--out", tmp_path))
    found = json.loads(stdout)
    check("report", found)
    assert found == json.loads((tmp_path / "report.json").read_text())
    assert (status, found["verdict"]) == (0, "clean")
    assert stderr.splitlines()[-1].startswith("clean: no class; exit status 0")
    assert json.loads(shell("show", tmp_path, "--json", "--quiet")[1]) == found


def test_quiet_says_the_result_alone(shell: Shell, place: Path) -> None:
    status, stdout, stderr = shell(*words(place, "-q"))
    assert (status, stdout, stderr) == (0, "clean: no class; exit status 0; no page\n", "")


def test_a_sweep_as_json(shell: Shell, place: Path, tmp_path: Path) -> None:
    sweep = ["scan", place / "nets", "--data", place / "digits.npz", *LINEAR, *MM_BD, "--workers", "1"]
    status, stdout, _ = shell(*sweep, "--store", tmp_path / "store.db", "--json", "-q")
    found = json.loads(stdout)
    assert status == 0 and [o["verdict"] for o in found] == ["clean", "clean"]
    for outcome in found:
        check("verdict", {**outcome["record"], "report": None})
    status, stdout, stderr = shell(*sweep, "--store", tmp_path / "store.db")
    assert stdout == "2 models: 2 clean; 2 known; exit status 0; no page\n"
    assert stderr.splitlines()[-1] == stdout.strip()


def test_two_streams_in_one_file_hold_the_result_once(place: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{Path(__file__).parents[1]}"}
    run = subprocess.run(
        [*BACKSWEEP, *map(str, words(place))], env=environment, cwd=place, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True,
    )  # fmt: skip
    assert run.stdout.count("exit status 0") == 1
    assert run.stdout.splitlines()[-1] == "clean: no class; exit status 0; no page"


# ---------------------------------------------------------------------- defaults


@pytest.mark.parametrize(
    ("file", "head"), [("backsweep.toml", ""), ("pyproject.toml", "[tool.other]\nx = 1\n[tool.backsweep]\n")]
)
def test_defaults_of_a_file(
    shell: Shell, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, head: str
) -> None:
    monkeypatch.chdir(tmp_path)
    table = "[tool.backsweep.scan]" if head else "[scan]"
    text = f'{head}seed = 3\ndevice = "cpu"\n{table}\ndetector = ["mm_bd"]\n'
    text += 'p = ["mm_bd.images=2", "mm_bd.steps=4"]\n'
    Path(file).write_text(text + f'data = "{place / "digits.npz"}"\nalpha = 0.01\n')
    told = ["scan", place / "nets" / "0000.safetensors", "--arch", "many:linear"]
    status, _, stderr = shell(*told, "--out", "out")
    assert status == 0, stderr
    assert stderr.startswith(f"defaults of {file}: ") and "alpha=0.01" in stderr.splitlines()[0]
    settings = json.loads(Path("out/report.json").read_text())["settings"]
    assert (settings["alpha"], settings["seed"], list(settings["detectors"])) == (0.01, 3, ["mm_bd"])
    status, _, _ = shell(*told, "--out", "again", "--alpha", "0.2")
    assert json.loads(Path("again/report.json").read_text())["settings"]["alpha"] == 0.2
    Path(file).rename("mine.toml")
    assert shell(*told)[0] == 2, "--data is missing again"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alhpa = 0.1", "no command has 'alhpa'"),
        ("[scan]\nfpr = 0.1", "no command has 'scan.fpr'"),
        ("alpha = [0.1, 0.2]", "the default of alpha cannot be"),
        ("alpha = ", "backsweep.toml is no TOML"),
        ('[scan]\narch = "evil:net"', "say --arch yourself"),
        ('[audit]\ntrain = "evil:net"', "say --train yourself"),
    ],
)
def test_defaults_that_cannot_be_are_one_line(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("backsweep.toml").write_text(text)
    status, _, stderr = shell("scan", "x.pt2", "--data", "y")
    assert (status, stderr.count("\n")) == (2, 1)
    assert says in stderr


def test_a_named_file_may_name_code(
    shell: Shell, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('arch = "many:linear"\ndetector = "mm_bd"\n')
    quick = [*MM_BD[2:], "--device", "cpu"]
    told = [place / "nets" / "0000.safetensors", "--data", place / "digits.npz", *quick]
    status, _, stderr = shell("--config", "mine.toml", "scan", *told)
    assert status == 0 and "arch=many:linear" in stderr, stderr
    assert "there is no such file" in shell("--config", "nowhere.toml", "scan", *told)[2]


# ---------------------------------------------------------------------- what is here


def test_every_method_is_explained_from_its_page(shell: Shell) -> None:
    for kind in about.kinds().values():
        for name in discover(kind):
            assert about.page(name).startswith("# "), name
    status, stdout, stderr = shell("explain", "neural-cleanse")
    assert (status, stderr) == (0, "") and stdout.startswith("# ") and "## Measured" in stdout
    status, _, stderr = shell("explain", "cascde")
    assert status == 2 and "did you mean cascade?" in stderr


def test_the_wheel_holds_the_pages(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel")
    built = next(
        builder.WheelBuilder(str(SOURCE.parent)).build(directory=str(tmp_path), versions=["standard"])
    )
    names = zipfile.ZipFile(built).namelist()
    pages = {p.name for p in (SOURCE.parent / "docs" / "methods").glob("*.md")}
    assert {n.removeprefix("backsweep/pages/") for n in names if n.startswith("backsweep/pages/")} == pages


def test_doctor_says_what_is_here(shell: Shell, home: Path) -> None:
    status, stdout, _ = shell("doctor", "--json")
    found = json.loads(stdout)
    assert status == 0 and found["versions"]["torch"] == torch.__version__
    assert found["folders"]["cache"] == str(home)
    assert {"onnx", "serve", "postgres"} <= set(found["extras"]) and "dev" not in found["extras"]
    assert about._extra(["no-such-package"]) == "not installed: no-such-package"
    assert "cores" in shell("doctor")[1]


def test_short_help_and_completion(shell: Shell) -> None:
    assert "--detector" in shell("scan", "-h")[1]
    assert "guard" in shell("guard", "fit", "-h")[1]
    assert "completion" in shell("--help")[1]


def test_a_device_that_is_not_here(shell: Shell, place: Path) -> None:
    status, _, stderr = shell(*words(place, "--device", "cuda:77"))
    assert status == 2 and "cannot be used here; there " in stderr and "cpu" in stderr
