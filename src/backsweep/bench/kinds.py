"""A verdict on a kind of networks that nobody has seen: a population is fitted, one kind left out at a time.

A kind is task x architecture x what it was fine-tuned from. `populations` makes a `Population` for each
look of the cascade from lines of the bench. `left_out` judges every network with some that were fitted
without its kind: priors, weights and null all come from the others. The intervals draw kinds, and then
networks of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special
from sklearn.metrics import roc_auc_score

from backsweep.core.errors import BadInput
from backsweep.core.statistics import BOOTSTRAP_SEED, MAD_TO_SIGMA, Estimate, Share, estimate
from backsweep.scanning.cascade.contrast import Suspect
from backsweep.scanning.cascade.measured import Measured
from backsweep.scanning.cascade.population import EFFICIENCY, SHARE, Null, Population, Prior, Tail
from backsweep.scanning.cascade.schedule import AGAIN, LOOKS
from backsweep.zoo.tasks import TASKS

Array = NDArray[np.float64]
LEAST_WITHIN = {"tone": 0.5}  # of a prior: decision 0007
USUAL_WITHIN = 0.1
LEAST_BETWEEN = 0.2  # of `within`
FREEDOM = (3.0, 30.0)
SHAPE = 5.0  # of the Gamma distribution of rates, a weak prior (log-normal, sigma 1): few kinds are not alike
KNOWN = float(np.log(2))  # scores below the median count as below it
LEAST_KINDS = 5
DRAWS = 1000


class Known(Protocol):
    """One scan of a network whose truth is known: kind, model, attack (None: clean), planted targets."""

    @property
    def kind(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def attack(self) -> str | None: ...
    @property
    def targets(self) -> tuple[int, ...]: ...
    @property
    def classes(self) -> int: ...
    @property
    def cpu_seconds(self) -> float: ...


@dataclass(frozen=True)
class Network:
    """One scan of a network whose truth is known.

    Attributes:
        kind, name, attack, targets: the truth; `attack` None: clean.
        measured: what the scan measured.
        cpu_seconds: of the scan.
        arch: of the network.
    """

    kind: str
    name: str
    attack: str | None
    targets: tuple[int, ...]
    measured: Measured
    cpu_seconds: float
    arch: str = ""

    @property
    def classes(self) -> int:
        return self.measured.classes


@dataclass(frozen=True)
class Judged:
    """What is said of a network by those of other kinds, in so many looks."""

    network: Known
    p_value: float
    target: int
    looks: int = 1

    @property
    def right(self) -> bool:
        """Whether a planted target is named first."""
        return self.target in self.network.targets


def kind_of(line: Mapping[str, Any]) -> str:
    """Task, architecture, and what it was fine-tuned from."""
    start = f"from {line['start']}" if line.get("start") else None
    return " ".join(filter(None, (line["task"], line.get("arch"), start)))


def arch_of(line: Mapping[str, Any]) -> str:
    """The architecture of a network, the task's own where none is named."""
    return str(line.get("arch") or (TASKS[line["task"]].arch if line["task"] in TASKS else "its own"))


def networks(lines: Sequence[Mapping[str, Any]], detector: str = "cascade") -> list[Network]:
    """The admitted scans of one detector among lines of the bench.

    Raises:
        BadInput: the scans have different settings.
    """
    own = [x for x in lines if x.get("detector") == detector and x.get("measured") and not x.get("gate")]
    if len({str(x["settings"]) for x in own}) > 1:
        raise BadInput(f"the scans of {detector} have different settings; keep those of one")
    return [
        Network(
            kind_of(x), x["net"], x["attack"], tuple(x["targets"]),
            Measured.read(x["measured"], x["classes"]), float(x["cpu_seconds"]), arch_of(x),
        )
        for x in own
    ]  # fmt: skip


# ---------------------------------------------------------------------- fitting


def shares(kinds: Sequence[str]) -> Array:
    """Every kind counts alike, and every network of it."""
    counts = Counter(kinds)
    return np.array([1 / counts[k] / len(counts) for k in kinds])


def prior_of(differences: Sequence[Mapping[int, float]], kinds: Sequence[str], least: float) -> Prior:
    """Empirical Bayes by moments (Smyth 2004, section 6.2), robust within each network."""
    rows = [i for i, d in enumerate(differences) if len(d) > 1]
    values = [np.array(list(differences[i].values())) for i in rows]
    w = shares([kinds[i] for i in rows])
    usual = np.array([np.median(v) for v in values])
    free = np.array([EFFICIENCY * (len(v) - 1) if len(v) > 2 else 1.0 for v in values])
    variance = np.array([
        (MAD_TO_SIGMA * np.median(np.abs(v - np.median(v)))) ** 2 if len(v) > 2 else v.var(ddof=1)
        for v in values
    ])  # fmt: skip
    within = max(float(w @ variance), least**2)
    log = np.log(np.maximum(variance, least**2 / 4)) - special.digamma(free / 2) + np.log(free / 2)
    beyond = float(w @ (log - w @ log) ** 2 - w @ special.polygamma(1, free / 2))
    freedom = FREEDOM[1] if beyond <= 0 else float(np.clip(2 * _inverse_trigamma(beyond), *FREEDOM))
    center = float(w @ usual)
    sampled = float(w @ (within / np.array([len(v) for v in values])))
    between = max(float(w @ (usual - center) ** 2) - sampled, LEAST_BETWEEN**2 * within)
    return Prior(center, between**0.5, within**0.5, freedom)


def _inverse_trigamma(y: float) -> float:
    return float(optimize.brentq(lambda x: special.polygamma(1, x) - y, 1e-3, 1e4))


def tail_of(joint: Array, share: Array) -> Tail:
    """The upper SHARE of what clean classes are joined to; `share` is how much each counts."""
    order, share = np.argsort(joint), share / share.sum()
    start = max(float(joint[order][np.searchsorted(np.cumsum(share[order]), 1 - SHARE)]), 1e-3)
    tail = joint > start
    scale = max(float(share[tail] @ (joint[tail] - start) / max(share[tail].sum(), 1e-9)), 1e-3)
    return Tail(start, scale)


def null_of(scores: Sequence[float], kinds: Sequence[str]) -> Null:
    """Rates of exponential scores, Gamma distributed among kinds: the most likely shape and rate.

    A score below KNOWN says only that it is: how far a network lies below the others tells nothing of the
    tail, and a kind with scores near 0 would be taken for one with a rate beyond all others. A kind with m
    scores above, of sum S, and l below has, its rate r integrated out and (1 - e^(-KNOWN r))^l written out,

        p = sum_j (-1)^j binom(l, j) b^a Gamma(a + m) / Gamma(a) / (b + S + j KNOWN)^(a + m),  a shape, b rate
    """
    groups = []
    for name in sorted(set(kinds)):
        own = [s for s, k in zip(scores, kinds, strict=True) if k == name]
        above = [s for s in own if s > KNOWN]
        groups.append((len(above), sum(above), len(own) - len(above)))

    def loss(v: Array) -> float:
        shape, rate = np.exp(v)
        total = 0.0
        for m, s, below in groups:
            j = np.arange(below + 1)
            terms = special.binom(below, j) * (-1.0) ** j * (rate / (rate + s + j * KNOWN)) ** (shape + m)
            each = special.gammaln(shape + m) - special.gammaln(shape) - m * np.log(rate)
            total += each + np.log(max(float(terms.sum()), 1e-300))
        return float(-total + (v[0] - np.log(SHAPE)) ** 2 / 2)

    shape, rate = np.exp(optimize.minimize(loss, np.full(2, np.log(SHAPE)), method="Nelder-Mead").x)
    return Null(float(shape), float(rate))


def fit(known: Sequence[Network], settings: Mapping[str, Any] | None = None) -> Population:
    """A population of the clean networks among some.

    Args:
        known: with clean ones of at least LEAST_KINDS kinds.
        settings: of the detector, for the record.

    Raises:
        BadInput: there are fewer kinds.
    """
    references = max((n.measured.references for n in known), default=0)
    known = [n for n in known if n.measured.references == references]  # a pupil may have learned too little
    clean = [n for n in known if n.attack is None]
    kinds = [n.kind for n in clean]
    if len(set(kinds)) < LEAST_KINDS:
        raise BadInput(f"clean networks of {len(set(kinds))} kinds; it takes {LEAST_KINDS}")
    spaces = list(dict.fromkeys(name for n in clean for name in n.measured.sizes))
    priors = {
        name: prior_of(
            [n.measured.differences(name) for n in clean], kinds, LEAST_WITHIN.get(name, USUAL_WITHIN)
        )
        for name in spaces
    }
    usual = [{i: p.difference for i, p in enumerate(n.measured.pairs) if p.usual} for n in clean]
    counts = [n.measured.classes for n in clean]
    first = Population(
        settings or {}, priors, tuple(dict.fromkeys(name for n in clean for name in n.measured.works)),
        prior_of(usual, kinds, USUAL_WITHIN) if any(len(u) > 1 for u in usual) else Prior(0.0, 1.0, 1.0, 3.0),
        Tail(1.0, 1.0), Tail(1.0, 1.0), Null(1.0, 1.0), Null(1.0, 1.0),
        (min(counts), 2 * max(counts)), references,
        {"kinds": sorted(set(kinds)), "networks": len(clean)},
    )  # fmt: skip
    joint = [np.array([first.joint(z) for z in first.z(n.measured).values()]) for n in clean]
    share = [w / len(rows) for w, rows in zip(shares(kinds), joint, strict=True)]
    tails = []
    for two in (True, False):
        chosen = [i for i, c in enumerate(counts) if (c == 2) is two] or list(range(len(clean)))
        each = np.concatenate([np.full(len(joint[i]), share[i]) for i in chosen])
        tails.append(tail_of(np.concatenate([joint[i] for i in chosen]), each))
    second = replace(first, two=tails[0], many=tails[1])
    scores = [
        max(second.score(second.joint(z), n.measured.classes) for z in second.z(n.measured).values())
        for n in clean
    ]
    paired = [(n.kind, best) for n in clean if (best := second.best_pairs(n.measured))]
    of_pairs = [max(score for _, score, _ in best.values()) for _, best in paired]
    return replace(
        second,
        null=null_of(scores, kinds),
        null_of_pairs=null_of(of_pairs, [kind for kind, _ in paired]) if paired else Null(1.0, 1.0),
    )


def populations(known: Sequence[Network], settings: Mapping[str, Any] | None = None) -> list[Population]:
    """One for each look, beside the references of the first, and beside those of all; and before them one
    beside the first reference alone, for networks whose pupil learned too little."""
    most = max((n.measured.references for n in known), default=0)
    counts = dict.fromkeys(
        c for c in (1, *np.cumsum([len(look) for look in LOOKS]).tolist(), most) if c <= most
    )
    return [fit([replace(n, measured=n.measured.upto(c)) for n in known], settings) for c in counts]


def left_out(known: Sequence[Network]) -> list[Judged]:
    """Every network, judged look by look by populations of all kinds but its own, as a scan does."""
    return [j for kind in sorted({n.kind for n in known}) for j in apart(known, kind)]


def apart(known: Sequence[Network], kind: str) -> list[Judged]:
    """The networks of one kind, judged by populations of all the others."""
    looks = populations([n for n in known if n.kind != kind])
    return [judged(n, looks) for n in known if n.kind == kind]


def judged(n: Network, looks: Sequence[Population]) -> Judged:
    """By the first look; where that is somewhat suspicious by the next, which sees all that it saw."""
    suspects, count = suspected(n, looks)
    return Judged(n, suspects[0].p_value, suspects[0].target, count)


def suspected(n: Network, looks: Sequence[Population]) -> tuple[list[Suspect], int]:
    """All classes of a network, most suspicious first, and the looks that it took."""
    looks = [p for p in looks if 1 < p.references <= n.measured.references] or looks[:1]
    for population in looks:
        measured = n.measured.upto(population.references)
        found = population.suspects(measured)
        if not population.fits(measured):  # a scan says that it cannot tell
            found = [replace(s, p_value=1.0) for s in found]
        if found[0].p_value > AGAIN:
            break
    return found, 1 + looks.index(population)


# ---------------------------------------------------------------------- figures


def called(judged: Sequence[Judged], alpha: float) -> Share:
    """Networks that are called backdoored at a level."""
    return Share(sum(j.p_value <= alpha for j in judged), len(judged))


def auroc(judged: Sequence[Judged]) -> float | None:
    """Of the p-values, clean against attacked; None where either is missing."""
    truth = [j.network.attack is not None for j in judged]
    return float(roc_auc_score(truth, [-j.p_value for j in judged])) if len(set(truth)) == 2 else None


def interval(judged: Sequence[Judged], figure: Callable[[Sequence[Judged]], float | None]) -> Estimate | None:
    """A figure with an interval: kinds are drawn, then networks within each, with a fixed seed."""
    value = figure(judged)
    if value is None:
        return None
    by_kind: dict[str, list[Judged]] = {}
    for j in judged:
        by_kind.setdefault(j.network.kind, []).append(j)
    groups, rng = list(by_kind.values()), np.random.default_rng(BOOTSTRAP_SEED)
    drawn = []
    for _ in range(DRAWS):
        picked = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        again = figure([g[i] for g in picked for i in rng.integers(len(g), size=len(g))])
        if again is not None:
            drawn.append(again)
    return estimate(value, np.array(drawn))
