"""Networks of timm: each against the same network of transformers, and folders as timm writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.opening import digest, load
from backsweep.formats.saving import save
from backsweep.formats.timm import names
from backsweep.formats.timm.convnext import ConvNeXt
from backsweep.formats.timm.mobilenet import efficientnet, mobilenet_v2, mobilenet_v3
from backsweep.formats.timm.resnet import ResNet
from backsweep.formats.timm.vit import VisionTransformer

transformers = pytest.importorskip("transformers", reason="the extra backsweep[hf] is not installed")
Weights = dict[str, Tensor]


def drawn(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with values that leave no part of it without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, v in net.state_dict().items():
            if v.is_floating_point():
                noise = torch.randn(v.shape, generator=generator)
                if v.ndim > 1 and name.endswith("weight"):
                    v.copy_(noise * (2 / v[0].numel()) ** 0.5)
                else:
                    v.copy_(noise.abs() + 0.5 if "running_var" in name else v + 0.1 * noise)
    return net.eval()


def resnet(deep: bool) -> tuple[nn.Module, nn.Module, Weights]:
    sizes = [64, 128] if deep else [16, 32]
    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128] if deep else [64, 96], depths=[1, 2], num_labels=5,
        layer_type="bottleneck" if deep else "basic",
    )  # fmt: skip
    channels = [n // 4 for n in sizes] if deep else [64, 96]
    ours = drawn(ResNet(5, 3, (1, 2), deep, channels=channels))
    into: Weights = {}
    for key, value in ours.state_dict().items():
        head, _, rest = key.partition(".")
        if head in ("conv1", "bn1"):
            kind = "convolution" if head == "conv1" else "normalization"
            into[f"resnet.embedder.embedder.{kind}.{rest}"] = value
        elif head == "fc":
            into[f"classifier.1.{rest}"] = value
        else:
            block, part, *last = rest.split(".")
            where = f"resnet.encoder.stages.{int(head[-1]) - 1}.layers.{block}"
            if part == "downsample":
                name = "convolution" if last[0] == "0" else "normalization"
                into[f"{where}.shortcut.{name}.{last[1]}"] = value
            else:
                kind = "convolution" if part.startswith("conv") else "normalization"
                into[f"{where}.layer.{int(part[-1]) - 1}.{kind}.{last[0]}"] = value
    return ours, transformers.ResNetForImageClassification(config), into


def transformer(distilled: bool) -> tuple[nn.Module, nn.Module, Weights]:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    sizes |= {"image_size": 32, "patch_size": 8, "num_labels": 5, "layer_norm_eps": 1e-6}
    ours = drawn(VisionTransformer(5, 3, (32, 32), patch=8, dim=32, depth=2, heads=4, distilled=distilled))
    if distilled:
        theirs = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**sizes))
    else:
        theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes))
    base = "deit" if distilled else "vit"
    kept = theirs.state_dict()
    into: Weights = {}
    plain = {
        "cls_token": f"{base}.embeddings.cls_token", "pos_embed": f"{base}.embeddings.position_embeddings",
        "dist_token": f"{base}.embeddings.distillation_token",
        "patch_embed.proj": f"{base}.embeddings.patch_embeddings.projection", "norm": f"{base}.layernorm",
        "head": "cls_classifier" if distilled else "classifier", "head_dist": "distillation_classifier",
    }  # fmt: skip
    inner = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    for key, value in ours.state_dict().items():
        where, _, kind = key.rpartition(".") if key not in plain else (key, "", "")
        if where in plain:
            into[plain[where] + (f".{kind}" if kind else "")] = value
            continue
        _, layer, part = where.split(".", 2)
        goals = [k for k in kept if f".{layer}." in k and k.endswith(f".{kind}")]
        if part == "attn.qkv":
            for name, piece in zip(("q", "k", "v"), value.chunk(3), strict=True):
                (goal,) = (k for k in goals if f"attention.{name}_proj" in k or _word(k, name))
                into[goal] = piece
            continue
        ends = {
            "attn.proj": ("attention.output.dense", "attention.o_proj"),
            "mlp.fc1": ("intermediate.dense", "mlp.fc1"), "mlp.fc2": (f"{layer}.output.dense", "mlp.fc2"),
            **{k: (v,) for k, v in inner.items()},
        }[part]  # fmt: skip
        (goal,) = (k for k in goals if any(k.endswith(f"{end}.{kind}") for end in ends))
        into[goal] = value
    return ours, theirs, into


def _word(key: str, name: str) -> bool:
    return {"q": ".query.", "k": ".key.", "v": ".value."}[name] in key


def convnext(second: bool) -> tuple[nn.Module, nn.Module, Weights]:
    ours = drawn(ConvNeXt(5, 3, (1, 2), (16, 24), convolved=second, second=second))
    kind, base = ("ConvNextV2", "convnextv2") if second else ("ConvNext", "convnext")
    config = getattr(transformers, f"{kind}Config")(
        hidden_sizes=[16, 24], depths=[1, 2], num_stages=2, num_labels=5
    )
    theirs = getattr(transformers, f"{kind}ForImageClassification")(config)
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    into: Weights = {}
    parts = {
        "conv_dw": "dwconv",
        "norm": "layernorm",
        "mlp.fc1": "pwconv1",
        "mlp.fc2": "pwconv2",
        "mlp.grn": "grn",
    }
    for key, value in ours.state_dict().items():
        where, _, last = key.rpartition(".")
        if where.startswith("stem"):
            goal = f"{base}.embeddings.{'patch_embeddings' if where == 'stem.0' else 'layernorm'}.{last}"
        elif where == "head.norm":
            goal = f"{base}.layernorm.{last}"
        elif where == "head.fc":
            goal = f"classifier.{last}"
        else:
            _, stage, what, number, *part = key.split(".")
            goal = f"{base}.encoder.stages.{stage}.downsampling_layer.{number}.{last}"
            if what == "blocks":
                name = "layer_scale_parameter" if last == "gamma" else f"{parts['.'.join(part[:-1])]}.{last}"
                goal = f"{base}.encoder.stages.{stage}.layers.{number}.{name}"
        into[goal] = value.reshape(shapes[goal])
    return ours, theirs, into


def mobilenet() -> tuple[nn.Module, nn.Module, Weights]:
    ours = drawn(mobilenet_v2(5, 3, 0.35))
    config = transformers.MobileNetV2Config(
        depth_multiplier=0.35, num_labels=5, tf_padding=False, layer_norm_eps=1e-5, finegrained_output=True
    )
    theirs = transformers.MobileNetV2ForImageClassification(config)
    blocks = sorted({tuple(map(int, k.split(".")[1:3])) for k in ours.state_dict() if k.startswith("blocks")})
    stem = "mobilenet_v2.conv_stem"
    into: Weights = {}
    for key, value in ours.state_dict().items():
        where, _, last = key.rpartition(".")
        goal = {
            "conv_stem": f"{stem}.first_conv.convolution", "bn1": f"{stem}.first_conv.normalization",
            "conv_head": "mobilenet_v2.conv_1x1.convolution", "bn2": "mobilenet_v2.conv_1x1.normalization",
            "classifier": "classifier",
        }.get(where, "")  # fmt: skip
        if not goal:
            _, stage, number, part = where.split(".")
            i = blocks.index((int(stage), int(number)))
            if i == 0:
                goal = stem + {
                    "conv_dw": ".conv_3x3.convolution", "bn1": ".conv_3x3.normalization",
                    "conv_pw": ".reduce_1x1.convolution", "bn2": ".reduce_1x1.normalization",
                }[part]  # fmt: skip
            else:
                goal = f"mobilenet_v2.layer.{i - 1}" + {
                    "conv_pw": ".expand_1x1.convolution", "bn1": ".expand_1x1.normalization",
                    "conv_dw": ".conv_3x3.convolution", "bn2": ".conv_3x3.normalization",
                    "conv_pwl": ".reduce_1x1.convolution", "bn3": ".reduce_1x1.normalization",
                }[part]  # fmt: skip
        into[f"{goal}.{last}"] = value
    return ours, theirs, into


PAIRS: dict[str, Callable[[], tuple[nn.Module, nn.Module, Weights]]] = {
    "resnet": lambda: resnet(False), "resnet, bottlenecks": lambda: resnet(True),
    "vit": lambda: transformer(False), "deit, distilled": lambda: transformer(True),
    "convnext": lambda: convnext(False), "convnext v2": lambda: convnext(True), "mobilenet v2": mobilenet,
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@torch.no_grad()
def test_a_network_answers_as_the_same_one_of_transformers(name: str) -> None:
    ours, theirs, weights = PAIRS[name]()
    found = theirs.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    assert all("pooler" in key for key in found.missing_keys)
    x = torch.randn((3, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    wanted = theirs.eval()(x).logits
    assert float((ours(x) - wanted).abs().max()) < 1e-5 * float(1 + wanted.abs().max())
    assert float(wanted.std(0).mean()) > 1e-3, "the answers hang on the images"


def test_sizes_of_mobilenet_v3_and_efficientnet_are_the_published_ones() -> None:
    """Parameters of the networks of the papers: 5.48, 2.54 and 5.29 million."""
    with torch.device("meta"):
        nets = [
            mobilenet_v3(1000, 3, 1.0, False),
            mobilenet_v3(1000, 3, 1.0, True),
            efficientnet(1000, 3, 1.0, 1.0),
        ]
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [5483032, 2542856, 5288548]


# ---------------------------------------------------------------------- folders

KINDS: dict[str, dict[str, Any]] = {
    "resnet18": {"layers": [1, 1], "channels": [16, 24]},
    "resnet50d": {"layers": [1, 1], "channels": [8, 12]},
    "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 1, "num_heads": 3, "patch_size": 8},
    "deit_tiny_distilled_patch16_224": {"embed_dim": 24, "depth": 1, "num_heads": 3, "patch_size": 8},
    "deit3_small_patch16_224": {"embed_dim": 24, "depth": 1, "num_heads": 3, "patch_size": 8},
    "convnext_tiny": {"depths": [1, 1], "dims": [16, 24]},
    "convnextv2_atto": {"depths": [1, 1], "dims": [16, 24]},
    "mobilenetv2_035": {}, "mobilenetv3_small_050": {},
}  # fmt: skip


def folder(path: Path, architecture: str, **changes: Any) -> nn.Module:
    """A folder as timm writes it for the hub, with a network of random weights."""
    channels = changes.pop("channels", 3)
    config: dict[str, Any] = {
        "architecture": architecture, "num_classes": 4, "num_features": 16,
        "model_args": KINDS.get(architecture, {}),
        "label_names": ["ant", "bee", "cat", "dog"],
        "pretrained_cfg": {
            "tag": "here", "input_size": [channels, 32, 48], "mean": [0.5] * channels,
            "std": [0.25] * channels, "crop_pct": 0.9, "interpolation": "bicubic", "num_classes": 4,
        },
    } | changes  # fmt: skip
    make = names._maker(architecture, dict(config["model_args"]), (32, 48), None)
    assert make is not None
    net = drawn(make(4, channels))
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    weights = {k: v.clone() for k, v in net.state_dict().items() if "num_batches" not in k}
    safetensors.torch.save_file(weights, path / "model.safetensors")
    return net


@pytest.mark.parametrize("architecture", KINDS)
@torch.no_grad()
def test_a_folder_of_timm_is_read_and_written_back(architecture: str, tmp_path: Path) -> None:
    net = folder(tmp_path / "model", architecture)
    model = load(tmp_path / "model")
    assert (model.shape, model.classes, model.labels) == ((3, 32, 48), 4, ("ant", "bee", "cat", "dog"))
    assert any("bicubic" in note and "0.9" in note for note in model.notes)
    x = torch.rand((2, 3, 32, 48), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model.logits(x), net((x - 0.5) / 0.25), atol=1e-5)
    assert digest(tmp_path / "model") == model.digest
    drawn(model.net, seed=5)
    save(model, tmp_path / "new")
    again = load(tmp_path / "new")
    assert torch.equal(again.logits(x), model.logits(x))
    assert not torch.allclose(again.logits(x), net((x - 0.5) / 0.25), atol=1e-3)


def test_names_of_the_wrapper_of_transformers_and_one_channel(tmp_path: Path) -> None:
    net = folder(tmp_path / "model", "resnet18", channels=1, model_type="timm_wrapper")
    weights = {f"timm_model.{k}": v for k, v in net.state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / "model" / "model.safetensors")
    model = load(tmp_path / "model")
    assert model.shape == (1, 32, 48)
    x = torch.rand(2, 1, 32, 48)
    assert torch.allclose(model.logits(x), net((x - 0.5) / 0.25), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "regnety_032.ra_in1k"}, "'regnety_032.ra_in1k' is not among those that are read"),
        ({"model_args": {**KINDS["resnet18"], "aa_layer": "blur"}}, "setting 'aa_layer' of 'resnet18'"),
        ({"global_pool": "catavgmax"}, "global_pool 'catavgmax' of timm's resnet18 is not known"),
        ({"architecture": "resnet34", "model_args": {}}, "do not fit the architecture 'resnet34'"),
        ({"num_classes": 5}, "do not fit the architecture 'resnet18'"),
        ({"num_classes": 10**9}, "a classifier has at least 2"),
        ({"model_args": {"layers": [10**9]}}, "are none of an image network"),
        ({"pretrained_cfg": {"input_size": [3, 32, 48]}}, "does not say 'mean', 'std'"),
    ],
)
def test_what_is_not_known_of_timm_is_refused_by_name(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder(tmp_path / "model", "resnet18")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BadInput) as e:
        load(tmp_path / "model")
    assert says in str(e.value)
    assert "\n" not in str(e.value)
