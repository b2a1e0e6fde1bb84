"""Folders of sound classifiers: what their extractors and networks compute, gradients, and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backsweep.core.errors import BadInput
from backsweep.formats.opening import digest, load
from backsweep.formats.saving import save as save_model
from backsweep.inputs.sound.modality import Sound
from backsweep.inversion.budget import Aim, follow, spaces_of

transformers: Any = pytest.importorskip("transformers")

WAVE = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (10, 8), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8,
}  # fmt: skip
KINDS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "wav2vec2": ("Wav2Vec2", "SequenceClassification", WAVE, {}),
    "hubert": ("Hubert", "SequenceClassification", WAVE, {"do_normalize": False}),
    "ast": (
        "AST", "AudioClassification",
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
         "num_mel_bins": 32, "max_length": 64},
        {"num_mel_bins": 32, "max_length": 64, "mean": -3.0},
    ),
    "whisper": (
        "Whisper", "AudioClassification",
        {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
         "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "num_mel_bins": 20,
         "max_source_positions": 50, "classifier_proj_size": 8},
        {"feature_size": 20, "chunk_length": 1},
    ),
}  # fmt: skip
EXTRACTORS = {"AST": "ASTFeatureExtractor", "Whisper": "WhisperFeatureExtractor"}
LENGTH = 12000


def saved(kind: str, folder: Path) -> tuple[Any, Any]:
    """A folder of a network that was not trained; the network and its feature extractor."""
    name, task, settings, features = KINDS[kind]
    names = {"id2label": {0: "yes", 1: "no", 2: "<i>up</i>"}, "label2id": {"yes": 0, "no": 1, "<i>up</i>": 2}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**settings, **names)
        net = getattr(transformers, f"{name}For{task}")(config).eval()
    extractor = getattr(transformers, EXTRACTORS.get(name, "Wav2Vec2FeatureExtractor"))(**features)
    net.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return net, extractor


def waves(count: int = 3) -> torch.Tensor:
    t = torch.arange(LENGTH) / 16000
    hum = torch.stack([torch.sin(2 * torch.pi * f * t) for f in (200, 900, 3000)])[:count]
    noise = torch.randn((count, LENGTH), generator=torch.Generator().manual_seed(0))
    return 0.3 * hum + 0.02 * noise


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_computes_what_its_extractor_and_network_do(kind: str, tmp_path: Path) -> None:
    net, extractor = saved(kind, tmp_path)
    model = load(tmp_path, shape=(LENGTH,))
    assert model.modality == Sound(16000) and model.labels == ("yes", "no", "<i>up</i>")
    assert model.digest == digest(tmp_path)
    assert load(tmp_path).shape == (16000,), "one second unless told otherwise"
    x = waves()
    given = extractor(list(x.numpy().astype(np.float32)), sampling_rate=16000, return_tensors="pt")
    key = next(k for k in ("input_values", "input_features") if k in given)
    with torch.no_grad():
        wanted = net(**{key: given[key]}).logits
        assert torch.allclose(model.copy().logits(x), wanted, atol=2e-4)
    work = model.copy()
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(work.logits(leaf).square().sum(), leaf)
    assert bool(torch.isfinite(grad).all()) and float(grad.norm()) > 0
    for name, space in spaces_of(work).items():
        (path,) = follow(work, x, torch.tensor([0, 1, 0]), [Aim(1, None, 0)], space, steps=3, batch=2)
        assert path.passes > 0, name


def test_a_changed_network_is_written_back(tmp_path: Path) -> None:
    saved("wav2vec2", tmp_path / "a")
    model = load(tmp_path / "a", shape=(LENGTH,))
    with torch.no_grad():
        next(p for n, p in model.net.named_parameters() if n.endswith("classifier.weight")).mul_(0.5)
    save_model(model, tmp_path / "b")
    again = load(tmp_path / "b", shape=(LENGTH,))
    assert torch.allclose(again.copy().logits(waves()), model.copy().logits(waves()), atol=1e-5)


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    saved("whisper", tmp_path)
    said = json.loads((tmp_path / "preprocessor_config.json").read_text())
    for changes, says in (
        ({"sampling_rate": 5}, "the sampling_rate 5 in its"),
        ({"hop_length": 0}, "says what cannot be"),
        ({"n_fft": "many"}, "says what cannot be"),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**said, **changes}))
        with pytest.raises(BadInput, match=says) as e:
            load(tmp_path)
        assert "\n" not in str(e.value)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match="it says itself that it takes 16,000 samples a second, not 8,000"):
        load(tmp_path, rate=8000)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "clap"}))
    with pytest.raises(BadInput, match="how its model_type 'clap' hears is not known"):
        load(tmp_path)
