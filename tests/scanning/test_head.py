"""Detectors that look at the head alone: what they compute, and both sides of a pair of twins."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import backsweep
from backsweep.models.model import Model
from backsweep.scanning.detectors.dfb_scanner import DfbScanner
from backsweep.scanning.detectors.htell import HTell
from backsweep.scanning.head import indicators, positive_sums, shares
from conftest import Twins


def test_indicators_of_a_head_that_is_known() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, -4.0]])
    found = indicators(weight, torch.tensor([0.0, 0.5, 1.0]))
    assert positive_sums(weight).tolist() == [1.0, 1.0, 3.0]
    assert found["mean"].tolist() == [0.5, 0.5, -0.5]
    assert found["norm"].tolist() == [1.0, 1.0, 5.0]
    assert found["largest"].tolist() == [1.0, 1.0, 3.0]
    assert found["opposed"].tolist() == pytest.approx([-0.6, 0.8, 0.2])
    assert found["bias"].tolist() == [0.0, 0.5, 1.0]


def test_shares_are_counted_over_all_vectors() -> None:
    weight, bias = torch.eye(2), torch.zeros(2)
    latents = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    assert shares(weight, bias, latents).tolist() == [0.75, 0.25]


@pytest.mark.parametrize(("name", "alpha"), [("htell", 0.05), ("dfb_scanner", 0.1)])
def test_the_infected_twin_is_found_and_the_clean_one_passes(name: str, alpha: float, twins: Twins) -> None:
    bad, good = (
        backsweep.scan(m, twins.data, name, alpha=alpha, device="cpu") for m in (twins.infected, twins.clean)
    )
    assert (bad.verdict, bad.findings[0].target) == ("backdoored", twins.trigger.target)
    assert good.verdict == "clean"
    assert (bad.findings[0].score or 0) > (good.findings[0].score or 0)


@pytest.mark.parametrize("detector", [DfbScanner(), HTell()])
def test_a_network_without_an_affine_head_is_skipped_with_the_reason(
    detector: DfbScanner | HTell, twins: Twins
) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -torch.cdist(x.flatten(1), self.last.weight)

    model = Model(Odd(), (1, 8, 8), 10)
    assert detector.applies(model.copy("cpu"), twins.data)
    assert not detector.applies(twins.clean.copy("cpu"), twins.data)


def test_features_below_zero_are_probed_with_normal_vectors(twins: Twins) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    model = Model(net, (1, 8, 8), 10).copy("cpu")
    generator = torch.Generator().manual_seed(0)
    assert float(HTell()._latents(model, generator).min()) < 0
    assert float(HTell()._latents(twins.clean.copy("cpu"), generator).min()) >= 0


def test_no_probes_are_no_setting() -> None:
    with pytest.raises(ValueError, match="probes"):
        HTell(probes=0)
