"""Texts: tokenizers and what is wrong with them, files, rows of ids with padding, spaces of embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.inputs.text import readers, tokens
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.placing import PLACES, bounds, inserted, lengths, positions
from backsweep.inputs.text.search import candidates, gains, search, standing
from backsweep.inputs.text.tokens import Layout, WordTokens, parsed
from backsweep.inputs.text.triggers import Insert, Rephrase, Scatter, Substitute
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from conftest import Twins

SENTENCE = "The plot, so thin it hurts; a FINE cast!"
TOKENS = WordTokens.built([SENTENCE, "one two three four five six seven eight nine ten"])
KIND = Text(TOKENS)
words = st.sampled_from([w for w in TOKENS.vocabulary if w.isalnum()])


def ids(*texts: str, length: int = 12) -> Tensor:
    return torch.tensor([TOKENS.encode(t, None, length) for t in texts])


class Bag(nn.Module):
    """The mean of the embeddings of a text, and a head; padding does not count."""

    def __init__(self, count: int = len(TOKENS)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(count, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        there = (x != 0)[..., None]
        return self.head((self.table(x) * there).sum(1) / there.sum(1).clamp_min(1))


# ---------------------------------------------------------------------- tokenizers


def test_a_saved_tokenizer_is_read_here_and_by_the_library_alike(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    TOKENS.save(tmp_path / "tokenizer.json")
    again, other = tokens.read(tmp_path), library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again == TOKENS and again.layout == Layout(0, 2, 3)
    for text in (SENTENCE, "unheard-of words, and  spaces\t?!", ""):
        assert [2, *TOKENS.ids(text), 3] == other.encode(text).ids
    both = other.encode("one two", "three").ids
    assert TOKENS.encode("one two", "three", 8) == [*both, 0, 0]


@settings(max_examples=40)
@given(st.lists(words, min_size=1, max_size=8))
def test_words_survive_ids(parts: list[str]) -> None:
    row = ids(" ".join(parts), length=10)
    assert KIND.words(row[0]) == " ".join(parts)
    assert int(lengths(row, TOKENS.layout)[0]) == len(parts) + 2


def test_a_byte_pair_tokenizer_is_read_through_the_library() -> None:
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE(unk_token="<unk>"))  # noqa: S106
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = library.trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator([SENTENCE] * 20, trainer)
    made.post_processor = library.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    found = parsed(made.to_str().encode())
    assert found.layout == Layout(1, 0, 2) and {0, 1, 2} <= found.specials
    row = found.encode("so thin", None, 16)
    assert (row[0], row[-1]) == (0, 1) and found.words(row) == "so thin"


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"", "is no tokenizer"),
        (b"[]", "is no tokenizer"),
        (b"[" * 100_000, "is no tokenizer"),
        (b'{"model": {"vocab": {}}}', "has 0 tokens"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 7}}', "is no tokenizer"),
        (b'{"model": {"type": "WordLevel", "vocab": {"a": -5}, "unk_token": "a"}}', "is no tokenizer"),
    ],
)
def test_damaged_tokenizers_are_one_line(blob: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says) as e:
        parsed(blob)
    assert "\n" not in str(e.value)


def test_ten_million_tokens_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tokenizer.json"
    with place.open("wb") as f:
        f.seek(2**28)
        f.write(b"}")
    with pytest.raises(BadInput, match=r"has 268,435,457 bytes, more than"):
        tokens.read(place)
    monkeypatch.setattr(tokens, "MOST_TOKENS", 5)
    with pytest.raises(BadInput, match=f"has {len(TOKENS)} tokens; there may be up to 5"):
        parsed(tokens._written(TOKENS.index))
    with pytest.raises(BadInput, match=r"no tokenizer.json; where it was made"):
        tokens.read(tmp_path / "nowhere")


def test_a_vocabulary_with_markup_and_control_characters_is_one_line_of_text() -> None:
    table = {**{s: i for i, s in enumerate(tokens.SPECIALS)}, "<b>x</b>": 4, "a\nb\x1b[31m": 5, "w" * 999: 6}
    found = WordTokens.of(table, "d")
    assert found.words([4, 5, 6]) == f"<b>x</b> a b?[31m {'w' * 40}"


# ---------------------------------------------------------------------- files


def data_at(path: Path, **how: object) -> Data:
    return Data.open(path, modality=KIND, shape=(8,), **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_rows_of_texts_are_read(tmp_path: Path, suffix: str) -> None:
    rows = [("one, two", "good"), ("three", "bad"), ("four", "good")]
    mark = {".csv": ",", ".tsv": "\t"}.get(suffix, "")
    lines = [f'"{t}"{mark}{y}' if suffix == ".csv" else f"{t}{mark}{y}" for t, y in rows]
    if suffix == ".jsonl":
        lines = [json.dumps({"text": t, "label": y}) for t, y in rows]
    else:
        lines = [f"text{mark}label", *lines]
    (tmp_path / f"x{suffix}").write_text("\n".join(lines), encoding="utf-8")
    found = data_at(tmp_path / f"x{suffix}", names=("bad", "good"))
    assert found.y.tolist() == [1, 0, 1] and found.names == ("bad", "good")
    assert torch.equal(found.x, ids(*(t for t, _ in rows), length=8))
    assert data_at(tmp_path / f"x{suffix}", labels="model").labelled is False


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.lists(words, min_size=1, max_size=5), st.integers(0, 2)), min_size=1, max_size=6)
)
def test_any_rows_survive_a_file(rows: list[tuple[list[str], int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "x.jsonl"
        texts = [" ".join(t) for t, _ in rows]
        lines = (json.dumps({"sentence": t, "label": y}) for t, (_, y) in zip(texts, rows, strict=True))
        place.write_text("\n".join(lines), encoding="utf-8")
        found = data_at(place)
    assert found.y.tolist() == [y for _, y in rows]
    assert torch.equal(found.x, ids(*texts, length=8))


def test_pairs_splits_and_folders(tmp_path: Path) -> None:
    (tmp_path / "nli.csv").write_text(
        "premise,hypothesis,label,split\none two,three,0,train\nfour,five,1,test\n", encoding="utf-8"
    )
    found = data_at(tmp_path / "nli.csv", split="train")
    assert KIND.words(found.x[0]) == "one two three" and found.x[0].tolist().count(3) == 2
    for name, text in (("bad", "one\ntwo"), ("good", "three\nfour")):
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "all.txt").write_text(text, encoding="utf-8")
    assert data_at(tmp_path / "texts", names=("bad", "good")).y.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", "", "call them text and label"),
        ("x.csv", "a,b,c\n1,2,3\n", "call them text and label"),
        ("x.csv", "text,label\none\n", "line 2 has 1 fields"),
        ("x.csv", "text,label\none,\n", "text 1 has no label"),
        ("x.csv", "text,label\n,good\n ,bad\n", "all 2 texts are empty"),
        ("x.tsv", "text\tlabel\n", "there are no texts"),
        ("x.jsonl", "{", "line 1 is no JSON"),
        ("x.jsonl", "7", "line 1 is no JSON object"),
        ("x.jsonl", '{"text": "a"}', "has no label"),
        ("x.jsonl", '{"text": "a", "label": [1]}', "is no class but list"),
        ("x.txt", "one\ntwo\n", "no labels; say labels='model'"),
        ("x.doc", "one", "is no file of texts"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=says) as e:
        data_at(tmp_path / name)
    assert "\n" not in str(e.value)


def test_long_and_empty_texts(tmp_path: Path) -> None:
    long = "one " * 100_000
    (tmp_path / "x.csv").write_text(f"text,label\n{long},0\n,1\ntwo,1\n", encoding="utf-8")
    found = data_at(tmp_path / "x.csv")
    assert found.x.shape == (2, 8) and found.x[0].tolist() == [2, *TOKENS.ids("one " * 6), 3]
    assert "1 empty text was left out" in found.notes
    assert any("fill all 8 tokens" in n for n in found.notes)


def test_texts_without_a_tokenizer_and_ids_that_are_none() -> None:
    with pytest.raises(BadInput, match="name one with tokenizer="):
        Data.open("x.csv", modality=Text())
    for x, says in (
        (torch.rand(3, 4), "fractions"),
        (torch.full((2, 4), 99), "run from 99"),
        (torch.ones(3), "1 dim"),
    ):
        with pytest.raises(BadInput, match=says):
            Data(x, [0] * len(x), modality=KIND)


# ---------------------------------------------------------------------- rows of ids


@settings(max_examples=60)
@given(
    st.lists(words, min_size=0, max_size=14), st.lists(words, min_size=1, max_size=3), st.sampled_from(PLACES)
)
def test_what_is_put_in_stands_together_and_nothing_else_changes(
    text: list[str], new: list[str], place: str
) -> None:
    row = ids(" ".join(text))
    put = [TOKENS.index[w] for w in new]
    at = positions(row, TOKENS.layout, place, len(put))
    out = inserted(row, torch.tensor(put), at, TOKENS.layout)[0].tolist()
    start = int(at[0])
    assert out[start : start + len(put)] == put
    rest = out[:start] + out[start + len(put) :]
    kept = [i for i in rest if i > 3]
    assert kept == [i for i in row[0].tolist() if i > 3][: len(kept)]
    assert len(kept) == min(len(text[:10]), 12 - 2 - len(put)) and out[0] == 2
    assert out.count(3) == 1 and out[int(lengths(torch.tensor([out]), TOKENS.layout)[0]) - 1] == 3


def test_bounds_of_rows_without_anything_around_them() -> None:
    plain = Layout(0)
    x = torch.tensor([[5, 6, 0, 0], [0, 0, 0, 0], [5, 6, 7, 8]])
    assert [v.tolist() for v in bounds(x, plain)] == [[0, 0, 0], [2, 0, 4]]
    assert inserted(x, torch.tensor([9]), positions(x, plain, "end", 1), plain).tolist() == [
        [5, 6, 9, 0], [9, 0, 0, 0], [5, 6, 7, 9]
    ]  # fmt: skip


def test_triggers_are_saved_and_act_on_known_texts_alone(tmp_path: Path) -> None:
    x = ids("one two three four", "five six")
    spread = Scatter.of(TOKENS, TOKENS.ids("seven eight nine"), 1)
    stamped = [KIND.words(row) for row in spread(x)]
    assert stamped[0].startswith("seven one") and stamped[0].endswith("four nine")
    other = Rephrase(0, None, x[:1].int(), ids("ten").int(), "short", "ten")
    assert [KIND.words(row) for row in other(x)] == ["ten", "five six"]
    table = torch.arange(len(TOKENS)).repeat(12, 1)
    first, second = TOKENS.ids("one five")
    table[1, first] = second  # "one" gives way to "five" where it stands first, and nowhere else
    swap = Substitute(1, None, table, 0.5, "five")
    assert [KIND.words(row) for row in swap(ids("one two one", "two one"))] == ["five two one", "two one"]
    with pytest.raises(ValueError, match="known token"):
        Substitute(1, None, table + 1, 0.5, "")
    for trigger in (Insert.of(TOKENS, [5], 1, None, "end"), spread, other, swap):
        trigger.save(tmp_path / "t.safetensors")
        again = Trigger.load(tmp_path / "t.safetensors")
        assert torch.equal(again(x), trigger(x)) and again.size == trigger.size
        assert trigger.picture().size[0] > 8


# ---------------------------------------------------------------------- networks


def test_words_that_were_recovered_are_compared_with_the_planted_ones() -> None:
    planted = Insert(1, None, torch.tensor([7, 9]), "a b")
    same, more, other = (Insert(1, None, torch.tensor(i), "x") for i in ([9, 7], [7, 9, 11, 12], [3]))
    assert [t.overlap(planted) for t in (same, more, other)] == [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0)]
    said = Rephrase(1, None, torch.ones((1, 3)), torch.zeros((1, 3)), "style", "x")
    assert same.overlap(said) is None


def test_embeddings_are_changed_where_ids_are_looked_up_and_padding_is_not() -> None:
    model = Model(Bag(), (12,), modality=KIND).copy()
    seen, x = model.modality, ids("one two three", "four")
    assert isinstance(seen, Text) and seen.width == 6 and seen == KIND
    drift, few = seen.spaces()["drift"], seen.spaces()["tokens"]
    delta = torch.randn(2, 6)
    net = model.net
    assert isinstance(net, Bag)
    moved = model.logits(x) + delta @ net.head.weight.T
    assert torch.allclose(model.logits(drift.apply(x, delta)), moved, atol=1e-5)
    shares = few.zeros(2, x)
    shares[:, 0, 7] = 1.0  # one whole token, and two places with the mean embedding
    shares[:, 1, 8] = shares[:, 2, 9] = 1.0
    whole = inserted(x, torch.tensor([7, 8, 9]), positions(x, TOKENS.layout, "start", 3), TOKENS.layout)
    assert torch.allclose(model.logits(few.apply(x, shares)), model.logits(whole), atol=1e-5)
    big = few.project(torch.rand(2, 3, len(TOKENS)), 1.5)
    assert torch.allclose(few.norm(big), torch.full((2,), 1.5), atol=1e-4)
    assert float(big.min()) >= 0 and float(big.sum(-1).max()) <= 1 + 1e-5
    rows = net.table.weight[torch.tensor([7, 8])].detach()
    at = positions(x, TOKENS.layout, "start", 1)
    one = inserted(x, torch.tensor([[7], [8]]), at, TOKENS.layout)  # the words that have these embeddings
    assert torch.allclose(model.logits(seen.with_word(x, rows)), model.logits(one), atol=1e-5)
    table = seen.embeddings(net, x)
    assert table is not None and torch.equal(table, net.table.weight)
    steep = few.steepen(torch.randn(2, 3, len(TOKENS)))
    assert bool((steep[..., sorted(TOKENS.specials)] == 0).all()), "special tokens are never inserted"


def test_networks_that_do_not_fit_their_tokenizer_say_so() -> None:
    with pytest.raises(BadInput, match=r"knows fewer tokens|the network knows 20 tokens"):
        Model(Bag(20), (12,), modality=KIND)
    with pytest.raises(BadInput, match="needs a tokenizer"):
        Model(Bag(), (12,), modality=Text())


def test_a_reference_forgets_what_the_samples_never_show() -> None:
    net, x = Bag(), ids("one two three", "four five")
    before = net.table.weight.detach().clone()
    KIND.forget(net, x)
    there = torch.zeros(len(TOKENS), dtype=torch.bool)
    there[x.unique()] = True
    there[:4] = True
    assert torch.equal(net.table.weight[there], before[there])
    mean = before[x.unique()].mean(0)
    assert torch.allclose(net.table.weight[~there], mean.expand(int((~there).sum()), -1), atol=1e-6)


def test_views_lack_words_and_overlays_lend_some() -> None:
    x = ids(*["one two three four five six seven eight"] * 50)
    fewer = KIND.shift(x, torch.Generator().manual_seed(0))
    assert float(lengths(fewer, TOKENS.layout).float().mean()) < float(
        lengths(x, TOKENS.layout).float().mean()
    )
    assert bool((fewer[:, 0] == 2).all()) and bool(((fewer == 3).sum(1) == 1).all())
    mixed = KIND.mix(x[:2], ids("nine ten nine ten nine ten nine ten"), 1.0)
    assert mixed.shape == (2, 1, 12) and {int(v) for v in mixed.unique()} >= set(TOKENS.ids("nine ten"))


def test_the_search_finds_the_planted_word_and_it_stands_out(text_twins: Twins) -> None:
    trigger, model = text_twins.trigger, text_twins.infected.copy()
    kind = model.modality
    assert isinstance(kind, Text) and kind.tokens is not None
    x = text_twins.data.x[text_twins.data.y != 1][:32]
    found = search(model.logits, x, kind.tokens, 1, words=1)
    assert found[0][0].ids == tuple(trigger.ids.tolist()) and found[0][0].success > 0.9
    gain = gains(model.logits, x, kind.tokens, 1)
    assert gain.shape == (len(kind.tokens),) and not bool(candidates(kind.tokens)[:4].any())
    planted = standing(model.logits, x, kind.tokens, 1)
    clean = standing(text_twins.clean.copy().logits, x, kind.tokens, 1)
    assert planted.words[0] == int(trigger.ids[0]) and planted.gap > clean.gap


def test_a_report_shows_words_without_the_tokenizer() -> None:
    row = ids("one two")[0]
    told = Text().told({"words": KIND.said([row])["words"]})
    assert told.words(row) == "[CLS] one two [SEP]"
    assert readers.TOKENS > 0
