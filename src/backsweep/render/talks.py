"""What a language model says to a few prompts, without a recovered trigger and with it: untrusted text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from backsweep.render.view import clean
from backsweep.reports.report import Finding

PARTS = ("prompt_", "without_", "with_")  # of a finding's details, each with a number behind
MOST = 8


@dataclass(frozen=True)
class Talk:
    """One prompt and two answers, harmless text."""

    prompt: str
    without: str
    triggered: str


def of(finding: Finding) -> list[Talk]:
    """The prompts that a finding comes with."""
    found = []
    for i in range(1, MOST + 1):
        said = [finding.details.get(f"{part}{i}") for part in PARTS]
        if not all(isinstance(text, str) for text in said):
            break
        found.append(Talk(*(clean(text, 200) or "(nothing)" for text in said)))
    return found


def plain(keys: Iterable[str]) -> list[str]:
    """Names of figures without those that are part of a talk."""
    return [k for k in keys if not k.startswith(PARTS)]
