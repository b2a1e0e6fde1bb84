"""References: networks like the suspect, without what was planted in it.

How small a trigger a class needs hangs on the class: in clean networks of one kind the same classes
are easy, whatever the start weights. So a class is compared with itself in references. A user may
give one; else the suspect is *washed*: the later half of its weights is drawn anew and learns the
suspect's own answers on the clean samples again. A backdoor, which the clean samples never show, is
not learned again; what is natural to the classes is. A *pupil* learns them with all of its weights
drawn anew: what was planted in the earlier half, which a washed copy keeps, is gone from it too, and
it shows what the task alone makes easy.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.prefix import BATCH_VALUES, Prefix, Unkept
from backsweep.models.training import Recipe, descend, epochs_of, thawed, tuned

# Updates, samples in each, learning rate: gently, and harder where that was not enough (decision 0007).
RECIPES = ((150, 128, 3e-3), (300, 64, 1e-2))
MOST_UPDATES = 150 * 128  # inputs of the first of them
PUPIL = (300, 64, 5e-3)  # decision 0024
ENOUGH, LEARNED = 0.9, 0.8  # of the suspect's accuracy, for a washed copy and for a pupil
GIVEN = "reference"  # the name of a reference that the user gave; without one it is the first washed copy
_locks: dict[str, threading.Lock] = {}  # one of a name is made at a time, whoever asks first

VIEWS = 4  # of every sample, of which one is untouched
MOST_BYTES = 2**29  # of kept activations
KEPT = 0.5  # of the kernels and matrices, in a washed copy
MIX = 0.5  # samples are mixed with others, with a weight of up to this


def reference_of(
    model: Model, data: Data, seed: int, kept: bool = True, name: str = GIVEN, turn: int = 0
) -> Model:
    """The reference of that name that the user gave with the model, else a washed copy; made once.

    Args:
        model: a working copy, which keeps it.
        seed, turn: of its weights; another turn is another copy.
        kept: as for `washed`.
    """
    return cast(Model, _once(model, name, lambda: washed(model, data, _turned(seed, turn), kept=kept)))


def pupil_of(model: Model, data: Data, seed: int, name: str = "pupil", turn: int = 0) -> Model | None:
    """A network that learns the suspect's answers from nothing, once; None where it learned too little."""

    own = derive_seed(_turned(seed, turn), "pupil")
    return _once(model, name, lambda: taught(model, data, own))


def taught(model: Model, data: Data, seed: int, recipe: tuple[int, int, float] | None = None) -> Model | None:
    """A pupil: the same network, all weights drawn anew, that learned `model`'s answers on clean samples.

    None where it is less than `LEARNED` times as accurate as the model.

    Args:
        recipe: updates, samples in each, learning rate; None: those of the cascade.
    """
    twin = _distilled(model, data, None, seed, *(recipe or PUPIL), share=0.0)
    return twin if twin.accuracy(data.x, data.y) >= LEARNED * accuracy_of(model, data) else None


def accuracy_of(model: Model, data: Data) -> float:
    """Of a working copy on its clean samples, asked once: every reference is compared with it."""
    x, y, known = model.kept.get("accuracy", (None, None, 0.0))
    if x is not data.x or y is not data.y:
        known = model.accuracy(data.x, data.y)
        model.kept["accuracy"] = (data.x, data.y, known)
    return float(known)


def _once(model: Model, name: str, make: Callable[[], Model | None]) -> Model | None:
    with _locks.setdefault(name, threading.Lock()):
        if name not in model.references:
            model.references[name] = make()
        return model.references[name]


def _turned(seed: int, turn: int) -> int:
    return derive_seed(seed, "turn", turn) if turn else seed


def washed(
    model: Model,
    data: Data,
    seed: int,
    recipes: Sequence[tuple[int, int, float]] = RECIPES,
    kept: bool = True,
) -> Model:
    """A copy of `model` whose later half was drawn anew and distilled from it on clean samples.

    What the earlier half makes of the samples, and of shifted views of them, is computed once and kept; the
    later half learns on that alone. Where passes cannot be resumed at the cut, all of the copy is trained.

    Args:
        model: a frozen working copy.
        data: clean samples; the suspect's answers are learned, the labels only tell when it is enough.
        seed: of the new weights, the views, the order and the mixing of the samples.
        recipes: tried in turn, each from the start, until the copy is nearly as accurate as the suspect.
        kept: whether to keep what the earlier half makes of the samples.
    """
    prefix = None
    with contextlib.suppress(Unkept):
        if kept:
            late = [p for _, p in late_half(model.net)]
            views = Views(model, data, derive_seed(seed, "wash", "views"))
            prefix = Prefix(model, views, before=late, most_bytes=MOST_BYTES)
    enough = ENOUGH * accuracy_of(model, data)
    for updates, batch, rate in recipes:
        twin = _distilled(model, data, prefix, seed, updates, batch, rate)
        if twin.accuracy(data.x, data.y) >= enough:
            break
    return twin


class Views:
    """Clean samples (N, *shape), and after them shifted views of all of them: VIEWS N inputs by index.

    Those of a view that lie in one block are shifted alike, whatever they are asked for with.
    """

    def __init__(self, model: Model, data: Data, seed: int) -> None:
        self.x, self.seed = data.x, seed
        self.block = max(1, BATCH_VALUES // model.modality.numbers(model.shape))
        self.shift = model.modality.shift if model.modality.shifts(model.shape) else None

    def __len__(self) -> int:
        return len(self.x) * (1 if self.shift is None else VIEWS)

    def __getitem__(self, rows: Tensor) -> Tensor:
        x, view = self.x[rows % len(self.x)], rows // len(self.x)
        begin = torch.maximum(rows // self.block * self.block, view * len(self.x))
        if self.shift is None:
            return x
        for first in begin[view > 0].unique().tolist():
            there = (begin == first) & (view > 0)
            x[there] = self.shift(x[there], torch.Generator().manual_seed(derive_seed(self.seed, first)))
        return x


def _distilled(
    model: Model, data: Data, prefix: Prefix | None, seed: int, updates: int, batch: int, rate: float,
    share: float = KEPT,
) -> Model:  # fmt: skip
    """A copy of which all but a first share of the weights was drawn anew, and learned answers again."""
    twin = thawed(model)
    generator = torch.Generator().manual_seed(derive_seed(seed, "wash"))
    redraw(twin.net, generator, share)
    model.modality.forget(twin.net, data.x)

    def mixed(answers: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """How the samples of a batch are mixed with others, and their answers likewise."""
        share = MIX * float(torch.rand((), generator=generator)) * model.modality.smooth
        other = torch.randperm(len(answers), generator=generator).to(answers.device)

        def mix(v: Tensor) -> Tensor:
            return torch.lerp(v, v[other], share) if share else v

        return mix, mix(answers)

    def loss_of(answers: Tensor, logits: Tensor) -> Tensor:
        return -(answers * logits.float().log_softmax(1)).sum(1).mean()

    if prefix is None:
        recipe = Recipe(epochs_of(updates, len(data), batch), lr=rate, batch_size=batch, augment="shift")

        def distil(twin: Model, x: Tensor, _y: Tensor) -> Tensor:
            """Cross-entropy of mixed samples with mixed answers; the suspect is asked about clean ones."""
            with torch.no_grad():
                mix, answers = mixed(model.logits(x).float().softmax(1))
            return loss_of(answers, twin.logits(mix(x)))

        return tuned(twin, data, recipe, derive_seed(seed, "wash", "order"), distil)

    count = len(prefix.rows)
    with torch.no_grad():
        known = torch.cat([prefix.logits(model, r).float() for r in torch.arange(count).split(512)]).softmax(
            1
        )

    def loss_at(rows: Tensor) -> Tensor:
        mix, answers = mixed(known[rows.to(known.device)])
        return loss_of(answers, prefix.logits(twin, rows, mix=mix))

    twin.net.requires_grad_(False)
    for module, p in late_half(twin.net):
        p.requires_grad_(True)
        module.train()
    recipe = Recipe(epochs_of(updates, count, batch), lr=rate, batch_size=batch)
    descend(
        twin.net, count, recipe, torch.Generator().manual_seed(derive_seed(seed, "wash", "order")), loss_at
    )
    twin.alike = (model, prefix.cut)
    return twin.copy()


def late_half(net: nn.Module, kept: float = KEPT) -> list[tuple[nn.Module, nn.Parameter]]:
    """The parameters of a network but for the first ones, in their registered order, with their modules.

    Args:
        kept: share of the kernels and matrices that come before.
    """
    weights = [name for name, p in net.named_parameters() if p.ndim >= 2]
    first = weights[int(kept * len(weights))]
    named = list(net.named_parameters())
    start = [name for name, _ in named].index(first)
    return [(net.get_submodule(name.rpartition(".")[0]), p) for name, p in named[start:]]


@torch.no_grad()
def redraw(net: nn.Module, generator: torch.Generator, kept: float = KEPT) -> None:
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
