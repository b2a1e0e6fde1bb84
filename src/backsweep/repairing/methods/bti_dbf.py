"""BTI-DBF (U) (Xu et al., ICLR 2024): take the benign features away, invert what is left, unlearn it.

In every round, with z the penultimate features of the network f and h its head:

1. a mask m of features tells the benign ones:   min over m of  CE(h(m z), y) - CE(h((1 - m) z), y)
2. a generator G of images moves the others, d = z(G(x)) - z(x):   max over G of  |(1 - m) d|^2 - 0.01 |m d|^2
   while G(x) and the benign features stay near those of x; where they do not, |G(x) - x|^2 is made small.
   What f answers most often to G(x + noise) is taken for the target; from the second round on G aims at it.
3. f learns the true labels of batches of which a tenth went through G, and the features that it has without.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.seeds import derive_seed
from backsweep.inputs.image.learned_space import unet, unet_weights
from backsweep.models.layers import set_mode
from backsweep.models.model import Model
from backsweep.models.training import thawed
from backsweep.repairing.method import Case, Repair, affordable

NOISE = 0.03  # of the inputs that the target is told by
BENIGN = 0.01  # weight of the benign features
LEAST_SIDE = 4
FAINT = 0.1  # of its output is added, by a generator that adds


@dataclass(frozen=True)
class Recipe:
    """What a preset does.

    Attributes:
        rounds: of the three steps.
        mask, first, generator, unlearn: updates: (passes over the samples, updates at least).
        mask_rate, generator_rate: of Adam.
        rates: of Adam for the network, one attempt each.
        width, depth: filters at full size and halvings of the generator.
        adds: whether the generator's output is added to the image; else it has to learn the identity first.
        portion: of a batch that goes through the generator.
        image: bound of the mean squared change of pixels in [0, 1].
        feature: bound of that of benign features: absolute, or (`adds`) a share of their variance.
        batch: samples in an update.
    """

    rounds: int
    mask: tuple[int, int]
    first: tuple[int, int]
    generator: tuple[int, int]
    unlearn: tuple[int, int]
    mask_rate: float
    generator_rate: float
    rates: tuple[float, ...]
    width: int
    depth: int
    adds: bool
    portion: float
    image: float
    feature: float
    batch: int


RECIPES = {
    "standard": Recipe(
        3, (0, 200), (0, 0), (0, 80), (0, 60), 0.05, 3e-3, (1e-3, 3e-4), 8, 2, True, 0.2, 0.005, 1.0, 32
    ),
    "paper": Recipe(
        5, (20, 1), (50, 1), (30, 1), (30, 1), 0.01, 1e-3, (1e-4,), 32, 4, False, 0.1, 0.012, 3.0, 128
    ),
}


@dataclass(frozen=True)
class BtiDbf(Repair):
    """Unlearns what a generator of triggers finds once the benign features are told apart.

    Attributes:
        preset: "paper" has the authors' updates and rates. "standard" is far shorter, with a smaller
            generator that adds to an image and higher rates; where that cost accuracy it starts again
            with a lower one. Where the scan suspects targets, it aims at these from the first round on.
        rounds: of decoupling, inverting and unlearning; None: those of the preset.
        image: bound of the mean squared change of pixels by the generator; None: that of the preset.
        loss: how much held-out accuracy the first attempt may cost.
    """

    name: ClassVar[str] = "bti_dbf"
    summary: ClassVar[str] = "unlearns generated triggers, benign features set apart (BTI-DBF, 2024)"

    preset: str = "standard"
    rounds: int | None = None
    image: float | None = None
    loss: float = 0.03

    def __post_init__(self) -> None:
        if self.preset not in RECIPES:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(RECIPES)}")
        if self.rounds is not None and self.rounds < 1:
            raise ValueError("rounds is at least 1")
        if not 0 <= self.loss <= 1 or (self.image is not None and not 0 < self.image <= 1):
            raise ValueError("loss is between 0 and 1, image above 0 and at most 1")

    def applies(self, case: Case) -> str:
        shape, kind = case.model.shape, case.model.modality
        if not kind.grid or len(shape) != 3 or min(shape[1:]) < LEAST_SIDE:
            return f"its generator draws images of at least {LEAST_SIDE} x {LEAST_SIDE} pixels"
        try:
            case.model.head()
        except BadInput as e:
            return f"it masks the features that a linear head reads: {e}"
        return ""

    def apply(self, case: Case) -> Model:
        return affordable(
            case, [partial(self._mended, rate=r) for r in RECIPES[self.preset].rates], self.loss
        )

    def _mended(self, case: Case, rate: float) -> Model:
        """The suspect after all rounds."""
        recipe, twin, device = RECIPES[self.preset], thawed(case.model), case.model.device
        rounds, target = self.rounds or recipe.rounds, None
        aims = [t for _, t in case.aims if t is not None] if recipe.adds else []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(case.seed, self.name))
            work = _Work(case, recipe, self.image or recipe.image, self.name)
            work.identity()
            optimizer = torch.optim.Adam(list(twin.net.parameters()), rate)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, rounds * work.updates(recipe.unlearn), 0.0 if recipe.adds else rate
            )
            for number in range(rounds):
                found = twin.copy()
                target = aims[number % len(aims)] if aims else target
                work.invert(found, work.decouple(found), target)
                target = work.target(found) if target is None else target
                work.unlearn(twin, optimizer, schedule)
                case.tick((number + 1) / rounds)
        return twin.copy()


class _Work:
    """The steps of a repair, and the generator that goes through its rounds."""

    def __init__(self, case: Case, recipe: Recipe, image: float, name: str) -> None:
        self.case, self.recipe, self.image = case, recipe, image
        self.shown = case.batches(name, recipe.batch)
        channels, draw = case.model.shape[0], case.generator(name, "generator")
        self.weights = unet_weights(channels, recipe.width, recipe.depth, draw).to(case.model.device)
        self.steps = torch.optim.Adam([self.weights.requires_grad_()], recipe.generator_rate)

    def made(self, x: Tensor) -> Tensor:
        """Images that the generator makes of images x (N, C, H, W)."""
        z = unet(self.weights, x, self.recipe.width, self.recipe.depth)
        return self.case.model.modality.clip(x + FAINT * z) if self.recipe.adds else z

    def updates(self, given: tuple[int, int]) -> int:
        """Of a step."""
        passes, least = given
        each = -(-len(self.case.clean) // self.recipe.batch)
        return max(passes * each, least)

    def identity(self) -> None:
        """A generator that does not add learns to give an image back."""
        for _ in range(self.updates(self.recipe.first)):
            x, _y = next(self.shown)
            self._step(F.mse_loss(self.made(x), x))

    def decouple(self, model: Model) -> Tensor:
        """The mask of benign features, (D,) in [0, 1]."""
        weight, bias = model.head()
        data, device = self.case.clean, weight.device
        z = torch.cat(
            [model.features(x.to(device)).detach().float() for x in data.x.split(self.recipe.batch)]
        )
        y = data.y.to(device)
        t = torch.randn(weight.shape[1], device=device).requires_grad_()
        optimizer = torch.optim.Adam([t], self.recipe.mask_rate)
        for _ in range(self.updates(self.recipe.mask)):
            rows = torch.randint(len(y), (self.recipe.batch,)).to(device)
            mask = (t.tanh() + 1) / 2
            benign, other = ((part * z[rows]) @ weight.T + bias for part in (mask, 1 - mask))
            optimizer.zero_grad(set_to_none=True)
            (F.cross_entropy(benign, y[rows]) - F.cross_entropy(other, y[rows])).backward()
            optimizer.step()
        return ((t.tanh() + 1) / 2).detach()

    def invert(self, model: Model, mask: Tensor, target: int | None) -> None:
        """Updates of the generator."""
        for _ in range(self.updates(self.recipe.generator)):
            x, y = next(self.shown)
            made = self.made(x)
            with torch.no_grad():
                z = model.features(x).float()
            logits, moved = model.logits_and_embedded(made, None)
            apart = (moved.float() - z).square()
            pixels, benign = F.mse_loss(made, x), (mask.square() * apart).mean()
            scale = float((mask.square() * z.var(0)).mean()) if self.recipe.adds else 1.0
            far = float(pixels.detach()) > self.image
            if far or float(benign.detach()) > self.recipe.feature * scale:
                loss = pixels / self.image if self.recipe.adds else pixels
            else:
                other = ((1 - mask).square() * apart).mean()
                loss = BENIGN * benign - other
            if target is not None:
                loss = loss + F.cross_entropy(logits.float(), torch.full_like(y, target))
            self._step(loss)

    @torch.no_grad()
    def target(self, model: Model) -> int:
        """What the network answers most often to generated images."""
        said = []
        for x in self.case.clean.x.split(self.recipe.batch):
            x = x.to(model.device)
            said.append(model.logits(self.made(x + NOISE * torch.randn_like(x))).argmax(1))
        return int(torch.cat(said).bincount().argmax())

    def unlearn(
        self,
        twin: Model,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Updates of the network."""
        set_mode(twin.net, training=not self.recipe.adds)
        for _ in range(self.updates(self.recipe.unlearn)):
            x, y = next(self.shown)
            some = torch.randperm(len(x))[: int(self.recipe.portion * len(x)) + 1].to(x.device)
            mixed = x.clone()
            with torch.no_grad():
                mixed[some] = self.made(x[some])
            logits, moved = twin.logits_and_embedded(mixed, None)
            loss = F.cross_entropy(logits.float(), y) + F.mse_loss(twin.features(x).float(), moved.float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()

    def _step(self, loss: Tensor) -> None:
        self.steps.zero_grad(set_to_none=True)
        loss.backward()
        self.steps.step()
