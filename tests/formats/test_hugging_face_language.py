"""Folders of language models: read as transformers computes, templates as data, adapters, what is wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.opening import digest, load
from backsweep.inputs.language.causal import Causal, continued
from backsweep.inputs.language.modality import Language, prompted
from backsweep.inputs.language.template import around
from backsweep.inputs.samples import Data
from backsweep.inputs.text.tokens import WordTokens

transformers: Any = pytest.importorskip("transformers")

TOKENS = WordTokens.built(["what is the capital of france ? user : assistant : paris and a fine cast"])
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 32, "head_dim": 8}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "Phi": {**SIZE, "num_key_value_heads": 2},
    **dict.fromkeys(("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2", "Phi3"), SIZE),
}
TEMPLATE = "{% for m in messages %}user : {{ m['content'] }} {% endfor %}assistant :"
PROMPTS = ("what is the capital of france ?", "paris", "a fine cast and a")


def saved(kind: str, folder: Path, template: str | None = TEMPLATE, **more: Any) -> Any:
    """A folder of a language model that was not trained; the network."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(TOKENS), pad_token_id=0, bos_token_id=2, eos_token_id=3,
        **{"max_position_embeddings": 128, **KINDS[kind], **more},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
        net = getattr(transformers, name)(config).eval()
    net.save_pretrained(folder)
    TOKENS.save(folder / "tokenizer.json")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return net


@torch.no_grad()
def next_logits(net: Any, ids: list[int]) -> Tensor:
    found: Tensor = net(input_ids=torch.tensor([ids])).logits[0, -1]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_computes_what_transformers_does_with_and_without_a_cache(kind: str, tmp_path: Path) -> None:
    net = saved(kind, tmp_path)
    model = load(tmp_path)
    assert model.digest == digest(tmp_path) and model.classes == len(TOKENS)
    assert isinstance(model.modality, Language)
    tokens = prompted(model.modality)
    assert tokens is not None and tokens.ends == {3}
    x = torch.tensor([tokens.encode(t, None, model.shape[0]) for t in PROMPTS])
    assert [model.modality.words(row) for row in x] == list(PROMPTS)
    work = model.copy()
    assert isinstance(work.net, Causal)
    rows = [row[:n].tolist() for row, n in zip(x, work.net.count(x).tolist(), strict=True)]
    wanted = torch.stack([next_logits(net, row) for row in rows])
    with torch.no_grad():
        assert torch.allclose(work.logits(x), wanted, atol=1e-4)
    for row, answer in zip(rows, continued(work.net, x, 5, ()), strict=True):
        for token in answer:
            logits = next_logits(net, row)
            assert float(logits.max() - logits[token]) < 1e-3
            row.append(token)


def test_prompts_stand_inside_the_template_and_leave_room(tmp_path: Path) -> None:
    saved("Llama", tmp_path)
    model = load(tmp_path, shape=(20,))
    (tmp_path / "prompts.txt").write_text("paris " * 40 + "\n" + "paris\n" * 9)
    data = Data.open(tmp_path / "prompts.txt", shape=model.shape, modality=model.modality)
    assert not data.labelled
    kept = TOKENS.words(data.x[0].tolist())
    assert kept.startswith("user : paris") and kept.endswith("assistant :") and kept.count("paris") == 8
    with pytest.raises(BadInput, match="the chat template alone has 4 tokens"):
        Data.open(tmp_path / "prompts.txt", shape=(12,), modality=model.modality)


def test_a_folder_without_a_template_has_bare_prompts(tmp_path: Path) -> None:
    saved("GPT2", tmp_path, template=None)
    model = load(tmp_path)
    assert any("no chat template" in note for note in model.notes)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    framed = load(tmp_path)
    assert isinstance(framed.modality, Language) and framed.modality.layout_of_ids.after == 2
    assert framed.digest == digest(tmp_path) != model.digest


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "fails"),
        ("{{ messages.append(1) }}{{ messages[0].content }}", "fails"),
        ("{{ cycler.__init__.__globals__ }}", "fails"),
        ("{{ lipsum.__globals__.os }}", "fails"),
        ("no words of a user", "does not hold"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "does not hold"),
        ("{{ raise_exception('only <b>system</b>') }}", "Refused: only"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "time|takes"),
        ("{% set n=namespace(x='a') %}{% for i in range(60) %}{% set n.x=n.x~n.x %}{% endfor %}", "memory|fails|takes"),  # noqa: E501
        ("{{ 'a' * 9999999 }}{{ messages[0].content }}", "letters"),
        ("x" * 2**17, "more than"),
    ],
)  # fmt: skip
def test_a_hostile_template_is_one_line_and_soon_over(template: str, says: str) -> None:
    begin = time.monotonic()
    with pytest.raises(BadInput, match=says) as e:
        around(template, {})
    assert "\n" not in str(e.value) and "take it out" in str(e.value)
    assert time.monotonic() - begin < 15


def test_special_tokens_are_known_to_templates() -> None:
    assert around("{{ bos_token }}<u>{{ messages[0].content | trim }}</u>", {"bos_token": "<s>"}) == (
        "<s><u>",
        "</u>",
    )


# ---------------------------------------------------------------------- adapters


def adapter(folder: Path, kind: str, alpha: float = 4.0, **said: Any) -> dict[str, Tensor]:
    """A LoRA adapter of rank 2 on one layer of attention; its factors."""
    folder.mkdir()
    module = "transformer.h.0.attn.c_attn" if kind == "GPT2" else "model.layers.0.self_attn.q_proj"
    out = 48 if kind == "GPT2" else 16
    generator = torch.Generator().manual_seed(1)
    parts = {"A": torch.randn(2, 16, generator=generator), "B": torch.randn(out, 2, generator=generator)}
    save_file(
        {f"base_model.model.{module}.lora_{k}.weight": v for k, v in parts.items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "bias": "none", **said}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return parts


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_an_adapter_is_added_to_its_base(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    net = saved(kind, base)
    parts = adapter(tmp_path / "adapter", kind)
    model = load(tmp_path / "adapter", base=base)
    layer = net.transformer.h[0].attn.c_attn if kind == "GPT2" else net.model.layers[0].self_attn.q_proj
    change = 4.0 / 2 * parts["B"] @ parts["A"]
    with torch.no_grad():
        layer.weight += change.T if kind == "GPT2" else change
    x = model.modality.random(2, model.shape, torch.Generator().manual_seed(0))
    work = model.copy()
    assert isinstance(work.net, Causal)
    wanted = torch.stack(
        [next_logits(net, r[:n].tolist()) for r, n in zip(x, work.net.count(x), strict=True)]
    )
    with torch.no_grad():
        assert torch.allclose(work.logits(x), wanted, atol=1e-4)
    assert any("adapter" in note for note in model.notes)
    assert model.digest != load(base).digest


def test_what_is_wrong_with_an_adapter_is_one_line(tmp_path: Path) -> None:
    base = tmp_path / "base"
    saved("Llama", base)
    adapter(tmp_path / "a", "Llama")

    def refused(says: str, folder: str = "a", **how: Any) -> None:
        with pytest.raises(BadInput, match=says) as e:
            load(tmp_path / folder, **how)
        assert "\n" not in str(e.value)

    refused("name the folder of the model that it belongs to")
    refused("there is no folder", base=tmp_path / "nowhere")
    refused("holds no adapter", folder="base", base=base)
    for i, (key, value, says) in enumerate([
        ("peft_type", "IA3", "only LoRA"), ("use_dora", True, "more than plain LoRA"),
        ("bias", "all", "more than plain LoRA"), ("lora_alpha", "much", "no number"),
    ]):  # fmt: skip
        said: dict[str, Any] = {"alpha" if key == "lora_alpha" else key: value}
        adapter(tmp_path / f"b{i}", "Llama", **said)
        refused(says, folder=f"b{i}", base=base)
    adapter(tmp_path / "other", "GPT2")
    refused("the base lacks", folder="other", base=base)
    path = tmp_path / "a" / "adapter_model.safetensors"
    good = load_file(path)
    names = sorted(good)
    for change, says in (
        ({names[0]: torch.ones(2, 17)}, "has shape|of shape"), ({names[0]: torch.ones(3, 16)}, "do not fit"),
        ({names[0]: torch.full((2, 16), torch.inf)}, "NaN or infinite"), ({"x.weight": torch.ones(1)}, "no part"),  # noqa: E501
    ):  # fmt: skip
        save_file({**good, **change}, path)
        refused(says, base=base)
    save_file({names[0]: good[names[0]]}, path)
    refused("one of two factors", base=base)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "t5", "architectures": ["T5ForCausalLM"]}, "are not read; there are gpt2"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Net"}}, "code of its own"),
    ],
)
def test_other_folders_are_one_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    saved("Llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BadInput, match=says):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        load(tmp_path)


def test_pickles_of_language_models_are_not_read(tmp_path: Path) -> None:
    saved("GPT2", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match="read from safetensors"):
        load(tmp_path)
