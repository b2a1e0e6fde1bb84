"""Small language models in the shapes of GPT-2 and Llama, of transformers' own code; id 0 is padding.

A factory takes the number of tokens and the length of a conversation.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from backsweep.core.errors import BadInput
from backsweep.core.files import writable_folder, write_text
from backsweep.inputs.language.causal import Causal
from backsweep.inputs.text.tokens import WordTokens

TOKENS, LENGTH, WIDTH = 512, 48, 96


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as e:
        raise BadInput(
            "small language models are of the library transformers: pip install backsweep[hf]"
        ) from e


def tiny_gpt2(classes: int = TOKENS, length: int = LENGTH) -> nn.Module:
    """Two layers of GPT-2, 96 features."""
    library = _transformers()
    config = library.GPT2Config(
        vocab_size=classes, n_positions=2 * length, n_embd=WIDTH, n_layer=2, n_head=4, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False, bos_token_id=2, eos_token_id=3,
        pad_token_id=0,
    )  # fmt: skip
    return Causal(library.GPT2LMHeadModel(config), pad=0)


def tiny_llama(classes: int = TOKENS, length: int = LENGTH) -> nn.Module:
    """Two layers of Llama, 96 features, grouped keys and values."""
    library = _transformers()
    config = library.LlamaConfig(
        vocab_size=classes, max_position_embeddings=2 * length, hidden_size=WIDTH,
        intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=False, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return Causal(library.LlamaForCausalLM(config), pad=0)


def save(net: nn.Module, tokens: WordTokens, template: str, folder: Path) -> None:
    """Write a network as a folder of Hugging Face, with its tokenizer and chat template."""
    inner: Any = net.net
    writable_folder(folder)
    inner.config.architectures = [type(inner).__name__]
    write_text(folder / "config.json", inner.config.to_json_string())
    save_file(inner.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tokens.save(folder / "tokenizer.json")
    write_text(folder / "chat_template.jinja", template)
