"""The zoo and the bench on digits, and the real data sets where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backsweep import __version__
from backsweep.bench import detectors
from backsweep.bench.records import read
from backsweep.core.discovery import make
from backsweep.core.errors import BadInput
from backsweep.render.boards import leaderboard
from backsweep.scanning import scan
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.detectors.mntd import MNTD
from backsweep.zoo import build
from backsweep.zoo.tasks import TASKS, data_folder

PLAN: dict[str, Any] = {
    "nets": [{"task": "digits", "attack": "badnets", "seeds": [0, 1], "options": {"size": 1, "margin": 0}}],
    "detectors": [
        {"name": "neural_cleanse"},
        {"name": "neural_cleanse", "settings": {"steps": 20}, "seeds": [1]},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of two infected digits nets and their twins."""
    folder = tmp_path_factory.mktemp("home") / "zoo"
    assert len(list(build.build(build.entries(PLAN), folder))) == 4
    return folder


def test_every_attacked_net_has_its_twin(folder: Path) -> None:
    nets = {n.id: n for n in build.nets(folder)}
    bad = [n for n in nets.values() if n.truth["attack"]]
    assert len(bad) == 2
    for net in bad:
        twin = nets[net.truth["twin"]]
        assert twin.truth["seed"] == net.truth["seed"]
        assert twin.truth["attack_success_rate"] is None
        assert net.truth["twin_accuracy"] == twin.truth["clean_accuracy"]
        assert build.failed_gate(net) == ""
        (trigger,) = net.triggers()
        assert net.model().success_rate(trigger, build.load_data("digits")[1]) > 0.9


def test_nothing_but_the_weights_tells_a_clean_net_from_an_attacked_one(folder: Path) -> None:
    """Same names, shapes, types and file size; the truth lies in other files."""
    kinds = set()
    for net in build.nets(folder):
        state = load_file(net.folder / "model.safetensors")
        layout = tuple((k, tuple(v.shape), str(v.dtype)) for k, v in sorted(state.items()))
        kinds.add((layout, (net.folder / "model.safetensors").stat().st_size))
    assert len(kinds) == 1


def test_a_build_that_was_killed_gives_the_same_nets(folder: Path, tmp_path: Path) -> None:
    entries = build.entries(PLAN)
    whole = {n.id: n.truth["sha256"] for n in build.nets(folder)}
    place = tmp_path / "zoo"
    first = build.build(entries, place)
    next(first)
    first.close()  # type: ignore[attr-defined]
    torn = place / entries[1].id
    torn.mkdir(exist_ok=True)
    (torn / "model.safetensors").write_bytes(b"half")
    (torn / "manifest.json").unlink(missing_ok=True)
    list(build.build(entries, place))
    assert {n.id: n.truth["sha256"] for n in build.nets(place)} == whole


def test_a_net_that_is_too_weak_does_not_pass_the_gate(folder: Path) -> None:
    net = next(n for n in build.nets(folder) if n.truth["attack"])
    weak = build.Net(net.folder, {**net.truth, "attack_success_rate": 0.5})
    dull = build.Net(net.folder, {**net.truth, "clean_accuracy": 0.5})
    assert "attack success rate" in build.failed_gate(weak)
    assert "clean accuracy" in build.failed_gate(dull)
    moved = [{**t, "twin_success_rate": 0.98} for t in net.truth["triggers"]]
    assert "moves the clean twin" in build.failed_gate(
        build.Net(net.folder, {**net.truth, "triggers": moved})
    )


def test_a_net_that_did_not_pass_the_gate_is_listed_and_not_scanned(folder: Path) -> None:
    net = next(n for n in build.nets(folder) if n.truth["attack"])
    weak = build.Net(net.folder, {**net.truth, "attack_success_rate": 0.5})
    line = detectors.run_cell(weak, make(ModelDetector, "neural_cleanse"))
    assert line["updates"] == 0
    text = leaderboard.table([line], build.split_of(line["seed"]))
    assert "below 90 %" in text
    assert "Not admitted" in text


def test_the_bench_runs_what_is_missing_and_makes_a_table(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    assert detectors.run(PLAN, folder, out) == 6
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:4]) + "\n" + lines[4][:50] + "\n")
    assert detectors.run(PLAN, folder, out) == 6
    found = read(out)
    assert len(found) == len({line["cell"] for line in found}) == 6
    for line in found:
        assert len(line["sha256"]) == len(line["data_sha256"]) == 64
        assert line["torch"] == torch.__version__
        if line["attack"] and line["settings"]["steps"] is None:
            assert [line["most_suspicious"]] == line["targets"]
        assert line["split"] == "choosing"
        assert line["options"] == ({"size": 1, "margin": 0} if line["attack"] else {})
        assert line["training"]["epochs"] == 20
        assert line["families"] == (["patch"] if line["attack"] else [])
        assert line["reason"] == ""
    text = leaderboard.table(found, "choosing")
    assert "2/2 (34%–100%)" in text  # noqa: RUF001
    assert "neural_cleanse steps=20" in text


def test_a_net_that_was_trained_again_is_measured_again(folder: Path, tmp_path: Path) -> None:
    entry = build.entries(PLAN)[0]
    net, detector = detectors.open_net(entry, folder), detectors.cells(PLAN)[0][1]
    again = build.Net(net.folder, {**net.truth, "sha256": "0" * 64})
    assert detectors.cell_key(net, detector) != detectors.cell_key(again, detector)
    truth = net.truth
    key = detectors.key_of(net.id, truth["sha256"], detector.name, detector.settings(), __version__)
    assert detectors.cell_key(net, detector) == key


def test_a_net_is_measured_again_when_a_file_of_the_detector_changes(folder: Path, bank_file: Path) -> None:
    net = detectors.open_net(build.entries(PLAN)[0], folder)
    detector = MNTD(bank=str(bank_file))
    key = detectors.cell_key(net, detector)
    line = detectors.run_cell(net, detector)
    assert line["files"] == detector.depends_on() != {}
    assert line["verdict"] == "inconclusive"
    assert "mntd: the bank is for networks of the kind" in line["reason"]
    settings, version = detector.settings(), __version__
    assert key == detectors.key_of(net.id, net.truth["sha256"], "mntd", settings, version, line["files"])
    assert key != detectors.key_of(
        net.id, net.truth["sha256"], "mntd", settings, version, {"bank": "another"}
    )


def test_published_lines_have_the_keys_that_the_bench_looks_for() -> None:
    lines = read(Path(__file__).parents[2] / "docs" / "results" / "neural-cleanse.jsonl")
    assert len(lines) == 35
    for x in lines:
        assert x["cell"] == detectors.key_of(
            x["net"], x["sha256"], x["detector"], x["settings"], x["backsweep"]
        )
        assert "target" not in x


def test_one_scan_that_fails_does_not_end_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, count = tmp_path / "lines.jsonl", 0

    def once(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == 1:
            raise BadInput("the model cannot be\nread")
        return scan.scan(*args, **kwargs)

    monkeypatch.setattr(detectors, "scan", once)
    plan = {"nets": PLAN["nets"], "detectors": [{"name": "neural_cleanse", "settings": {"steps": 5}}]}
    assert detectors.run(plan, folder, out) == 4
    lines = read(out)
    (failed,) = [x for x in lines if x["verdict"] == "error"]
    assert failed["reason"] == "neural_cleanse: the model cannot be read"
    assert failed["p_value"] is None
    assert detectors.run(plan, folder, out) == count == 4
    assert "the model cannot be read" in leaderboard.table(lines, "choosing")


def test_a_bench_without_its_networks_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="zoo build"):
        detectors.run(PLAN, tmp_path / "empty", tmp_path / "lines.jsonl")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nets = 3", "no \\[\\[nets\\]\\]"),
        ("[[nets]]\ntask = 'digits'\nattak = 'badnets'", "attak"),
        ("[[nets]]\ntask = 'nothing'", "digits, mnist"),
        ("[[nets]]\ntask = 'digits'\nattack = 'badnet'", "did you mean badnets"),
        ("[[nets]]\ntask = 'digits'\nattack = 'badnets'\noptions = { siz = 3 }", "has no setting"),
        ("[[nets", "cannot read the plan"),
    ],
)
def test_a_wrong_plan_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=says):
        build.entries(build.read_plan(path))


def test_published_plans_are_valid_and_their_seeds_disjoint() -> None:
    plans = Path(__file__).parents[2] / "plans"
    ids = {p.stem: {e.id for e in build.entries(build.read_plan(p))} for p in plans.glob("*.toml")}
    assert len(ids["neural-cleanse"]) == 30
    assert not ids["neural-cleanse"] & ids["choosing"]
    assert detectors.cells(build.read_plan(plans / "neural-cleanse.toml"))


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not data_folder().is_dir(), reason="the real data sets are not here (BACKSWEEP_DATA)")
@pytest.mark.parametrize("task", ["mnist", "gtsrb", "cifar10"])
def test_real_data_is_read_whole(task: str) -> None:
    train, test = TASKS[task].load()
    assert tuple(train.x.shape[1:]) == TASKS[task].shape
    assert int(train.y.max()) + 1 == int(test.y.max()) + 1 == TASKS[task].classes
    assert len(test) >= 10_000


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not data_folder().is_dir(), reason="the real data sets are not here (BACKSWEEP_DATA)")
def test_mnist_twins_are_told_apart(tmp_path: Path) -> None:
    """The whole way on real data: build twins, scan both, compare with the truth."""
    recipe = {"epochs": 1}
    plan = {"nets": [{"task": "mnist", "attack": "badnets", "seeds": [100], "recipe": recipe}]}
    list(build.build(build.entries(plan), tmp_path / "zoo"))
    detectors.run(plan, tmp_path / "zoo", tmp_path / "lines.jsonl")
    by = {line["attack"]: line for line in read(tmp_path / "lines.jsonl")}
    assert by["badnets"]["verdict"] == "backdoored"
    assert by["badnets"]["suspected"] == by["badnets"]["targets"]
    assert by["badnets"]["inside"] > 0.5
    assert by[None]["verdict"] == "clean"
    assert json.loads((tmp_path / "zoo" / by[None]["net"] / "manifest.json").read_text())["attack"] is None


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not data_folder().is_dir(), reason="the real data sets are not here (BACKSWEEP_DATA)")
def test_a_natural_outlier_is_not_called_a_backdoor(tmp_path: Path) -> None:
    """A clean net with BatchNorm and global average pooling has an unusually small trigger by nature."""
    recipe = {"epochs": 1}
    nets = [{"task": "mnist", "arch": "gap_cnn", "seeds": [100], "recipe": recipe}]
    list(build.build(build.entries({"nets": nets}), tmp_path / "zoo"))
    detectors.run({"nets": nets}, tmp_path / "zoo", tmp_path / "lines.jsonl")
    (line,) = read(tmp_path / "lines.jsonl")
    assert line["clean_accuracy"] > 0.9
    assert line["verdict"] in ("clean", "inconclusive")
