"""What a repair comes to, in words and figures: what its page and the console have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backsweep.render import view
from backsweep.reports.repair import Check, Effect, Repaired
from backsweep.reports.report import BACKDOORED, CLEAN, INCONCLUSIVE

CONDITIONS = {  # when a check passes; all of `Repaired.needed` together are what "verified" means
    "scan": "a new scan with other seeds comes out clean",
    "old triggers": "the old triggers no longer work",
    "fresh triggers": "triggers freshly recovered from the network as it was, which the repair never saw, "
    "no longer work",
    "re-tuning": "re-tuning on a handful of poisoned samples does not bring the backdoor back",
    "clean accuracy": "clean accuracy is kept",
}
OF_LANGUAGE = {  # of language models, the last one of the five
    "perplexity": "the perplexity of what the suspect answers to clean prompts is kept",
}
FAILED = {
    "scan": "a new scan does not come out clean",
    "old triggers": "the old triggers still work",
    "fresh triggers": "freshly recovered triggers still work",
    "re-tuning": "re-tuning brings the backdoor back",
    "clean accuracy": "clean accuracy is not kept",
    "perplexity": "what the suspect answers to clean prompts is not kept",
}


OF_TEXTS = {  # what the accuracies of a language model are
    "clean_accuracy": "Answers that begin as the suspect's",
    "robust_accuracy": "The same, with the trigger",
}
MEANT = {  # what the figures are, in the words of the table's foot
    "Attack success rate": "share of triggered inputs that go to the target, with the trigger that "
    "works best",
    "Robust accuracy": "share of triggered inputs classified as what they are, with the trigger for which "
    "it is lowest",
}
MEANT_OF_TEXTS = {
    "Perplexity": "how surprised a model is by what the suspect answers to held-out prompts",
    "Attack success rate": "share of triggered prompts whose answer begins with the planted one's first "
    "token, with the trigger that works best",
    "Answers that begin as the suspect's": "share of prompts with the same likeliest first token, which may "
    "change where several are about as likely",
}


def condition(name: str) -> str:
    """When a check passes; "" where that is not known."""
    return CONDITIONS.get(name) or OF_LANGUAGE.get(name, "")


def meant(repaired: Repaired) -> dict[str, str]:
    """What the figures of `compared` are."""
    if repaired.perplexity is not None:
        return MEANT_OF_TEXTS
    return MEANT if repaired.effects else {}


def checks(repaired: Repaired) -> list[Check]:
    """The five conditions in their order, then whatever else was checked; none where none was asked for."""
    if not repaired.checks:
        return []
    five: list[Check] = []
    for name in repaired.needed:
        same = [c for c in repaired.checks if c.name == name]
        five += same or [Check(name, None, "It was not asked for.")]
    return five + [c for c in repaired.checks if c.name not in repaired.needed]


def tone(repaired: Repaired) -> str:
    """Colour of the verdict: only all five checks together are good news."""
    found = [c.passed for c in checks(repaired)]
    return BACKDOORED if False in found else INCONCLUSIVE if None in found or not found else CLEAN


def verdict(repaired: Repaired, name: view.Name) -> view.Verdict:
    """What became of the network, in words; `name` makes a class index into text."""
    made = checks(repaired)
    conditions = "; ".join(condition(name) for name in repaired.needed)
    meaning = f"Verified means here that all five checks pass: {conditions}."
    failed = [c for c in made if c.passed is False]
    missing = [c for c in made if c.passed is None]
    if not made:
        return view.Verdict(
            "Repaired, not checked", "Nothing was done to find out whether the repair holds.",
            [meaning, "None of them was made. The figures below are not enough to rely on."],
            ["Have the repair checked before you use the network."],
        )  # fmt: skip
    if not failed and not missing:
        limits = (
            "The checks test what the scan found. They cannot show a backdoor that the scan missed, and no "
            "check can prove that there is none."
        )
        return view.Verdict("Repaired and verified", _held(repaired, name), [meaning, limits], [])
    which = ", ".join(view.clean(c.name, 40) for c in failed or missing)
    lines = [meaning]
    if failed and missing:
        lines.append(f"Not made: {', '.join(view.clean(c.name, 40) for c in missing)}.")
    if failed:
        headline = view.sentence(view.join([FAILED.get(c.name, f"{c.name} failed") for c in failed]))
        what_next = [
            "Do not use the repaired network as if the backdoor were gone.",
            "Try another repair ('backsweep list' names them), or give it more clean samples.",
        ]
    else:
        one = len(missing) == 1
        headline = f"{'One check' if one else view.counted(len(missing), 'check')} could not be made."
        lines.append("A check that was not made does not count as passed.")
        what_next = ["See below what was missing, and have the repair checked again."]
    return view.Verdict(f"Repaired, not verified: {which}", headline, lines, what_next)


def _held(repaired: Repaired, name: view.Name) -> str:
    ways = list(dict.fromkeys(repaired.suspected))
    if not repaired.effects or not ways:
        return "All five checks passed."
    if len(ways) > 1 or ways[0][1] is None:
        return "The recovered triggers no longer work."
    return f"The trigger that sent {name(ways[0][0])} to {name(ways[0][1])} no longer works."


@dataclass(frozen=True)
class Row:
    """A figure before and after, the difference in points, and the lengths of two bars in percent."""

    name: str
    before: str
    after: str
    change: str
    lengths: tuple[float | None, float | None]


def compared(repaired: Repaired) -> list[Row]:
    """The figures of the two networks."""
    rows, named = [], {} if repaired.perplexity is None else OF_TEXTS
    if repaired.perplexity is not None:
        first, second = repaired.perplexity
        told = f"{100 * (second / first - 1):+.1f} %" if first > 0 and math.isfinite(second / first) else ""
        rows.append(Row("Perplexity", view.number(first), view.number(second), told, (None, None)))
    for key in ("clean_accuracy", "attack_success_rate", "robust_accuracy"):
        pair = getattr(repaired.before, key), getattr(repaired.after, key)
        known = [v for v in pair if v is not None and math.isfinite(v)]
        change = view.figure("", None)
        if len(known) == 2:
            change = f"{round(100 * (pair[1] - pair[0]), 1) + 0.0:+.1f}".replace("+0.0", "0.0") + " points"
        lengths = [round(100 * min(max(v, 0.0), 1.0), 1) if v in known else None for v in pair]
        before, after = (view.figure("_rate", v) for v in pair)
        word = named.get(key) or view.title(key).capitalize()
        rows.append(Row(word, before, after, change, (lengths[0], lengths[1])))
    return rows


def passed(check: Check) -> str:
    """One or two words for how a check went."""
    return {True: "passed", False: "failed", None: "not made"}[check.passed]


def target(effect: Effect, name: view.Name) -> str:
    """Where a trigger leads."""
    trigger = effect.trigger
    if trigger.target is None:
        return "every class to the next"
    return name(trigger.target) + (f" from {name(trigger.source)}" if trigger.source is not None else "")


def about(repaired: Repaired, key: str) -> Mapping[str, Any]:
    """A part of `Repaired.about`, empty where it is missing or something else."""
    value = repaired.about.get(key)
    return value if isinstance(value, Mapping) else {}
