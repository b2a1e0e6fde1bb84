"""The settings of a layer, as its file says them: each is checked as it is read, and none is passed over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.core.text import some

TF2ONNX = (
    'convert it where its code is, with model.export("model.onnx", format="onnx") of Keras 3 or with tf2onnx '
    "(python -m tf2onnx.convert --keras model.h5 --output model.onnx)"
)
_LARGEST = 2**24  # of whole numbers in settings
_PRECISE = {"float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"}
# What says nothing of how a trained layer answers.
_OF_TRAINING = {
    "name", "trainable", "seed", "build_input_shape", "input_shape", "batch_input_shape", "batch_shape",
    "synchronized", "momentum", "renorm_momentum", "fused", "implementation", "unroll", "unit_forget_bias",
    "dropout", "recurrent_dropout", "autocast", "zero_output_for_mask", "input_spec", "lora_alpha", "rate",
    "stddev", "noise_shape", "lora_rank",
}  # fmt: skip
_ENDS = ("_initializer", "_regularizer", "_constraint")


class Settings:
    """What a file says of one layer.

    Args:
        kind: class of the layer.
        name: of the layer, untrusted text.
        config: the settings, untrusted.
        version: of Keras, 2 or 3, since a few names changed their meaning.
    """

    def __init__(self, kind: str, name: str, config: Any, version: int) -> None:
        if not isinstance(config, dict):
            raise ValueError(f"settings of {kind} that are no dictionary")
        self.kind, self.name, self.version = kind, name, version
        self._config: dict[str, Any] = config
        self._read: set[str] = set()

    def wrong(self, key: str, value: object) -> BadInput:
        """The refusal of a value that a setting cannot have, or that is not run here."""
        return BadInput(
            f"its layer {self.name[:60]!r} ({self.kind[:40]}) has {key[:40]}={str(value)[:60]}, which is not "
            f"run here; {TF2ONNX}"
        )

    def get(self, key: str, default: Any = None) -> Any:
        """A setting as it stands; None counts as not said."""
        self._read.add(key)
        value = self._config.get(key)
        return default if value is None else value

    def flag(self, key: str, default: bool) -> bool:
        """A setting that is on or off."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value)
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number; one that is wrapped as an array of one counts too."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, value)
        return float(value)

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            raise self.wrong(key, value)
        return value

    def sizes(self, key: str, axes: int, default: int | None = None, least: int = 1) -> tuple[int, ...]:
        """A whole number for each axis; one stands for all."""
        value = self.get(key, default)
        parts = [value] * axes if isinstance(value, int) else value
        if not isinstance(parts, list | tuple) or len(parts) != axes:
            raise self.wrong(key, value)
        if any(isinstance(n, bool) or not isinstance(n, int) or not least <= n <= _LARGEST for n in parts):
            raise self.wrong(key, value)
        return tuple(parts)

    def pairs(self, key: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """Numbers of rows before and behind, of columns before and behind."""
        value = self.get(key, 1)
        if isinstance(value, list) and len(value) == 2 and all(isinstance(p, list) for p in value):
            parts = [Settings(self.kind, self.name, {key: p}, 3).sizes(key, 2, least=0) for p in value]
        else:
            parts = [(n, n) for n in self.sizes(key, 2, 1, 0)]
        return (parts[0][0], parts[0][1]), (parts[1][0], parts[1][1])

    def axes(self, key: str, default: int) -> tuple[int, ...]:
        """One axis or several."""
        value = self.get(key, default)
        parts = value if isinstance(value, list | tuple) else [value]
        if not parts or any(isinstance(n, bool) or not isinstance(n, int) or abs(n) > 8 for n in parts):
            raise self.wrong(key, value)
        return tuple(parts)

    def choice(self, key: str, options: Sequence[str], default: str | None = None) -> str:
        """One of some words."""
        value = self.get(key, default)
        if value not in options:
            raise self.wrong(key, value)
        return str(value)

    def numbers(self, key: str) -> list[float] | None:
        """Finite numbers in order, whatever lists or array they are in; None if the setting is not there."""
        value = self.get(key)
        if isinstance(value, dict) and value.get("class_name") == "__numpy__":
            value = value.get("config", {}).get("value")
        if value is None:
            return None
        flat: list[Any] = [value]
        while any(isinstance(v, list) for v in flat):
            flat = [w for v in flat for w in (v if isinstance(v, list) else [v])]
            if len(flat) > 2**16:
                raise self.wrong(key, "many numbers")
        if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in flat):
            raise self.wrong(key, value)
        return [float(v) for v in flat]

    @property
    def first(self) -> bool:
        """Whether channels stand before height and width."""
        word = self.choice("data_format", ("channels_last", "channels_first"), "channels_last")
        return word == "channels_first"

    @property
    def precision(self) -> str:
        """In what Keras computes the layer.

        Raises:
            BadInput: it is quantised.
        """
        said = self.get("dtype", "float32")
        if isinstance(said, dict):
            inner = said.get("config")
            said = inner.get("name") if isinstance(inner, dict) else None
        if said not in _PRECISE:
            raise self.wrong("dtype", said)
        return str(said)

    def check_all_read(self) -> None:
        """Make sure that nothing which changes an answer was passed over.

        Raises:
            BadInput: there is a setting that is not known here.
        """
        left = {
            key: value
            for key, value in self._config.items()
            if key not in self._read | _OF_TRAINING
            and not (isinstance(key, str) and key.endswith(_ENDS))
            and value not in (None, False, [], {}, "")
        }
        if left:
            raise BadInput(
                f"its layer {self.name[:60]!r} ({self.kind[:40]}) has settings that are not known here "
                f"({some(left)}); {TF2ONNX}"
            )
