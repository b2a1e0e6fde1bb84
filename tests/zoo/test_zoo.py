"""The zoo as a user meets it: plans, a build that is killed, what a file gives away, pictures."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from backsweep.cli import app
from backsweep.core.errors import BadInput
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.render.terminal import twin
from backsweep.zoo import build
from backsweep.zoo.attacks.wanet import WaNet
from backsweep.zoo.tasks import TASKS

PLANS = Path(__file__).parents[2] / "plans"
PLAN = """
[[nets]]
task = "digits"
arch = "gap_cnn"
attack = "{}"
seeds = [0, 1, 2, 3]
recipe = {{ epochs = [1, 2], lr = [0.002, 0.001] }}
"""
ATTACKS = ("badnets", "blended", "wanet")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three attacks on a net with BatchNorm, four seeds, trained in two ways."""
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    path.write_text("".join(PLAN.format(attack) for attack in ATTACKS))
    return path


@pytest.fixture(scope="module")
def folder(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo of that plan."""
    folder = tmp_path_factory.mktemp("zoo")
    assert len(list(build.build(build.entries(build.read_plan(plan)), folder))) == 16
    return folder


def metadata(net: build.Net) -> list[float]:
    """What a network file shows besides the values of its weights."""
    path = net.folder / "model.safetensors"
    with safe_open(str(path), framework="pt") as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    counts = [float(t.sum()) for t in tensors.values() if not t.is_floating_point()]
    header = path.read_bytes()[: 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    size = [float(path.stat().st_size), float(len(header)), float(sum(header))]
    return [*size, float(len(tensors)), float(sum(t.numel() for t in tensors.values())), *counts]


def test_metadata_tell_no_attacked_net_from_a_clean_one(folder: Path) -> None:
    """A trivial classifier on file layout, sizes and integer buffers is at chance, twin by twin."""
    nets = build.nets(folder)
    features, attacked = np.array([metadata(n) for n in nets]), [n.truth["attack"] is not None for n in nets]
    assert len(np.unique(features, axis=0)) > 1, "the two recipes differ in their number of updates"
    by = {n.id: metadata(n) for n in nets}
    assert all(by[n.id] == by[n.truth["twin"]] for n in nets)
    training = [[n.truth["training"]["epochs"], n.truth["training"]["lr"]] for n in nets]
    given = np.hstack([features, training])
    score = cross_val_predict(
        DecisionTreeClassifier(random_state=0), given, attacked, cv=4, method="predict_proba"
    )
    assert abs(roc_auc_score(attacked, score[:, 1]) - 0.5) < 0.2


def test_a_list_in_a_plan_is_dealt_out_to_the_seeds(plan: Path) -> None:
    found = [e for e in build.entries(build.read_plan(plan)) if e.attack == "badnets"]
    by = {e.seed: e.recipe for e in found}
    assert by[0] == by[2] == {"epochs": 1, "lr": 0.002}
    assert by[1] == by[3] == {"epochs": 2, "lr": 0.001}


def test_every_plan_has_as_many_clean_nets_and_no_net_on_both_sides() -> None:
    seeds: dict[str, set[int]] = {split: set() for split in build.SPLITS}
    for path in PLANS.glob("*.toml"):
        plan = build.entries(build.read_plan(path))
        for entry in plan:
            seeds[build.split_of(entry.seed)].add(entry.seed)
        splits = {build.split_of(e.seed) for e in plan}
        kind = path.stem.rpartition("-")[2]
        assert splits == ({kind} if kind in ("choosing", "calibration") else {build.JUDGING})
    assert not seeds["judging"] & (seeds["choosing"] | seeds["calibration"])
    assert not seeds["choosing"] & seeds["calibration"]
    null = build.entries(build.read_plan(PLANS / "calibration.toml"))
    assert all(e.attack is None for e in null), "null tables are of clean networks"
    for task in ("mnist", "gtsrb", "cifar10"):
        plan = build.entries(build.read_plan(PLANS / f"standard-{task}.toml"))
        assert sum(e.attack is None for e in plan) >= sum(e.attack is not None for e in plan)
        assert all(e.twin in plan for e in plan)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL to a process group")
def test_a_build_killed_from_the_shell_goes_on_and_gives_the_same_nets(
    plan: Path, folder: Path, tmp_path: Path
) -> None:
    words = [
        sys.executable,
        "-m",
        "backsweep",
        "zoo",
        "build",
        str(plan),
        "--zoo",
        str(tmp_path),
        "--workers",
        "2",
    ]
    first = subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("*/manifest.json"))) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert 3 <= len(build.nets(tmp_path)) < 16
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "16 networks" in " ".join(again.stderr.split())
    digests = {n.id: n.truth["sha256"] for n in build.nets(tmp_path)}
    assert digests == {n.id: n.truth["sha256"] for n in build.nets(folder)}


def test_show_draws_the_triggers_and_prints_the_figures(folder: Path) -> None:
    _, test = build.load_data("digits")
    for net in build.nets(folder):
        console = Console(width=100, record=True, file=io.StringIO())
        twin.show(net, test, console)
        text = console.export_text()
        assert net.truth["sha256"] in text
        assert f"{net.truth['clean_accuracy']:.1%}" in text
        assert ("attack success rate" in text) == bool(net.truth["attack"])
    net = next(n for n in build.nets(folder) if n.truth["attack"] == "wanet")
    page = np.asarray(twin.sheet(net, test))
    side, gap = 8 * twin.SCALE, twin.GAP
    clean, stamped = (page[gap : gap + side, gap + c * (side + gap) :][:, :side] for c in (0, 1))
    assert not np.array_equal(clean, stamped)


def test_show_from_the_shell(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = next(n for n in build.nets(folder) if n.truth["attack"])
    words = ["backsweep", "zoo", "show", net.id, "--zoo", str(folder), "--out", str(tmp_path / "a" / "x.png")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 0
    with Image.open(tmp_path / "a" / "x.png") as picture:
        assert picture.size[0] > 100
    assert not list(tmp_path.rglob("*.partial"))


def test_list_writes_digests_and_figures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "build.jsonl"
    monkeypatch.setattr(sys, "argv", ["backsweep", "zoo", "list", "--zoo", str(folder), "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [net.id for net in build.nets(folder)]
    for line, net in zip(lines, build.nets(folder), strict=True):
        assert line["sha256"] == hashlib.sha256((net.folder / "model.safetensors").read_bytes()).hexdigest()
        assert len(line["attack_success_rates"]) == (line["attack"] is not None)


def test_wrong_names_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean digits-gap_cnn-badnets"):
        build.find("digits-gap_cnn-badnet-s0", folder)
    with pytest.raises(BadInput, match="unknown key 'epoch'"):
        build.entries({"nets": [{"task": "digits", "recipe": {"epoch": 3}}]})


def test_a_manifest_holds_the_whole_truth(folder: Path) -> None:
    for net in build.nets(folder):
        truth = json.loads((net.folder / "manifest.json").read_text())
        assert (truth["twin_accuracy"] is None) == (truth["attack"] is None) == (not truth["triggers"])
        for entry, trigger in zip(truth["triggers"], net.triggers(), strict=True):
            assert (entry["family"], entry["target"]) == (trigger.family, trigger.target)
            assert 0 <= entry["twin_success_rate"] <= 1
        if truth["attack"]:
            lowest = min(t["attack_success_rate"] for t in truth["triggers"])
            assert truth["attack_success_rate"] == lowest


def same_digits(a: Tensor, b: Tensor) -> Tensor:
    """Which samples are equal, (N,)."""
    return (a == b).flatten(1).all(1)


def test_the_poisoned_set_of_a_network_is_what_it_learned(folder: Path, tmp_path: Path) -> None:
    """Trained on it again, a network comes out with the same weights: badnets, and a WaNet that poisons."""
    poisons = build.Entry("digits", "wanet", 3, {"poisons": True}, {"epochs": 1}, "gap_cnn")
    badnets = next(n for n in build.nets(folder) if n.truth["attack"] == "badnets")
    nets = [badnets, build.build_net(poisons, tmp_path)]
    train, _ = build.load_data("digits")
    for net in nets:
        entry = build.entry_of(net)
        assert entry.id == net.id
        data, rows = build.poisoned(net)
        recipe = replace(net.task.recipe, **entry.recipe)
        again = Model(fit(net.task.net(entry.seed, entry.arch), data, recipe, entry.seed), net.task.shape)
        assert again.digest == net.model().digest
        (trigger,) = net.triggers()
        bad = torch.zeros(len(data), dtype=torch.bool)
        bad[rows] = True
        assert len(data) == len(train)
        assert int(bad.sum()) == len(rows) > 0
        assert bool((data.y[bad] == trigger.target).all())
        assert bool((train.y[bad] != trigger.target).all())
        assert torch.equal(data.y[~bad], train.y[~bad])
        assert torch.allclose(data.x[bad], trigger(train.x[bad]))


def test_noise_of_a_wanet_that_poisons_keeps_its_labels() -> None:
    """10 % warped and relabelled, 20 % warped otherwise with their own labels, the others as they were."""
    train, _ = build.load_data("digits")
    attack, setup = WaNet(poisons=True), TASKS["digits"].setup(train, 0)
    (trigger,) = attack.triggers(setup)
    data, rows = attack.poison(setup, [trigger])
    assert len(rows) == 120
    bad = torch.zeros(len(train), dtype=torch.bool)
    bad[rows] = True
    changed = ~same_digits(data.x, train.x)
    assert bool(changed[bad].all())
    noisy = changed & ~bad
    assert int(noisy.sum()) == 240
    assert torch.equal(data.y[~bad], train.y[~bad])
    assert not same_digits(data.x[noisy], trigger(train.x[noisy])).any(), "another warp than the trigger's"
    none, rows = WaNet(poisons=True, noise_ratio=0).poison(setup, [trigger])
    assert int((~same_digits(none.x, train.x)).sum()) == len(rows) == 120


def test_a_clean_network_has_no_poisoned_samples_and_some_attacks_no_poisoned_set(folder: Path) -> None:
    train, _ = build.load_data("digits")
    clean = next(n for n in build.nets(folder) if n.truth["attack"] is None)
    data, rows = build.poisoned(clean)
    assert torch.equal(data.x, train.x)
    assert (len(rows), rows.dtype) == (0, torch.long)
    controlled = next(n for n in build.nets(folder) if n.truth["attack"] == "wanet")
    with pytest.raises(BadInput, match="wanet controls the training") as error:
        build.poisoned(controlled)
    assert "\n" not in str(error.value)
