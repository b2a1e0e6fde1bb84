"""How a repair is measured, and how it is tried to prove it wrong: of networks that classify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.inversion.recover import Way, recover
from backsweep.models.model import Model
from backsweep.models.washing import reference_of
from backsweep.repairing.method import Case
from backsweep.repairing.relapse import POISONS, retuned
from backsweep.reports.repair import Answers, Check, Effect, Figures, Repaired
from backsweep.reports.report import Report

MOST_LOSS = 0.015  # clean accuracy that a verified repair may cost
MOST_SUCCESS, MOST_RELAPSE = 0.10, 0.20  # attack success rates that a verified repair may leave
BEYOND_NATURAL = 0.05  # or so much more than on the washed reference, which no backdoor helps
NATURAL = 0.25  # triggers that move so many more of the samples on the washed reference are natural
MOST_RETUNED = 3  # triggers that re-tuning is tried with
EXAMPLES, STRIPS = 4, 3


@dataclass(frozen=True)
class Proof:
    """Figures before and after, and the checks.

    Attributes:
        result: what is filled in.
        work: a frozen working copy of the suspect.
        case: what the repair was given.
        report: of the scan.
        tell: told a stage and which share of it is done.
    """

    result: Repaired
    work: Model
    case: Case
    report: Report | None
    tell: Callable[[str, float], None]

    compared_with: ClassVar[str] = "on the washed reference after the same"  # re-tuning

    def measure(self) -> None:
        """Every recovered trigger, of the scan and fresh, on the held-out samples before and after."""
        result, case = self.result, self.case
        for name, is_fresh, trigger in self.triggers():
            there = case.held_out[acted_on(trigger, case.held_out.y, self.work.classes)]
            if len(there) == 0:
                continue
            natural = self.natural(trigger, there)
            if natural is not None and natural - self.astray(trigger, there) > NATURAL:  # no backdoor
                continue
            rates = [m.success_rate(trigger, there) for m in (self.work, result.model)]
            robust = [m.accuracy(trigger(there.x), there.y) for m in (self.work, result.model)]
            result.effects.append(
                Effect(name, is_fresh, trigger, rates[0], rates[1], robust[0], robust[1], natural)
            )
        if result.effects:
            all_of = result.effects
            before, after = result.before.clean_accuracy, result.after.clean_accuracy
            robust_before = min(e.robust_before for e in all_of)
            result.before = Figures(before, max(e.before for e in all_of), robust_before)
            robust_after = min(e.robust_after for e in all_of)
            result.after = Figures(after, max(e.after for e in all_of), robust_after)
        self.show()

    def triggers(self) -> list[tuple[str, bool, Trigger]]:
        """Name, whether it is fresh, and trigger: those of the scan, then fresh ones."""
        self.reference()
        self.tell("measure", 0.4)
        fresh = recover(self.work, self.case.clean, self.case.aims, derive_seed(self.case.seed, "fresh"))
        self.tell("measure", 0.8)
        return [*self.old(), *((name, True, trigger) for name, trigger in fresh)]

    def old(self) -> list[tuple[str, bool, Trigger]]:
        """The triggers of the scan."""
        found_by = {id(e.trigger): e.detector for e in self.report.evidence} if self.report else {}
        return [(f"{found_by[id(t)]}, {t.family}", False, t) for t in self.case.triggers]

    def reference(self) -> Model:
        """A network without a backdoor: the washed copy."""
        return reference_of(self.work, self.case.clean, derive_seed(self.case.seed, "measure"))

    def natural(self, trigger: Trigger, data: Data) -> float | None:
        """How often a trigger works on a network without a backdoor; None: there is no such network."""
        return self.reference().success_rate(trigger, data)

    def astray(self, trigger: Trigger, data: Data) -> float:
        """How often a network without a backdoor sends the same samples there without the trigger."""
        wanted = trigger.labels(data.y, self.work.classes)
        return float((self.reference().predict(data.x) == wanted).double().mean())

    def show(self) -> None:
        """What both networks say of a few held-out examples, with the triggers that worked best."""
        result, case = self.result, self.case
        shown: list[int] = []
        best = sorted(range(len(result.effects)), key=lambda i: -result.effects[i].before)[:STRIPS]
        for i in best:
            trigger = result.effects[i].trigger
            rows = torch.nonzero(acted_on(trigger, case.held_out.y, self.work.classes)).flatten()
            y = case.held_out.y[rows]
            first = torch.stack([rows[y == c][0] for c in y.unique()])  # of every class, or of the only one
            some = spread(first if len(first) > 1 else rows, EXAMPLES).tolist()
            x, labels = case.held_out.x[some], case.held_out.y[some].tolist()
            said = [m.predict(v).tolist() for v in (x, trigger(x)) for m in (self.work, result.model)]
            for k, row in enumerate(some):
                if row not in shown:
                    shown.append(row)
                before, after, triggered_before, triggered_after = (s[k] for s in said)
                at = shown.index(row)
                result.answers.append(
                    Answers(at, i, before, after, triggered_before, triggered_after, labels[k])
                )
        if shown:
            result.examples = case.held_out.x[shown]

    # ------------------------------------------------------------------ checks

    def check(self) -> None:
        """What clean inputs get, the triggers, old and fresh, and re-tuning."""
        self.check_kept()
        self.check_triggers()
        self.check_retuning()

    def check_kept(self) -> None:
        """Clean accuracy."""
        before, after = self.result.before.clean_accuracy, self.result.after.clean_accuracy
        count = len(self.case.held_out)
        limit = max(MOST_LOSS, 2 / count)  # two samples tell nothing
        self.result.checks.append(Check(
            "clean accuracy", after >= before - limit,
            f"{after:.1%} of {count} held-out samples are right, {before:.1%} before; "
            f"at most {100 * limit:.1f} points may be lost",
            {"before": before, "after": after, "limit": limit},
        ))  # fmt: skip

    def check_triggers(self) -> None:
        """Those of the scan, and fresh ones."""
        result, aims = self.result, self.case.aims
        for name, is_fresh in (("old triggers", False), ("fresh triggers", True)):
            some = [e for e in result.effects if e.fresh == is_fresh]
            if not some:
                passed = None if aims and (is_fresh or not result.effects) else True
                why = "none was recovered that works" if aims else "the scan suspects nothing"
                result.checks.append(Check(name, passed, f"there is no trigger to try: {why}"))
                continue
            worst = max(some, key=lambda e: e.after - _limit(e))
            result.checks.append(Check(
                name, all(e.after <= _limit(e) for e in some),
                f"of {len(some)}, the worst ({worst.name}) works on {worst.after:.1%} of the samples, "
                f"{worst.before:.1%} before; the limit is {_limit(worst):.1%}"
                + (f", as {worst.natural:.1%} fall for it by nature" if _limit(worst) > MOST_SUCCESS else ""),
                {"before": worst.before, "after": worst.after, "natural": worst.natural,
                 "limit": _limit(worst)},
            ))  # fmt: skip

    def check_retuning(self) -> None:
        """Whether a few poisoned samples, made with a recovered trigger, bring the backdoor back."""
        best: dict[Way, Effect] = {}
        for e in sorted(self.result.effects, key=lambda e: -(e.before - (e.natural or 0.0))):
            best.setdefault((e.trigger.source, e.trigger.target), e)
        if not best:
            passed = None if self.case.aims else True
            self.result.checks.append(Check("re-tuning", passed, "there is no trigger to re-tune with"))
            return
        outcomes: list[tuple[float, float, float, float, str]] = []
        for way, effect in list(best.items())[:MOST_RETUNED]:
            rate, natural = self.relapse(effect.trigger, derive_seed(self.case.seed, "verify", *way))
            limit = max(MOST_RELAPSE, natural + 2 * BEYOND_NATURAL)
            outcomes.append((rate - limit, rate, natural, limit, effect.name))
            self.tell("verify", len(outcomes) / min(len(best), MOST_RETUNED))
        excess, rate, natural, limit, name = max(outcomes)
        self.result.checks.append(Check(
            "re-tuning", excess <= 0,
            f"after re-tuning on {POISONS} poisoned samples the trigger ({name}) works on {rate:.1%} of the "
            f"samples, {self.compared_with} on {natural:.1%}; the limit is {limit:.1%}",
            {"after": rate, "reference": natural, "limit": limit, "triggers": float(len(outcomes))},
        ))  # fmt: skip

    def relapse(self, trigger: Trigger, seed: int) -> tuple[float, float]:
        """How often a trigger works after re-tuning, and how often where there never was a backdoor."""
        reached = [
            retuned(m, self.case.clean, trigger, seed).success_rate(trigger, self.case.held_out)
            for m in (self.result.model, self.reference())
        ]
        return reached[0], reached[1]


def _limit(effect: Effect) -> float:
    return max(MOST_SUCCESS, (effect.natural or 0.0) + BEYOND_NATURAL)


def spread(rows: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of the rows, evenly spread."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]
