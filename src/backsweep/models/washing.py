"""A reference: a network like the suspect, without what was planted in it.

How small a trigger a class needs hangs on the class: in clean networks of one kind the same classes
are easy, whatever the start weights. So a class is compared with itself in a reference. A user may
give one; else the suspect is *washed*: the later half of its weights is drawn anew and learns the
suspect's own answers on the clean samples again. A backdoor, which the clean samples never show, is
not learned again; what is natural to the classes is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, thawed, tuned

# Updates, samples in each, learning rate: gently, and harder where that was not enough (decision 0007).
RECIPES = ((150, 128, 3e-3), (300, 64, 1e-2))
ENOUGH = 0.9  # of the suspect's accuracy
MIX = 0.5  # samples are mixed with others, with a weight of up to this


def reference_of(model: Model, data: Data, seed: int) -> Model:
    """The reference that the user gave with the model, else a washed copy; kept with the working copy."""
    if model.reference is None:
        model.reference = washed(model, data, seed)
    return model.reference


def washed(model: Model, data: Data, seed: int, recipes: Sequence[tuple[int, int, float]] = RECIPES) -> Model:
    """A copy of `model` whose later half was drawn anew and distilled from it on clean samples.

    Args:
        model: a frozen working copy.
        data: clean samples; the suspect's answers are learned, the labels only tell when it is enough.
        seed: of the new weights, the order and the mixing of the samples.
        recipes: tried in turn, each from the start, until the copy is nearly as accurate as the suspect.
    """
    enough = ENOUGH * model.accuracy(data.x, data.y)
    for updates, batch, rate in recipes:
        twin = _distilled(model, data, seed, updates, batch, rate)
        if twin.accuracy(data.x, data.y) >= enough:
            break
    return twin


def _distilled(model: Model, data: Data, seed: int, updates: int, batch: int, rate: float) -> Model:
    twin = thawed(model)
    generator = torch.Generator().manual_seed(derive_seed(seed, "wash"))
    redraw(twin.net, generator)
    epochs = epochs_of(updates, len(data), batch)
    recipe = Recipe(epochs=epochs, lr=rate, batch_size=batch, augment="shift")

    def distil(twin: Model, x: Tensor, _y: Tensor) -> Tensor:
        """Cross-entropy of mixed samples with mixed answers; the suspect is asked about clean ones alone."""
        share = MIX * float(torch.rand((), generator=generator))
        other = torch.randperm(len(x), generator=generator).to(x.device)
        with torch.no_grad():
            answers = model.logits(x).float().softmax(1)
        x, answers = (torch.lerp(v, v[other], share) for v in (x, answers))
        return -(answers * twin.logits(x).float().log_softmax(1)).sum(1).mean()

    return tuned(twin, data, recipe, derive_seed(seed, "wash", "order"), distil)


@torch.no_grad()
def redraw(net: nn.Module, generator: torch.Generator, kept: float = 0.5) -> None:
    """Draw a network's weights anew, but for the first ones, a share of `kept`, in their registered order.

    Kernels and matrices get He's variance, the scales of normalisations 1, biases 0, running
    statistics 0 and 1.
    """
    weights = [name for name, p in net.named_parameters() if p.ndim >= 2]
    late = False
    for name, p in net.named_parameters():
        late = late or name == weights[int(kept * len(weights))]
        if late and p.ndim >= 2:
            std = math.sqrt(2 / math.prod(p.shape[1:]))
            p.copy_(std * torch.randn(p.shape, generator=generator))
        elif late:
            p.fill_(1.0 if name.endswith("weight") else 0.0)
    first = weights[int(kept * len(weights))].rpartition(".")[0]
    late = False
    for name, module in net.named_modules():
        late = late or name == first
        if late and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
