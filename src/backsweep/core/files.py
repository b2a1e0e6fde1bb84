"""Writing files so that a kill leaves the old file or the new one, never a half."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from backsweep.core.errors import BadInput


def write_bytes(path: Path, content: bytes) -> None:
    """Write in one step; two processes may write the same file, the later one wins whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text in one step."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN, no Infinity) in one step."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_image(path: Path, image: Any) -> None:
    """Write a picture as PNG in one step.

    Raises:
        BadInput: not a .png, or its folder cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise BadInput(f"{path} is not the name of a .png file")
    writable_folder(path.parent)
    content = io.BytesIO()
    image.save(content, "PNG")
    write_bytes(path, content.getvalue())


def writable_folder(path: Path) -> Path:
    """Make the folder if it is not there, and prove that it can be written to.

    Raises:
        BadInput: it is a file, or cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # of no fixed name: others may try at the same time
    except OSError as e:
        raise BadInput(f"cannot write to {path}: {e.strerror}; choose another folder") from e
    return path


def home() -> Path:
    """Folder of what can be made again (zoo nets): $BACKSWEEP_HOME, or the user's cache."""
    import platformdirs

    return Path(os.environ.get("BACKSWEEP_HOME") or platformdirs.user_cache_dir("backsweep"))


def save_tensor(path: Path, x: Any) -> None:
    """Write one tensor as safetensors."""
    from safetensors.torch import save_file

    save_file({"x": x}, path)


def load_tensor(path: Path) -> Any:
    """The tensor that `save_tensor` wrote; None when there is no such file.

    Raises:
        ValueError: it is another file.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    tensors = load_file(path)
    if set(tensors) != {"x"}:
        raise ValueError(f"{path.name} holds other tensors than one")
    return tensors["x"]
