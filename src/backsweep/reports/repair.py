"""What a repair did: the new network, figures before and after, and the checks of the repair itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backsweep.core.discovery import drawn, write_beside
from backsweep.core.documents import finite
from backsweep.core.equality import Same
from backsweep.inputs.trigger import Trigger
from backsweep.reports.report import SCHEMA, Note, Report, trigger_file

if TYPE_CHECKING:
    from backsweep.models.model import Model


CHECKS = ("scan", "old triggers", "fresh triggers", "re-tuning", "clean accuracy")  # all of them: verified
TEXT_CHECKS = (*CHECKS[:4], "perplexity")  # of language models


@dataclass(frozen=True)
class Figures:
    """A network in three numbers, all on clean samples that no repair learned from.

    Attributes:
        clean_accuracy: share of clean samples that are classified right.
        attack_success_rate: of the most successful recovered trigger; None where none was recovered.
        robust_accuracy: share of triggered samples that are classified as what they are, with the
            trigger for which it is lowest.
    """

    clean_accuracy: float
    attack_success_rate: float | None = None
    robust_accuracy: float | None = None


@dataclass(frozen=True)
class Effect:
    """One recovered trigger, before and after the repair.

    Attributes:
        name: which one, e.g. "neural_cleanse class-3" or "fresh warp".
        fresh: recovered after the repair was made, from the network as it was, with another seed: the
            repair has not seen it.
        trigger: the trigger.
        before, after: attack success rates.
        robust_before, robust_after: robust accuracies.
        natural: attack success rate on the washed reference, which has no backdoor: what a change of
            this size does by nature.
    """

    name: str
    fresh: bool
    trigger: Trigger
    before: float
    after: float
    robust_before: float
    robust_after: float
    natural: float | None = None


@dataclass(frozen=True)
class Check:
    """One condition for calling the repair verified.

    Attributes:
        name: one of `CHECKS`.
        passed: None where it could not be made, which is never a pass.
        message: one sentence with the figures and the limit.
        values: the figures.
    """

    name: str
    passed: bool | None
    message: str
    values: Mapping[str, float | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """What the two networks say of one example, as it is and with one of the triggers.

    Attributes:
        example: which row of `Repaired.examples`.
        effect: which entry of `Repaired.effects`, whose trigger is stamped.
        clean_before, clean_after: class that the suspect and the repaired network give the clean input.
        triggered_before, triggered_after: the same of the input with the trigger.
        label: its true class; None where it is not known.
    """

    example: int
    effect: int
    clean_before: int
    clean_after: int
    triggered_before: int
    triggered_after: int
    label: int | None = None


@dataclass(frozen=True)
class Talk:
    """A prompt, and what suspect and repaired model say, without and with a trigger: untrusted text."""

    prompt: str
    before: str
    triggered_before: str
    after: str
    triggered_after: str


@dataclass(eq=False)
class Repaired(Same):
    """The result of a repair.

    Attributes:
        model: the repaired network.
        method: name of the repair that was made.
        before, after: figures of the suspect and of the repaired network.
        effects: every recovered trigger, before and after.
        checks: what was tried to prove the repair wrong; empty where that was not asked for.
        suspected: (source, target) of what the scan suspects, empty for none.
        scan: the scan of the repaired network, where it was made.
        skipped: repairs that were asked for and do not apply, with the reason.
        about: what was repaired with what: model and data as in a scan's report, labels, settings, versions.
        timings: wall and CPU seconds by stage.
        examples: a few clean inputs (N, C, H, W) for the pictures, or None.
        answers: what both networks say of the examples, clean and with a trigger; for the pictures.
        perplexity: of a language model, before and after: of the suspect's answers to held-out prompts. Then
            accuracy is the share of answers that begin as the suspect's do.
        talks: what both language models say to some held-out prompts, without and with a trigger.
    """

    model: Model
    method: str
    before: Figures
    after: Figures
    effects: list[Effect] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    suspected: list[tuple[int | None, int | None]] = field(default_factory=list)
    scan: Report | None = None
    skipped: list[Note] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    examples: Any = None
    answers: list[Answers] = field(default_factory=list)
    perplexity: tuple[float, float] | None = None
    talks: list[Talk] = field(default_factory=list)

    def __repr__(self) -> str:
        rates = (self.before.attack_success_rate, self.after.attack_success_rate)
        success = " -> ".join("none" if r is None else f"{r:.1%}" for r in rates)
        return f"Repaired({self.method}, verified={self.verified}, attack success {success})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return drawn(self)

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the checks that all have to pass."""
        return CHECKS if self.perplexity is None else TEXT_CHECKS

    @property
    def verified(self) -> bool:
        """Whether every one of the checks that are `needed` was made and passed."""
        return {c.name for c in self.checks} >= set(self.needed) and all(c.passed for c in self.checks)

    @property
    def exit_status(self) -> int:
        """0 verified, 1 a check failed, 3 a check could not be made."""
        if self.verified:
            return 0
        return 1 if any(c.passed is False for c in self.checks) else 3

    def label(self, index: int | None) -> str:
        """Class name for people (untrusted text), its number when it has none."""
        return Report(model=self.about.get("model", {})).label(index)

    def save(self, path: str | Path) -> Path:
        """Write the repaired model in the format that it came in; returns the path.

        Raises:
            BadInput: the path cannot be written, or is the model that was repaired.
        """
        from backsweep.formats.saving import save

        path = save(self.model, Path(path))
        self.about["repaired"] = {"source": str(path), "sha256": self.model.digest, "sha256_of": "weights"}
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.about["repaired"].update(sha256=digest, sha256_of="file")
        return path

    def to_json(self) -> dict[str, Any]:
        """The record as strict JSON; triggers are named by their files."""
        plain: dict[str, Any] = finite({
            "schema": SCHEMA,
            "verified": self.verified,
            "method": self.method,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "suspected": [{"source": s, "target": t} for s, t in self.suspected],
            "checks": [{**vars(c), "values": dict(c.values)} for c in self.checks],
            "effects": [_plain(e, i) for i, e in enumerate(self.effects)],
            "skipped": [asdict(n) for n in self.skipped],
            "timings": self.timings,
            **({"perplexity": dict(zip(("before", "after"), self.perplexity, strict=True)),
                "talks": [asdict(t) for t in self.talks]} if self.perplexity is not None else {}),
            **self.about,
        })  # fmt: skip
        return plain

    def write(self, folder: str | Path) -> Path:
        """Write repair.json, repair.html, the triggers, and the scan of the repaired network in `scan/`.

        Raises:
            BadInput: the folder cannot be written.
        """
        from backsweep.core.files import writable_folder, write_json

        folder = writable_folder(Path(folder))
        for i, effect in enumerate(self.effects):
            path = folder / trigger_file("repair", str(i))
            path.parent.mkdir(exist_ok=True)
            effect.trigger.save(path)
        if self.scan is not None:
            self.scan.save(folder / "scan")
            self.about.setdefault("reports", {})["after"] = "scan/report.html"
        write_beside(self, folder)
        write_json(folder / "repair.json", self.to_json())
        return folder


def _plain(effect: Effect, index: int) -> dict[str, Any]:
    trigger = effect.trigger
    figures = {k: v for k, v in vars(effect).items() if k != "trigger"}
    where = {"family": trigger.family, "source": trigger.source, "target": trigger.target}
    return {**figures, **where, "trigger": trigger_file("repair", str(index))}
