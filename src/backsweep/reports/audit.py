"""What an audit found: a report with a score for every sample, and the samples that are flagged."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backsweep.core import documents
from backsweep.core.discovery import write_beside
from backsweep.core.errors import BadInput
from backsweep.core.text import one_line
from backsweep.reports.report import ERROR, Finding, Report, read_json

if TYPE_CHECKING:
    from torch import Tensor

TENSORS = "audit.safetensors"
FRESH, KEPT = "kept.safetensors", "kept.npz"  # a network that learned from the kept samples, those samples
SCAN = "scan"  # folder of that network's scan
SCORED = "scored_by"  # detail of a finding: whose scores say which samples of the class, where not its own
MAP_ROWS = 1500  # samples of a class that the map of the page shows


@dataclass(frozen=True)
class Examples:
    """What the page draws of a class: a map of its samples and pictures of some.

    Attributes:
        label: the class.
        rows: indices (M,) of the samples on the map, the most suspicious among them.
        places: their places (M, 2) on the map.
        suspicious, typical: indices of samples to draw, the most suspicious first; the least suspicious.
        pictures: the samples of both, inputs (S + T, C, H, W) in [0, 1].
    """

    label: int
    rows: Tensor
    places: Tensor
    suspicious: Tensor
    typical: Tensor
    pictures: Tensor


@dataclass(frozen=True)
class Retrained:
    """A fresh network, trained without the flagged samples.

    Attributes:
        accuracy_before, accuracy_after: of the network that was audited and of the fresh one, on samples
            that the fresh one did not learn from.
        samples: how many it learned from.
        measured_on: what the accuracies were measured on.
    """

    accuracy_before: float
    accuracy_after: float
    samples: int
    measured_on: str


def scored_by(finding: Finding) -> str:
    """The detector whose scores part the samples of the class that a finding names."""
    return str(finding.details.get(SCORED, finding.detector))


@dataclass(eq=False)
class Audit(Report):
    """The result of an audit of a training set.

    A verdict "backdoored" means that poisoned samples were found.

    Attributes:
        scores: by detector, one for every sample (N,), higher = more suspicious.
        labels: the labels (N,) of the samples.
        pictures: what the page draws of classes, the suspicious ones first.
        retrained: the check that `verify` asks for.
        rescan: the scan of the network that learned from the kept samples: verdict, p_value, targets, and
            where its page, the network and the samples lie in the folder of the audit.
    """

    scores: dict[str, Tensor] = field(default_factory=dict)
    labels: Any = None
    pictures: list[Examples] = field(default_factory=list)
    retrained: Retrained | None = None
    rescan: dict[str, Any] | None = None

    __repr__ = Report.__repr__

    @property
    def flagged(self) -> Tensor:
        """Indices of the flagged samples, ascending: of a class that is found poisoned, those above the cut
        of the detector that parts its samples (`scored_by`)."""
        import torch

        found = torch.zeros(len(self.labels), dtype=torch.bool)
        cuts = {(e.detector, e.target): e.values.get("cut") for e in self.evidence}
        for finding in self.findings:
            cut = cuts.get((scored_by(finding), finding.target))
            if finding.level == ERROR and isinstance(cut, int | float):
                found |= (self.labels == finding.target) & (self.scores[scored_by(finding)] > cut)
        return torch.nonzero(found).flatten()

    @property
    def kept(self) -> Tensor:
        """Indices of the other samples: the cleaned training set."""
        import torch

        left = torch.ones(len(self.labels), dtype=torch.bool)
        left[self.flagged] = False
        return torch.nonzero(left).flatten()

    def to_json(self) -> dict[str, Any]:
        flagged = self.flagged
        counts = {int(c): int((self.labels[flagged] == c).sum()) for c in self.labels[flagged].unique()}
        return {
            **super().to_json(),
            "audit": {
                "flagged": len(flagged), "kept": len(self.labels) - len(flagged),
                "flagged_by_class": {str(k): v for k, v in counts.items()},
                "retrained": vars(self.retrained) if self.retrained else None,
                **({"scan": self.rescan} if self.rescan else {}),
            },
        }  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Write report.json, report.html, report.sarif, flagged.csv, kept.csv and the scores.

        Raises:
            BadInput: the folder cannot be written.
        """
        import torch
        from safetensors.torch import save

        from backsweep.core.files import writable_folder, write_bytes, write_json, write_text
        from backsweep.inputs.kinds import modality_of

        folder = writable_folder(Path(folder))
        tensors = {f"score/{name}": s.float().contiguous() for name, s in self.scores.items()}
        tensors["labels"] = torch.as_tensor(self.labels).contiguous()
        for e in self.pictures:
            parts = {"rows": e.rows, "places": e.places.float(), "suspicious": e.suspicious,
                     "typical": e.typical,
                     "pictures": modality_of(self.model).pack(e.pictures)}  # fmt: skip
            own = f"class/{e.label}"
            tensors |= {f"{own}/{k}": v.contiguous().clone() for k, v in parts.items()}
        write_bytes(folder / TENSORS, save(tensors))
        write_text(folder / "flagged.csv", self._table())
        write_text(folder / "kept.csv", "index\n" + "".join(f"{i}\n" for i in self.kept.tolist()))
        write_beside(self, folder)
        write_json(folder / "report.json", self.to_json())
        return folder

    def _table(self) -> str:
        """The flagged samples: index, label and the score of every detector."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["index", "label", *self.scores])
        for i in self.flagged.tolist():
            scores = (f"{float(s[i]):.6g}" for s in self.scores.values())
            writer.writerow([i, int(self.labels[i]), *scores])
        return out.getvalue()

    @staticmethod
    def load(folder: str | Path) -> Audit:
        """Read a saved audit.

        Raises:
            BadInput: no audit there, damaged, or of a newer schema.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from backsweep.inputs.kinds import modality_of

        folder = Path(folder)
        whole, path = read_json(folder / "report.json"), folder / TENSORS
        plain = Report.from_json(whole, folder, str(folder / "report.json"))
        try:
            documents.check("audit", whole)
            raw, tensors = whole["audit"], load_file(path)
            labels = tensors["labels"]
            scores = {k.removeprefix("score/"): v for k, v in tensors.items() if k.startswith("score/")}
            _checked(labels, scores)
            if not {f.detector for f in plain.findings} <= set(scores):
                raise ValueError("the scores of a detector are missing")
            shown = dict.fromkeys(int(k.split("/")[1]) for k in tensors if k.startswith("class/"))
            pictures, unpack = [], modality_of(plain.model).unpack
            for c in shown:
                part = {k: tensors[f"class/{c}/{k}"] for k in ("rows", "places", "suspicious", "typical")}
                drawn = Examples(c, **part, pictures=unpack(tensors[f"class/{c}/pictures"]))
                _drawable(drawn)
                pictures.append(drawn)
            again = raw["retrained"]
            audit = Audit(
                **vars(plain), scores=scores, labels=labels, pictures=pictures,
                retrained=Retrained(**again) if again else None, rescan=raw.get("scan"),
            )  # fmt: skip
            own = audit.to_json()["audit"]
            if other := [k for k in own if own[k] != raw.get(k)]:
                raise ValueError(f"audit.{other[0]} is not what follows from its scores")
            return audit
        except OSError as e:
            raise BadInput(
                f"cannot read {path}: {e.strerror or e}; give the folder of an audit (--out)"
            ) from e
        except (ValueError, KeyError, IndexError, SafetensorError) as e:
            raise BadInput(
                f"{folder} is not an audit of Backsweep, or is damaged ({one_line(str(e))})"
            ) from e


def _checked(labels: Tensor, scores: dict[str, Tensor]) -> None:
    """Whether there is a label, and a score of every detector, for every sample."""
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError("the labels are not a list of whole numbers")
    if any(s.shape != labels.shape or not s.is_floating_point() for s in scores.values()):
        raise ValueError("the scores are not numbers, one for every label")


def _drawable(shown: Examples) -> None:
    """Whether what is drawn of a class are indices, places and inputs."""
    for rows in (shown.rows, shown.suspicious, shown.typical):
        if rows.ndim != 1 or rows.is_floating_point() or rows.is_complex():
            raise ValueError(f"the samples that are shown of class {shown.label} are no indices")
    if not shown.places.is_floating_point() or not shown.pictures.is_floating_point():
        raise ValueError(f"what is shown of class {shown.label} is no picture")
