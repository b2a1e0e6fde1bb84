"""Small networks by name, for `--arch backsweep.archs:resnet8` and for plans."""

from __future__ import annotations

from backsweep.models.architectures import (
    digits_cnn,
    gap_cnn,
    gtsrb_cnn,
    mnist_cnn,
    preact_resnet18,
    resnet8,
    small_vit,
)

__all__ = ["digits_cnn", "gap_cnn", "gtsrb_cnn", "mnist_cnn", "preact_resnet18", "resnet8", "small_vit"]
