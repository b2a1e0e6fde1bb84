"""How images reach a Hugging Face model, from config.json and preprocessor_config.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from backsweep.core.errors import BadInput

_FILE = "preprocessor_config.json"
_RESAMPLE = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}


def numbers(values: Iterable[Any]) -> tuple[float, ...]:
    """Finite numbers out of JSON."""
    found = tuple(float(v) for v in values)
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{found} are not all finite")
    return found


def preprocessing(
    config: Mapping[str, Any], prep: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """Shape and normalisation in units of [0, 1], as `Model` takes them, and what should be known of them.

    Args:
        config: what config.json says.
        prep: what preprocessor_config.json says, None: there is none.

    Raises:
        BadInput: what is said is not enough, or impossible. Any other error means damage.
    """
    said: dict[str, Any] = {}
    sides = _sides(prep or {}, config)
    if sides is not None:
        said["shape"] = (int(config.get("num_channels", 3)), *sides)
    if prep is None:
        note = f"it has no {_FILE}: pixels reach it from 0 to 1, not normalised unless you say mean= and std="
        return said, [note]
    mean, std, raw = _normalisation(prep)
    said["mean"], said["std"] = _per_channel(mean, said), _per_channel(std, said)
    notes = []
    if raw:
        notes.append(f"its {_FILE} does not rescale: pixels reach it from 0 to 255")
    if note := _resizing(prep, sides):
        notes.append(note)
    return said, notes


def _sides(prep: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images that the network gets; None if they are not said."""
    sizes = [config.get("image_size")]
    if prep.get("do_resize", True):
        sizes.insert(0, prep.get("size"))
    if prep.get("do_center_crop"):
        sizes.insert(0, prep.get("crop_size"))
    for size in sizes:
        if isinstance(size, dict):
            edge = size.get("shortest_edge")
            size = (size.get("height", edge), size.get("width", edge))
        if isinstance(size, int):
            size = (size, size)
        if (
            isinstance(size, list | tuple)
            and len(size) == 2
            and all(isinstance(n, int) and n > 0 for n in size)
        ):
            return int(size[0]), int(size[1])
    return None


def _normalisation(prep: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """A pixel u in [0, 1] reaches the network as (u - mean) / std; and whether that is raw, 0 to 255."""
    raw = not prep.get("do_rescale", True)
    factor = 1.0 if raw else float(prep.get("rescale_factor", 1 / 255))
    if not 0 < factor < math.inf:
        raise BadInput(f"rescale_factor {factor} in its {_FILE} is not above zero; mend that file")
    scale, offset = 255 * factor, 1.0 if prep.get("rescale_offset") else 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if prep.get("do_normalize", prep.get("image_mean") is not None):
        missing = [k for k in ("image_mean", "image_std") if prep.get(k) is None]
        if missing:
            raise BadInput(
                f"its {_FILE} says do_normalize and no {' and no '.join(missing)}; add them to that file"
            )
        mean, std = _several(prep["image_mean"]), _several(prep["image_std"])
    if prep.get("include_top"):  # EfficientNet divides a second time
        std = tuple(s * s for s in std)
    if min(std) <= 0:
        raise BadInput(f"image_std {list(std)} in its {_FILE} is not above zero; mend that file")
    return tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std), raw and scale == 255


def _several(value: Any) -> tuple[float, ...]:
    return numbers(value if isinstance(value, list | tuple) else [value])


def _per_channel(values: tuple[float, ...], said: Mapping[str, Any]) -> tuple[float, ...]:
    """One for all channels where they are equal: processors of grey images often keep three."""
    channels = said["shape"][0] if "shape" in said else 0
    return values[:1] if len(values) != channels and len(set(values)) == 1 else values


def _resizing(prep: Mapping[str, Any], sides: tuple[int, int] | None) -> str:
    """What its own preprocessing does to images of another size that is not done here; "" if nothing."""
    if not prep.get("do_resize", True) and not prep.get("do_center_crop"):
        return ""
    kind = _RESAMPLE.get(prep.get("resample", 2), str(prep.get("resample"))[:20])
    size = prep.get("size")
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    share = prep.get("crop_pct")
    crops = bool(prep.get("do_center_crop")) or (edge is not None and isinstance(share, float) and edge < 384)
    if kind == "bilinear" and not crops and edge is None:
        return ""
    kept = ", keeps their proportions and cuts out the middle" if crops or edge is not None else ""
    wanted = " x ".join(map(str, sides)) if sides else "the model's size"
    return (
        f"its own preprocessing resizes images by {kind} interpolation{kept}; here they are resized "
        f"bilinearly to {wanted} as a whole"
    )
