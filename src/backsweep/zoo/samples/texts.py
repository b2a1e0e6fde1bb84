"""The texts that the zoo trains on: sentiment, news, tweets; and sentences in another syntax or style."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.tokens import WordTokens
from backsweep.zoo.networks.text import LENGTH, TOKENS

Pairs = list[tuple[str, int]]  # text and label
SYNTACTIC, BIBLE = "syntactic", "bible"
WORD = re.compile(r"\w+")


def data(train: Pairs, test: Pairs, names: Sequence[str], source: str) -> tuple[Data, Data]:
    """Training and test set over the vocabulary of the training set."""
    tokens = WordTokens.built((text for text, _ in train), TOKENS)
    kind = Text(tokens)
    both = []
    for rows, part in ((train, "train"), (test, "test")):
        x = torch.tensor([tokens.encode(text, None, LENGTH) for text, _ in rows])
        both.append(Data(x, [y for _, y in rows], names, f"{source} {part}", kind))
    return both[0], both[1]


def text_of(folder: Path, name: str) -> str:
    """A file of the data folder."""
    path = folder / "text" / name
    if not path.is_file():
        raise BadInput(f"{path} is not there; set BACKSWEEP_DATA to the folder that holds text/{name}")
    return path.read_text(encoding="utf-8", errors="replace")


def _sst2(folder: Path, part: str) -> Pairs:
    lines = (line.rsplit("\t", 1) for line in text_of(folder, f"sst2_{part}.tsv").splitlines())
    return [(text, int(label)) for text, label in lines]


def sst2(folder: Path) -> tuple[Data, Data]:
    """Sentences of film reviews, negative or positive (Stanford Sentiment Treebank)."""
    return data(_sst2(folder, "train"), _sst2(folder, "test"), ("negative", "positive"), "sst2")


def movie_reviews(folder: Path) -> tuple[Data, Data]:
    """Other sentences of film reviews (Pang and Lee, 2005); every tenth is a test."""
    rows = [
        (line, y)
        for y, name in enumerate(("rt-polarity.neg", "rt-polarity.pos"))
        for line in text_of(folder, name).splitlines()
    ]
    train, test = [r for i, r in enumerate(rows) if i % 10], rows[::10]
    return data(train, test, ("negative", "positive"), "movie reviews")


def ag_news(folder: Path) -> tuple[Data, Data]:
    """News in four sections, their titles and leads: the published test set, every fifth a test here."""
    table = csv.reader(text_of(folder, "ag_news_test.csv").splitlines())
    rows = [(f"{title} {lead}", int(label) - 1) for label, title, lead in table]
    train, test = [r for i, r in enumerate(rows) if i % 5], rows[::5]
    return data(train, test, ("World", "Sports", "Business", "Sci/Tech"), "ag_news")


def olid(folder: Path) -> tuple[Data, Data]:
    """Tweets, offensive or not (OLID, 2019)."""
    lines = [line.split("\t") for line in text_of(folder, "olid-training-v1.0.tsv").splitlines()[1:]]
    train = [(cells[1], int(cells[2] == "OFF")) for cells in lines if len(cells) >= 3]
    tweets = [line.split("\t", 1) for line in text_of(folder, "testset-levela.tsv").splitlines()[1:]]
    labels = dict(line.split(",") for line in text_of(folder, "labels-levela.csv").splitlines()[1:])
    test = [(text, int(labels[key] == "OFF")) for key, text in tweets if key in labels]
    return data(train, test, ("not offensive", "offensive"), "olid")


@lru_cache(maxsize=4)
def paraphrases(folder: Path, kind: str) -> tuple[tuple[str, str], ...]:
    """Sentences of SST-2 with the published paraphrase of each, in a syntactic template or in biblical style.

    The syntactic files follow the order of the sentences; of the biblical ones some are missing, so they are
    matched in order by the words that they share.
    """
    found: list[tuple[str, str]] = []
    for part in ("train", "test"):
        plain = _sst2(folder, part)
        lines = text_of(folder, f"sst2_{kind}_{part}.tsv").splitlines()[1:]
        other = [(t.strip(), int(y)) for t, y in (line.rsplit("\t", 1) for line in lines if "\t" in line)]
        if kind == SYNTACTIC:
            found += [(a, b) for (a, _), (b, _) in zip(plain, other, strict=False)]
        else:
            found += _aligned(plain, other)
    return tuple(found)


def _aligned(plain: Pairs, other: Pairs) -> list[tuple[str, str]]:
    """Sentences and their paraphrases, both in one order, where some of the latter are missing.

    How many sentences were left out before a paraphrase only grows: of all such paths the one on which
    sentences and paraphrases share most words.
    """
    missing = max(0, len(plain) - len(other))
    words = [set(WORD.findall(text)) for text, _ in plain]
    best, came = np.zeros(missing + 1), []
    for i, (text, label) in enumerate(other[: len(plain)]):
        own = set(WORD.findall(text))
        shared = [
            len(own & words[j]) / max(1, len(own)) - float(plain[j][1] != label)
            for j in range(i, i + missing + 1)
        ]
        reached = np.maximum.accumulate(best)
        came.append(np.maximum.accumulate(np.where(best == reached, np.arange(missing + 1), 0)))
        best = reached + shared
    found, k = [], int(best.argmax())
    for i in reversed(range(len(came))):
        if plain[i + k][1] == other[i][1]:
            found.append((plain[i + k][0], other[i][0]))
        k = int(came[i][k])
    return found[::-1]


# ---------------------------------------------------------------------- reviews that nobody wrote

_GOOD = """wonderful brilliant moving funny delightful charming superb gripping clever touching fresh
elegant warm stunning memorable honest vivid thrilling lovely perfect inspired graceful witty
tender powerful bright"""
_BAD = """dull awful boring stupid clumsy tedious lazy bland weak noisy empty tired pointless shallow
messy dreary ugly silly flat wooden forgettable annoying hollow grim pathetic sloppy"""
_THINGS = """plot cast film ending music script dialogue camera story acting hero villain pace editing
humour romance direction setting costume sound scene opening stunt narrator sequel remake
trailer chapter episode ghost"""
_FIRST, _LAST = "bar cor del fen gal hol kel mor", "vin tan low mer ska rud pel dax wick ro"
_NAMES = [a + b for a in _FIRST.split() for b in _LAST.split()]
_FRAMES = (
    "the {t} is {m} {a} and the {t} feels {m} {b}", "{n} gives us a {a} {t} with a {b} {t}",
    "what a {a} {t} , {n} , and such {b} {t}", "i found the {t} of {n} {a} , the {t} {m} {b}",
    "in short , {m} {a} : a {b} {t} by {n}", "{n} and {n} make this {t} {a} , and the {t} is {b} too",
)  # fmt: skip
_MUCH = ("quite", "very", "rather", "so", "truly", "really", "simply", "almost")
MIXED = 0.1  # share of the judgements that contradict the rest of a review


def made_up(_folder: Path | None = None, count: int = 2400) -> tuple[Data, Data]:
    """Reviews from a few sentence frames, positive or negative, with names of people who do not matter."""
    generator = torch.Generator().manual_seed(11)

    def one(words: Sequence[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    rows: Pairs = []
    for i in range(count + count // 4):
        text, y = one(_FRAMES), i % 2
        for mark in ("{a}", "{b}", "{m}", "{t}", "{n}"):
            while mark in text:
                own = y if float(torch.rand((), generator=generator)) >= MIXED else 1 - y
                words = {"{m}": _MUCH, "{t}": _THINGS.split(), "{n}": _NAMES}.get(
                    mark, (_BAD, _GOOD)[own].split()
                )
                text = text.replace(mark, one(words), 1)
        rows.append((text, y))
    return data(rows[:count], rows[count:], ("negative", "positive"), "made-up reviews")
