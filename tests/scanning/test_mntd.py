"""Meta Neural Analysis: triggers, shadows, meta-classifiers, banks, and what a scan with one says."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import backsweep
import banks
from backsweep.core.errors import BadInput
from backsweep.core.progress import Event
from backsweep.engine.engine import Engine
from backsweep.formats.building import named
from backsweep.inputs.image import random_triggers
from backsweep.inputs.samples import Data
from backsweep.models.grouped import Wide, nets_in_a_pass
from backsweep.models.model import Model
from backsweep.render.terminal.scan import show
from backsweep.reports.report import ERROR, NOTE, WARNING, Finding
from backsweep.scanning.detectors.mntd import LEAST_VOUCHED, MNTD
from backsweep.shadows import bank, meta_classifier, storage, training
from backsweep.shadows.bank import Bank, answers
from backsweep.zoo.attacks.evade_mntd import EvadeMNTD
from backsweep.zoo.attacks.jumbo import Jumbo
from backsweep.zoo.tasks import TASKS
from conftest import Twins

SHAPES = {"digits_cnn": (1, 8, 8), "mnist_cnn": (1, 28, 28), "gap_cnn": (3, 32, 32), "resnet8": (3, 32, 32)}


@pytest.fixture(scope="module")
def small_bank(bank_file: Path) -> Bank:
    return Bank.load(bank_file)


@pytest.fixture(scope="module")
def others() -> list[Model]:
    """Networks like the bank's shadows, clean and trojaned in turn."""
    return banks.like_shadows(24)


class Sharper(nn.Module):
    """The same network, ten times as sure."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.net(x)


class Soft(Sharper):
    """The same network, answering with probabilities that are the softmax of no layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.9 * self.net(x).softmax(1) + 0.01


def judged(model: Model, alpha: float = 0.05, **fields: Any) -> Finding:
    detector, data = MNTD(**fields), banks.clean_samples()
    evidence = detector.probe(model.copy(), data, detector.units(model, data), 0, lambda share: None)
    (finding,) = detector.judge(evidence, model.classes, alpha)
    return finding


# ------------------------------------------------------------------ networks side by side


@pytest.mark.parametrize("arch", SHAPES)
@pytest.mark.parametrize("training", [False, True])
def test_networks_side_by_side_answer_and_learn_as_alone(arch: str, training: bool) -> None:
    shape, generator = SHAPES[arch], torch.Generator().manual_seed(0)
    nets = [named(arch, 10, shape, seed).double() for seed in range(3)]
    wide = Wide.of([named(arch, 10, shape, seed) for seed in range(3)], shape)
    assert wide.grouped
    wide.double().train(training)
    x = torch.rand((5, 3 * shape[0], *shape[1:]), generator=generator, dtype=torch.float64)
    alone = torch.stack([n.train(training)(p) for n, p in zip(nets, x.chunk(3, 1), strict=True)], 1)
    together = wide(x)
    assert torch.allclose(together, alone, atol=1e-9)
    if training:
        together.square().sum().backward()
        alone.square().sum().backward()
        grads = {n: p.grad.reshape(3, -1) for n, p in wide.body.named_parameters() if p.grad is not None}
        assert len(grads) == len(list(nets[0].parameters()))
        for k, net in enumerate(nets):
            for name, p in net.named_parameters():
                assert p.grad is not None
                assert torch.allclose(grads[name][k], p.grad.flatten(), atol=1e-7), name
    for name, value in wide.states().items():
        for k, net in enumerate(nets):
            assert torch.allclose(value[k].double(), net.state_dict()[name].double(), atol=1e-9), name


def test_what_has_no_grouped_form_runs_one_after_another() -> None:
    shape = (3, 32, 32)
    nets = [named("small_vit", 10, shape, seed).eval() for seed in range(2)]
    wide = Wide.of(nets, shape).eval()
    assert not wide.grouped
    x = torch.rand((2, 6, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(wide(x)[:, 1], nets[1](x[:, 3:]))
    for name, value in wide.states().items():
        assert torch.equal(value[0], nets[0].state_dict()[name])


@pytest.mark.parametrize("arch", SHAPES)
def test_as_many_networks_share_a_pass_as_fit(arch: str) -> None:
    size = math.prod(SHAPES[arch]) * 100
    count = nets_in_a_pass(SHAPES[arch], 100)
    assert count == 1 or count * size <= 2**18
    assert nets_in_a_pass(SHAPES[arch], 100, "cuda") > count


# ------------------------------------------------------------------ triggers and shadows


@given(
    seed=st.integers(0, 2**20), kind=st.sampled_from(random_triggers.KINDS), channels=st.sampled_from([1, 3]),
    side=st.integers(4, 40), classes=st.integers(2, 50),
)  # fmt: skip
@settings(max_examples=60)
def test_a_trigger_lies_within_the_jumbo_distribution(
    seed: int, kind: str, channels: int, side: int, classes: int
) -> None:
    def draw() -> Any:
        return random_triggers.draw(
            (channels, side, side), classes, torch.Generator().manual_seed(seed), kind
        )

    trigger, again = draw(), draw()
    assert torch.equal(trigger.pattern, again.pattern)
    assert torch.equal(trigger.mask, again.mask)
    assert 0 <= trigger.target < classes
    assert float(trigger.pattern.min()) >= 0
    assert float(trigger.pattern.max()) <= 1
    (alpha,) = trigger.mask[trigger.mask > 0].unique().tolist()
    rows, columns = (int((trigger.mask[0] > 0).any(d).sum()) for d in (1, 0))
    assert rows == columns
    if rows == side:
        assert 0.05 <= alpha <= 0.2
        assert kind != random_triggers.PATCH
    else:
        assert rows in random_triggers.SIDES
        assert alpha == 1 or 0.2 <= alpha <= 0.5
        assert kind != random_triggers.BLENDED
    assert kind != random_triggers.PATCH or alpha == 1
    if channels == 1:
        assert set(trigger.pattern.unique().tolist()) <= {0.0, 1.0}


def test_groups_hold_every_shadow_once_and_both_kinds() -> None:
    parts = training.groups(101, (1, 28, 28), training.STANDARD, "cpu")
    assert [i for part in parts for i in part] == list(range(101))
    assert all({training.is_trojaned(i) for i in part} == {False, True} for part in parts[:-1])


def test_few_samples_get_as_many_updates() -> None:
    assert training.standard(1200) == training.STANDARD
    few = training.standard(300)
    assert few.epochs * 3 >= training.LEAST_UPDATES > (few.epochs - 1) * 3


def test_shadows_learn_their_task_and_half_of_them_their_triggers() -> None:
    group = training.train(
        banks.make, banks.clean_samples(), banks.DIGITS.classes, range(6), banks.RECIPE, seed=0
    )
    assert group.trojaned.tolist() == [False, True] * 3
    assert float(group.accuracy.min()) > 0.9
    assert group.success.isnan().tolist() == [True, False] * 3
    assert float(group.success[1::2].mean()) > 0.5
    other = training.train(banks.make, banks.clean_samples(), 10, range(6), banks.RECIPE, seed=1)
    assert not torch.equal(group.states["1.weight"], other.states["1.weight"])


# ------------------------------------------------------------------ meta-classifiers


def test_the_score_is_that_of_the_equation(small_bank: Bank, others: Sequence[Model]) -> None:
    m = small_bank.meta(meta_classifier.JUMBO)
    with torch.no_grad():
        every = []
        for r, (w1, b1, w2, b2) in enumerate(zip(*m.weights, strict=True)):
            representation = others[0].net(m.queries[r]).flatten()
            score = w2 @ torch.relu(w1 @ representation + b1) + b2
            every.append((score - m.scale[r, 0]) / m.scale[r, 1])
    found = m.scores(answers(others[0].copy(), m))
    assert found.shape == (1, 3)
    assert torch.allclose(found[0], torch.stack(every), atol=1e-4)
    assert float(m.score(answers(others[0].copy(), m))) == pytest.approx(float(found.mean()))


def test_the_robust_decision_is_drawn_and_the_queries_alone_are_tuned() -> None:
    data = banks.clean_samples()
    like = data.x.mean(0), data.x.std(0)
    nets = [m.net for m in banks.like_shadows(8)]
    group = [(Wide.of(nets, banks.DIGITS.shape).eval(), torch.tensor([False, True] * 4))]
    made = {
        variant: meta_classifier.tune(
            group, group, like, 10, variant, 3, meta_classifier.Tuning(epochs=3, repeats=1)
        )
        for variant in meta_classifier.VARIANTS
    }
    generator = torch.Generator().manual_seed(3)
    start = (like[0] + like[1] * torch.randn((10, 1, 8, 8), generator=generator)).clamp(0, 1)
    drawn = torch.randn((20, 100), generator=generator) / 10
    assert torch.equal(made["robust"].weights[0][0], drawn)
    assert not torch.equal(made["jumbo"].weights[0][0], drawn)
    for m in made.values():
        assert not torch.equal(m.queries[0], start)
        assert 0 <= float(m.queries.min()) < float(m.queries.max()) <= 1
        assert m.shadows == 4
        assert len(m.null) == len(m.held_out) == 4


def test_centred_answers_do_not_depend_on_what_softmax_takes_away(small_bank: Bank) -> None:
    m = replace(small_bank.meta(meta_classifier.JUMBO), form=meta_classifier.CENTRED)
    logits = 3 * torch.randn((3, meta_classifier.QUERIES, 2, 10), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(m.scores(logits), m.scores(logits.log_softmax(3)), atol=1e-3)
    plain = replace(m, form=meta_classifier.LOGITS)
    assert not torch.allclose(plain.scores(logits), plain.scores(logits.log_softmax(3)), atol=1e-1)


def test_distance_is_the_mean_deviation_to_either_side() -> None:
    clean = torch.tensor([[0.0, 10.0], [2.0, 30.0], [4.0, 50.0]])  # means 2, 30; deviations 2, 20
    found = meta_classifier.distance(torch.tensor([[2.0, 30.0], [6.0, -10.0]]), clean)
    assert found.tolist() == pytest.approx([0, 2])
    within = meta_classifier.distances_within(clean)
    assert float(within[0]) == pytest.approx(float(meta_classifier.distance(clean[:1], clean[1:])))


def test_the_spread_of_answers() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    logits[..., 0], logits[..., 1] = 5.0, 1.0
    assert meta_classifier.spread(logits).tolist() == [2.0]


# ------------------------------------------------------------------ the bank


def test_held_out_shadows_are_told_apart(small_bank: Bank) -> None:
    """By every variant but one-class, which sees clean shadows alone."""
    for variant in (meta_classifier.JUMBO, meta_classifier.ROBUST):
        m = small_bank.meta(variant)
        assert (m.null[:, None] < m.held_out[None]).float().mean() > 0.9, variant
    assert small_bank.about["shadows"] == banks.SHADOWS - small_bank.about["held_out"]
    assert small_bank.about["work"] > 0.5


def test_a_bank_is_saved_and_read(small_bank: Bank, tmp_path: Path) -> None:
    small_bank.save(tmp_path / "again")
    again = Bank.load(tmp_path / "again")
    assert again.about == small_bank.about
    for one, other in zip(small_bank.metas, again.metas, strict=True):
        assert (one.variant, one.form, one.shadows) == (other.variant, other.form, other.shadows)
        assert all(torch.equal(a, b) for a, b in zip(one.weights, other.weights, strict=True))
        for part in bank.TENSORS:
            assert torch.equal(getattr(one, part), getattr(other, part))
    assert again.digest == hashlib.sha256((tmp_path / "again").read_bytes()).hexdigest()


@given(data=st.data())
@settings(max_examples=60)
def test_a_damaged_bank_is_one_clear_line(
    bank_file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    whole = bytearray(bank_file.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    path.write_bytes(whole[:end])
    try:
        Bank.load(path).check()
    except BadInput as e:
        assert "\n" not in str(e)


@pytest.mark.parametrize("part", ["queries", "weight0", "scale", "null", "clean"])
@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "integers"])
def test_a_bank_whose_parts_do_not_fit_is_refused(
    bank_file: Path, tmp_path: Path, part: str, damage: str
) -> None:
    tensors, header = load_file(bank_file), _header(bank_file)
    name = f"0.{part}"
    value = tensors[name]
    tensors[name] = {
        "missing": value, "shape": value[..., None].contiguous(), "integers": value.int(),
        "nan": torch.full(value.shape if value.numel() else (3, *value.shape[1:]), math.nan),
    }[damage]  # fmt: skip
    if damage == "missing":
        del tensors[name]
    save_file(tensors, tmp_path / "bad", metadata={bank.HEADER: json.dumps(header)})
    with pytest.raises(BadInput, match="not a bank of Backsweep, or is damaged"):
        Bank.load(tmp_path / "bad")


def _header(path: Path) -> Any:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as f:
        return json.loads(f.metadata()[bank.HEADER])


def test_another_schema_and_another_file_are_refused(bank_file: Path, tmp_path: Path) -> None:
    save_file(load_file(bank_file), tmp_path / "new", metadata={bank.HEADER: json.dumps({"schema": 99})})
    with pytest.raises(BadInput, match="schema 99"):
        Bank.load(tmp_path / "new")
    save_file({"x": torch.zeros(1)}, tmp_path / "model")
    with pytest.raises(BadInput, match="not a bank"):
        Bank.load(tmp_path / "model")
    with pytest.raises(BadInput, match="bank build"):
        Bank.load(tmp_path / "nothing")


def test_what_was_trained_is_not_trained_again_and_the_bank_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "digits.bank"
    banks.build(first, 44, banks.QUICK)
    wanted = first.read_bytes()
    files = sorted(storage.folder_of(first).iterdir())
    assert len(files) > 1
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])  # as a kill leaves no file, but a full disk may
    seen: list[Event] = []
    trained: list[Sequence[int]] = []
    real = training.train

    def counted(*args: Any) -> Any:
        trained.append(args[3])
        return real(*args)

    monkeypatch.setattr(training, "train", counted)
    first.unlink()
    bank.build(
        banks.clean_samples(), [banks.ARCH], 44, first, recipe=banks.QUICK, variants=[meta_classifier.JUMBO],
        tuning=meta_classifier.Tuning(nets=8, repeats=3), on_event=seen.append,
    )  # fmt: skip
    assert len(trained) == 2
    assert first.read_bytes() == wanted
    assert seen[0].resumed == len(files) - 2
    # other settings: nothing old is taken, and nothing old is left
    banks.build(first, 32, replace(banks.QUICK, lr=1e-3))
    assert len(trained) > 2
    assert sum(storage.facts_of(f)["count"] for f in storage.folder_of(first).iterdir()) == 64


def test_processes_build_the_same_bank_to_the_bit(tmp_path: Path) -> None:
    digests = set()
    for i, engine in enumerate((None, Engine(workers=2))):
        banks.build(tmp_path / f"{i}.bank", 44, banks.QUICK, engine)
        digests.add(hashlib.sha256((tmp_path / f"{i}.bank").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_more_meta_classifiers_of_the_same_shadows(bank_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(bank_file.read_bytes())
    storage.folder_of(path).symlink_to(storage.folder_of(bank_file))
    made = Bank.load(path)
    with pytest.raises(BadInput, match="allow it with --arch banks:small"):
        bank.tuned(made, path, [meta_classifier.JUMBO], counts=[16])
    quick = meta_classifier.Tuning(epochs=1, repeats=1, form=meta_classifier.CENTRED)
    more = bank.tuned(made, path, [meta_classifier.JUMBO], counts=[16, 8], archs=[banks.ARCH], tuning=quick)
    assert len(more.metas) == len(made.metas) + 2
    assert more.meta(meta_classifier.JUMBO, meta_classifier.CENTRED).shadows == 16
    assert Bank.load(path).meta(meta_classifier.JUMBO, meta_classifier.CENTRED, 8).shadows == 8
    with pytest.raises(BadInput, match="has no meta-classifier"):
        more.meta(meta_classifier.JUMBO, meta_classifier.LOGITS, 8)
    for counts, variants in (
        ([7], [meta_classifier.JUMBO]),
        ([999], [meta_classifier.JUMBO]),
        ([8], ["jumble"]),
    ):
        with pytest.raises(BadInput):
            bank.tuned(made, path, variants, counts=counts, archs=[banks.ARCH])
    storage.folder_of(path).unlink()
    with pytest.raises(BadInput, match="run `backsweep bank build` again"):
        bank.tuned(made, path, [meta_classifier.JUMBO], archs=[banks.ARCH])


def test_too_few_shadows(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="too few"):
        banks.build(tmp_path / "b", 31, banks.QUICK)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ the detector


def test_trojaned_networks_are_found_and_clean_ones_pass(bank_file: Path, others: Sequence[Model]) -> None:
    levels = [judged(m, bank=str(bank_file)).level for m in others]
    assert levels[0::2].count(ERROR) <= 1
    assert levels[1::2].count(ERROR) >= 9
    assert set(levels) <= {ERROR, NOTE, WARNING}


def test_a_scan_from_the_outside(bank_file: Path, others: Sequence[Model]) -> None:
    detectors = [MNTD(bank=str(bank_file))]
    bad = backsweep.scan(others[3], banks.clean_samples(), detectors=detectors)
    assert (bad.verdict, bad.findings[0].code) == ("backdoored", "BSW106")
    good = backsweep.scan(others[4], banks.clean_samples(), detectors=detectors)
    assert good.verdict == "clean"
    for report, says in ((bad, "as trojaned shadow networks do"), (good, "as clean networks do")):
        screen = Console(file=io.StringIO(), width=300)
        show(report, screen)
        assert isinstance(screen.file, io.StringIO)
        text = screen.file.getvalue()
        assert f"Mntd: answers tuned queries {says}: " in text
        assert "of 24 clean shadow networks score as high" in text
        assert "classes that stand out" not in text
        assert "pictures below" not in text


def test_networks_that_answer_unlike_any_shadow_cannot_be_told(bank_file: Path, others: list[Model]) -> None:
    louder = Model(Sharper(others[0].net), (1, 8, 8), 10)
    finding = judged(louder, bank=str(bank_file))
    assert finding.level == WARNING
    assert finding.p_value is None
    assert "trained in another way" in finding.message


def test_answers_that_are_no_numbers_cannot_be_told(bank_file: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] / 0 - torch.inf

    finding = judged(Model(Broken(), (1, 8, 8), 10), bank=str(bank_file))
    assert (finding.level, finding.p_value) == (WARNING, None)
    assert "not finite" in finding.message


def test_an_alpha_that_the_bank_cannot_show_is_said(bank_file: Path, others: Sequence[Model]) -> None:
    finding = judged(others[3], 0.01, bank=str(bank_file))
    assert finding.level == WARNING
    assert "no p-value is below 0.04" in finding.message


@pytest.fixture(scope="module")
def calibrated(bank_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bank with 24 clean networks that are vouched for."""
    path = tmp_path_factory.mktemp("calibrated") / "digits.bank"
    vouched = banks.like_shadows(48, first=2000)[0::2]
    Bank.load(bank_file).calibrated(vouched).save(path)
    return path


def test_p_values_rest_on_networks_that_are_vouched_for(calibrated: Path, others: Sequence[Model]) -> None:
    found = [judged(m, bank=str(calibrated)) for m in others]
    assert all("24 clean networks" in str(f.details["null"]) for f in found)
    assert [f.level for f in found[0::2]].count(ERROR) <= 1
    assert [f.level for f in found[1::2]].count(ERROR) >= 9


@pytest.mark.parametrize("variant", [meta_classifier.JUMBO, meta_classifier.ROBUST])
def test_two_sided_finds_what_is_cleaner_than_clean(
    calibrated: Path, others: Sequence[Model], variant: str
) -> None:
    """Trained against the known decision: one-sided is blind to it, two-sided is not."""
    task = replace(banks.DIGITS, arch="digits_cnn")
    data = banks.clean_samples()
    attack = EvadeMNTD(bank=str(calibrated))
    evading = []
    for seed in range(4):
        setup = replace(task.setup(data, seed, banks.RECIPE), net=banks.make)
        net = banks.make(seed)
        attack.plant(net, setup)
        evading.append(Model(net.eval(), task.shape, task.classes))
    jumbo_alone = [judged(m, bank=str(calibrated)).level for m in evading]
    assert jumbo_alone.count(ERROR) == 0
    both = [judged(m, bank=str(calibrated), variant=variant, two_sided=True).level for m in evading]
    assert both.count(ERROR) >= 3
    clean = [judged(m, bank=str(calibrated), variant=variant, two_sided=True).level for m in others[0::2]]
    assert clean.count(ERROR) <= 1


def test_an_evader_that_aims_at_its_twin_has_its_twins_scores(calibrated: Path) -> None:
    data, known = banks.clean_samples(), Bank.load(calibrated).meta(meta_classifier.JUMBO)
    setup = replace(banks.DIGITS.setup(data, 0, banks.RECIPE), net=banks.make)
    off = {}
    for aim in ("clean", "twin"):
        net = banks.make(0)
        EvadeMNTD(bank=str(calibrated), aim=aim).plant(net, setup)
        scores = [
            known.scores(answers(Model(n.eval(), (1, 8, 8), 10).copy(), known)) for n in (net, setup.clean())
        ]
        off[aim] = float((scores[0] - scores[1]).abs().mean())
    assert off["twin"] < off["clean"] / 2


def test_evading_needs_a_bank() -> None:
    setup = banks.DIGITS.setup(banks.clean_samples(), 0, banks.QUICK)
    with pytest.raises(BadInput, match="set its option bank"):
        EvadeMNTD().plant(banks.make(0), setup)
    with pytest.raises(ValueError, match="aim 'x' is none of"):
        EvadeMNTD(aim="x")


def test_what_lies_outside_a_bank_is_skipped_with_the_reason(
    bank_file: Path, twins: Twins, others: Sequence[Model], small_bank: Bank
) -> None:
    data, detector = banks.clean_samples(), MNTD(bank=str(bank_file))
    assert detector.applies(others[0], data) == ""
    assert "no bank" in MNTD().applies(others[0], data)
    assert "networks of the kind banks:small" in detector.applies(twins.clean, data)
    colour = Model(named("gap_cnn", 10, (3, 8, 8), 0).eval(), (3, 8, 8), 10)
    assert "the model takes (3, 8, 8)" in detector.applies(colour, data)
    fewer = Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (1, 8, 8), 4)
    assert "has 4" in detector.applies(fewer, data)
    assert "standard deviations" in detector.applies(others[0], Data(1 - data.x, data.y))
    soft = Model(Soft(others[0].net), (1, 8, 8), 10).copy()
    assert "answers with probabilities" in detector.applies(soft, data)
    assert f"two_sided needs {LEAST_VOUCHED}" in replace(detector, two_sided=True).applies(others[0], data)
    report = backsweep.scan(twins.clean, twins.data, detectors=[detector])
    assert report.verdict != "clean"
    assert "networks of the kind" in str(report.skipped)


def test_what_a_scan_depends_on_is_the_content_of_the_bank(bank_file: Path, small_bank: Bank) -> None:
    assert MNTD(bank=str(bank_file)).depends_on() == {"bank": small_bank.digest}
    assert MNTD().depends_on() == {}


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="is none of jumbo"):
        MNTD(variant="jumble")
    with pytest.raises(ValueError, match="is none of logits"):
        MNTD(form="loud")
    with pytest.raises(ValueError, match="is none of any, patch, blended"):
        Jumbo(kind="stripes")


def test_other_networks_cannot_be_vouched_for(small_bank: Bank, twins: Twins) -> None:
    with pytest.raises(BadInput, match="networks of the kind"):
        small_bank.calibrated([twins.clean])


def test_the_attack_plants_what_its_name_says() -> None:
    task = TASKS["digits"]
    setup = task.setup(task.load()[0], 0)
    (patch,) = Jumbo(kind="patch").triggers(setup)
    poisoned, rows = Jumbo(kind="patch").poison(setup, [patch])
    assert 0.03 < len(rows) / len(poisoned) < 0.34
    assert set(poisoned.y[rows].tolist()) == {patch.target}
