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
from backsweep.zoo.networks.language import tiny_gpt2, tiny_llama
from backsweep.zoo.networks.sound import m5, small_ast, sound_cnn, sound_gru, vowel_cnn
from backsweep.zoo.networks.table import adult_mlp, ft_transformer, table_mlp, tabnet
from backsweep.zoo.networks.text import small_bert, small_distilbert, small_gpt, text_cnn, text_lstm

__all__ = [
    "adult_mlp", "digits_cnn", "ft_transformer", "gap_cnn", "gtsrb_cnn", "m5", "mnist_cnn", "preact_resnet18",
    "resnet8", "small_ast", "small_bert", "small_distilbert", "small_gpt", "small_vit", "sound_cnn",
    "sound_gru", "table_mlp", "tabnet", "text_cnn", "text_lstm", "tiny_gpt2", "tiny_llama", "vowel_cnn",
]  # fmt: skip
