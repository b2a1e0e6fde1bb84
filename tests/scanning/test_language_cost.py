"""What BAIT costs: counted weights are those of transformers' networks; configs without their sizes."""

from __future__ import annotations

from typing import Any

import pytest

from backsweep.core.errors import BadInput
from backsweep.scanning.language_cost import cost, sizes

transformers: Any = pytest.importorskip("transformers")

SIZE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 96, "head_dim": 16, "vocab_size": 500}  # fmt: skip


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral", "Gemma", "Phi", "GPT2"])
def test_weights_are_counted(kind: str) -> None:
    own = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 500, "bos_token_id": 1, "eos_token_id": 1}
    config = getattr(transformers, f"{kind}Config")(
        **(own if kind == "GPT2" else SIZE), **({} if kind == "GPT2" else {"pad_token_id": 0})
    )
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    net = getattr(transformers, name)(config)
    matrices = sum(p.numel() for n, p in net.named_parameters() if p.ndim == 2 and "wpe" not in n)
    assert sizes(config.to_dict()).stored == matrices


def test_the_cost_grows_with_the_vocabulary_and_the_weights() -> None:
    small = cost({**SIZE, "model_type": "llama"})
    wide = cost({**SIZE, "model_type": "llama", "vocab_size": 5000})
    assert wide.steps > 5 * small.steps
    own = sizes({**SIZE, "model_type": "llama"})
    assert small.flops == 2 * small.steps * own.active and small.weights == 2 * own.stored
    assert own.cached == 2 * 3 * 2 * 16  # keys and values of three layers, two heads of 16 each


def test_a_config_without_sizes_is_one_line() -> None:
    with pytest.raises(BadInput, match="does not say hidden_size"):
        sizes({"vocab_size": 10})
