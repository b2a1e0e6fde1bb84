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
from backsweep.zoo.language_networks import tiny_gpt2, tiny_llama
from backsweep.zoo.text_networks import small_bert, small_distilbert, small_gpt, text_cnn, text_lstm

__all__ = [
    "digits_cnn", "gap_cnn", "gtsrb_cnn", "mnist_cnn", "preact_resnet18", "resnet8", "small_bert",
    "small_distilbert", "small_gpt", "small_vit", "text_cnn", "text_lstm", "tiny_gpt2", "tiny_llama",
]  # fmt: skip
