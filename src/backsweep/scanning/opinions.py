"""A second opinion: the same scan with another seed, and with other samples where there are enough.

Both opinions are of one network, so their p-values are not independent. The larger of two valid p-values is
a valid one, however they hang together:

    P(max(p1, p2) <= alpha)  <=  P(p1 <= alpha)  <=  alpha

So a class is called where both opinions call it, and where they differ, none is: that is "cannot tell".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from backsweep.core.progress import Event, OnEvent
from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.reports.report import ERROR, NOTE, WARNING, Finding, Note, Report

SECOND = "second opinion"
APART = 1000, 30  # samples, and samples of a class, that each opinion is to have of its own


def parts(data: Data, classes: int, seed: int) -> tuple[Data, Data]:
    """The samples of the first and of the second opinion: disjoint halves, or all of them for both.

    Few samples make poor references, so they are divided only where each half is as much as the clean
    networks were measured with.
    """
    if len(data) < 2 * max(APART[0], APART[1] * classes):
        return data, data
    first, second = data.parted(0.5, derive_seed(seed, SECOND))
    return first, second


def retold(on_event: OnEvent | None) -> OnEvent | None:
    """Progress of a second opinion, under a name of its own."""
    if on_event is None:
        return None
    tell: Callable[[Event], None] = on_event
    return lambda event: tell(replace(event, stage=f"{event.stage}, {SECOND}"))


def joined(first: Sequence[Finding], second: Sequence[Finding]) -> list[Finding]:
    """What both opinions find.

    Args:
        first, second: findings, each judged at the level that is accepted.
    """
    said = {(f.detector, f.target): f for f in second}
    found = [_beside(f, said.pop((f.detector, f.target), None), second) for f in first]
    for f in said.values():  # of classes that the first does not speak of
        if f.level == ERROR:
            message = f"cannot tell, the {SECOND} alone calls this class: {f.message}"
            found.append(replace(_p(f, None, f), level=WARNING, message=message, trigger=None))
        elif f.level == WARNING:
            found.append(replace(f, message=f"{SECOND}: {f.message}", trigger=None))
    return found


def _beside(own: Finding, other: Finding | None, second: Sequence[Finding]) -> Finding:
    """A finding of the first opinion, with what the second says of the same class."""
    if own.level == ERROR and other is not None and other.level == ERROR:
        return replace(_p(own, own, other), message=f"{own.message}; the {SECOND} agrees{_ps(own, other)}")
    if own.level == ERROR:
        message = f"cannot tell, the {SECOND} does not call this class: {own.message}"
        return replace(_p(own, own, None), level=WARNING, message=message)
    if own.level == NOTE and other is not None and other.level == ERROR:
        message = f"cannot tell, the {SECOND} alone calls this class{_ps(own, other)}: {other.message}"
        return replace(_p(own, None, other), level=WARNING, message=message)
    if own.level == NOTE and own.p_value is not None and all(f.level == NOTE for f in second):
        return replace(own, message=f"{own.message}; the {SECOND} finds nothing either")
    return own


def _p(finding: Finding, first: Finding | None, second: Finding | None) -> Finding:
    """A finding with the p-values of both opinions; one that does not call a class leaves no joint one."""
    p1, p2 = (f.p_value if f is not None else None for f in (first, second))
    joint = max(p1, p2) if p1 is not None and p2 is not None else None
    own = {"first_opinion": p1, "second_opinion": p2}
    return replace(
        finding, p_value=joint, details={**finding.details, **{k: v for k, v in own.items() if v is not None}}
    )


def _ps(first: Finding, second: Finding) -> str:
    if first.p_value is None or second.p_value is None:
        return ""
    return f" (p {first.p_value:.2g} and {second.p_value:.2g})"


def failed(report: Report) -> list[Note]:
    """What failed in the second opinion of a report, as errors of the report."""
    return [Note(f"{SECOND}, {n.what}", n.reason) for n in (report.second.errors if report.second else ())]
