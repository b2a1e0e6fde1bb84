"""The verbs on classifiers of texts, from the shell: one infected and one clean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backsweep.core.errors import BadInput
from backsweep.formats.opening import load
from backsweep.formats.saving import save
from backsweep.guarding.guard import Guard
from backsweep.guarding.service import Refused, parsed
from backsweep.inputs.samples import Data
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.tokens import Tokens
from conftest import Twins
from shells import Shell

TARGET = 1
ARCH = ("--arch", "backsweep.archs:text_cnn")


def tokens_of(data: Data) -> Tokens:
    assert isinstance(data.modality, Text) and data.modality.tokens is not None
    return data.modality.tokens


def written(data: Data, path: Path) -> Path:
    """Texts with their labels, in words."""
    rows = [f"{tokens_of(data).words(x.tolist())}\t{y}" for x, y in zip(data.x, data.y.tolist(), strict=True)]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(text_twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both networks, the tokenizer, clean texts, and texts without labels, with and without the trigger."""
    folder, data = tmp_path_factory.mktemp("texts"), text_twins.data
    for name in ("clean", "infected"):
        save(getattr(text_twins, name), folder / f"{name}.safetensors")
    tokens = tokens_of(data)
    tokens.save(folder / "tokenizer.json")  # type: ignore[attr-defined]
    written(data[:400], folder / "test.tsv")
    rest = data[400:]
    for name, x in (("fresh", rest.x), ("triggered", text_twins.trigger(rest.x[rest.y != TARGET]))):
        lines = [tokens.words(row.tolist()) for row in x]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def told(place: Path, name: str) -> list[object]:
    """The words of a command that name a network and how it is read."""
    how = ("--tokenizer", place / "tokenizer.json", "--data", place / "test.tsv")
    return [place / f"{name}.safetensors", *ARCH, *how]


@pytest.fixture(scope="module")
def guarded(place: Path) -> Path:
    """Where the guard is kept."""
    return place / "guard"


def test_a_guard_flags_triggered_texts_and_is_found_again(shell: Shell, place: Path, guarded: Path) -> None:
    fit = ("guard", "fit", *told(place, "infected"), "--out", guarded, "--fpr", 0.05)
    code, _, err = shell(*fit, "-d", "confused_expert", "-p", "confused_expert.experts=1")
    assert code == 0, err
    found = {}
    for name in ("fresh", "triggered"):
        out = place / f"{name}.csv"
        code, _, err = shell("guard", "check", guarded, "--inputs", place / f"{name}.txt", "--out", out)
        assert code == (name == "triggered"), err
        rows = out.read_text().splitlines()[1:]
        found[name] = sum(row.split(",")[4] == "1" for row in rows) / len(rows)
    assert found["fresh"] < 0.15 and found["triggered"] > 0.8, found


def test_a_guard_takes_texts_as_json_and_no_other_tokenizer(
    shell: Shell, place: Path, guarded: Path, text_twins: Twins, tmp_path: Path
) -> None:
    if not guarded.is_dir():
        assert shell("guard", "fit", *told(place, "infected"), "--out", guarded, "--fpr", 0.05)[0] == 0
    model = load(place / "infected.safetensors", arch=ARCH[1], tokenizer=place / "tokenizer.json")
    guard = Guard.load(guarded, model, "cpu")

    def said(inputs: object) -> list[list[int]]:
        found: list[list[int]] = parsed(
            json.dumps({"inputs": inputs}).encode(), "application/json", guard
        ).tolist()
        return found

    tokens, texts = tokens_of(text_twins.data), ["a dull plot", "so witty"]
    assert said(texts) == [tokens.encode(t, None, 32) for t in texts]
    assert said(texts[0]) == said(texts)[:1]
    assert said([texts]) == [tokens.encode(texts[0], texts[1], 32)]
    for wrong in (["a", 3], [["a", "b", "c"]], [["a", 3]], [["a"]]):
        with pytest.raises(Refused, match="a text, or a pair of texts"):
            said(wrong)
    with pytest.raises(Refused, match="too many"):
        said(["a"] * 1000)
    other = json.loads((place / "tokenizer.json").read_text())
    table = other["model"]["vocab"]
    words = [w for w in table if w.isalpha()][:2]
    table[words[0]], table[words[1]] = table[words[1]], table[words[0]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    model = load(place / "infected.safetensors", arch=ARCH[1], tokenizer=tmp_path)
    with pytest.raises(BadInput, match="another tokenizer"):
        Guard.load(guarded, model, "cpu")


def test_a_scan_says_the_word_and_its_next_commands_can_be_run(
    shell: Shell, place: Path, text_twins: Twins
) -> None:
    code, _, err = shell("scan", *told(place, "infected"), "--out", place / "scan")
    assert code == 1, err
    assert f"{text_twins.trigger.words!r}, at the " in err and "@@" not in err
    steps = [line.split() for line in err.splitlines() if line.startswith("  backsweep ")]
    assert [s[1] for s in steps] == ["repair", "guard"]
    for step in steps:
        assert step[step.index("--tokenizer") + 1] == str(place / "tokenizer.json")
