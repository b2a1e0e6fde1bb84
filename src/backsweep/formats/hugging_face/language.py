"""Language models of Hugging Face: what a folder says of its tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.formats.hugging_face import files, texts
from backsweep.inputs.language.modality import Language
from backsweep.inputs.language.prompts import Prompted
from backsweep.inputs.language.template import around
from backsweep.inputs.text.readers import TOKENS
from backsweep.inputs.text.tokens import Tokens

KINDS = ("gpt2", "gemma", "gemma2", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3")  # that tests compare
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_MOST_BYTES = 2**24  # of a file that says something of the tokenizer


def is_language(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a model of the next token."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(n).endswith(files.NEXT_TOKEN) for n in names)


def modality_told(path: Path) -> str:
    """The modality that a folder says without being loaded, where it is of language models; else ""."""
    try:
        folder = files.Folder(path)
        if files.is_adapter(folder):
            return Language.name
        config = json.loads(folder.read("config.json", files.MOST_BYTES))
    except (OSError, ValueError, BadInput, RecursionError):
        return ""
    return Language.name if isinstance(config, dict) and is_language(config) else ""


def modality_of(folder: files.Folder, config: Mapping[str, Any], tokens: Tokens | None) -> Language:
    """Prompts as the folder's tokenizer cuts them and its chat template frames them.

    Args:
        tokens: a tokenizer instead of the folder's own.

    Raises:
        BadInput: no tokenizer or a chat template that cannot be read, a pickle of weights, or an architecture
            that is not known.
    """
    if config.get("model_type") not in KINDS:
        raise BadInput(
            f"language models of the kind {str(config.get('model_type'))[:60]!r} are not read; there are "
            f"{', '.join(KINDS)}"
        )
    if files.weight_files(folder) == [files.PICKLE]:
        raise BadInput("language models are read from safetensors; model.save_pretrained(folder) writes them")
    said = _said(folder)
    inner = texts.tokens_of(folder, config)
    inner = inner if tokens is None else tokens
    ends = [config.get("eos_token_id")]
    ends = ends[0] if isinstance(ends[0], list) else ends
    known = {int(i) for i in ends if type(i) is int and 0 <= i < len(inner)}
    template = _template(folder, said)
    if template is None:
        return Language(Prompted.of(inner, ends=known))
    before, after = around(template, _names(said))
    return Language(Prompted.of(inner, before, after, known))


def notes_of(kind: Language, shape: tuple[int, ...]) -> list[str]:
    """What should be known of how prompts are framed."""
    around = kind.layout_of_ids.before + kind.layout_of_ids.after
    framed = f"{around} of them of its chat template" if around > 1 else "it has no chat template"
    return [f"a prompt has up to {shape[0]} tokens, {framed} (--shape)"]


def shape_of(config: Mapping[str, Any], kind: Language) -> tuple[int, ...]:
    """How many tokens a prompt has: as many as are read by default beside the template."""
    around = kind.layout_of_ids.before + kind.layout_of_ids.after
    (limit,) = texts.shape_of({**config})
    return (limit if limit < TOKENS else limit + around,)


def _said(folder: files.Folder) -> dict[str, Any]:
    """What tokenizer_config.json says."""
    if files.TOKENIZER_CONFIG not in folder.names:
        return {}
    found = json.loads(folder.read(files.TOKENIZER_CONFIG, _MOST_BYTES))
    if not isinstance(found, dict):
        raise BadInput(f"its {files.TOKENIZER_CONFIG} is no table; get the folder again")
    return found


def _template(folder: files.Folder, said: Mapping[str, Any]) -> str | None:
    """The chat template, one that is named default among several."""
    if files.TEMPLATE in folder.names:
        return folder.read(files.TEMPLATE, _MOST_BYTES).decode("utf-8", "replace")
    found = said.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _names(said: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by the names that templates know them by."""
    found = {}
    for name in SPECIAL:
        token = said.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        found[name] = token if isinstance(token, str) else ""
    return found
