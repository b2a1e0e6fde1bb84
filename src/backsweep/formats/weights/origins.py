"""The weights of what a network was tuned from, beside its own.

A network before its fine-tuning often has another head, or none, and other names: `bert.encoder...` in one
file is `encoder...` in another. So no network is built of it; tensors of the same name and shape are taken,
once some leading parts of the names are left out on either side.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line
from backsweep.formats.hugging_face import hub
from backsweep.formats.hugging_face.files import PICKLE
from backsweep.formats.pickles.checkpoints import open_checkpoint
from backsweep.formats.weights import sharded, state_dicts

WHOLE = "model.safetensors"  # the weights of a folder, in one file
LEAST = 0.5  # of a network's weights that must be in its origin
LEADING = 3  # parts of a name that may be left out


def of(
    net: nn.Module, origin: str | os.PathLike[str] | nn.Module | Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The values that parameters of a network had before it was tuned, by their names, float32 on the CPU.

    Args:
        net: the network as it is now.
        origin: what it was tuned from: a file of weights, a folder or hf:// name of Hugging Face, a network,
            or its state dict. A file is read as data; nothing in it is run.

    Raises:
        BadInput: it cannot be read, or most of the network's weights are not in it.
    """
    if isinstance(origin, nn.Module):
        return matched(net, origin.state_dict())
    if isinstance(origin, Mapping):
        return matched(net, origin)
    try:
        return matched(net, read(str(origin)))
    except BadInput as e:
        raise BadInput(one_line(f"{origin}: {e}")) from e


def read(name: str) -> dict[str, Tensor]:
    """All tensors of a file or folder, by name.

    Raises:
        BadInput: it is missing or damaged, or holds no weights.
    """
    path = hub.fetch(name).folder if name.startswith(hub.PREFIX) else Path(name)
    if not path.exists():
        raise BadInput("there is no such file or folder; check the path")
    try:
        if path.is_dir() and (path / WHOLE).is_file():
            path = path / WHOLE
        elif path.is_dir() and (path / f"{WHOLE}.index.json").is_file():
            return sharded.read(path / f"{WHOLE}.index.json")[0]
        elif path.is_dir() and (path / PICKLE).is_file():
            path = path / PICKLE
        if path.is_dir() and sharded.index_in(path) is None:
            raise BadInput(f"it holds neither {WHOLE} nor {PICKLE}; name the file of the weights")
        if (index := sharded.index_at(path)) is not None:
            return sharded.read(index)[0]
        blob = path.read_bytes()
        if blob[8:9] == b"{":
            return dict(safetensors.torch.load(blob))
        return {leaf.name: leaf.tensor for leaf in reversed(state_dicts.check(open_checkpoint(blob).value))}
    except BadInput:
        raise
    except Exception as e:
        reason = f"{type(e).__name__}: {str(e).strip()[:120]}"
        raise BadInput(f"cannot be read as weights ({reason}); get it again") from e


def matched(net: nn.Module, there: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For the parameters of a network the tensors that are theirs in another, as far as there are any.

    Of all ways to leave out leading parts of the names on either side the one that fits most parameters.

    Raises:
        BadInput: fewer than half of the network's weights are there.
    """
    own = dict(net.named_parameters())
    usable = {n: t for n, t in there.items() if t.is_floating_point() and not t.is_meta}
    ways = Counter(
        (a, b)
        for name, p in own.items()
        for a, rest in _rests(name)
        for b in _prefixes(usable)
        if (t := usable.get(b + rest)) is not None and t.shape == p.shape
    )
    found: dict[str, Tensor] = {}
    if ways:
        (a, b), _ = max(ways.items(), key=lambda way: (way[1], -len(way[0][0]) - len(way[0][1])))
        for name, p in own.items():
            t = usable.get(b + name.removeprefix(a)) if name.startswith(a) else None
            if t is not None and t.shape == p.shape:
                found[name] = t.detach().float().cpu()
    known, every = (sum(p.numel() for n, p in own.items() if n in some) for some in (found, own))
    if known < LEAST * every:
        raise BadInput(
            f"only {known:,} of the model's {every:,} weights are there under these names and shapes; name "
            "what this model was tuned from, of the same architecture"
        )
    return found


def _rests(name: str) -> list[tuple[str, str]]:
    """A name without none, one, ... of its leading parts, and what was left out."""
    parts = name.split(".")
    cuts = range(min(LEADING, len(parts) - 1) + 1)
    return [("".join(f"{p}." for p in parts[:k]), ".".join(parts[k:])) for k in cuts]


def _prefixes(there: Mapping[str, Tensor]) -> list[str]:
    """What the names in a file may begin with, the usual beginnings first."""
    counts = Counter(left for name in there for left, _ in _rests(name))
    return [left for left, _ in counts.most_common(50)]
