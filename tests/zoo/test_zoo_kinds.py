"""Many kinds of networks: derived and rendered tasks, few samples, a start from another task, plans."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.models import architectures
from backsweep.zoo import build, tasks
from backsweep.zoo.build import Entry
from backsweep.zoo.samples import characters

PLANS = Path(__file__).parents[2] / "plans"
SMALL = Data(torch.rand(60, 1, 8, 8), torch.arange(60) % 6, source="small")


def test_a_kind_stands_for_its_attacks_with_a_seed_and_a_clean_twin_each() -> None:
    few = [{"attack": "badnets"}, {"attack": "blended", "options": {"rate": 0.2}}]
    kind = {"task": "digits", "arch": "mlp", "attacks": "few", "seed": 40, "samples": 300}
    found = build.entries({"nets": build.kinds({"attacks": {"few": few}, "kinds": [kind]})})
    assert [(e.attack, e.seed) for e in found] == [(None, 40), (None, 41), ("badnets", 40), ("blended", 41)]
    assert all(e.arch == "mlp" and e.samples == 300 for e in found)
    assert len({e.id for e in found}) == 4
    with pytest.raises(BadInput, match="unknown list of attacks 'many'; there are few"):
        build.kinds({"attacks": {"few": few}, "kinds": [{**kind, "attacks": "many"}]})


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("start", "nowhere", "unknown task 'nowhere'"), ("samples", 0, "samples = 0 is no number")],
)
def test_a_plan_that_cannot_be_is_refused(key: str, value: object, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        build.entries({"nets": [{"task": "digits", key: value}]})


def test_the_plan_of_kinds_has_at_least_twenty_with_eight_attacks_of_six_families() -> None:
    plan = build.entries(build.read_plan(PLANS / "kinds.toml"))
    by_kind: dict[tuple[object, ...], list[Entry]] = {}
    for e in plan:
        if e.attack is not None:
            by_kind.setdefault((e.task, e.arch, e.start), []).append(e)
    assert len(by_kind) >= 20
    for attacked in by_kind.values():
        assert len(attacked) == 8
        assert len({e.twin.id for e in attacked}) == 8
        assert len({e.attack for e in attacked}) >= 6
    assert len([k for k in by_kind if tasks.TASKS[str(k[0])].classes == 2]) >= 4


def test_classes_are_grouped_and_others_left_out() -> None:
    train, test = tasks._grouped(lambda: (SMALL, SMALL), (0, 2), (5,))
    assert train.y.tolist() == [{0: 0, 2: 0, 5: 1}[k] for k in SMALL.y.tolist() if k in (0, 2, 5)]
    assert torch.equal(test.x, SMALL.x[(SMALL.y == 0) | (SMALL.y == 2) | (SMALL.y == 5)])


def test_few_samples_are_the_same_for_all_networks_and_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_data", lambda task: (SMALL, SMALL))
    first, second = (build.training_data(Entry("digits", None, s, samples=12)) for s in (1, 2))
    assert torch.equal(first.x, second.x)
    assert first.y.bincount().tolist() == [2] * 6
    assert build.training_data(Entry("digits", None, 1)) is SMALL


def test_a_network_is_fine_tuned_from_the_clean_one_of_another_task(tmp_path: Path) -> None:
    entry = Entry("digits", None, 30, {}, {"epochs": 1}, "gap_cnn", 200, "digits")
    assert entry.before is not None
    assert (entry.before.start, entry.before.seed) == (None, build.JUDGING_SEEDS)
    net = build.fresh_net(entry, tmp_path, 5).state_dict()
    start = load_file(tmp_path / entry.before.id / "model.safetensors")
    assert all(torch.equal(v, start[k]) for k, v in net.items())
    made = build.build_net(entry, tmp_path)
    assert made.truth["start"] == "digits"
    assert build.entry_of(made) == entry


def test_a_head_of_another_size_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = tasks.Task(lambda: (SMALL, SMALL), (1, 8, 8), 6, "gap_cnn", tasks.TASKS["digits"].recipe)
    monkeypatch.setitem(tasks.TASKS, "six", few)
    entry = Entry("digits", None, 1, {}, {"epochs": 1}, "gap_cnn", None, "six")
    monkeypatch.setattr(build, "load_data", lambda task: tasks.TASKS[task].load())
    net = build.fresh_net(entry, tmp_path, 1).state_dict()
    assert entry.before is not None
    start = load_file(tmp_path / entry.before.id / "model.safetensors")
    differs = {k for k, v in net.items() if v.shape != start[k].shape}
    assert {k.rpartition(".")[0] for k in differs} == {k.rpartition(".")[0] for k in list(net)[-1:]}
    assert all(torch.equal(net[k], start[k]) for k in net if k not in differs)


@pytest.mark.parametrize(
    "name", ["mlp", "mixer", "small_convnext", "preact_resnet8", "strided_resnet"]
)  # fmt: skip
def test_networks_take_images_of_their_tasks(name: str) -> None:
    for channels, size in ((1, 28), (3, 32)):
        net = getattr(architectures, name)(7, channels, size).eval()
        with torch.no_grad():
            assert net(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_characters_are_rendered_the_same_again_and_differ_among_themselves() -> None:
    pytest.importorskip("matplotlib_fontja")
    first, again = (characters.rendered(4, 6, "train") for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert first.names == tuple("亜唖娃阿")
    assert tuple(first.x.shape) == (24, 1, 32, 32)
    assert first.y.bincount().tolist() == [6] * 4
    means = torch.stack([first.x[first.y == t].float().mean(0) for t in range(4)])
    own = torch.stack([(first.x[first.y == t].float() - means[t]).pow(2).mean() for t in range(4)]).mean()
    between = (means[0] - means[1]).pow(2).mean()
    assert 0.05 < float(first.x.float().mean()) < 0.5
    assert between > 0.1 * own > 0
    assert not torch.equal(first.x, characters.rendered(4, 6, "test").x)


def test_there_are_so_many_characters_and_no_more() -> None:
    assert len(set(characters.kanji(characters.LEVEL_ONE))) == characters.LEVEL_ONE
    with pytest.raises(BadInput, match="there are 1 to 2965"):
        characters.kanji(3000)


def test_without_its_font_the_task_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'backsweep\[characters\]'"):
        characters.font_file()
