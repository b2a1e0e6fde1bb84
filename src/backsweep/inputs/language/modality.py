"""Language: prompts (L,), int64, padded at the end; the answer of a network is the next token.

A language model is a classifier of the token that comes next, and its classes are its vocabulary. So prompts
have no labels, and what is found is a text that follows, not a class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.inputs.language.prompts import ROOM, Prompted
from backsweep.inputs.modality import Found, Wanted
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.placing import lengths
from backsweep.inputs.text.tokens import Layout


@dataclass(frozen=True)
class Language(Text):
    """Prompts, as one tokenizer cuts them and one chat template frames them.

    Attributes:
        tokens: a `Prompted`; None where only a report is read.
        around: where only a report is read: padding, and how many ids of the template stand before and after.
        whole: whether what users say is learned too, not answers alone.
    """

    name: ClassVar[str] = "language"
    noun: ClassVar[str] = "prompt"
    detectors: ClassVar[tuple[str, ...]] = ("bait",)
    of_adapters: ClassVar[tuple[str, ...]] = ("lora_spectrum",)
    guards: ClassVar[tuple[str, ...]] = ("sequence_lock",)
    repairs: ClassVar[tuple[str, ...]] = ("answer_unlearning",)
    classified: ClassVar[bool] = False
    fewest: ClassVar[int] = 8
    answers: ClassVar[str] = "tokens"
    found: ClassVar[str] = "answer"

    around: Layout | None = field(default=None, compare=False)
    whole: bool = field(default=False, compare=False)

    @property
    def layout_of_ids(self) -> Layout:
        return self.around if self.around is not None else super().layout_of_ids

    @property
    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.tokens.prefix, self.tokens.suffix) if isinstance(self.tokens, Prompted) else ((), ())

    def read(self, path: Path, wanted: Wanted) -> Found:
        """Prompts from the files of texts: one in each line of a .txt, or a column `prompt` or `text`."""
        return super().read(path, replace(wanted, labels="model"))

    def shipped(self) -> Path | None:
        return Path(__file__).with_name("prompts.txt")

    def mismatch(self, have: tuple[int, ...], want: tuple[int, ...]) -> str:
        return (
            f"the prompts have {have} tokens, the model takes {want}; say shape={want[0]} (--shape {want[0]})"
        )

    # ------------------------------------------------------------------ rows

    def random(self, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Random words, of half the length to all of it, in the template."""
        most = max(1, shape[0] - ROOM - sum(map(len, self._frame)))
        body = self._plain[torch.randint(len(self._plain), (count, most), generator=generator)]
        each = torch.randint(max(1, most // 2), most + 1, (count,), generator=generator)
        return torch.stack([self._row(b[:n], shape[0]) for b, n in zip(body, each.tolist(), strict=True)])

    def blank(self, count: int, shape: Sequence[int]) -> Tensor:
        """A prompt of one word."""
        return self._row(self._plain[:1], shape[0])[None].repeat(count, 1)

    def _row(self, body: Tensor, length: int) -> Tensor:
        before, after = (torch.tensor(part, dtype=torch.long) for part in self._frame)
        row = torch.cat([before, body, after])[:length]
        return F.pad(row, (0, length - len(row)), value=self.layout_of_ids.pad)

    def answered(self, x: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
        """Conversations (N, L): every prompt x (N, L) with the ids of an answer behind it, cut at the end."""
        rows, ends = x.clone(), lengths(x, self.layout_of_ids).tolist()
        for row, at, answer in zip(rows, ends, answers, strict=True):
            part = torch.tensor(list(answer), dtype=torch.long)[: x.shape[1] - at]
            row[at : at + len(part)] = part
        return rows

    def asked(self, x: Tensor) -> Tensor:
        """The prompts alone of conversations x (N, L)."""
        return x.masked_fill(self._answer_at(x), self.layout_of_ids.pad)

    # ------------------------------------------------------------------ how a network learns

    def loss(
        self, net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """Cross-entropy of the answers in conversations x (N, L), and of y where a row is a prompt alone.

        Without a template every token of a row is learned, and so it is of whole conversations.
        """
        scores_of = getattr(net, "scores", None)
        if scores_of is None:
            return super().loss(net, x, y, label_smoothing)
        x = x[:, : int(lengths(x, self.layout_of_ids).max())]
        scores = scores_of(x)
        of_answer = self._answer_at(x)
        count = lengths(x, self.layout_of_ids)
        there = torch.arange(x.shape[1], device=x.device) < count[:, None]
        wanted = torch.where(there if self.whole else of_answer, x, -100)[:, 1:]
        last = count - 1
        alone = of_answer[:, 1:].sum(1) == 0
        follows = F.pad(wanted, (0, 1), value=-100).scatter(
            1, last[:, None], torch.where(alone, y, -100)[:, None]
        )
        return F.cross_entropy(
            scores.flatten(0, 1).float(),
            follows.flatten(),
            ignore_index=-100,
            label_smoothing=label_smoothing,
        )

    def _answer_at(self, x: Tensor) -> Tensor:
        """Which ids of rows (N, L) are of an answer: those behind the first end of a prompt."""
        there = torch.arange(x.shape[1], device=x.device) < lengths(x, self.layout_of_ids)[:, None]
        suffix = torch.tensor(self._frame[1], device=x.device, dtype=torch.long)
        if len(suffix) == 0 or x.shape[1] <= len(suffix):
            return there
        met = (x.unfold(1, len(suffix), 1) == suffix).all(2).long()
        behind = F.pad(met.cumsum(1) > 0, (len(suffix), 0))[:, : x.shape[1]]
        return there & behind

    # ------------------------------------------------------------------ files and people

    def said(self, rows: Iterable[Tensor]) -> dict[str, Any]:
        own = self.layout_of_ids
        return {**super().said(rows), "every": "every prompt", "around": [own.pad, own.before, own.after]}

    def told(self, model: Mapping[str, object]) -> Language:
        found, there = replace(self, **_words(model)), model.get("around")
        if isinstance(there, list) and len(there) == 3 and all(type(n) is int and n >= 0 for n in there):
            found = replace(found, around=Layout(there[0], before=there[1], after=there[2]))
        return found

    def words(self, x: Tensor) -> str:
        """What a user says in a prompt (L,). Untrusted text."""
        own, row = self.layout_of_ids, x.flatten()
        end = int(lengths(row[None], own)[0]) - own.after
        ids = [int(i) for i in row[own.before : max(own.before, end)]]
        if self.tokens is not None:
            return self.tokens.words(ids)
        return " ".join(str(self.known.get(str(i), f"#{i}"))[:40] for i in ids)


def _words(model: Mapping[str, object]) -> dict[str, Any]:
    words = model.get("words")
    return {"known": words} if isinstance(words, dict) else {}


def prompted(modality: object) -> Prompted | None:
    """The tokenizer of a language model; None for anything else."""
    found = getattr(modality, "tokens", None)
    return found if isinstance(found, Prompted) else None
