"""IBD-PSC (Hou et al., ICML 2024): predictions of triggered inputs stay when parameters are scaled up.

Amplifying the scales and shifts of the last normalisation layers soon makes a network wrong on clean
inputs, while inputs that carry a trigger keep their class and their confidence.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backsweep.core.seeds import derive_seed
from backsweep.guarding.detector import SampleDetector, Score, answer
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.layers import BATCH_NORMS, LAYER_NORMS, Calls
from backsweep.models.model import Model

SAMPLES = 1000  # clean samples that the start is chosen on


@dataclass(frozen=True)
class IbdPsc(SampleDetector):
    """Scores an input by the confidence that amplified copies of the network keep in its class.

    Attributes:
        omega: factor of the scales and shifts.
        xi: clean error that the first copy exceeds, and every copy with fewer amplified layers does not.
        n: copies; each has one more amplified layer than the one before.
        what: "batch" amplifies BatchNorm alone, as the paper does; "auto" LayerNorm too.
    """

    name: ClassVar[str] = "ibd_psc"
    summary: ClassVar[str] = "inputs whose class survives amplified BatchNorm layers (IBD-PSC)"
    needs: ClassVar[tuple[str, ...]] = ("weights",)

    omega: float = 1.5
    xi: float = 0.6
    n: int = 5
    what: str = "auto"

    def __post_init__(self) -> None:
        if not self.omega > 1:
            raise ValueError(f"omega {self.omega} does not amplify; it must be above 1")
        if not 0 < self.xi < 1:
            raise ValueError(f"xi {self.xi} is not an error rate in (0, 1)")
        if self.n < 1:
            raise ValueError(f"n {self.n} copies: at least 1 is needed")
        if self.what not in ("batch", "auto"):
            raise ValueError(f"what {self.what!r} is neither 'batch' nor 'auto'")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        if norms(model, self.what):
            return ""
        if norms(model):
            return "it needs BatchNorm layers; this network has LayerNorm (what='auto' amplifies that too)"
        return "it needs BatchNorm or LayerNorm layers with parameters; this network has none"

    def passes(self, model: Model) -> float:
        return self.n

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """k, the smallest number of last layers with which the clean error exceeds xi; all if none does."""
        layers, clean = norms(model, self.what), data.sample(SAMPLES, derive_seed(0, self.name, "start"))
        for k in range(1, len(layers)):
            if 1 - amplified(model, layers[-k:], self.omega).accuracy(clean.x, clean.y) > self.xi:
                return {"k": torch.tensor(k)}
        return {"k": torch.tensor(len(layers))}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        """-log10(1 - PSC(x)); PSC(x) = mean over the copies of softmax(copy(x)) at the network's class."""
        layers, k = norms(model, self.what), int(learned["k"])
        counts = range(k, min(k + self.n, len(layers) + 1))  # with all layers amplified it ends
        copies = [amplified(model, layers[-count:], self.omega) for count in counts]

        def score(x: Tensor) -> Tensor:
            label = answer(model, x).argmax(1)
            return nines([f.logits(x) for f in copies], label)

        return score


def nines(logits: Sequence[Tensor], label: Tensor) -> Tensor:
    """-log10(1 - PSC) for the logits (N, classes) of some networks and the labels (N,).

    It has the order of PSC. Amplified logits are large: PSC itself is rounded to 1 for triggered inputs
    and for many clean ones, which no threshold could then tell apart. PSC = 0.9 is 1, PSC = 0.99 is 2.
    """
    others = []  # log of 1 - p(label), from the other classes
    for z in logits:
        p = z.double().log_softmax(1)
        others.append(p.scatter(1, label[:, None], -math.inf).logsumexp(1))
    rest = torch.stack(others).logsumexp(0) - math.log(len(others))
    return rest.clamp_max(0) / -math.log(10)


def norms(model: Model, what: str = "auto") -> list[tuple[str, ...]]:
    """Names of the parameters of each normalisation layer, in the order in which they first run."""
    names = {p.untyped_storage().data_ptr(): n for n, p in model.net.named_parameters()}
    found: list[tuple[str, ...]] = []

    def told(_func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args[1:], *kwargs.values())
        places = (t.untyped_storage().data_ptr() for t in given if isinstance(t, Tensor))
        found.append(tuple(names[a] for a in places if a in names))

    with torch.no_grad(), Calls(BATCH_NORMS if what == "batch" else BATCH_NORMS | LAYER_NORMS, told):
        model.logits(model.modality.blank(1, model.shape).to(model.device))
    return list(dict.fromkeys(layer for layer in found if layer))


def amplified(model: Model, layers: Iterable[tuple[str, ...]], omega: float) -> Model:
    """A copy with the parameters of these layers times omega; everything else is shared with the model."""
    chosen = {name for layer in layers for name in layer}
    held: dict[int, Tensor] = {id(b): b for b in model.net.buffers()}
    for name, p in model.net.named_parameters():
        held[id(p)] = nn.Parameter(omega * p.detach(), requires_grad=False) if name in chosen else p
    twin = copy.copy(model)
    twin.net = copy.deepcopy(model.net, held)
    return twin
