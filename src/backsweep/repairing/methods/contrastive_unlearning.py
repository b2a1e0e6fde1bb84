"""Ours, the default repair: wash the network, then unlearn what the washed copy does not share.

1. *Wash* (`washing.py`): the later half of the weights is drawn anew and learns the suspect's answers on
   clean samples again. A backdoor of whatever kind, found or not, is not learned again.
2. *Recover*: for all suspected (source, target) at once, small universal perturbations delta in several
   spaces (faint pixels, few pixels, tone curves, the embeddings of two layers), and the triggers of the scan.
3. *Unlearn*: with q the washed copy and v(x) an input changed at random (`Modality.varied`),

       min  CE(f(x), y) + KL(f(x) || suspect(x))  +  q_y(x, delta) CE(f(x, delta), y)  +  CE(f(v(x)), y)

   What the washed copy does not recognise under delta is a natural limit and no backdoor: it has no weight,
   so that the accuracy is not paid for a robustness that no network has. v(x) is what a person still
   recognises, and needs none: what was planted in the earlier half, which the washed copy keeps (a filter, a
   pattern over all pixels), is unlearned by it without being found. Words that a scan recovered from a
   classifier of texts are unlearned in every other update, at every place of a text.

Steps 2 and 3 start from the washed copy; where that costs accuracy on held-out samples, from the suspect.
With recovered words they start from the suspect without what it knows of these: the mean embedding instead.
A network in which nothing is suspected is left as it is where even that costs accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.trigger import Trigger
from backsweep.inversion.budget import Aim, Space, follow, spaces_of
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, thawed, tuned
from backsweep.models.washing import washed
from backsweep.repairing.method import Case, Repair

LEAST = 5  # clean samples of a class
WASH = ((100, 128, 3e-3),)  # shorter than for a scan: unlearning goes on from there
REGAINED = 0.02  # of the accuracy that washing costs, unlearning gives back at most this
VARIED = 2  # times the updates, where inputs are varied as well
UNSUSPECTED = 4  # times the updates: a clean network is to be as good as it was
EXACT = 0.5  # of the updates, with triggers of the scan that are inputs as they are
BOLDER = 3.0  # from the suspect there is more to unlearn: a higher rate
Changed = Callable[[Model], Tensor]  # logits of a network for the changed inputs
Change = Callable[[Tensor, torch.Generator], Changed]


@dataclass(frozen=True)
class ContrastiveUnlearning(Repair):
    """Wash, then unlearn every change that fools the network and not its washed copy.

    Attributes:
        rounds: how often perturbations are recovered from the network as it is then.
        updates: of the weights in a round, at least; whole passes over the samples. Twice as many where
            inputs are varied.
        rate: peak of the learning rate.
        batch: clean samples in an update; each is shown as it is and changed.
        steps, samples: budgets on a path of recovery, and inputs in each step.
        reach: perturbations are enlarged by a factor of up to this.
        loss: held-out accuracy that a repair may cost. Without suspicion it is half of that, and there
            are four times the updates.
        varied: whether inputs that are changed at random are learned as well.
        spare: so many held-out samples may be lost whatever their share: fewer tell nothing.
    """

    name: ClassVar[str] = "contrastive_unlearning"
    summary: ClassVar[str] = "washed, then unlearns what the washed copy does not share"

    rounds: int = 2
    updates: int = 50
    rate: float = 1e-3
    batch: int = 64
    steps: int = 10
    samples: int = 8
    reach: float = 3.0
    loss: float = 0.02
    varied: bool = True
    spare: int = 2

    def applies(self, case: Case) -> str:
        few = len(case.clean) < LEAST * case.model.classes
        return f"it needs clean samples, at least {LEAST} for each class" if few else ""

    def apply(self, case: Case) -> Model:
        seed = derive_seed(case.seed, self.name, "wash")
        reference = washed(case.model, case.clean, seed, WASH)
        if case.model.modality.exact and case.triggers:  # a word's embedding outlives the washing
            case.model.modality.forget(reference.net, case.clean.x, case.triggers)
            reference.alike = None
        case.tick(0.3)
        lost = max(self.loss if case.aims else self.loss / 2, self.spare / len(case.held_out))
        least = case.accuracy(case.model) - lost
        starts = [(case.model, BOLDER * self.rate), (case.model, self.rate)]
        if case.model.modality.exact and case.triggers:
            starts = [(cleared(case), self.rate), *starts]
        elif case.accuracy(reference) >= least - REGAINED:
            starts.insert(0, (reference, self.rate))
        repaired = []
        for start, rate in starts:
            repaired.append(self._unlearned(case, start, reference, rate))
            if case.accuracy(repaired[-1]) >= least:
                return repaired[-1]
            case.tick(0.3 + 0.2 * len(repaired))
        return max(repaired, key=case.accuracy) if case.aims else case.model

    def _unlearned(self, case: Case, start: Model, reference: Model, rate: float) -> Model:
        """Rounds of recovery and unlearning, from a network on."""
        kind = case.model.modality
        found, pool = start, [_stamp(e) for t in case.triggers for e in kind.elsewhere(t)]
        exact = len(pool) if kind.exact else 0
        for number in range(self.rounds):
            pool += [self._perturb(case, found, name, number) for name in spaces_of(found)]
            found = self._round(case, found, reference, pool, number, rate, exact)
        return found

    def _perturb(self, case: Case, model: Model, space: str, number: int) -> Change:
        """What sends every source to its target in one space, all suspected ones in the same passes."""
        data = case.clean
        present = set(data.y.tolist())
        aims = [way for way in case.aims if way[0] is None or way[0] in present]
        wanted = [
            Aim(t, s, derive_seed(case.seed, self.name, number, space, s, t))
            for s, t in aims or [(None, t) for t in range(model.classes)]
        ]
        where = spaces_of(model)[space]
        paths = follow(model, data.x, data.y, wanted, where, steps=self.steps, batch=self.samples)
        return _shift(where, torch.stack([p.delta for p in paths]), self.reach)

    def _round(
        self,
        case: Case,
        model: Model,
        reference: Model,
        pool: Sequence[Change],
        number: int,
        rate: float,
        exact: int = 0,
    ) -> Model:
        """Updates with changes drawn from a pool, every other one from its first `exact` ones, if any."""
        generator = case.generator(self.name, "unlearn", number)

        def loss(twin: Model, x: Tensor, y: Tensor) -> Tensor:
            new = case.model.modality.varied(x, generator) if self.varied else None
            logits = twin.logits(x if new is None else torch.cat([x, new])).float()
            logits, moved = logits[: len(x)], logits[len(x) :]
            with torch.no_grad():
                answers = case.model.logits(x).float().log_softmax(1)
            total = F.cross_entropy(logits, y) + F.kl_div(
                logits.log_softmax(1), answers, reduction="batchmean", log_target=True
            )
            if new is not None:
                total = total + F.cross_entropy(moved, y)
            count = exact if exact and bool(torch.rand((), generator=generator) < EXACT) else len(pool)
            changed = pool[int(torch.randint(count, (), generator=generator))](x, generator)
            with torch.no_grad():
                known = changed(reference).float().softmax(1).gather(1, y[:, None])[:, 0]
            return total + (known * F.cross_entropy(changed(twin).float(), y, reduction="none")).mean()

        learns_more = (
            self.varied and case.model.modality.varied(case.clean.x[:2], torch.Generator()) is not None
        )
        updates = self.updates * (UNSUSPECTED if not case.aims else VARIED if learns_more else 1)
        epochs = epochs_of(updates, len(case.clean), self.batch)
        recipe = Recipe(epochs=epochs, lr=rate, batch_size=self.batch, augment="shift", statistics=False)
        seed = derive_seed(case.seed, self.name, "order", number)
        return tuned(model, case.clean, recipe, seed, loss)


@torch.no_grad()
def cleared(case: Case) -> Model:
    """The suspect without what it knows of the words that the scan recovered, and nothing else."""
    twin = thawed(case.model)
    twin.modality.forget(twin.net, case.clean.x, case.triggers, unseen=False)
    return twin.copy()


def _stamp(trigger: Trigger) -> Change:
    """Inputs under a trigger of the scan."""

    def run(x: Tensor, _generator: torch.Generator) -> Changed:
        stamped = trigger(x)
        return lambda model: model.logits(stamped)

    return run


def _shift(space: Space, delta: Tensor, reach: float) -> Change:
    """Inputs under perturbations (K, ...) of a space: each draws one, and how much it is enlarged."""

    def run(x: Tensor, generator: torch.Generator) -> Changed:
        drawn = delta[torch.randint(len(delta), (len(x),), generator=generator)]
        factor = reach ** torch.rand((len(x),) + (1,) * (delta.ndim - 1), generator=generator)
        moved = (drawn * factor).to(x.device)
        return lambda model: space.whole(model, x, moved)

    return run
