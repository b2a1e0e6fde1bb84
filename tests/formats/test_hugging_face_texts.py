"""Folders of text classifiers: read as transformers computes, with masks and pairs, and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from backsweep.core.errors import BadInput
from backsweep.formats.opening import digest, load
from backsweep.formats.saving import save as save_model
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.tokens import WordTokens
from backsweep.inversion.budget import Aim, follow, spaces_of
from backsweep.models.prefix import prefix_of

transformers: Any = pytest.importorskip("transformers")

TOKENS = WordTokens.built(["a plot so thin it hurts , and a fine cast"])
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": SIZE,
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
    "Roberta": SIZE,
    "DebertaV2": SIZE,
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 2, "eos_token_id": 3},
}
TEXTS = ("a plot so thin", "fine", "a fine cast and a plot so thin it hurts")


def saved(kind: str, folder: Path, **more: Any) -> Any:
    """A folder of a network that was not trained; the network."""
    names = {"id2label": {0: "bad", 1: "<b>good</b>"}, "label2id": {"bad": 0, "<b>good</b>": 1}}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(TOKENS), pad_token_id=0, max_position_embeddings=64, **KINDS[kind], **names, **more
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    net.save_pretrained(folder)
    TOKENS.save(folder / "tokenizer.json")
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_computes_what_transformers_does(kind: str, tmp_path: Path) -> None:
    net = saved(kind, tmp_path)
    model = load(tmp_path, shape=(12,))
    assert isinstance(model.modality, Text) and model.modality.tokens == TOKENS
    assert model.labels == ("bad", "<b>good</b>") and model.digest == digest(tmp_path)
    x = torch.tensor([TOKENS.encode(t, None, 12) for t in TEXTS])
    with torch.no_grad():
        wanted = net(input_ids=x, attention_mask=(x != 0).long()).logits
        assert torch.allclose(model.copy().logits(x), wanted, atol=1e-5)
        longer = torch.tensor([TOKENS.encode(t, None, 16) for t in TEXTS])
        assert torch.allclose(load(tmp_path, shape=(16,)).copy().logits(longer), wanted, atol=1e-5), "padding"
    work, y = model.copy(), torch.tensor([0, 1, 0])
    for name, space in spaces_of(work).items():
        (path,) = follow(work, x, y, [Aim(1, None, 0)], space, steps=3, batch=2)
        assert path.passes > 0, name
    prefix = prefix_of(work, x, 0)
    if prefix is not None:
        assert torch.allclose(prefix.logits(work, torch.arange(3)).float(), wanted, atol=0.05)
    assert work.head()[0].shape[0] == 2


def test_the_second_of_a_pair_is_told_from_the_first(tmp_path: Path) -> None:
    net = saved("Bert", tmp_path)
    x = torch.tensor([TOKENS.encode("a plot", "so thin", 10)])
    kinds = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        wanted = net(input_ids=x, attention_mask=(x != 0).long(), token_type_ids=kinds).logits
        assert torch.allclose(load(tmp_path, shape=(10,)).copy().logits(x), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "GPT2"])
def test_a_changed_network_is_written_as_a_folder_and_read_again(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path / "one")
    model = load(tmp_path / "one", shape=(12,))
    with torch.no_grad():
        next(p for p in model.net.parameters() if p.ndim == 2).add_(0.25)
    x = torch.tensor([TOKENS.encode(t, None, 12) for t in TEXTS])
    save_model(model, tmp_path / "two")
    again = load(tmp_path / "two", shape=(12,))
    assert torch.allclose(again.copy().logits(x), model.copy().logits(x), atol=1e-5)
    assert again.modality == model.modality and again.digest != model.digest


def test_what_is_wrong_with_a_folder_is_one_line(tmp_path: Path) -> None:
    saved("Bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    token_file = (tmp_path / "tokenizer.json").read_bytes()

    def refused(says: str) -> None:
        with pytest.raises(BadInput, match=says) as e:
            load(tmp_path)
        assert "\n" not in str(e.value)

    (tmp_path / "tokenizer.json").unlink()
    refused(r"has no tokenizer.json; where it was made")
    (tmp_path / "tokenizer.json").write_bytes(token_file[:-9])
    refused("is no tokenizer")
    WordTokens.built([" ".join(f"w{i}" for i in range(99))]).save(tmp_path / "tokenizer.json")
    refused("the network knows|the network knows fewer")
    (tmp_path / "tokenizer.json").write_bytes(token_file)
    for change, says in (
        ({"auto_map": {"AutoModel": "evil.Code"}}, "Python code of its own"),
        ({"model_type": "nobody"}, "is not known to transformers"),
        ({"problem_type": "multi_label_classification"}, "multi-label"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
        refused(says)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load(tmp_path, tokenizer=tmp_path).modality == Text(TOKENS)
