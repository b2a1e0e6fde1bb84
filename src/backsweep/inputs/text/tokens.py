"""What turns text into ids of tokens and back: a small tokenizer of words, and those of `tokenizers`.

Both are read from a `tokenizer.json`, as Hugging Face folders have it, which is data: nothing in it is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line

FILE = "tokenizer.json"
MOST_BYTES = 2**26  # of a tokenizer.json
MOST_TOKENS = 2**20  # in a vocabulary
LETTERS = 64  # of a text that are looked at, for each token that is kept
MOST_LETTERS = 40  # of a token that is shown
PAD, UNK, CLS, SEP = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_WORD = re.compile(r"\w+|[^\w\s]+")
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")


@dataclass(frozen=True)
class Layout:
    """Where text stands in a row of ids: [cls] text [sep] pad pad ...; -1 where there is no such token.

    Attributes:
        pad, cls, sep: ids.
        before, after: how many ids of another kind, those of a chat template, stand before and after it.
    """

    pad: int = 0
    cls: int = -1
    sep: int = -1
    before: int = 0
    after: int = 0


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenizer. Two are equal when their files are.

    Attributes:
        vocabulary: token of every id, untrusted text; "" where an id has none.
        layout: the ids that stand around a text.
        specials: ids that are no part of a text.
        digest: SHA-256 of the file.
    """

    vocabulary: Sequence[str]
    layout: Layout
    specials: frozenset[int]
    digest: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __len__(self) -> int:
        return len(self.vocabulary)

    @cached_property
    def plain(self) -> int:
        """Some token that is no special one."""
        return next((i for i in range(len(self)) if i not in self.specials), 0)

    def ids(self, text: str) -> list[int]:
        """Ids of a text alone, without what stands around it."""
        raise NotImplementedError

    def encode(self, text: str, pair: str | None, length: int) -> list[int]:
        """Exactly `length` ids of a text, or of a pair of texts: cut at the end, or padded there."""
        most, own = LETTERS * length, self.layout
        found = [own.cls] if own.cls >= 0 else []
        found += self.ids(text[:most])
        if pair is not None:
            half = max(1, length // 2)
            found = [*found[:half], *([own.sep] if own.sep >= 0 else []), *self.ids(pair[:most])]
        if own.sep >= 0:
            found = [*found[: length - 1], own.sep]
        return [*found[:length], *[own.pad] * (length - len(found))]

    def word(self, index: int) -> str:
        """A token as people read it; a space before it, or that there is none, is marked as in the file."""
        text = self.vocabulary[index] if 0 <= index < len(self.vocabulary) else ""
        return one_line(text)[:MOST_LETTERS] or f"#{index}"

    def text(self, indices: Iterable[int]) -> str:
        """What ids say, as the tokenizer writes it. Untrusted text."""
        return self.words(indices)

    def words(self, indices: Iterable[int]) -> str:
        """Tokens as a text, without those around it."""
        parts = [self.word(i) for i in indices if i not in self.specials and i != self.layout.pad]
        joined = " ".join(parts).replace(" ##", "")
        if any(p[:1] in "Ġ▁" for p in parts):
            joined = joined.replace(" ", "").replace("Ġ", " ").replace("▁", " ").strip()
        return joined


@dataclass(frozen=True, eq=False)
class WordTokens(Tokens):
    """Words and runs of punctuation, in lower case; a word that is not in the vocabulary is unknown."""

    index: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Mapping[str, int], digest: str) -> WordTokens:
        """From the id of every word, the special ones among them."""
        vocabulary = [""] * (max(table.values()) + 1)
        for word, i in table.items():
            vocabulary[i] = word
        layout = Layout(table[PAD], table[CLS], table[SEP])
        return cls(vocabulary, layout, frozenset(table[s] for s in SPECIALS), digest, dict(table))

    @classmethod
    def built(cls, texts: Iterable[str], most: int = 8000) -> WordTokens:
        """A vocabulary of the `most` commonest words of some texts."""
        times = Counter(w for text in texts for w in _WORD.findall(text.lower()))
        common = sorted(times, key=lambda w: (-times[w], w))[: most - len(SPECIALS)]
        table = {w: i for i, w in enumerate((*SPECIALS, *common))}
        return cls.of(table, hashlib.sha256(_written(table)).hexdigest())

    def ids(self, text: str) -> list[int]:
        unknown = self.index[UNK]
        return [self.index.get(w, unknown) for w in _WORD.findall(text.lower())]

    def save(self, path: Path) -> None:
        """Write the tokenizer.json that `read` and the library `tokenizers` read."""
        path.write_bytes(_written(self.index))


@dataclass(frozen=True, eq=False)
class LibraryTokens(Tokens):
    """A tokenizer of the library `tokenizers`."""

    library: Any = None

    def ids(self, text: str) -> list[int]:
        return list(self.library.encode(text, add_special_tokens=False).ids)

    def text(self, indices: Iterable[int]) -> str:
        return str(self.library.decode([int(i) for i in indices], skip_special_tokens=True))


def _written(table: Mapping[str, int]) -> bytes:
    special = [
        {"id": table[s], "content": s, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for s in SPECIALS
    ]  # fmt: skip

    def piece(name: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    one = [piece(CLS, 0), {"Sequence": {"id": "A", "type_id": 0}}, piece(SEP, 0)]
    two = [*one, {"Sequence": {"id": "B", "type_id": 1}}, piece(SEP, 1)]
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing", "single": one, "pair": two,
            "special_tokens": {s: {"id": s, "ids": [table[s]], "tokens": [s]} for s in (CLS, SEP)},
        },
        "decoder": None, "model": {"type": "WordLevel", "vocab": dict(table), "unk_token": UNK},
    }, ensure_ascii=True).encode()  # fmt: skip


def read(path: Path, pad: int | None = None) -> Tokens:
    """The tokenizer in a tokenizer.json, or in a folder that holds one.

    Args:
        path: the file or folder.
        pad: id of the padding, as the model's config names it; the file's own otherwise.

    Raises:
        BadInput: there is none, it is damaged, far too large, or `tokenizers` is needed and not installed.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise BadInput(
            f"there is no {FILE}; where it was made, call tokenizer.save_pretrained(folder) of a fast "
            "tokenizer, or name one with tokenizer= (--tokenizer)"
        )
    if (size := path.stat().st_size) > MOST_BYTES:
        raise BadInput(f"its {path.name} has {size:,} bytes, more than {MOST_BYTES:,}; get it again")
    return parsed(path.read_bytes(), pad, path.name)


def parsed(blob: bytes, pad: int | None = None, name: str = FILE) -> Tokens:
    """The tokenizer that the bytes of a tokenizer.json describe.

    Raises:
        BadInput: as `read`.
    """
    digest = hashlib.sha256(blob).hexdigest()
    try:
        said = json.loads(blob)
        table = said["model"]["vocab"]
        count = len(table)
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise BadInput(
            f"its {name} is no tokenizer ({type(e).__name__}: {one_line(str(e))[:80]}); get it again"
        ) from e
    if not 0 < count <= MOST_TOKENS:
        raise BadInput(f"its {name} has {count:,} tokens; there may be up to {MOST_TOKENS:,}")
    if _is_of_words(said):
        return WordTokens.of(table, digest)
    return _of_library(said, blob, pad, digest, name)


def _is_of_words(said: Any) -> bool:
    """Whether a file is one that `WordTokens.save` wrote."""
    table = said["model"]["vocab"]
    kinds = [(said.get(k) or {}).get("type") for k in ("normalizer", "pre_tokenizer")]
    return (
        said["model"].get("type") == "WordLevel"
        and kinds == ["Lowercase", "Whitespace"]
        and isinstance(table, dict)
        and all(s in table for s in SPECIALS)
        and all(type(i) is int for i in table.values())
        and sorted(table.values()) == list(range(len(table)))
        and said["model"].get("unk_token") == UNK
        and {t.get("content") for t in said.get("added_tokens", ()) if isinstance(t, dict)} == set(SPECIALS)
    )


def _of_library(said: Any, blob: bytes, pad: int | None, digest: str, name: str) -> Tokens:
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise BadInput(f"its {name} is of the library tokenizers: pip install backsweep[hf]") from e
    try:
        library = Tokenizer.from_str(blob.decode())
        library.no_truncation()
        library.no_padding()
        table = {str(w): int(i) for w, i in library.get_vocab(with_added_tokens=True).items()}
        if max(table.values()) >= MOST_TOKENS:
            raise BadInput(
                f"its {name} has ids up to {max(table.values()):,}; there may be {MOST_TOKENS:,} tokens"
            )
        around, plain = library.encode("a").ids, library.encode("a", add_special_tokens=False).ids
        added = [t for t in said.get("added_tokens") or () if isinstance(t, dict) and t.get("special")]
        special = {int(t["id"]) for t in added}
    except BadInput:
        raise
    except BaseException as e:  # it is Rust, and panics on what it does not foresee
        if isinstance(e, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise BadInput(f"its {name} is no tokenizer ({one_line(str(e))[:120]}); get it again") from e
    vocabulary = [""] * (max(table.values()) + 1)
    for word, i in table.items():
        vocabulary[i] = word
    start = next((i for i in range(len(around)) if around[i : i + len(plain)] == plain), 0)
    before, after = around[:start], around[start + len(plain) :]
    padding = said.get("padding")
    own = padding.get("pad_id") if isinstance(padding, dict) else None
    pads = [pad, own, *(table.get(p) for p in _PADS)]
    layout = Layout(
        next((int(p) for p in pads if type(p) is int and 0 <= p < len(vocabulary)), 0),
        before[0] if before else -1,
        after[-1] if after else -1,
    )
    return LibraryTokens(
        vocabulary, layout, frozenset({*special, *before, *after, layout.pad}), digest, library
    )
