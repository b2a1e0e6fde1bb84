"""The one training loop: the zoo, the demo, the reference and the repairs use it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adamw import adamw

from backsweep.engine.precision import bfloat16
from backsweep.inputs.modality import Augment
from backsweep.inputs.samples import Data
from backsweep.models.black_box import Learner
from backsweep.models.layers import Kept, set_mode
from backsweep.models.model import Model

WARM = 0.3  # share of the updates in which the learning rate rises
LOW, LEAST = 25.0, 1e4  # the peak over the first rate, and that over the last one
MOMENTA = (0.85, 0.95)  # beta_1 at the peak, and at both ends

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
ModelLoss = Callable[[Model, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the data.
        lr: peak of the one-cycle learning rate.
        batch_size: samples in an update.
        weight_decay: of the optimizer; decoupled in AdamW.
        augment: None, or "shift" for inputs that are slightly changed (images: random translations).
        bf16: bfloat16 where that pays.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        label_smoothing: share of a label that is spread over all classes.
        statistics: whether the running statistics of BatchNorm follow the batches. A trained network that
            is tuned on few samples, or on changed ones, keeps its own.
    """

    epochs: int = 5
    lr: float = 2e-3
    batch_size: int = 128
    weight_decay: float = 1e-4
    augment: str | None = None
    bf16: bool = True
    optimizer: str = "adamw"
    label_smoothing: float = 0.0
    statistics: bool = True


def epochs_of(updates: int, samples: int, batch_size: int) -> int:
    """Whole passes over so many samples that make at least `updates` updates."""
    return math.ceil(updates / math.ceil(samples / batch_size))


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The usual loss of a batch."""
    return F.cross_entropy(net(x).float(), y, label_smoothing=label_smoothing)


def fit(
    net: nn.Module,
    data: Data,
    recipe: Recipe,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
    loss_of: Loss | None = None,
) -> nn.Module:
    """Train `net` in place on `data` and return it in evaluation mode.

    The order of the samples, the augmentation and dropout follow `seed` alone; the global random
    state is as it was when this returns.

    Args:
        net, data, recipe, seed: what is trained on what, and how.
        on_epoch: told the number and the mean loss of every epoch.
        loss_of: loss of (net, x, y) for a batch, that of the modality (cross-entropy) by default. An attack
            that controls the training changes the batch or adds terms here.
    """
    if isinstance(net, Learner):
        net.learn(data.x, data.y, seed)
        return net.eval()
    loss_of = loss_of or partial(data.modality.loss, label_smoothing=recipe.label_smoothing)
    device = next(net.parameters()).device
    augment: Augment | None = {"shift": data.modality.shift, None: None}[recipe.augment]
    layout = torch.channels_last if data.x.ndim == 4 else torch.contiguous_format
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        set_mode(net.to(memory_format=torch.channels_last), training=True)  # type: ignore[call-overload]
        for module in net.modules() if not recipe.statistics else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

        def loss_at(rows: Tensor) -> Tensor:
            x, y = data.x[rows], data.y[rows].to(device)
            if augment is not None:
                x = augment(x, generator)
            x = x.to(device).contiguous(memory_format=layout)
            with bfloat16(device.type, recipe.bf16):
                return loss_of(net, x, y)

        steps = descend(net, len(data), recipe, generator, loss_at, on_epoch)
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked") and recipe.statistics:
            buffer.fill_(steps)  # updates, however many forward passes the loss takes in each
    return net.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def descend(
    net: nn.Module,
    count: int,
    recipe: Recipe,
    generator: torch.Generator,
    loss_at: Callable[[Tensor], Tensor],
    on_epoch: Callable[[int, float], None] | None = None,
) -> int:
    """The updates of a training: epochs over `count` samples in random order; returns how many there were.

    Args:
        net: its parameters that require gradients are trained.
        loss_at: loss of the samples at some indices.
    """
    steps = recipe.epochs * -(-count // recipe.batch_size)
    parameters = [p for p in net.parameters() if p.requires_grad]
    update = _sgd(parameters, recipe, steps) if recipe.optimizer == "sgd" else OneCycleAdamW(
        parameters, recipe.lr, recipe.weight_decay, steps
    ).step  # fmt: skip
    for epoch in range(recipe.epochs):
        total = 0.0
        for rows in torch.randperm(count, generator=generator).split(recipe.batch_size):
            if len(rows) == 1 < count:  # a BatchNorm cannot normalise a single sample
                continue
            loss = loss_at(rows)
            loss.backward()
            update()
            total += float(loss.detach()) * len(rows)
        if on_epoch is not None:
            on_epoch(epoch, total / count)
    return steps


def _sgd(parameters: list[nn.Parameter], recipe: Recipe, steps: int) -> Callable[[], None]:
    """An update of stochastic gradient descent with momentum, on the one-cycle schedule."""
    optimizer = torch.optim.SGD(parameters, recipe.lr, 0.9, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)

    def update() -> None:
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def thawed(model: Model) -> Model:
    """A copy of a model, with a network of its own that can be trained."""
    twin = model.by_weights()
    twin.net, twin.alike, twin.kept = copy.deepcopy(model.net), None, Kept()
    twin.references, twin.changes = {}, {}
    twin.net.requires_grad_(True)
    return twin


def tuned(
    model: Model, data: Data, recipe: Recipe, seed: int, loss_of: ModelLoss | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Model:  # fmt: skip
    """A frozen copy of `model`, trained further on `data`.

    Args:
        model: stays as it is; a copy that `thawed` made is trained itself.
        data, recipe, seed, on_epoch: as in `fit`; images that are too small are not shifted.
        loss_of: loss of (model, x, y) for a batch of x in [0, 1]; cross-entropy with the labels by default.
    """
    twin = model if any(p.requires_grad for p in model.net.parameters()) else thawed(model)
    if not model.modality.shifts(model.shape):
        recipe = replace(recipe, augment=None)

    def usual(twin: Model, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(twin.logits(x).float(), y)

    chosen = loss_of or usual
    fit(twin.net, data, recipe, seed, on_epoch, lambda _net, x, y: chosen(twin, x, y))
    return twin.copy()


class OneCycleAdamW:
    """AdamW (Loshchilov and Hutter, 2019) on the schedule of Smith and Topin (2018), as torch has both.

    `torch.optim.Optimizer` imports the compiler of PyTorch when the first one is made: 1.5 seconds, a third
    of the scan of a small network. The update itself is PyTorch's own.

    Args:
        parameters: what is trained.
        lr: the peak of the learning rate.
        weight_decay: decoupled.
        updates: of the whole training.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, updates: int
    ) -> None:
        self.parameters = list(parameters)
        self.lr, self.weight_decay, self.updates = lr, weight_decay, updates
        self.done = 0
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.counts = [torch.tensor(0.0) for _ in self.parameters]

    def schedule(self) -> tuple[float, float]:
        """Learning rate and beta_1 of the next update."""
        rising = WARM * self.updates - 1
        if self.done <= rising:
            share = self.done / rising
            return _cosine(self.lr / LOW, self.lr, share), _cosine(MOMENTA[1], MOMENTA[0], share)
        share = (self.done - rising) / (self.updates - 1 - rising)
        return _cosine(self.lr, self.lr / LOW / LEAST, share), _cosine(MOMENTA[0], MOMENTA[1], share)

    @torch.no_grad()
    def step(self) -> None:
        """One update with the gradients that are there; they are gone afterwards."""
        lr, beta = self.schedule()
        rows = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        adamw(
            [self.parameters[i] for i in rows],
            [g for p in self.parameters if (g := p.grad) is not None],
            [self.means[i] for i in rows],
            [self.squares[i] for i in rows],
            [],
            [self.counts[i] for i in rows],
            foreach=False,
            amsgrad=False,
            beta1=beta,
            beta2=0.999,
            lr=lr,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
        for p in self.parameters:
            p.grad = None
        self.done += 1


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)
