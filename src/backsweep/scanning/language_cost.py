"""What BAIT costs on a language model, from its config.json alone: FLOPs, and bytes that have to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.inversion.answers import Bounds

NAMES = {  # of a size in a config: as most call it, and as GPT-2 does
    "width": ("hidden_size", "n_embd"), "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"), "tokens": ("vocab_size",),
}  # fmt: skip
KEPT = 0.03  # share of the vocabulary that is followed on behind the first step; tiny models kept less


@dataclass(frozen=True)
class Sizes:
    """Sizes of a causal transformer.

    Attributes:
        layer: weights of a layer without its embeddings.
        table: weights of the table of embeddings; the head has as many.
        stored: weights that a file holds.
        cached: numbers that are kept of one token in all layers.
    """

    layers: int
    layer: int
    table: int
    stored: int
    cached: int

    @property
    def active(self) -> int:
        """Weights that a token is multiplied with."""
        return self.layers * self.layer + self.table


def sizes(config: Mapping[str, Any]) -> Sizes:
    """Sizes that a config.json says, of a kind that `load` reads, without norms and biases, which are small.

    Raises:
        BadInput: a size is missing.
    """
    found = {}
    for key, names in NAMES.items():
        value = next((config[n] for n in names if type(config.get(n)) is int and config[n] > 0), None)
        if value is None:
            raise BadInput(f"its config.json does not say {names[0]}; get the folder again")
        found[key] = value
    width, layers, heads = found["width"], found["layers"], found["heads"]
    head = config.get("head_dim") or width // heads
    shared = (config.get("num_key_value_heads") or heads) * head
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * width
    gated = 2 if config.get("model_type") in ("gpt2", "phi") else 3
    layer = 2 * width * heads * head + 2 * width * shared + gated * width * inner
    table = width * found["tokens"]
    tied = config.get("tie_word_embeddings", config.get("model_type") in ("gpt2", "gemma", "gemma2"))
    return Sizes(layers, layer, table, layers * layer + table * (1 if tied else 2), 2 * layers * shared)


@dataclass(frozen=True)
class Cost:
    """What the inversion of targets costs.

    Attributes:
        steps: tokens that go through the network.
        flops: two for every weight and token; attention to few tokens is left out.
        weights: bytes of the weights.
        cache: bytes of keys and values in one pass.
        read: bytes of weights that passes of `rows` tokens have to read.
    """

    steps: int
    flops: float
    weights: int
    cache: int
    read: float


def cost(
    config: Mapping[str, Any],
    prompt: int = 64,
    few: int = 4,
    many: int = 20,
    rows: int = 256,
    number: int = 2,
) -> Cost:
    """The cost of BAIT with kept keys and values on the model of a config.

    Args:
        config: what config.json says.
        prompt: tokens of a prompt.
        few, many: prompts of the first part and of all of it.
        rows: tokens in a pass.
        number: bytes of a weight, 2 in half precision.

    Raises:
        BadInput: as `sizes`.
    """
    own, bounds = sizes(config), Bounds()
    tokens = own.table // next(config[n] for n in NAMES["width"] if config.get(n))
    kept = round(KEPT * tokens)
    steps = many * prompt + tokens * few + kept * few * (bounds.warm - 1) + kept * many * bounds.steps
    return Cost(
        steps, 2.0 * steps * own.active, own.stored * number,
        rows * (prompt + bounds.steps) * own.cached * number, steps / rows * own.stored * number,
    )  # fmt: skip
