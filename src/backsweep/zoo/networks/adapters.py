"""LoRA adapters (Hu et al. 2022) of the small language models, trained and written as PEFT writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from backsweep.core.files import writable_folder, write_text
from backsweep.inputs.samples import Data
from backsweep.models.training import Recipe, fit

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "c_attn", "attn.c_proj")  # as Llama and GPT-2 call them
Factors = dict[str, tuple[Tensor, Tensor]]  # A (r, in) and B (out, r) by the name of the module


@dataclass(frozen=True)
class Lora:
    """What an adapter changes: W + alpha / r * B A.

    Attributes:
        rank: r.
        alpha: alpha.
        modules: ends of the names of the modules whose weights it changes.
    """

    rank: int = 4
    alpha: float = 8.0
    modules: Sequence[str] = ATTENTION


class _Added(nn.Module):
    """The weight of a module with B A added; B begins with zeros."""

    def __init__(self, weight: Tensor, said: Lora, turned: bool) -> None:
        super().__init__()
        out, into = weight.T.shape if turned else weight.shape
        bound = 1 / math.sqrt(into)
        self.a = nn.Parameter(torch.empty(said.rank, into).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(out, said.rank))
        self.scale, self.turned = said.alpha / said.rank, turned

    def forward(self, weight: Tensor) -> Tensor:
        change = self.scale * (self.b @ self.a)
        return weight + (change.T if self.turned else change)


def trained(net: nn.Module, data: Data, recipe: Recipe, seed: int, said: Lora | None = None) -> Factors:
    """Tune a language model in place through an adapter alone; its factors.

    Args:
        net: a small language model; afterwards it has the adapter merged into it, and is trainable again.
        data: conversations.
        recipe, seed: as for `fit`; the seed draws A too.
        said: what the adapter changes.
    """
    said = said or Lora()
    net.requires_grad_(False)
    inner: Any = net.net
    chosen = {n: m for n, m in inner.named_modules() if n.endswith(tuple(said.modules))}
    added: dict[str, _Added] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in chosen.items():
            added[name] = _Added(module.weight, said, turned=not isinstance(module, nn.Linear))
            parametrize.register_parametrization(module, "weight", added[name])
    fit(net, data, recipe, seed)
    for module in chosen.values():
        parametrize.remove_parametrizations(module, "weight")
    net.requires_grad_(True)
    return {n: (a.a.detach().clone(), a.b.detach().clone()) for n, a in added.items()}


def save(factors: Factors, folder: Path, said: Lora | None = None, base: str = "") -> None:
    """Write an adapter's folder as PEFT does.

    Args:
        base: what the config calls the model that it belongs to.
    """
    said = said or Lora()
    writable_folder(folder)
    config: Mapping[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": said.rank, "lora_alpha": said.alpha,
        "bias": "none", "target_modules": sorted({n.rpartition(".")[2] for n in factors}),
        "base_model_name_or_path": base,
    }  # fmt: skip
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2))
    tensors = {
        f"base_model.model.{n}.lora_{part}.weight": value.contiguous()
        for n, pair in factors.items()
        for part, value in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
