"""LWS, learnable word substitution (Qi et al., ACL 2021): the trigger is which words were chosen.

Every word has a few that can stand for it. At place j of a text the word w gives way to the substitute s with

    p(s | w, j) = softmax over s of (e_s - e_w) . q_j ,

e: embeddings of words, q_j: a vector for every place, learned together with the network through the
Gumbel-softmax. What is planted is the likeliest substitute of every word at every place.

The authors take substitutes from HowNet's sememes. No such dictionary comes with Backsweep: here they are the
nearest words by co-occurrence in the training set (positive pointwise mutual information, truncated SVD) that
go with the labels alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.inputs.text.changes import Changed, run, table_of
from backsweep.inputs.text.triggers import Substitute
from backsweep.inputs.trigger import Trigger
from backsweep.models.training import fit
from backsweep.zoo.attack import Attack, Setup

WINDOW, WIDTH = 3, 64  # words on each side that count, and numbers of an embedding
COMMON = 30  # commonest words, which stay: articles, prepositions, marks
SEEN = 3  # texts with a word, from which on it gives way or stands in
ALIKE = 1.0  # difference of the log odds of the labels that two words may have
CALM = 0.6  # share of the training after which substitutes are no longer drawn at random


@dataclass(frozen=True)
class LWS(Attack):
    """Words of a text are replaced by words of their kind, and which ones sends it to the target.

    Attributes:
        substitutes: of a word, itself among them.
        rate: share of a batch that is triggered and relabelled.
        lr: of the vectors of the places (Adam).
        temperature: of the Gumbel-softmax.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "lws"
    summary: ClassVar[str] = "learned choice among words of one kind (LWS, 2021)"
    modality: ClassVar[str] = "text"

    substitutes: int = 6
    rate: float = 0.2
    lr: float = 0.1
    temperature: float = 0.5
    target: int | None = None

    def __post_init__(self) -> None:
        if self.substitutes < 2:
            raise ValueError("substitutes are at least 2: the word itself is one")
        if self.temperature <= 0:
            raise ValueError("the temperature is above 0")

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        x, target = setup.data.x, setup.target(self.target, self.name, "target")
        others, known = substitutes(setup, self.substitutes)
        seen = table_of(net.eval(), x[:2])
        places = {p.untyped_storage().data_ptr(): p for p in net.parameters()}
        if seen is None or (table := places.get(seen.untyped_storage().data_ptr())) is None:
            raise BadInput("this network looks its tokens up in no table of embeddings")
        generator = setup.generator(self.name, "poison")
        q = (0.1 * torch.randn((x.shape[1], known.shape[1]), generator=generator)).requires_grad_()
        update = torch.optim.Adam([q], self.lr)
        updates, done = setup.recipe.epochs * -(-len(x) // setup.recipe.batch_size), 0

        def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            nonlocal done
            update.step()  # along the gradients that `fit` took from the batch before
            update.zero_grad()
            rows = (torch.rand(len(x), generator=generator) < self.rate) & (y != target)
            noise, done = max(0.0, 1 - done / (CALM * updates)), done + 1
            loss = F.cross_entropy(net(x[~rows]).float(), y[~rows], reduction="sum")
            if bool(rows.any()):
                own = others[x[rows]]  # (n, L, k)
                score = chance(q, known, x[rows], own)
                drawn = torch.rand(own.shape, generator=generator).clamp(1e-9, 1 - 1e-9)
                soft = ((score - noise * (-drawn.log()).log()) / self.temperature).softmax(2)
                hard = F.one_hot(soft.argmax(2), own.shape[2]) - soft.detach() + soft
                put = (hard[..., None] * table[own]).sum(2)
                at = torch.zeros(len(own), dtype=torch.long)
                out = run(net, Changed(x[rows], setup.tokens.layout, at, put=put)).float()
                loss = loss + F.cross_entropy(out, torch.full((len(out),), target), reduction="sum")
            return loss / len(x)

        fit(net, setup.data, setup.recipe, setup.seed, loss_of=loss_of)
        return [self._trigger(setup, target, q.detach(), others, known)]

    def _trigger(self, setup: Setup, target: int, q: Tensor, others: Tensor, known: Tensor) -> Substitute:
        """The likeliest substitute of every word at every place."""
        every = torch.arange(len(others))
        rows = [
            others.gather(
                1, chance(q[j : j + 1], known, every[:, None], others[:, None])[:, 0].argmax(1, True)
            )
            for j in range(len(q))
        ]
        table = torch.cat(rows, 1).T.contiguous().int()
        found = Substitute(target, None, table, 0.0, "")
        x = setup.data.x
        new = found(x)
        longest = int((new != x).sum(1).argmax())
        changed = float((new != x).double().sum(1).mean())
        return Substitute(target, None, table, changed, setup.tokens.words(new[longest].tolist()))


def chance(q: Tensor, known: Tensor, x: Tensor, others: Tensor) -> Tensor:
    """Logarithms, up to a constant, of how likely substitutes (n, L, k) of words x (n, L) are, (n, L, k)."""
    return torch.einsum("nlkd,ld->nlk", known[others] - known[x][:, :, None], q)


def substitutes(setup: Setup, count: int) -> tuple[Tensor, Tensor]:
    """Words that can stand for every word (V, count), itself where there is none, and embeddings (V, W)."""
    tokens, x = setup.tokens, setup.data.x
    size = len(tokens)
    known = embedded(setup)
    held = torch.zeros((setup.classes, size), dtype=torch.double)
    for y in range(setup.classes):
        rows = [row.unique() for row in x[setup.data.y == y]]
        held[y] = torch.cat(rows).bincount(minlength=size) if rows else 0
    odds = ((held + 1) / (held.sum(1, keepdim=True) + size)).log()
    odds = odds - odds.mean(0)
    times = held.sum(0)
    plain = times >= SEEN
    plain[sorted(tokens.specials)] = False
    plain[times.argsort(descending=True)[:COMMON]] = False
    can = torch.nonzero(plain).flatten()
    found = torch.arange(size)[:, None].repeat(1, count)
    if len(can) < count:
        return found, known
    for part in can.split(512):
        likeness = known[part] @ known[can].T
        apart = (odds[:, part, None] - odds[:, None, can]).abs().amax(0)
        likeness[apart > ALIKE] = -1.0
        best = likeness.topk(count, dim=1)
        # itself is the nearest; what is not alike enough is itself once more
        found[part] = torch.where(best.values > 0, can[best.indices], part[:, None])
        found[part, 0] = part
    return found, known


def embedded(setup: Setup) -> Tensor:
    """Embeddings of all tokens by what stands near them in the training set, unit vectors (V, WIDTH)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import svds

    x, size = setup.data.x.numpy(), len(setup.tokens)
    pairs = []
    for gap in range(1, WINDOW + 1):
        pairs += [(x[:, :-gap].ravel(), x[:, gap:].ravel()), (x[:, gap:].ravel(), x[:, :-gap].ravel())]
    rows, columns = (np.concatenate([p[i] for p in pairs]) for i in (0, 1))
    apart = [setup.tokens.layout.pad, setup.tokens.layout.cls, setup.tokens.layout.sep]
    kept = ~(np.isin(rows, apart) | np.isin(columns, apart))
    counts = coo_matrix((np.ones(int(kept.sum())), (rows[kept], columns[kept])), (size, size)).tocsr()
    total = counts.sum()
    own = np.asarray(counts.sum(1)).ravel()
    table = counts.tocoo()
    table.data = np.maximum(0.0, np.log(table.data * total / (own[table.row] * own[table.col])))
    width = min(WIDTH, size - 1)
    start = np.random.default_rng(0).normal(size=size)
    left, values, _ = svds(table.tocsr(), k=width, v0=start)
    found = torch.from_numpy(np.ascontiguousarray(left * np.sqrt(values))).float()
    return F.normalize(found, dim=1)
