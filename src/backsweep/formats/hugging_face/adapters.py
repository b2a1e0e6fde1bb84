"""LoRA adapters of PEFT (adapter_config.json, adapter_model.safetensors), merged into a base: W + s B A."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line, some
from backsweep.formats.hugging_face import files

CONFIG, WEIGHTS = files.ADAPTER
NO_ADAPTER = "it holds no adapter of PEFT (adapter_config.json), so there is nothing to put on base= (--base)"
_PART = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_TURNED = ("gpt2",)  # their layers keep weights as (in, out)
_MOST_BYTES = 2**24


def merged(
    adapter: files.Folder, weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The weights of the base with the adapter in them.

    Args:
        adapter: its folder.
        weights: of the base, by name; they stay as they are.
        config: of the base.

    Raises:
        BadInput: another kind of adapter than plain LoRA, or one of another base. Any other error: damage.
    """
    said, pairs = _read(adapter)
    found = dict(weights)
    for name, pair in pairs.items():
        key = next((k for k in _names(name) if k in found), "")
        if not key:
            raise BadInput(
                f"its adapter changes {name!r}, which the base lacks; name the right base= (--base)"
            )
        found[key] = _changed(key, found[key], pair, said, str(config.get("model_type")))
    return found


def _read(adapter: files.Folder) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The config of an adapter, and its factors A and B by the modules that they change."""
    said = json.loads(adapter.read(CONFIG, _MOST_BYTES))
    _check(said)
    if WEIGHTS not in adapter.names:
        raise BadInput(f"its adapter has no {WEIGHTS}; save it with safetensors where it was made")
    stored = dict(safetensors.torch.load(adapter.read(WEIGHTS)))
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in stored.items():
        match = _PART.fullmatch(key)
        if match is None:
            raise BadInput(
                f"its adapter holds {key!r}, which is no part of plain LoRA; merge it where it was made"
            )
        pairs.setdefault(match[1], {})[match[2]] = value
    return said, pairs


def factors(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors (A, s B) of an adapter's folder by the modules that they change, float32: dW = s B A.

    Raises:
        BadInput: it is another kind of adapter than plain LoRA, or damaged.
    """
    try:
        said, pairs = _read(files.Folder(path))
        return {name: _product(name, pair, said) for name, pair in sorted(pairs.items())}
    except BadInput as e:
        raise BadInput(one_line(f"{path}: {e}")) from e
    except Exception as e:
        reason = one_line(f"{type(e).__name__}: {e}")[:120]
        raise BadInput(one_line(f"{path}: cannot be read as an adapter ({reason}); get it again")) from e


def _product(key: str, pair: Mapping[str, Tensor], said: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Both factors of a module, the scale in the second."""
    if set(pair) != {"A", "B"}:
        raise BadInput(f"its adapter has one of two factors of {key!r}; get the adapter again")
    a, b = pair["A"].float(), pair["B"].float()
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise BadInput(
            f"its adapter's factors of {key!r} have shapes {tuple(a.shape)} and {tuple(b.shape)}, which "
            "do not fit each other; get the adapter again"
        )
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise BadInput(f"its adapter's factors of {key!r} hold NaN or infinite values; get the adapter again")
    return a, _scale(key.removesuffix(".weight"), a.shape[0], said) * b


def _check(said: Any) -> None:
    """Refuse what plain LoRA is not."""
    if not isinstance(said, dict) or said.get("peft_type") != "LORA":
        kind = said.get("peft_type") if isinstance(said, dict) else None
        raise BadInput(f"its adapter is of the kind {str(kind)[:40]!r}; only LoRA is read")
    odd = [
        k
        for k in ("use_dora", "modules_to_save", "trainable_token_indices", "layer_replication")
        if said.get(k)
    ]
    odd += ["bias"] if said.get("bias", "none") != "none" else []
    if odd:
        raise BadInput(f"its adapter is more than plain LoRA ({some(odd)}); merge it where it was made")


def _names(module: str) -> list[str]:
    """What the weight of a module may be called in the base's files."""
    bare = re.sub(r"^(transformer|model)\.", "", module)
    return [f"{n}.weight" for n in dict.fromkeys((module, bare, f"transformer.{bare}", f"model.{bare}"))]


def _scale(name: str, rank: int, said: Mapping[str, Any]) -> float:
    """What B A is multiplied by: alpha / r, or alpha / sqrt(r)."""
    alpha: Any = said.get("lora_alpha", rank)
    for pattern, value in (said.get("alpha_pattern") or {}).items():
        if name == pattern or name.endswith(f".{pattern}"):
            alpha = value
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise BadInput(f"its adapter has lora_alpha {str(alpha)[:40]!r}, which is no number; get it again")
    return float(alpha) / (math.sqrt(rank) if said.get("use_rslora") else rank)


def _changed(
    key: str, weight: Tensor, pair: Mapping[str, Tensor], said: Mapping[str, Any], kind: str
) -> Tensor:
    """One weight of the base with B A added."""
    a, b = _product(key, pair, said)
    change = b @ a
    looked_up = "embed" in key or "wte" in key
    if looked_up or kind in _TURNED or said.get("fan_in_fan_out"):
        change = change.T
    if change.shape != weight.shape:
        raise BadInput(
            f"its adapter changes {key!r} of shape {tuple(change.shape)}, the base has "
            f"{tuple(weight.shape)}; name the right base= (--base)"
        )
    if not bool(change.isfinite().all()):
        raise BadInput(f"its adapter's change of {key!r} holds NaN or infinite values; get the adapter again")
    return (weight.float() + change).to(weight.dtype)
