"""The command line as a user meets it: exit status, one clear line, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import banks
from backsweep.inputs.image.pictures import to_image
from conftest import Twins
from many import BACKSWEEP
from shells import ARCH, Shell


@pytest.fixture(scope="session")
def files(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twins in every format that needs no extra, and the samples in both."""
    folder = tmp_path_factory.mktemp("files")
    for name, model in (("bad", twins.infected), ("good", twins.clean)):
        save_file(model.net.state_dict(), folder / f"{name}.safetensors")
        torch.save(model.net.state_dict(), folder / f"{name}.pth")
        torch.save(model.net, folder / f"{name}.whole.pt")
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(
            model.net.eval(), (twins.data.x[:4],), dynamic_shapes={"input": {0: batch}}
        )
        torch.export.save(program, folder / f"{name}.pt2")
    np.savez(
        folder / "digits.npz", x=(twins.data.x[:, 0].numpy() * 255).astype("uint8"), y=twins.data.y.numpy()
    )
    for i in range(300):
        place = folder / "images" / str(int(twins.data.y[i]))
        place.mkdir(parents=True, exist_ok=True)
        to_image(twins.data.x[i]).save(place / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("format_", "data", "detectors"),
    [
        ("safetensors", "digits.npz", ()),  # the default ones
        ("pth", "digits.npz", ("-d", "neural_cleanse")),
        ("whole.pt", "digits.npz", ("-d", "neural_cleanse")),
        ("pt2", "digits.npz", ("-d", "neural_cleanse")),
        ("pt2", "images", ("-d", "neural_cleanse")),
    ],
)
def test_every_format_gives_the_verdict(
    shell: Shell, files: Path, twins: Twins, tmp_path: Path, format_: str, data: str, detectors: tuple[str]
) -> None:
    arch = [*([] if format_ == "pt2" else ["--arch", ARCH]), *detectors]
    for name, expected in (("bad", 1), ("good", 0)):
        out = tmp_path / name
        words = ["scan", files / f"{name}.{format_}", "--data", files / data, *arch, "--out", out]
        status, stdout, stderr = shell(*words, "--device", "cpu")
        assert status == expected, stderr
        found = f"backdoored: class {twins.trigger.target}" if expected else "clean: no class"
        page = f"{out / 'report.html'}"
        assert stdout == f"{found}; exit status {expected}; {page}\n", (
            "text goes to stderr, the result to a pipe"
        )
        report = json.loads((out / "report.json").read_text())
        told = [line.removeprefix("note: ") for line in stderr.splitlines() if line.startswith("note: ")]
        assert report["model"].get("notes", []) == told
        assert bool(told) == (format_ == "whole.pt")
        assert report["targets"] == ([twins.trigger.target] if expected else [])
        assert {p.name for p in out.iterdir()} >= {"report.json", "report.html", "report.sarif", "triggers"}
        sarif = json.loads((out / "report.sarif").read_text())
        assert sarif["version"] == "2.1.0"


def test_show_prints_a_saved_report_and_judges_it_again(
    shell: Shell, files: Path, tmp_path: Path, twins: Twins
) -> None:
    words = ["scan", files / "bad.pth", "--data", files / "digits.npz", "--arch", ARCH, "--out", tmp_path]
    assert shell(*words, "-d", "neural_cleanse")[0] == 1
    status, _, stderr = shell("show", tmp_path)
    assert status == 1
    assert f"sends every class to {twins.trigger.target}" in stderr
    assert shell("show", tmp_path, "--alpha", "0.000000001")[0] == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["scan", "nowhere.safetensors", "--data", "{f}/digits.npz"], "nowhere.safetensors"),
        (["scan", "{f}/bad.pth", "--data", "{f}/digits.npz"], "--arch"),
        (["scan", "{f}/bad.whole.pt", "--data", "{f}/digits.npz"], "--arch"),
        (["scan", "{f}/bad.pth", "--data", "{f}/digits.npz", "--arch", ARCH, "--weights", "ema"], "'ema'"),
        (["scan", "{f}/bad.pth", "--data", "{f}/digits.npz", "--arch", ARCH, "--layout", "CNHW"], "NHWC"),
        (["scan", "{f}/bad.pth", "--data", "{f}/digits.npz", "--arch", ARCH, "--input-range", "5"], "0-255"),
        (["scan", "{f}/bad.pth", "--data", "{f}/nowhere", "--arch", ARCH], "nowhere"),
        (["scan", "{f}/bad.pth", "--data", "{f}/digits.npz", "--arch", "no.such:thing"], "no"),
        (
            [
                "scan",
                "{f}/bad.pth",
                "--data",
                "{f}/digits.npz",
                "--arch",
                "backsweep.archs:mnist_cnn",
            ],
            "0.",
        ),
        (["scan", "{f}/bad.pth", "--data", "{f}/digits.npz", "--arch", ARCH, "-d", "nothing"], "no detector"),
        (["scan", "{f}/bad.pth", "--data", "{f}/digits.npz", "--arch", ARCH, "-p", "x=1"], "NAME.FIELD"),
        (["scan", "{f}/bad.pth", "--data", "{f}/digits.npz", "--arch", ARCH, "--shape", "big"], "big"),
        (["scan", "{f}/bad.pth", "--data", "{f}/digits.npz", "--arch", ARCH, "--alpha", "2"], "alpha"),
        (["scan", "{f}/bad.pt2", "--data", "{f}/rgb"], "grey"),
        (["show", "{f}"], "report.json"),
        (["zoo", "build", "{f}/digits.npz"], "plan"),
        (["bench", "table", "{f}/nowhere.jsonl"], "nowhere"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(
    shell: Shell, files: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    if not (files / "rgb").is_dir():
        for c in "01":
            (files / "rgb" / c).mkdir(parents=True)
            for i in range(15):
                Image.new("RGB", (8, 8), (200, 10 * i, 30)).save(files / "rgb" / c / f"{i}.png")
    out = ["--out", tmp_path / "out"] if words[0] == "scan" else []
    status, _, stderr = shell(*(w.format(f=files) for w in words), *out)
    assert status == 2, stderr
    assert stderr.count("\n") == 1
    assert stderr.startswith("error: ")
    assert says in stderr
    assert not (tmp_path / "out").exists(), "nothing half-written"


def test_wrong_usage_is_status_2(shell: Shell) -> None:
    assert shell("scan")[0] == 2
    assert shell("scan", "x", "--no-such-option")[0] == 2
    assert shell("nothing")[0] == 2


def test_an_output_folder_that_cannot_be_written(shell: Shell, files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    words = ["scan", files / "bad.pth", "--data", files / "digits.npz", "--arch", ARCH]
    status, _, stderr = shell(*words, "--out", tmp_path / "file")
    assert (status, stderr.count("\n")) == (2, 1)
    assert "choose another folder" in stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_internal_error_does_not_look_like_findings(
    shell: Shell, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr("backsweep.scanning.scan.open_both", broken)
    status, _, stderr = shell("scan", files / "bad.pth", "--data", files / "digits.npz", "--arch", ARCH)
    assert status == 3
    assert "please report" in stderr


def test_ctrl_c_keeps_what_is_done_and_a_second_run_resumes(
    shell: Shell, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["scan", files / "bad.pth", "--data", files / "digits.npz", "--arch", ARCH, "--out", out]
    slow = [*map(str, words), "-d", "neural_cleanse", "-p", "neural_cleanse.preset=paper"]
    slow += ["-p", "neural_cleanse.steps=8"]
    process = subprocess.Popen(
        [*BACKSWEEP, *slow], stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True
    )
    log = out / "evidence.jsonl"
    for _ in range(600):
        if log.is_file() and log.read_text().count("\n") >= 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "stopped" in stderr
    done = log.read_text().count("\n")
    assert 2 <= done < 10
    assert not (out / "report.json").exists()
    status, _, stderr = shell(*slow)
    assert status in (0, 1, 3), stderr
    assert log.read_text().count("\n") == 10
    assert json.loads((out / "report.json").read_text())["schema"] == 1


def test_list_names_every_method(shell: Shell) -> None:
    status, stdout, _ = shell("list")
    assert status == 0
    assert "neural_cleanse" in stdout
    assert "badnets" in stdout


def test_version(shell: Shell) -> None:
    assert shell("--version")[1].startswith("backsweep 0.")


def test_demo_tells_its_two_networks_apart(shell: Shell, tmp_path: Path) -> None:
    status, _, stderr = shell("demo", "--out", tmp_path / "demo")
    assert status == 0, stderr
    reports = {
        n: json.loads((tmp_path / "demo" / n / "report.json").read_text()) for n in ("clean", "backdoored")
    }
    assert {n: r["verdict"] for n, r in reports.items()} == {"clean": "clean", "backdoored": "backdoored"}
    assert (tmp_path / "demo" / "backdoored" / "report.html").is_file()
    record = json.loads((tmp_path / "demo" / "repair" / "repair.json").read_text())
    assert record["after"]["attack_success_rate"] < 0.2 < 0.9 < record["before"]["attack_success_rate"]
    assert (tmp_path / "demo" / "repaired.safetensors").is_file()


# ------------------------------------------------------------------ banks of shadow networks


def test_a_bank_from_the_shell(
    shell: Shell, files: Path, bank_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Build, show, tune, calibrate, and scans that use it, or say why they cannot."""
    path, quick = tmp_path / "digits.bank", ["--shadows", 32, "--epochs", 1, "--variant", "jumbo"]
    status, stdout, stderr = shell("bank", "build", path, "--task", "digits", *quick, "--arch", banks.ARCH)
    assert status == 0, stderr
    assert "300 samples of scikit-learn digits" in " ".join(stdout.split())
    assert "bank: " in stderr
    assert path.is_file()
    assert shell("bank", "show", bank_file)[1].count("clean shadows") == 3
    status, stdout, stderr = shell("bank", "tune", path, "--variant", "robust", "--arch", banks.ARCH)
    assert status == 0, stderr
    assert "robust" in stdout
    nets = banks.like_shadows(24)
    for k, net in enumerate(nets):
        save_file(net.net.state_dict(), tmp_path / f"{'bad' if k % 2 else 'good'}-{k}.safetensors")
    own = ["--arch", banks.ARCH, "--data", files / "digits.npz"]
    big = ["-d", "mntd", "--bank", bank_file]
    assert shell("scan", tmp_path / "bad-3.safetensors", *own, *big)[0] == 1
    assert shell("scan", tmp_path / "good-4.safetensors", *own, *big)[0] == 0
    words = ["-p", "mntd.two_sided=true"]
    status, _, stderr = shell("scan", tmp_path / "bad-3.safetensors", *own, *big, *words)
    assert status == 3
    assert "backsweep bank calibrate" in " ".join(stderr.split())
    vouched = sorted(map(str, tmp_path.glob("good-*.safetensors")))
    status, stdout, stderr = shell("bank", "calibrate", path, *vouched, "--arch", banks.ARCH)
    assert status == 0, stderr
    assert stdout.count("12 clean networks") == 2
    status, _, stderr = shell("scan", files / "bad.pth", "--arch", ARCH, "--data", files / "digits.npz", *big)
    assert status == 3
    assert "the model is another" in " ".join(stderr.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["build", "b", "--task", "digits", "--data", "x"], "give clean samples with --data, or"),
        (["build", "b", "--task", "digitz"], "unknown task 'digitz'"),
        (["build", "b", "--data", "{f}/digits.npz"], "name the kind of networks with --arch"),
        (["build", "b", "--task", "digits", "--shadows", "5"], "5 shadows a side are too few"),
        (["build", "b", "--task", "digits", "--arch", "nothing"], "there is no network 'nothing'"),
        (["show", "{f}/digits.npz"], "is not a bank of Backsweep"),
        (["show", "nothing.bank"], "make it with `backsweep bank build`"),
        (["tune", "{b}", "--variant", "jumble"], "allow it with --arch"),
        (["tune", "{b}", "--form", "loud"], "there is no form 'loud'"),
        (["calibrate", "{b}", "{f}/good.pth", "--arch", ARCH], "the bank is for networks of the kind"),
    ],
)
def test_what_a_bank_cannot_be_made_of_is_one_line(
    shell: Shell, files: Path, bank_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = bank_file.read_bytes()
    status, _, stderr = shell("bank", *(w.format(f=files, b=bank_file) for w in words))
    assert status == 2, stderr
    assert stderr.count("\n") == 1
    assert says in stderr
    assert not list(tmp_path.iterdir())
    assert bank_file.read_bytes() == before
