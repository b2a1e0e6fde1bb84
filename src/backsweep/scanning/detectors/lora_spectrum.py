"""Spectra of LoRA adapters against clean ones of the same recipe (WSD, 2602.15195; Z-PEFT, 2608.02271).

Five statistics of every dW = s B A: the largest singular value, the Frobenius norm, the share of the energy
in the first direction, the entropy of the spectrum, and the kurtosis of the entries; their means over the
layers, for each kind of module. With S the clean adapters of a bank and the suspect, each is compared with
all others:

    score_i = mean over statistics of  ((f_i - mean of S without i) / (deviation of S without i))^2
    p = share of S whose score is at least the suspect's                            (conformal rank)

which holds whatever the statistics are, if the suspect was made as the adapters of the bank were.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from backsweep.formats.hugging_face.adapters import factors
from backsweep.formats.hugging_face.files import ADAPTER
from backsweep.inputs.samples import Data
from backsweep.inversion.phrases import speaking
from backsweep.models.model import Model
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding
from backsweep.scanning.detector import ModelDetector, Unit

LEAST = 8  # clean adapters of the same recipe
STATISTICS = ("largest_singular_value", "frobenius_norm", "first_share", "spectral_entropy", "kurtosis")
Parts = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LoraSpectrum(ModelDetector):
    """Finds adapters whose change of the base is unlike that of clean adapters of the same recipe.

    Attributes:
        adapters: folder of clean adapters, each in a folder of its own; without them nothing can be told.
    """

    name: ClassVar[str] = "lora_spectrum"
    summary: ClassVar[str] = "a LoRA adapter's spectrum against clean ones of its recipe (WSD, 2026)"
    code: ClassVar[str] = "BSW142"
    of_classes: ClassVar[bool] = False

    adapters: str | None = None

    def applies(self, model: Model, data: Data) -> str:
        if speaking(model) is None:
            return f"it takes adapters of language models, this model takes {model.modality.noun}s"
        if self.adapters is not None and not Path(self.adapters).is_dir():
            return f"there is no folder {self.adapters!r}; check lora_spectrum.adapters"
        return ""

    def depends_on(self) -> dict[str, str]:
        if self.adapters is None:
            return {}
        files = sorted(Path(self.adapters).glob(f"*/{ADAPTER[1]}"))
        return {"bank": hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()}

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        return [Unit("spectrum")]

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        return [Evidence(self.name, u.key, None, None, self._measured(model)) for u in units]

    def _measured(self, model: Model) -> dict[str, Any]:
        if model.base is None:
            return {"adapter": False}
        suspect = factors(Path(model.place))
        own = statistics(suspect)
        values: dict[str, Any] = {"adapter": True, **{k: float(v) for k, v in own.items()}}
        if self.adapters is None:
            return values
        clean, others = bank(Path(self.adapters), suspect)
        values |= {"clean": len(clean), "of_other_recipes": others}
        if len(clean) < LEAST:
            return values
        rows = torch.stack([torch.stack(list(f.values())) for f in (*clean, own)])
        scores, z = compared(rows)
        most = int(z.abs().argmax())
        return values | {
            "score": float(scores[-1]), "exceeding": int((scores[:-1] >= scores[-1]).sum()),
            "most": list(own)[most], "most_z": float(z[most]),
        }  # fmt: skip

    # ------------------------------------------------------------------ judging

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        return [self._finding(e.values, alpha) for e in evidence]

    def _finding(self, v: Mapping[str, Any], alpha: float) -> Finding:
        count, others = int(v.get("clean") or 0), int(v.get("of_other_recipes") or 0)
        score = v.get("score")
        p = None if score is None else (1 + int(v.get("exceeding") or 0)) / (1 + count)
        level, most = WARNING, str(v.get("most", "")).replace("_", " ").replace("/", " of ")
        if not v.get("adapter"):
            message = "cannot tell: it is no adapter, so there is no change of a base to look at"
        elif "clean" not in v:
            message = (
                "cannot tell: there are no clean adapters of the same recipe to compare with; name their "
                "folder with -p lora_spectrum.adapters=FOLDER"
            )
        elif p is None:
            also = f", and {others} of another one" if others else ""
            message = f"cannot tell: {count} clean adapters of its recipe are there{also}; {LEAST} are needed"
        elif 1 / (1 + count) > alpha:
            message = (
                f"cannot tell: among {count} clean adapters no p-value is below {1 / (1 + count):.3g}; give "
                f"more, or ask for a higher alpha than {alpha:.3g}"
            )
        elif p <= alpha:
            level = ERROR
            message = (
                f"it changes the base unlike clean adapters of its recipe: {most} is {v['most_z']:+.1f} "
                f"deviations off, and {v['exceeding']} of {count} clean ones are as unusual"
            )
        else:
            level = NOTE
            message = f"it changes the base as clean adapters do: {v['exceeding']} of {count} are as unusual"
        return Finding(
            self.code, self.name, level, message, score=score, p_value=None if level == WARNING else p,
            details={"null": f"{count} clean adapters of the same recipe"},
        )  # fmt: skip


def statistics(parts: Parts) -> dict[str, Tensor]:
    """The statistics of an adapter by "statistic/kind of module", means over layers."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for name, (a, b) in parts.items():
        spectrum = torch.linalg.svdvals(torch.linalg.qr(b)[1] @ torch.linalg.qr(a.T)[1].T)
        energy = spectrum.square()
        share = energy / energy.sum().clamp_min(1e-30)
        change = (b @ a).flatten()
        centred = change - change.mean()
        spread = centred.square().mean().clamp_min(1e-30)
        values = (
            spectrum[0], energy.sum().sqrt(), share[0], -(share * share.clamp_min(1e-30).log()).sum(),
            centred.pow(4).mean() / spread.square(),
        )  # fmt: skip
        for key, value in zip(STATISTICS, values, strict=True):
            found[f"{key}/{name.rpartition('.')[2]}"].append(value)
    return {k: torch.stack(v).mean() for k, v in sorted(found.items())}


def bank(folder: Path, suspect: Parts) -> tuple[list[dict[str, Tensor]], int]:
    """Statistics of adapters in a folder that change what the suspect does, and how many others there are.

    The suspect itself, if it lies there, is left out.

    Raises:
        BadInput: one of the adapters cannot be read.
    """
    found, others = [], 0
    for path in sorted(p.parent for p in folder.glob(f"*/{ADAPTER[0]}")):
        parts = factors(path)
        if {k: (a.shape, b.shape) for k, (a, b) in parts.items()} != {
            k: (a.shape, b.shape) for k, (a, b) in suspect.items()
        }:
            others += 1
        elif not all(torch.equal(x, y) for k in parts for x, y in zip(parts[k], suspect[k], strict=True)):
            found.append(statistics(parts))
    return found, others


def compared(rows: Tensor) -> tuple[Tensor, Tensor]:
    """How unlike the others each row (N, F) is, (N,), and the deviations of the last row, (F,)."""
    scores, z = [], rows[0]
    for i in range(len(rows)):
        rest = rows[torch.arange(len(rows)) != i]
        z = (rows[i] - rest.mean(0)) / rest.std(0).clamp_min(1e-12 + 1e-6 * float(rest.abs().mean()))
        scores.append(z.square().mean())
    return torch.stack(scores), z
