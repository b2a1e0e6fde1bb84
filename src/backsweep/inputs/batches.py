"""Samples from a loader of batches, such as a torch `DataLoader`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from backsweep.core.errors import BadInput

_IMAGES = ("pixel_values", "image", "images", "img", "x")
_LABELS = ("labels", "label", "targets", "target", "y")
_WANTED = "batches of (images, labels)"


def gathered(loader: Iterable[Any], most_bytes: int) -> tuple[Tensor, Tensor]:
    """All samples (N, C, H, W) with labels (N,), in the order in which the loader gives them, once.

    Args:
        loader: yields pairs, or dictionaries as Hugging Face datasets have; batches or single samples.
        most_bytes: that may be held.

    Raises:
        BadInput: it yields something else, or more than can be held.
    """
    images, labels, held = [], [], 0
    for batch in loader:
        x, y = _parts(batch)
        try:
            x, y = torch.as_tensor(x), torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError) as e:
            raise BadInput(f"the loader yields images or labels that are no numbers ({e})") from e
        if y.ndim == 0:
            x, y = x[None], y[None]
        if len(y) != len(x):
            raise BadInput(f"the loader yields {len(x)} images with {len(y)} labels; give {_WANTED}")
        held += x.numel() * (1 if x.dtype == torch.uint8 else 4)
        if held > most_bytes:
            raise BadInput(
                f"the loader yields more than {most_bytes / 2**30:.3g} GiB; give fewer samples, "
                "a few hundred will do"
            )
        images.append(x.detach().cpu())
        labels.append(y.detach().cpu())
    if not images:
        raise BadInput("the loader yields nothing; one that can be gone through once only may be spent")
    sizes = {tuple(x.shape[1:]) for x in images}
    if len(sizes) > 1:
        raise BadInput(f"the loader yields images of different sizes, {sorted(sizes)[:3]}; resize them")
    return torch.cat(images), torch.cat(labels)


def _parts(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        found = [next((batch[k] for k in keys if k in batch), None) for keys in (_IMAGES, _LABELS)]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise BadInput(f"the loader yields {type(batch).__name__}; give {_WANTED}")
