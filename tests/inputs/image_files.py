"""Images and sets of them for tests of readers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
BYTES = np.random.default_rng(0).integers(0, 256, (24, 5, 7), dtype=np.uint8)  # grey images


def png(pixels: Any, kind: str = "PNG", **how: Any) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, kind, **how)
    return buffer.getvalue()


def put(path: Path, body: bytes | str) -> Path:
    """A file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body.encode() if isinstance(body, str) else body)
    return path


def refused(path: Path, **how: Any) -> str:
    """What is said of samples that cannot be read: one line, which begins with the path."""
    with pytest.raises(BadInput) as caught:
        Data.open(path, **how)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(str(path))
    return message


def mutated(data: st.DataObject, blob: bytes) -> bytes:
    """The blob cut short, or with some of its bytes changed."""
    if data.draw(st.booleans()):
        return blob[: data.draw(st.integers(0, len(blob) - 1))]
    changed = bytearray(blob)
    for place in data.draw(st.lists(st.integers(0, len(blob) - 1), min_size=1, max_size=4)):
        changed[place] = data.draw(st.integers(0, 255))
    return bytes(changed)


def read_or_refused(path: Path, **how: Any) -> None:
    """A damaged file is read, or refused in one line; nothing else happens."""
    try:
        assert isinstance(Data.open(path, **how), Data)
    except BadInput as e:
        assert str(e).isprintable()
