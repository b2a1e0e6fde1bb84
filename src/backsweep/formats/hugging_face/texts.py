"""Text classifiers of Hugging Face: what a folder says of its tokens, and the network around them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.hugging_face import files
from backsweep.inputs.text.modality import MOST_TOKENS, Text
from backsweep.inputs.text.readers import TOKENS
from backsweep.inputs.text.tokens import FILE, MOST_BYTES, Tokens, parsed

_LIMITS = ("max_position_embeddings", "n_positions", "max_sequence_length")
_RESERVED = 2  # positions that RoBERTa's kind does not use


def is_text(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a classifier of sequences of tokens."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(n).endswith(files.SEQUENCES) for n in names)


def tokens_of(folder: files.Folder, config: Mapping[str, Any]) -> Tokens:
    """The tokenizer that lies with the network.

    Raises:
        BadInput: there is none that can be read.
    """
    if FILE not in folder.names:
        raise BadInput(
            f"this folder of a text classifier has no {FILE}; where it was made, call "
            "tokenizer.save_pretrained(folder) of a fast tokenizer, or name one with tokenizer= (--tokenizer)"
        )
    pad = config.get("pad_token_id")
    return parsed(folder.read(FILE, MOST_BYTES), pad if type(pad) is int else None)


def shape_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """How many tokens an input has: as many as are read by default, or as few as the network takes."""
    limits = [
        config[k] - _RESERVED for k in _LIMITS if type(config.get(k)) is int and config[k] > 2 * _RESERVED
    ]
    return (min([TOKENS, MOST_TOKENS, *limits]),)


class Classifier(nn.Module):
    """Ids (N, L) -> logits (N, classes), with the mask and the kinds of tokens that follow from the ids.

    Args:
        net: of transformers.
        kind: of the inputs.
    """

    def __init__(self, net: nn.Module, kind: Text) -> None:
        super().__init__()
        self.net = net
        self.around = kind.layout_of_ids
        config: Any = net.config
        takes = inspect.signature(net.forward).parameters
        self.pairs = "token_type_ids" in takes and int(getattr(config, "type_vocab_size", 0) or 0) > 1
        self.quiet = {k: False for k in ("use_cache",) if k in takes}

    def forward(self, ids: Tensor) -> Tensor:
        own = self.around
        there = ids != own.pad
        there = there | (torch.arange(ids.shape[1], device=ids.device) == 0)  # no row is all padding
        told: dict[str, Any] = {"attention_mask": there.long(), **self.quiet}
        if self.pairs:
            ends = (ids == own.sep).long()
            told["token_type_ids"] = ((ends.cumsum(1) - ends > 0) & there).long().clamp(max=1)
        with torch.autocast(ids.device.type, enabled=False):  # masks of transformers do not fit bfloat16
            net: Any = self.net
            if getattr(net, "score", None) is None:
                logits: Tensor = net(input_ids=ids, **told).logits
                return logits
            # decoders are read at the last token of a text
            states = net.base_model(input_ids=ids, **told).last_hidden_state
            last = (there.long() * torch.arange(ids.shape[1], device=ids.device)).amax(1)
            read: Tensor = net.score(states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])))
            return read[:, 0]


def settled(settings: Any, kind: Text) -> Any:
    """A config of transformers for this tokenizer: its padding, and attention without shortcuts."""
    settings.pad_token_id = kind.layout_of_ids.pad
    if not kind.classified:  # a language model is not changed inside, and its cache is used
        return settings
    settings._attn_implementation = "eager"
    settings.use_cache = False
    return settings
