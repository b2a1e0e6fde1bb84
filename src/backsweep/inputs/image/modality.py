"""Images (C, H, W) of pixels in [0, 1]."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.inputs.family import Family
from backsweep.inputs.image import changes, readers
from backsweep.inputs.image.corruptions import CORRUPTIONS, corrupt
from backsweep.inputs.image.families import FrequencyFamily, PatchFamily, PixelFamily, WarpFamily
from backsweep.inputs.image.pictures import to_image
from backsweep.inputs.image.spaces import Dense, Sparse, Tone
from backsweep.inputs.modality import Found, Modality, Wanted
from backsweep.inputs.space import Space

LEAST_SIDE = 16  # pixels; smaller images are not shifted
LEAST_VARIED = 4  # nor, below that, varied
MOST_SIDE = 4096  # pixels of a single image that is to be resized


@dataclass(frozen=True)
class Image(Modality):
    """Grey and colour images of any size."""

    name: ClassVar[str] = "image"
    noun: ClassVar[str] = "image"
    unit: ClassVar[str] = "pixel"
    axes: ClassVar[str] = "channels, height, width"
    faint: ClassVar[str] = "dense"
    few: ClassVar[str] = "sparse"
    recovered: ClassVar[tuple[str, ...]] = ("patch", "warp")
    grid: ClassVar[bool] = True

    def kept(self, x: Tensor) -> Tensor:
        """Bytes stay bytes."""
        if x.dtype != torch.uint8:
            return self.samples(x)
        return _four(x)

    def values(self, x: Tensor) -> Tensor:
        return x.float().div_(255) if x.dtype == torch.uint8 else x

    def samples(self, x: Tensor) -> Tensor:
        x = self.values(x)
        if not x.is_floating_point():
            raise BadInput(f"x is {x.dtype}; give uint8 in 0..255 or floats in [0, 1]")
        x = _four(x.float())
        if not bool(torch.isfinite(x).all()):
            raise BadInput("x holds NaN or infinite values")
        low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 0.0)
        if low < -1e-6 or high > 1 + 1e-6:
            raise BadInput(
                f"pixels run from {low:.3g} to {high:.3g}, outside [0, 1]; give raw pixels (uint8, or "
                "divided by 255) and leave the normalisation to the model (mean=, std=)"
            )
        return x if low >= 0 and high <= 1 else x.clamp(0, 1)

    def batch(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A single image, and grey images without their channel, are understood."""
        have = tuple(x.shape)
        if have == shape or (shape[0] == 1 and have == shape[1:]):
            return x.reshape(1, *shape)
        return x[:, None] if shape[0] == 1 and have[1:] == shape[1:] else x

    def read(self, path: Path, wanted: Wanted) -> Found:
        return readers.read(path, wanted)

    def decode(self, body: bytes, shape: tuple[int, ...], resize: bool) -> Tensor:
        """A PNG or JPEG; its size is looked at before a pixel is unpacked."""
        if shape[0] not in (1, 3):
            raise BadInput(f"images have 1 or 3 channels, this model takes {shape[0]}; send .npy or JSON")
        try:
            with Pictures.open(io.BytesIO(body), formats=("PNG", "JPEG")) as image:
                size = (image.height, image.width)
        except (Pictures.DecompressionBombError, Pictures.DecompressionBombWarning) as e:
            raise BadInput("the image has far too many pixels") from e
        if size != shape[1:] and (not resize or max(size) > MOST_SIDE):
            wanted = f"{shape[1]} x {shape[2]}" if not resize else f"at most {MOST_SIDE} x {MOST_SIDE}"
            raise BadInput(f"the image has {size[0]} x {size[1]} pixels (height x width), not {wanted}")
        x = readers.image(io.BytesIO(body), "the image", shape[0])  # which may turn it
        if x.shape[1:] != shape[1:] and not resize:
            raise BadInput(f"the image, turned as its EXIF data say, has {x.shape[1]} x {x.shape[2]} pixels")
        return x[None] if x.shape[1:] == shape[1:] else readers.resized(x[None], shape)

    def mismatch(self, have: tuple[int, ...], want: tuple[int, ...]) -> str:
        if have == (*want[1:], want[0]):
            mend = "put the channels first, e.g. x.permute(0, 3, 1, 2)"
        elif have[0] != want[0]:
            mend = "convert the images to " + ("grey" if want[0] == 1 else f"{want[0]} channels")
        else:
            mend = "resize the images, e.g. Data.open(path, shape=model.shape, resize=True)"
        return (
            f"the samples are {' x '.join(map(str, have))} (channels x height x width), "
            f"the model takes {' x '.join(map(str, want))}; {mend}"
        )

    def clip(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) == 3

    def size(self, shape: Sequence[int]) -> int:
        """Pixels, whatever the number of channels."""
        count = 1
        for side in shape[1:]:
            count *= side
        return count

    def shift(self, x: Tensor, generator: torch.Generator, most: int = 2) -> Tensor:
        """Random translation by up to `most` pixels, one for a batch, edges repeated."""
        padded = F.pad(x, (most, most, most, most), mode="replicate")
        top, left = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
        return padded[..., top : top + x.shape[-2], left : left + x.shape[-1]]

    def shifts(self, shape: Sequence[int]) -> bool:
        return min(shape[-2:]) >= LEAST_SIDE

    def varied(self, x: Tensor, generator: torch.Generator) -> Tensor | None:
        return changes.varied(x, generator) if min(x.shape[-2:]) >= LEAST_VARIED else None

    def corruptions(self, shape: Sequence[int]) -> Mapping[str, Callable[[Tensor, int], Tensor]]:
        return {} if not self.fits(shape) else {name: partial(_corrupt, name) for name in CORRUPTIONS}

    def spaces(self) -> Mapping[str, Space]:
        return {"dense": Dense(), "sparse": Sparse(), "tone": Tone()}

    def patch(self) -> Family:
        return PatchFamily()

    def families(self, shape: Sequence[int]) -> Mapping[str, Family]:
        if not self.fits(shape):
            return {}
        return {
            "patch": PatchFamily(), "pixel": PixelFamily(), "frequency": FrequencyFamily(),
            "warp": WarpFamily(*shape[1:]),
        }  # fmt: skip

    def pack(self, x: Tensor) -> Tensor:
        """In 8 bits."""
        return (255 * x.detach().cpu()).round().to(torch.uint8).contiguous()

    def arrays(self, x: Tensor) -> dict[str, NDArray[Any]] | None:
        """Bytes, channels last."""
        return {"x": self.pack(x).permute(0, 2, 3, 1).contiguous().numpy()}

    def unpack(self, x: Tensor) -> Tensor:
        return x.float() / 255

    def picture(self, x: Tensor) -> Pictures.Image:
        return to_image(x)


def _four(x: Tensor) -> Tensor:
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4:
        raise BadInput(f"x has {x.ndim} dimensions; images are (samples, channels, height, width)")
    return x


def _corrupt(name: str, x: Tensor, severity: int) -> Tensor:
    return corrupt(x, name, severity)


IMAGE = Image()
