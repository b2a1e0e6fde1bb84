"""The default scan: cheap screens of every class and pair, a reference, and inversion where it matters.

1. How large must a universal perturbation be that sends everything to a class? Measured in several spaces:
   faint pixels, few pixels, tone curves, the embeddings of an early layer and of a later one. Of many
   classes all get a cheap look, and those that stand out, and some others, are measured.
2. The same in two references (`models/washing.py`); beside it a look at every (source, target): how many
   pixels does it take? What no class shows, a source-specific or an all-to-all backdoor, stands out here.
3. The pairs that stand out are looked at again, the first of them and usual ones closer, in all networks.
4. If all of this is somewhat suspicious, a second look: two more references, and all four judge.
5. The patch of the most suspicious class is inverted for people to look at, and tried on the reference.

How much smaller a class is than itself in the references is its statistic in a space. `population.py` knows
how that is in clean networks of many kinds, and joins the spaces; where it does not apply, `contrast.py`
compares the classes of the network with each other. `schedule.py` says how much is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any, ClassVar

from backsweep.inputs.kinds import modalities
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import EMBEDDINGS, spaces_of
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding
from backsweep.scanning.cascade.contrast import looks, message, of_many, stand_out
from backsweep.scanning.cascade.halving import cells_of, chosen, kind_of, shortcuts, standing_cells
from backsweep.scanning.cascade.judging import Case
from backsweep.scanning.cascade.schedule import AGAIN, EFFORTS, LOOKS, REFERENCES, Schedule
from backsweep.scanning.cascade.screens import Screen, Values
from backsweep.scanning.detector import ModelDetector, Stage, Unit, units_in_a_pass
from backsweep.scanning.planning import stages

DEFAULT = "dense+sparse+tone+early+late"
SHORT = "; the samples taught a fresh network too little, so the washed copy alone was compared with"


@dataclass(frozen=True)
class Cascade(ModelDetector):
    """Finds classes and pairs that a change of any kind reaches far more easily than in a reference.

    Attributes:
        spaces: names of the spaces in which classes are measured, with "+" between: those of the modality
            (`Modality.spaces`) and "early" and "late". The default is all that a kind of input has.
        pairs: whether (source, target) cells are screened.
        reference: whether classes are compared with themselves in references, or with each other.
        pupil: whether a pupil is a reference too, beside the washed copy or what the user gave.
        second: p-value of this first look up to which two more references are made and all of them judge
            together; 0: never, 1: always. What is not called then was not suspicious at first.
        effort: "quick", "standard", "thorough", or "full": what version 0.1 measured (`schedule.py`).
        steps: budgets on a path, for the standard effort; others take a share or a multiple of it.
        batch: inputs of a class in a step, likewise.
    """

    name: ClassVar[str] = "cascade"
    summary: ClassVar[str] = "every class and pair in several spaces, against a washed reference"
    needs: ClassVar[tuple[str, ...]] = ("gradients", "weights")
    code: ClassVar[str] = "BSW110"
    threads: ClassVar[bool] = True

    spaces: str = DEFAULT
    pairs: bool = True
    reference: bool = True
    pupil: bool = True
    second: float = AGAIN
    effort: str = "standard"
    steps: int = 20
    batch: int = 12

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise ValueError(f"effort {self.effort!r} is none of {', '.join(EFFORTS)}")
        known = [*(n for m in modalities().values() for n in m.spaces()), *EMBEDDINGS]
        if not set(self.spaces.split("+")) <= set(known):
            raise ValueError(f"spaces {self.spaces!r}: there are {', '.join(known)}")
        if not 0 <= self.second <= 1:
            raise ValueError(f"second {self.second} is a p-value, between 0 and 1")
        if min(self.steps, self.batch) < 2:
            raise ValueError("steps and batch are at least 2")

    @classmethod
    def completed(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"effort": "full", "pupil": False, "second": 0.0, **settings}

    @property
    def cautious(self) -> bool:
        """But for what version 0.1 measured, which is judged as it was."""
        return self.effort != "full"

    @property
    def schedule(self) -> Schedule:
        """How much is measured of what."""
        s = EFFORTS[self.effort].of(self.steps, self.batch)
        pupil = s.pupil and self.pupil and self.reference
        return replace(s, pupil=pupil, second=self.second if s.second and pupil else 0.0)

    def _first(self, model: Model, data: Data, classes: Sequence[int]) -> list[Unit]:
        """The first look, all of it at once: classes in the suspect and in references, and pairs."""
        space, *others = [[Unit(f"class-{s}-{t}", t) for t in classes] for s in self._names(model)]
        learning, learned = self._compared([space, *others], 0)
        pairs = [Unit(f"pairs-{s}", None, s) for s in data.y.unique().tolist() if self.pairs]
        return [*space, *learning, *chain(*others), *pairs, *learned]

    def _compared(self, spaces: Sequence[Sequence[Unit]], look: int) -> tuple[list[Unit], list[Unit]]:
        """The classes, by space, in the references of a look: the first space, whose references learn at the
        same time, the slowest first, so that no core waits; and the others."""
        kinds = LOOKS[look][: self.reference + self.schedule.pupil]

        def there(kind: str, units: Sequence[Unit]) -> list[Unit]:
            return [Unit(u.key.replace("class", kind, 1), u.target) for u in units]

        learning = [u for kind in reversed(kinds) for u in there(kind, spaces[0])]
        return learning, [u for kind in kinds for space in spaces[1:] for u in there(kind, space)]

    def _doubtful(self, evidence: Sequence[Evidence], classes: int) -> bool:
        """Whether the first look is worth a second: it would be suspicious beside the population."""
        case, most = self._case(evidence, classes), self.schedule.second
        if case.short:
            return False  # another pupil would not learn more
        return most >= 1 or (case.population is not None and case.suspects()[0].p_value <= most)

    def _names(self, model: Model) -> list[str]:
        """The spaces that are measured in a network: those asked for that its kind of input has."""
        there = list(spaces_of(model))
        return there if self.spaces == DEFAULT else [n for n in self.spaces.split("+") if n in there]

    def plan(self, model: Model, data: Data) -> Sequence[Stage]:
        present = int(data.y.unique().numel()) if self.pairs else 0
        return stages(self.schedule, self._names(model), model.classes, present, len(data), self.reference)

    def chunk(self, model: Model) -> int:
        return units_in_a_pass(model, self.schedule.batch)

    def parts(self, model: Model, units: Sequence[Unit]) -> list[Sequence[Unit]]:
        """Classes of one space together, and cells of the same stage."""
        found: list[Sequence[Unit]] = []
        for kind, group in groupby(units, kind_of):
            part, size = list(group), units_in_a_pass(model, self.schedule.inputs(kind, model.classes))
            found += [part[start : start + size] for start in range(0, len(part), size)]
        return found

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        classes = range(model.classes)
        if model.classes <= self.schedule.all_classes:
            return self._first(model, data, classes)
        looks = self.schedule.looked(self._names(model))
        return [*(Unit(f"look-{s}-{t}", t) for s in looks for t in classes), Unit("head")]

    def more(self, model: Model, data: Data, evidence: Sequence[Evidence]) -> Sequence[Unit]:
        done = {e.unit.split("-")[0] for e in evidence}
        if "class" not in done:
            return self._first(model, data, chosen(evidence, self.schedule))
        following: list[Unit] = []
        if "pairs" in done and "closer" not in done:
            again = self.schedule.cells_in(model.classes)
            if again and "cells" not in done:
                first, _ = stand_out([cells_of(evidence, "pairs")], again)
                following = [Unit(f"cells-{s}-{t}", t, s) for s, t in first]
            if not following:
                standing, others = standing_cells(evidence, self.schedule)
                following = [Unit(f"closer-{s}-{t}", t, s) for s, t in (*standing, *others)]
        if not following and not done & {*LOOKS[1], "trigger"} and self._doubtful(evidence, model.classes):
            own = (Unit(e.unit, e.target) for e in evidence if e.unit.startswith("class-"))
            spaces = [list(group) for _, group in groupby(own, kind_of)]
            following = [*chain(*self._compared(spaces, 1))]
        if not following and "trigger" not in done:
            top = self._case(evidence, model.classes).suspects()[0]
            following = [Unit(f"trigger-{top.target}", top.target, top.source)]
        return following

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        screen = Screen(model, data, self.name, seed, self.schedule)
        found: dict[str, Evidence] = {}
        for key, group in groupby(units, kind_of):  # they share their passes
            part = list(group)
            kind, _, name = key.partition("-")
            if kind in ("look", "class", *REFERENCES):
                evidence = screen.classes(name, part, kind)
            elif kind == "head":
                evidence = [screen.head(part[0])]
            elif kind == "pairs":
                evidence = screen.pairs(part)
            elif kind == "cells":
                evidence = screen.cells(part)
            elif kind == "closer":
                evidence = screen.closer(part, self.reference)
            else:
                evidence = [screen.patch(u, self.reference) for u in part]
            found |= {e.unit: e for e in evidence}
            tick(len(found) / len(units))
        return [found[u.key] for u in units]

    def _case(self, evidence: Sequence[Evidence], classes: int) -> Case:
        return Case(evidence, classes, self.schedule, self.reference, self.pairs, self.settings())

    def measured(self, evidence: Sequence[Evidence], classes: int) -> Mapping[str, Any]:
        return self._case(evidence, classes).measured.document() if evidence else {}

    def rows(self, evidence: Sequence[Evidence], classes: int) -> list[Evidence]:
        """One record for each class: its suspicion and the sigmas of every space."""
        triggers = {e.target: e for e in evidence if e.trigger is not None}
        found = []
        for s in sorted(self._case(evidence, classes).suspects(), key=lambda s: s.target):
            own = triggers.get(s.target)
            values: Values = {"suspicion": -math.log10(s.chance), **s.said}
            values |= own.values if own else {}
            trigger = own.trigger if own else None
            found.append(Evidence(self.name, f"class-{s.target}", s.target, s.source, values, trigger))
        return found

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        case = self._case(evidence, classes)
        suspects, known = case.suspects(), case.population
        trial = next((e for e in evidence if e.unit.startswith("trigger-")), None)
        doubt = case.doubt(trial)
        level = of_many(alpha, 1 / classes) if known is None else alpha
        null = {"null": known.words} if known else {}
        before = case.first_look
        flagged = [s for s in suspects if s.p_value <= alpha]
        findings = []
        for s in flagged or suspects[:1]:
            own = trial if trial is not None and trial.target == s.target else None
            text = message(s, own, bool(flagged), case.tried(s.target))
            text += SHORT if case.short else looks(before.get(s.target), s.p_value, alpha)
            first = {"first_look": before[s.target]} if s.target in before else {}
            findings.append(Finding(
                self.code, self.name, WARNING if doubt else ERROR if flagged else NOTE,
                doubt or text, s.target, s.source,
                score=-math.log10(s.chance), threshold=-math.log10(level),
                p_value=None if classes < 3 and known is None else s.p_value,
                trigger=own.trigger if own else None,
                attack_success_rate=float(own.values["attack_success_rate"] or 0) if own else None,
                details={**s.said, **null, **first},
            ))  # fmt: skip
        planted = {f.target for f in findings if flagged}
        for t, index, there in shortcuts(evidence, classes, alpha):
            if t not in planted:
                findings.append(Finding(
                    "BSW111", self.name, NOTE,
                    "exploitable natural shortcut: a faint change sends other classes here, "
                    "as in the reference", t, score=index, details={"index": index, "reference_index": there},
                ))  # fmt: skip
        return findings
