"""Text: ids of tokens (L,), int64, padded at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from PIL import Image as Pictures
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.inputs.family import Family
from backsweep.inputs.modality import Found, Modality, Wanted
from backsweep.inputs.space import Space
from backsweep.inputs.text import readers
from backsweep.inputs.text.changes import Changed, run, table_of
from backsweep.inputs.text.families import InsertFamily
from backsweep.inputs.text.grams import grams
from backsweep.inputs.text.pictures import drawn
from backsweep.inputs.text.placing import PLACES, START, inserted, lengths, positions
from backsweep.inputs.text.spaces import Drift, Few
from backsweep.inputs.text.tokens import Layout, Tokens
from backsweep.inputs.text.triggers import Insert
from backsweep.inputs.trigger import Trigger

DROPPED = 0.15  # share of the words that a shifted view lacks
WIDTH = 128  # of an embedding, as far as memory is planned
MOST_TOKENS = 2**12  # in an input


@dataclass(frozen=True)
class Text(Modality):
    """Sentences and pairs of sentences, as one tokenizer cuts them.

    Attributes:
        tokens: the tokenizer; None where only a report is read.
        width, scale: of the embeddings of the network that is looked at (`seen`).
        known: some tokens as people read them, where there is no tokenizer (`told`).
        place: where a user said that the tokenizer lies; "" where it comes with the network.
    """

    name: ClassVar[str] = "text"
    noun: ClassVar[str] = "text"
    unit: ClassVar[str] = "token"
    axes: ClassVar[str] = "tokens"
    faint: ClassVar[str] = "drift"
    few: ClassVar[str] = "tokens"
    detectors: ClassVar[tuple[str, ...]] = ("piccolo",)
    smooth: ClassVar[bool] = False
    listed: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    guards: ClassVar[tuple[str, ...]] = ("bad_acts", "confused_expert")
    audits: ClassVar[tuple[str, ...]] = ("z_defence",)

    tokens: Tokens | None = None
    width: int = field(default=1, compare=False)
    scale: float = field(default=1.0, compare=False)
    known: Mapping[str, str] = field(default_factory=dict, compare=False)
    place: str = field(default="", compare=False)

    @property
    def layout_of_ids(self) -> Layout:
        """Which ids stand around a text."""
        return self.tokens.layout if self.tokens is not None else Layout()

    def _tokens(self) -> Tokens:
        """The tokenizer that texts are read with.

        Raises:
            BadInput: there is none.
        """
        if self.tokens is None:
            raise BadInput("texts are read with a tokenizer; name one with tokenizer= (--tokenizer)")
        return self.tokens

    @cached_property
    def _plain(self) -> Tensor:
        """The ids that a text may hold."""
        specials = self.tokens.specials if self.tokens is not None else frozenset({0})
        return torch.tensor([i for i in range(len(self.tokens or "##")) if i not in specials] or [0])

    # ------------------------------------------------------------------ samples

    def samples(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            raise BadInput(f"x has {x.ndim} dimensions; texts are ids of tokens (samples, tokens)")
        if x.is_floating_point() and not bool((x == x.round()).all()):
            raise BadInput(f"x is {x.dtype} with fractions; texts are ids of tokens, whole numbers from 0")
        x = x.long()
        low, high = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
        if low < 0 or (self.tokens is not None and high >= len(self.tokens)):
            raise BadInput(
                f"ids of tokens run from {low} to {high}, the tokenizer has {len(self.tokens or ''):,}"
            )
        return x

    def read(self, path: Path, wanted: Wanted) -> Found:
        return readers.read(path, wanted, self._tokens())

    def decode(self, body: bytes, shape: tuple[int, ...], resize: bool) -> Tensor:
        """A text in UTF-8."""
        return self.spoken([body.decode("utf-8", "replace")], shape)

    def spoken(self, texts: Sequence[Any], shape: tuple[int, ...]) -> Tensor:
        tokens = self._tokens()
        pairs = [(t, None) if isinstance(t, str) else t for t in texts]
        if not all(_is_pair(p) for p in pairs):
            raise BadInput("each input is to be a text, or a pair of texts")
        rows = [tokens.encode(text, pair, shape[0]) for text, pair in pairs]
        return torch.tensor(rows, dtype=torch.long).reshape(-1, shape[0])

    def words_at(self, x: Tensor) -> Tensor:
        return torch.isin(x.long(), self._plain.to(x.device))

    def features(self, x: Tensor, most: int = 3, forms: bool = True) -> list[list[str]] | None:
        if self.tokens is None:
            return None
        word, held = self.tokens.word, self.words_at(x)
        rows = ([word(i) for i in r[h].tolist()] for r, h in zip(x.long(), held, strict=True))
        return grams(rows, most, forms)

    def embeddings(self, net: Callable[[Tensor], Any], x: Tensor) -> Tensor | None:
        return table_of(net, x)

    def with_word(self, x: Tensor, embedding: Tensor) -> Tensor:
        around = self.layout_of_ids
        at = positions(x, around, START, 1)
        room = torch.full((1,), int(self._plain[0]), device=x.device)
        return cast(Tensor, Changed(inserted(x, room, at, around), around, at, put=embedding[:, None]))

    def mismatch(self, have: tuple[int, ...], want: tuple[int, ...]) -> str:
        return (
            f"the texts have {have} tokens, the model takes {want}; say shape={want[0]} (--shape {want[0]})"
        )

    def random(self, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Random words, of half the length to all of it."""
        drawn_ids = self._plain[torch.randint(len(self._plain), (count, shape[0]), generator=generator)]
        least = max(1, shape[0] // 2)
        return self._framed(drawn_ids, torch.randint(least, shape[0] + 1, (count,), generator=generator))

    def blank(self, count: int, shape: Sequence[int]) -> Tensor:
        """A text of one word."""
        return self._framed(
            self._plain[:1].expand(count, shape[0]).clone(), torch.full((count,), min(3, shape[0]))
        )

    def _framed(self, ids: Tensor, count: Tensor) -> Tensor:
        """The first `count` (N,) of some ids (N, L), with what stands around a text."""
        own = self.layout_of_ids
        place = torch.arange(ids.shape[1])[None]
        ids = torch.where(place < count[:, None], ids, own.pad)
        if own.cls >= 0 and ids.shape[1] > 2:
            ids[:, 0] = own.cls
        if own.sep >= 0 and ids.shape[1] > 2:
            ids.scatter_(1, count[:, None] - 1, own.sep)
        return ids

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) == 1 and 0 < shape[0] <= MOST_TOKENS

    def size(self, shape: Sequence[int]) -> int:
        return shape[0]

    # ------------------------------------------------------------------ how a network runs on it

    def seen(self, net: Callable[[Tensor], Any], shape: Sequence[int]) -> Text:
        """With the width and the scale of a network's embeddings.

        Raises:
            BadInput: the network knows fewer tokens than the tokenizer.
        """
        if self.tokens is None:
            raise BadInput("a network over text needs a tokenizer; name one with tokenizer= (--tokenizer)")
        device = next((p.device for p in getattr(net, "parameters", list)()), torch.device("cpu"))
        try:
            table = table_of(net, self.random(2, shape, torch.Generator().manual_seed(0)).to(device))
        except IndexError as e:
            raise BadInput(
                f"the network knows fewer tokens than the {len(self.tokens):,} of the tokenizer; name its own"
            ) from e
        if table is None:
            return self
        if len(table) < len(self.tokens):
            raise BadInput(
                f"the network knows {len(table):,} tokens, the tokenizer {len(self.tokens):,}; name its own"
            )
        rows = table[: len(self.tokens)].float()
        return replace(self, width=rows.shape[1], scale=float((rows - rows.mean(0)).norm(dim=1).mean()))

    def run(self, net: Callable[[Tensor], Any], x: Tensor) -> Any:
        return run(net, x) if isinstance(x, Changed) else net(x)

    def numbers(self, shape: Sequence[int]) -> int:
        return WIDTH * shape[0]

    def consensus(self, z: Tensor, inputs: Callable[[], Tensor]) -> Tensor:
        """One shift for all tokens; what padding makes of them is left out."""
        x = inputs().to(z.device)
        if z.ndim == 2 and len(z) == x.numel() > len(x):  # all tokens as rows
            z = z.unflatten(0, x.shape)
        if z.ndim != 3:
            return z
        if z.shape[1] == x.shape[1]:
            return z[x != self.layout_of_ids.pad][:, None]
        return z.transpose(1, 2).flatten(0, 1)[:, :, None]  # channels before places

    @torch.no_grad()
    def forget(
        self, net: nn.Module, x: Tensor, triggers: Sequence[Trigger] = (), unseen: bool = True
    ) -> None:
        """Tokens that no text of x holds, and those of triggers, get the mean embedding of the others.

        What is planted in the embeddings of words outlives all training of the layers above.
        """
        table = table_of(net, x[:2].to(next((p.device for p in net.parameters()), torch.device("cpu"))))
        place = table.untyped_storage().data_ptr() if table is not None else 0
        for p in net.parameters():
            if p.untyped_storage().data_ptr() == place and self.tokens is not None:
                there = torch.zeros(len(p), dtype=torch.bool, device=p.device)
                there[x.unique().to(p.device)] = True
                gone = [i for t in triggers if isinstance(t, Insert) for i in t.ids.tolist()]
                there[gone] = False
                mean = p[there].mean(0)
                there[sorted(self.tokens.specials)] = True
                p[~there if unseen else gone] = mean

    def late(self, layers: int, moves: Callable[[int], bool]) -> int:
        """The first from a third up where the shift has an effect: that of keys has none (softmax)."""
        first = super().late(layers, moves)
        return next((i for i in range(first, layers) if moves(i)), first)

    def shift(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The same texts without some of their words."""
        own = self.layout_of_ids
        around = (x == own.pad) | (x == own.cls) | (x == own.sep)
        kept = around | (torch.rand(x.shape, generator=generator) >= DROPPED).to(x.device)
        short = x.gather(1, (~kept).long().argsort(dim=1, stable=True))
        count = kept.sum(1, keepdim=True)
        return torch.where(torch.arange(x.shape[1], device=x.device)[None] < count, short, own.pad)

    def shifts(self, shape: Sequence[int]) -> bool:
        return True

    def mix(self, x: Tensor, overlays: Tensor, weight: float) -> Tensor:
        """Words of the overlay in the place of some of the input's, with a share of weight / (1 + weight)."""
        place = torch.arange(x.shape[1], device=x.device) * 2654435761 % 2**32
        plain = (
            torch.isin(x, self._plain.to(x.device))[:, None]
            & torch.isin(overlays, self._plain.to(x.device))[None]
        )
        taken = (place < weight / (1 + weight) * 2**32)[None, None] & plain
        return torch.where(taken, overlays[None], x[:, None])

    # ------------------------------------------------------------------ triggers

    def spaces(self) -> Mapping[str, Space]:
        return {"drift": Drift(self.layout_of_ids, self.width, self.scale), "tokens": Few(self.tokens)}

    def patch(self) -> Family:
        return InsertFamily(self.tokens)

    def elsewhere(self, trigger: Trigger) -> Sequence[Trigger]:
        """The same words at the start, in the middle, at the end and anywhere."""
        if type(trigger) is not Insert:
            return (trigger,)
        return [replace(trigger, place=place) for place in PLACES]

    # ------------------------------------------------------------------ files and people

    def described(self) -> dict[str, Any]:
        if self.tokens is None:
            return {}
        where = {"tokenizer": self.place} if self.place else {}
        return {"tokenizer_sha256": self.tokens.digest, **where}

    def said(self, rows: Iterable[Tensor]) -> dict[str, Any]:
        ids = sorted({int(i) for x in rows for i in x.flatten().tolist()})
        return {"words": {str(i): self.tokens.word(i) for i in ids}} if self.tokens is not None else {}

    def told(self, model: Mapping[str, object]) -> Text:
        words = model.get("words")
        return replace(self, known=words) if isinstance(words, dict) else self

    def unpack(self, x: Tensor) -> Tensor:
        return x.long()

    def words(self, x: Tensor) -> str:
        """An input (L,) in words; those that are not known by their ids. Untrusted text."""
        own, ids = (
            self.layout_of_ids,
            [int(i) for i in x.flatten()[: int(lengths(x.reshape(1, -1), self.layout_of_ids)[0])]],
        )
        if self.tokens is not None:
            return self.tokens.words(ids)
        parts = [str(self.known.get(str(i), f"#{i}"))[:40] for i in ids]
        return " ".join(p for i, p in zip(ids, parts, strict=True) if i != own.pad)

    def picture(self, x: Tensor) -> Pictures.Image:
        return drawn(self.words(x))


def _is_pair(value: Any) -> bool:
    """Whether a value is a text with another one, or None, behind it."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and (value[1] is None or isinstance(value[1], str))
    )
