"""Hugging Face folders as people have them: kinds of networks, shards, pickles, labels, preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from backsweep.core.errors import BadInput
from backsweep.formats.hugging_face.labels import labels
from backsweep.formats.hugging_face.preprocessing import preprocessing
from backsweep.formats.opening import digest, load
from backsweep.formats.saving import save
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.scanning.collect import collect
from backsweep.scanning.detectors.mm_bd import MmBd

transformers = pytest.importorskip("transformers", reason="the extra backsweep[hf] is not installed")
transformers.utils.logging.disable_progress_bar()

NAMES = {"id2label": dict(enumerate("abcd")), "label2id": {c: i for i, c in enumerate("abcd")}}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
KINDS: dict[str, Callable[[], Any]] = {
    "ViT": lambda: transformers.ViTConfig(**SMALL, **NAMES),
    "DeiT": lambda: transformers.DeiTConfig(**SMALL, **NAMES),
    "ResNet": lambda: transformers.ResNetConfig(embedding_size=8, layer_type="basic", **STAGES, **NAMES),
    "ConvNext": lambda: transformers.ConvNextConfig(num_stages=2, **STAGES, **NAMES),
    "Swin": lambda: transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], **NAMES),
    "MobileNetV1": lambda: transformers.MobileNetV1Config(depth_multiplier=0.25, min_depth=4, **NAMES),
    "MobileNetV2": lambda: transformers.MobileNetV2Config(depth_multiplier=0.25, **NAMES),
}
PREP = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 224, "width": 224}}


def vit(path: Path, prep: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A folder with a small vision transformer; returns the network."""
    config = transformers.ViTConfig(**{**SMALL, "image_size": 16, "patch_size": 8, **NAMES, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.ViTForImageClassification(config).eval()
    net.save_pretrained(path)
    if prep is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(prep))
    return net


def changed(path: Path, **changes: Any) -> None:
    """Other entries in config.json; None takes one out."""
    file = path / "config.json"
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_224_pixels_is_read_scanned_and_written_back(kind: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(transformers, f"{kind}ForImageClassification")(KINDS[kind]()).eval()
    net.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(PREP))
    model = load(tmp_path / "model")
    assert (model.shape, model.classes, model.labels) == ((3, 224, 224), 4, ("a", "b", "c", "d"))
    x = torch.rand((20, 3, 224, 224), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = net((x[:2] - 0.5) / 0.25).logits
    assert torch.allclose(model.logits(x[:2]), wanted, atol=1e-5)
    detector, data = MmBd(images=1, steps=2), Data(x, torch.arange(20) % 4)
    evidence = list(collect(detector, model.copy("cpu"), data, seed=0, key="k"))
    assert [e.target for e in evidence] == [0, 1, 2, 3]
    assert detector.judge(evidence, 4, 0.05)
    with torch.no_grad():
        for p in model.net.parameters():
            p.mul_(1.25)
    save(model, tmp_path / "new")
    again = load(tmp_path / "new")
    assert torch.equal(again.logits(x[:2]), model.logits(x[:2]))


def test_shards_are_read_and_have_to_be_those_of_the_index(tmp_path: Path) -> None:
    net = vit(tmp_path / "model", PREP | {"size": {"height": 16, "width": 16}})
    whole = load(tmp_path / "model")
    net.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    (tmp_path / "parts" / "preprocessor_config.json").write_text(
        (tmp_path / "model" / "preprocessor_config.json").read_text()
    )
    parts = sorted((tmp_path / "parts").glob("model-*.safetensors"))
    assert len(parts) > 1
    model = load(tmp_path / "parts")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.logits(x), whole.logits(x))
    assert digest(tmp_path / "parts") == model.digest
    save(model, tmp_path / "new")
    assert torch.equal(load(tmp_path / "new").logits(x), whole.logits(x))
    index = tmp_path / "parts" / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    key, place = next(iter(table["weight_map"].items()))
    other = next(p.name for p in parts if p.name != place)
    outside = "names files that are not in its folder"
    for name, says in (
        ("../model/model.safetensors", outside),
        (str(tmp_path / "model" / "model.safetensors"), outside),
        ("nothing.safetensors", outside),
        (other, "does not hold what the index says"),
    ):
        wrong = {**table, "weight_map": {**table["weight_map"], key: name}}
        index.write_text(json.dumps(wrong))
        with pytest.raises(BadInput, match=says):
            load(tmp_path / "parts")


class Payload:
    """An object whose pickle runs code when it is read as one."""

    ran: list[str] = []  # noqa: RUF012

    def __reduce__(self) -> Any:
        return self.ran.append, ("ran",)


def test_weights_in_a_pickle_are_read_as_data_and_written_as_safetensors(tmp_path: Path) -> None:
    net = vit(tmp_path / "model", PREP | {"size": {"height": 16, "width": 16}})
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({**net.state_dict(), "note": Payload()}, tmp_path / "model" / "pytorch_model.bin")
    model = load(tmp_path / "model")
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(model.logits(x), net((x - 0.5) / 0.25).logits, atol=1e-6)
    assert Payload.ran == []
    assert any("pickle" in note and "nothing in it is run" in note for note in model.notes)
    with torch.no_grad():
        model.net.get_parameter("classifier.bias").add_(1)
    save(model, tmp_path / "new")
    assert not (tmp_path / "new" / "pytorch_model.bin").exists()
    assert torch.equal(load(tmp_path / "new").logits(x), model.logits(x))


def test_one_channel_and_images_that_are_not_square(tmp_path: Path) -> None:
    net = vit(
        tmp_path / "model", PREP | {"size": {"height": 16, "width": 24}}, num_channels=1, image_size=[16, 24]
    )
    model = load(tmp_path / "model")
    assert model.shape == (1, 16, 24)
    x = torch.rand(2, 1, 16, 24)
    with torch.no_grad():
        assert torch.allclose(model.logits(x), net((x - 0.5) / 0.25).logits, atol=1e-6)


SIZE = {"size": {"height": 4, "width": 4}}


@pytest.mark.parametrize(
    ("prep", "reaches"),
    [
        ({"do_rescale": True, "do_normalize": False}, lambda u: u),
        ({"do_rescale": False, "do_normalize": False}, lambda u: 255 * u),
        ({"do_rescale": True, "rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
         lambda u: 2 * u - 1),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [2.0] * 3}, lambda u: u - 0.5),
        ({"image_mean": 0.5, "image_std": 0.25}, lambda u: (u - 0.5) / 0.25),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, lambda u: 5 * u - 2.5),
        ({"do_normalize": False, "image_mean": [9.0] * 3, "image_std": [9.0] * 3}, lambda u: u),
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 1.0, 2.0]},
         lambda u: torch.stack([(u[:, 0] - 0.1) / 0.5, u[:, 1] - 0.2, (u[:, 2] - 0.3) / 2], 1)),
    ],
)  # fmt: skip
def test_pixels_reach_the_network_as_its_preprocessing_makes_them(prep: dict[str, Any], reaches: Any) -> None:
    said, _ = preprocessing({"num_channels": 3}, {**SIZE, **prep})
    assert said["shape"] == (3, 4, 4)
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.flatten(1)[:, :2]

    model = Model(Net(), said["shape"], 2, mean=said["mean"], std=said["std"])
    u = torch.rand(1, 3, 4, 4)
    model.logits(u)
    assert torch.allclose(seen[-1], reaches(u), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "prep", "shape"),
    [
        ({"image_size": 32}, {}, (3, 32, 32)),
        ({"image_size": [32, 48], "num_channels": 1}, {}, (1, 32, 48)),
        ({"image_size": 32}, {"size": 64}, (3, 64, 64)),
        ({"image_size": 32}, {"size": 64, "do_resize": False}, (3, 32, 32)),
        ({}, {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, (3, 224, 224)),
        ({}, {"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (3, 224, 224)),
        ({}, {"size": {"height": 20, "width": 30}}, (3, 20, 30)),
        ({}, {"size": {"longest_edge": 30}}, None),
        ({}, {}, None),
    ],
)
def test_the_size_of_images(config: dict[str, Any], prep: dict[str, Any], shape: Any) -> None:
    said, _ = preprocessing(config, prep)
    assert said.get("shape") == shape


@pytest.mark.parametrize(
    ("prep", "says"),
    [
        ({"rescale_factor": 0}, "rescale_factor 0.0"),
        ({"do_normalize": True}, "no image_mean and no image_std; add them"),
        ({"image_mean": [0.5], "image_std": [0.0]}, "not above zero"),
    ],
)
def test_preprocessing_that_cannot_be_is_one_line(prep: dict[str, Any], says: str, tmp_path: Path) -> None:
    vit(tmp_path / "model", prep)
    with pytest.raises(BadInput, match=says) as e:
        load(tmp_path / "model")
    assert "\n" not in str(e.value)


def test_what_is_done_otherwise_than_its_preprocessing_is_said(tmp_path: Path) -> None:
    crop = {
        "size": {"shortest_edge": 16},
        "crop_pct": 0.875,
        "resample": 3,
        "image_mean": [0.5],
        "image_std": [0.5],
    }
    assert any("bicubic" in n and "cuts out the middle" in n for n in preprocessing({}, crop)[1])
    assert preprocessing({}, {**SIZE, "resample": 2, "image_mean": [0.5], "image_std": [0.5]})[1] == []
    assert any("0 to 255" in n for n in preprocessing({}, {**SIZE, "do_rescale": False})[1])
    vit(tmp_path / "model")
    assert any("no preprocessor_config.json" in n for n in load(tmp_path / "model").notes)


@pytest.mark.parametrize(
    ("config", "named", "says"),
    [
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c"), ""),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, None, ""),
        ({"id2label": {"0": "a", "2": "c"}}, ("a", "1", "c"), "no names for the classes 1"),
        ({"id2label": {"0": "x", "1": "X", "2": "c"}}, ("x (0)", "X (1)", "c"), "several classes called 'x'"),
        ({"id2label": {"a": 0, "b": 1, "c": 2}}, ("a", "b", "c"), ""),
        ({"label2id": {"a": 0, "b": "1", "c": 2}}, ("a", "b", "c"), ""),
        ({"id2label": ["a", "b", "c"]}, ("a", "b", "c"), ""),
        ({"id2label": {"one": "two"}}, None, ""),
        ({}, None, ""),
    ],
)
def test_labels_as_people_write_them(config: dict[str, Any], named: Any, says: str, tmp_path: Path) -> None:
    found, notes = labels(config, 3)
    assert found == named
    assert [says in note for note in notes] == ([True] if says else [])
    vit(
        tmp_path / "model",
        PREP | {"size": {"height": 16, "width": 16}},
        num_labels=3,
        id2label=None,
        label2id=None,
    )
    changed(tmp_path / "model", id2label=None, label2id=None)
    if config != {"id2label": {"one": "two"}}:  # a single label is a regression
        changed(tmp_path / "model", **config)
        model = load(tmp_path / "model")
        assert (model.classes, model.labels) == (3, named)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"problem_type": "multi_label_classification"}, "independently of each other"),
        ({"problem_type": "regression"}, "not a class"),
        ({"id2label": {"0": "value"}}, "not a class"),
        ({"model_type": "bert"}, "'bert' is no image classifier"),
        ({"model_type": "vit2000"}, "'vit2000' is not known to transformers"),
        ({"auto_map": {"AutoModel": "code.Net"}}, "code of its own"),
        ({"model_type": "timm_wrapper"}, "does not say which"),
        ({"id2label": {str(i): str(i) for i in range(9)}}, "do not fit its config.json"),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_line(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    vit(tmp_path / "model", PREP | {"size": {"height": 16, "width": 16}})
    changed(tmp_path / "model", **changes)
    with pytest.raises(BadInput, match=says) as e:
        load(tmp_path / "model")
    assert "\n" not in str(e.value)


def test_files_that_are_no_tables_are_damage(tmp_path: Path) -> None:
    vit(tmp_path / "model", PREP)
    for name in ("preprocessor_config.json", "config.json"):
        (tmp_path / "model" / name).write_text("[1, 2]")
        with pytest.raises(BadInput, match=f"{name} is no table"):
            load(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(safetensors.torch.save({"x": torch.zeros(1)})[:-1])
    with pytest.raises(BadInput):
        load(tmp_path / "model")
