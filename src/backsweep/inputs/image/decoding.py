"""One image file as bytes (C, H, W), converted where its meaning is clear."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from backsweep.core.errors import BadInput

MOST_PIXELS = 2**26  # of one image
GREY = 8  # levels that the channels of a grey image may lie apart, as they do after JPEG
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # no other decoder of Pillow is reached
_ORIENTATION = 0x0112

# what is done to images, as notes count it
DEEP, TURNED, INKS = (
    "scaled from 16 bits a channel to 8",
    "turned as the EXIF data say",
    "converted from CMYK to RGB",
)


class Damaged(BadInput):
    """An image that cannot be read at all."""


@dataclass(frozen=True)
class Decoded:
    """An image.

    Attributes:
        pixels: bytes (C, H, W).
        grey: whether the file is one of grey levels.
        apart: how many levels the channels of a file of colours lie apart at most.
        done: what was done to it.
    """

    pixels: Tensor
    grey: bool
    apart: int
    done: tuple[str, ...] = ()


def image(path: Path | IO[bytes], shown: str, channels: int | None) -> Tensor:
    """One image as bytes (C, H, W); grey stays one channel unless three are asked for.

    Raises:
        BadInput: it is damaged, far too large, in colour where grey is wanted, or its values have no
            clear meaning.
    """
    return decoded(path, shown, channels).pixels


def decoded(path: Path | IO[bytes], shown: str, channels: int | None) -> Decoded:
    """`image`, with what was done to it.

    Raises:
        Damaged: it cannot be read.
        BadInput: as `image`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as found:
                if found.width * found.height > MOST_PIXELS:
                    raise BadInput(f"{shown} has {found.width} x {found.height} pixels, too many; remove it")
                return _converted(found, shown, channels)
    except BadInput:
        raise
    except Exception as e:
        raise Damaged(f"{shown} is not readable as an image ({reason(e)}); remove or mend it") from e


def _converted(found: Image.Image, shown: str, channels: int | None) -> Decoded:
    done = []
    turned: Image.Image = found
    if _orientation(found) in range(2, 9):
        turned = ImageOps.exif_transpose(found)
        done.append(TURNED)
    if turned.mode.startswith("I;16") or (turned.mode == "I" and found.format == "PNG"):
        levels = np.asarray(turned).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise BadInput(f"{shown} has more than 16 bits a channel; save it with 8")
        turned = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
        done.append(DEEP)
    elif turned.mode.startswith(("I", "F")):
        raise BadInput(f"{shown} has 32 bits a channel, whose range is not known; save it with 8")
    if turned.mode == "CMYK":
        done.append(INKS)
    if turned.mode in ("1", "L", "LA", "La"):
        grey = turned.convert("RGB" if channels == 3 else "L")
        return Decoded(tensor(grey), True, 0, tuple(done))
    colour = turned.convert("RGB")
    pixels = tensor(colour)
    apart = _apart(pixels) if channels != 3 else 0
    if channels == 1:
        if apart > GREY:
            raise BadInput(f"{shown} is in colour, the model takes grey; convert the images to grey")
        pixels = tensor(colour.convert("L"))
    return Decoded(pixels, False, apart, tuple(done))


def _apart(pixels: Tensor) -> int:
    """How many levels the channels of bytes (3, H, W) lie apart at most."""
    r, g, b = pixels.numpy()
    high, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    return int((high - low).max(initial=0))


def _orientation(found: Image.Image) -> int:
    """How the camera was held, 1 where nothing is said; damaged notes on that are no damaged image."""
    try:
        said = found.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return said if isinstance(said, int) else 1


def tensor(image: Any) -> Tensor:
    """A tensor as it is, and a picture or an array (H, W[, C]), as (C, H, W)."""
    if isinstance(image, Tensor):
        return image.detach().cpu() if image.ndim == 3 else image.detach().cpu()[None]
    pixels = np.array(image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0).copy())


def reason(e: Exception) -> str:
    """An exception, which may quote a file, in short."""
    return " ".join(f"{type(e).__name__}: {e}".split())[:160]
