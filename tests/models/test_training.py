"""The optimiser is PyTorch's, update for update."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from backsweep.models.training import OneCycleAdamW


@pytest.mark.parametrize("updates", [2, 3, 7, 40])
def test_every_update_is_that_of_torch(updates: int) -> None:
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = torch.optim.AdamW(theirs.parameters(), 1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=updates)
    update = OneCycleAdamW(ours.parameters(), 1e-2, 1e-2, updates)
    generator = torch.Generator().manual_seed(updates)
    for k in range(updates):
        x = torch.randn((4, 5), generator=generator)
        for net in (ours, theirs):
            net(x).square().sum().backward()
        update.step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if k < updates - 1:
            schedule.step()
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert ours.weight.grad is None


def test_what_has_no_gradient_stays() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    update = OneCycleAdamW([unused, used], 0.1, 0.1, 4)
    used.sum().backward()
    update.step()
    assert bool((unused == 1).all()) and bool((used != 1).all())


def test_a_training_does_not_load_the_compiler() -> None:
    code = """
import sys, torch
from torch import nn
from backsweep.inputs.samples import Data
from backsweep.models.training import Recipe, fit
net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
fit(net, Data(torch.rand(8, 1, 4, 4), torch.arange(8) % 2), Recipe(epochs=2, batch_size=4), 0)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
