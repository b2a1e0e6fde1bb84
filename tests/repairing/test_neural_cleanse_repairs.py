"""Neural Cleanse's mitigations: pruning, unlearning and the filter, on a trigger that is known."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import backsweep
from backsweep.core.discovery import discover, find
from backsweep.core.errors import BadInput
from backsweep.guarding.detector import SampleDetector, Scorer
from backsweep.guarding.detectors.activation_filter import ActivationFilter
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.models.architectures import resnet8
from backsweep.models.model import Model
from backsweep.repairing.method import Case, Repair
from backsweep.repairing.methods.neuron_pruning import NeuronPruning, activation_gap
from backsweep.repairing.methods.unlearning import Unlearning, stamped
from backsweep.scanning.detector import ModelDetector
from conftest import Twins

# One pixel of 8 x 8 is spread over half of the few neurons of so small a network: pruning can halve the
# success rate before it costs too much accuracy, unlearning ends it. One epoch of so few samples is short.
REPAIRS = [
    (NeuronPruning(), 0.5),
    (NeuronPruning("penultimate"), 0.5),
    (Unlearning(), 0.1),
    (Unlearning("paper", epochs=12), 0.1),
]
NAMES = [f"{r.name}-{next(iter(r.settings().values()))}" for r, _ in REPAIRS]


def case_of(model: Model, data: Data, triggers: Sequence[Trigger]) -> tuple[Case, Data]:
    """A case with half of the samples, a quarter of them held out, and what is left to judge on."""
    clean, rest = data.split(0)
    held_out, test = rest.split(1)
    return Case(model.copy("cpu"), clean, held_out, triggers, seed=3), test


def pixel(side: int, row: int, column: int, target: int | None, source: int | None = None) -> Patch:
    """A trigger that lights one pixel."""
    mask = torch.zeros(1, side, side)
    mask[0, row, column] = 1.0
    return Patch(target, source, mask, mask.clone())


def plain_net(head: Tensor) -> Model:
    """Four pixels are four penultimate neurons, a head reads them."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, len(head), bias=False)
    )
    net.load_state_dict({"1.weight": torch.eye(4), "3.weight": head})
    return Model(net, (1, 2, 2), len(head)).copy("cpu")


def dim(labels: Tensor) -> Data:
    """Samples of the plain network: pixel y is half lit, the others nearly dark."""
    x = torch.full((len(labels), 4), 0.1)
    x[torch.arange(len(labels)), labels] = 0.5
    return Data(x.reshape(-1, 1, 2, 2), labels)


# Classes 0 to 2 read their own pixel. The fourth one moves everything to class 0: a backdoor.
BACKDOORED = torch.tensor([[1.0, 0.0, 0.0, 5.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])


@pytest.mark.parametrize(("repair", "most"), REPAIRS, ids=NAMES)
def test_the_backdoor_goes_and_the_accuracy_stays(repair: Repair, most: float, twins: Twins) -> None:
    case, test = case_of(twins.infected, twins.data, [twins.trigger])
    before = {k: v.clone() for k, v in case.model.net.state_dict().items()}
    assert repair.applies(case) == ""
    repaired, again = repair.apply(case), repair.apply(case)
    assert case.model.success_rate(twins.trigger, test) > 0.9
    assert repaired.success_rate(twins.trigger, test) < most
    assert case.accuracy(repaired) > case.accuracy(case.model) - 0.05 - 1e-9
    for k, v in case.model.net.state_dict().items():
        assert torch.equal(v, before[k]), "the suspect is as it was"
        assert torch.equal(repaired.net.state_dict()[k], again.net.state_dict()[k]), "the same seed"
    assert not any(p.requires_grad for p in [*case.model.net.parameters(), *repaired.net.parameters()])
    assert not case.model.net.training


@pytest.mark.parametrize("repair", [r for r, _ in REPAIRS], ids=NAMES)
def test_a_false_alarm_costs_a_clean_network_little(repair: Repair, twins: Twins) -> None:
    """What a scan that is wrong would recover from the clean twin: a pixel that does next to nothing."""
    case, test = case_of(twins.clean, twins.data, [twins.trigger])
    after = repair.apply(case).accuracy(test.x, test.y)
    assert after > twins.clean.accuracy(test.x, test.y) - 0.07


@pytest.mark.parametrize("repair", [NeuronPruning(), Unlearning(), Unlearning("paper")])
def test_without_a_trigger_a_repair_says_so(repair: Repair, twins: Twins) -> None:
    case, _ = case_of(twins.clean, twins.data, [])
    assert "needs a recovered trigger" in repair.applies(case)
    source = replace(twins.trigger, source=3)
    nobody = replace(case, triggers=[source], clean=case.clean[case.clean.y != 3])
    assert "no clean sample is of a class that" in repair.applies(nobody)
    assert Unlearning(share=0.0).applies(case) == "", "plain fine-tuning needs none"


# ------------------------------------------------------------------ neuron pruning


def test_the_gap_is_what_the_trigger_adds_to_a_neuron() -> None:
    """Over the samples that the trigger acts on: pixel 3 goes from 0.1 to 1, the others stay."""
    data = dim(torch.tensor([0, 1, 2] * 10))
    repair, case = NeuronPruning("penultimate"), Case(plain_net(BACKDOORED), data, data, [pixel(2, 1, 1, 0)])
    site = repair.site(case.model)
    assert site is not None
    assert activation_gap(case, site).tolist() == pytest.approx([0, 0, 0, 0.9])


def test_only_as_many_neurons_are_silenced_as_the_trigger_needs() -> None:
    """The one that carries the backdoor, which is the first; the head does not read it any more."""
    data = dim(torch.tensor([0, 1, 2] * 10))
    case = Case(plain_net(BACKDOORED), data, data, [pixel(2, 1, 1, 0)])
    repaired = NeuronPruning("penultimate").apply(case)
    assert case.model.success_rate(case.triggers[0], data) == 1
    assert repaired.success_rate(case.triggers[0], data) == 0
    kept = BACKDOORED.clone()
    kept[:, 3] = 0
    assert torch.equal(repaired.net.state_dict()["3.weight"], kept)


def test_all_triggers_count_at_once() -> None:
    """Two backdoors with a neuron each; only both together make the network clean."""
    head = torch.tensor([[1.0, 0.0, 3.0, 0.0], [0.0, 1.0, 0.0, 3.0]])
    data = dim(torch.tensor([0, 1] * 10))
    triggers = [pixel(2, 1, 0, 0), pixel(2, 1, 1, 1)]
    case = Case(plain_net(head), data, data, triggers)
    repaired = NeuronPruning("penultimate").apply(case)
    assert [case.model.success_rate(t, data) for t in triggers] == [1, 1]
    assert [repaired.success_rate(t, data) for t in triggers] == [0, 0]
    assert repaired.net.state_dict()["3.weight"].abs().sum(0).tolist() == [1, 1, 0, 0]


def test_pruning_stops_where_it_would_cost_accuracy() -> None:
    """The trigger lights the pixel that class 0 is told by: its neuron is needed, and stays."""
    data = dim(torch.tensor([0, 1, 2] * 10))
    case = Case(plain_net(10 * torch.eye(4)[:3]), data, data, [pixel(2, 0, 0, 0)])
    assert case.model.success_rate(case.triggers[0], data) == 1
    assert torch.equal(
        NeuronPruning("penultimate").apply(case).net.state_dict()["3.weight"], 10 * torch.eye(4)[:3]
    )


def test_a_channel_of_the_last_convolution_is_all_its_places(twins: Twins) -> None:
    """32 maps of 4 x 4, flattened, enter the layer that follows; a silenced one is not read anywhere."""
    case, _ = case_of(twins.infected, twins.data, [twins.trigger])
    site = NeuronPruning().site(case.model)
    assert site is not None
    assert (site.weight, site.group) == ("6.weight", 16)
    weight = NeuronPruning().apply(case).net.state_dict()["6.weight"]
    deaf = (weight == 0).all(0).reshape(32, 16)
    assert 0 < int(deaf.all(1).sum()) < 32
    assert torch.equal(deaf.all(1), deaf.any(1))


def test_behind_global_pooling_both_layers_are_one() -> None:
    model = Model(resnet8(4), (3, 16, 16), 4).copy("cpu")
    conv, penultimate = NeuronPruning("conv").site(model), NeuronPruning("penultimate").site(model)
    assert conv == penultimate
    assert conv is not None
    assert (conv.weight, conv.group) == ("head.weight", 1)


def test_a_network_without_convolutions_is_told_what_to_do() -> None:
    data = dim(torch.tensor([0, 1, 2] * 10))
    case = Case(plain_net(BACKDOORED), data, data, [pixel(2, 1, 1, 0)])
    assert "layer=penultimate" in NeuronPruning("conv").applies(case)
    assert NeuronPruning("penultimate").applies(case) == ""


def test_an_exported_program_is_repaired_like_the_module(twins: Twins, tmp_path: Path) -> None:
    """It has no modules, and its weights have names."""
    case, test = case_of(twins.infected, twins.data, [twins.trigger])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own exporter
        batch = {0: torch.export.Dim("batch", min=1)}
        program = torch.export.export(case.model.net, (test.x[:2],), dynamic_shapes=(batch,))
        torch.export.save(program, tmp_path / "net.pt2")
    exported = replace(case, model=backsweep.load(str(tmp_path / "net.pt2")).copy("cpu"))
    for repair in (NeuronPruning(), NeuronPruning("penultimate"), Unlearning()):
        assert repair.applies(exported) == ""
        of_module, of_program = (repair.apply(c).predict(test.x) for c in (case, exported))
        assert float((of_module == of_program).double().mean()) > 0.98


# ------------------------------------------------------------------ unlearning


def stamps(triggers: Sequence[Trigger], y: Tensor, share: float = 0.2, seed: int = 0) -> Tensor:
    """Which pixels were lit in a dark batch, (N, pixels)."""
    x = torch.zeros(len(y), 1, 2, 2)
    out = stamped(x, y, triggers, 3, share, torch.Generator().manual_seed(seed))
    assert float(x.sum()) == 0, "the batch itself stays"
    return out.flatten(1)


def test_a_fifth_is_stamped_and_never_a_sample_of_the_target() -> None:
    y = torch.arange(300) % 3
    lit = stamps([pixel(2, 0, 0, 1)], y)[:, 0] > 0
    assert int(lit.sum()) == 60
    assert not bool((lit & (y == 1)).any())
    assert bool((lit & (y == 0)).any() and (lit & (y == 2)).any())


def test_a_fifth_of_small_batches_on_average() -> None:
    counts = [int(stamps([pixel(2, 0, 0, 1)], torch.arange(32) % 3, seed=s).sum()) for s in range(200)]
    assert set(counts) == {6, 7}
    assert sum(counts) / len(counts) == pytest.approx(6.4, abs=0.15)


def test_triggers_share_the_fifth_and_none_is_forgotten() -> None:
    y = torch.arange(300) % 3
    lit = stamps([pixel(2, 0, 0, 0), pixel(2, 0, 1, 1), pixel(2, 1, 0, 2)], y)
    assert lit.sum(0).tolist() == [20, 20, 20, 0]
    assert float(lit.sum(1).max()) == 1, "no sample carries two"
    many = [pixel(2, 0, k % 2, 0) if k < 2 else pixel(2, 1, k % 2, 0) for k in range(4)]
    seen = sum(stamps(many, torch.ones(5, dtype=torch.long), seed=s).sum(0) for s in range(40))
    assert bool((torch.as_tensor(seen) > 0).all()), "one stamp in a batch: the triggers take turns"


def test_a_source_specific_trigger_is_stamped_on_its_source_alone() -> None:
    y = torch.arange(300) % 3
    lit = stamps([pixel(2, 0, 0, 1, source=2)], y)[:, 0] > 0
    assert bool((y[lit] == 2).all())
    assert int(lit.sum()) == 60
    assert int(stamps([pixel(2, 0, 0, 1, source=2)], y, share=0.9).sum()) == 100, "no more than there are"


def test_a_trigger_without_a_target_acts_on_every_class() -> None:
    y = torch.arange(300) % 3
    assert bool(acted_on(pixel(2, 0, 0, None), y, 3).all())
    assert int(stamps([pixel(2, 0, 0, None)], y).sum()) == 60
    assert int(stamps([], y).sum()) == 0


def test_presets_are_one_epoch_or_enough_updates() -> None:
    assert Unlearning("paper").recipe(6000).epochs == 1
    assert Unlearning().recipe(480).epochs == 8  # of 15 updates
    assert Unlearning().recipe(6000).epochs == 1
    assert Unlearning("paper").recipe(6000).augment is None


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (NeuronPruning, {"layer": "head"}),
        (NeuronPruning, {"step": 0.0}),
        (Unlearning, {"preset": "fast"}),
        (Unlearning, {"share": 1.5}),
        (Unlearning, {"lr": 0.0}),
        (ActivationFilter, {"share": 0.0}),
    ],
)
def test_bad_settings_are_refused(cls: type, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        cls(**settings)


# ------------------------------------------------------------------ the filter


def test_the_filter_is_a_detector_of_samples() -> None:
    assert find(SampleDetector, "activation-filter") is ActivationFilter
    assert "activation_filter" not in discover(ModelDetector)


def test_the_filter_stops_triggered_inputs_and_lets_clean_ones_pass(twins: Twins) -> None:
    case, test = case_of(twins.infected, twins.data, [twins.trigger])
    scorer = ActivationFilter(share=0.2).fit(case.model, case.clean, case.triggers)
    limit = scorer.threshold(0.05)
    rows = acted_on(twins.trigger, test.y, case.model.classes)
    clean, triggered = scorer(test.x), scorer(twins.trigger(test.x[rows]))
    assert clean.shape == (len(test),)
    assert clean.device.type == "cpu"
    above = (triggered[:, None] > clean[None]).double().mean()
    assert float(above) > 0.9, "AUROC; one per cent of 64 neurons is a single one, with which it is 0.77"
    assert float((clean > limit).double().mean()) < 0.12
    assert torch.allclose(replace(scorer, batch=7)(test.x), clean, atol=1e-4)


def test_the_filter_scores_the_neurons_that_the_trigger_raises() -> None:
    """A profile of one neuron in four; the score is its activation in deviations of clean inputs."""
    y = torch.tensor([0, 1, 2] * 20)
    data = Data((dim(y).x + 0.05 * torch.rand((60, 1, 2, 2), generator=torch.Generator().manual_seed(0))), y)
    model = plain_net(BACKDOORED)
    scorer = ActivationFilter().fit(model, data, [pixel(2, 1, 1, 0)])
    x = torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.1], [0.0, 0.0, 0.0, 0.0]]).reshape(3, 1, 2, 2)
    lit, half, dark = scorer(x).tolist()
    assert lit > 20 > 5 > half > dark
    assert (lit - half) / (half - dark) == pytest.approx(9, rel=1e-3)
    assert len(scorer.clean) == 30, "the half that nothing was learned from"


def test_each_trigger_has_a_profile_of_its_own() -> None:
    y = torch.tensor([0, 1] * 20)
    data = Data(dim(y).x + 0.05 * torch.rand((40, 1, 2, 2), generator=torch.Generator().manual_seed(0)), y)
    head = torch.tensor([[1.0, 0.0, 3.0, 0.0], [0.0, 1.0, 0.0, 3.0]])
    triggers = [pixel(2, 1, 0, 0), pixel(2, 1, 1, 1)]
    scorer = ActivationFilter().fit(plain_net(head), data, triggers)
    limit = scorer.threshold(0.1)
    assert all(float(scorer(t(data.x)).min()) > limit for t in triggers)


def test_without_a_trigger_the_filter_says_so(twins: Twins) -> None:
    model = twins.clean.copy("cpu")
    assert "needs a recovered trigger" in ActivationFilter().applies(model, twins.data)
    with pytest.raises(BadInput, match="needs a recovered trigger"):
        ActivationFilter().fit(model, twins.data)


def test_the_threshold_is_passed_by_a_new_clean_input_as_seldom_as_wanted() -> None:
    """Among n clean scores and a new one every rank is equally likely."""
    scorer = Scorer(lambda x: x, torch.device("cpu"), torch.arange(99.0).flip(0))
    assert scorer.threshold(0.05) == 94.0  # 5 of the 100 ranks lie above the 95th
    assert scorer.threshold(1.0) == 0.0
    assert scorer.threshold(0.01) == 98.0
    assert scorer.threshold(0.001) == math.inf, "so few scores cannot promise that"
    assert scorer(torch.empty(0)).shape == (0,)
