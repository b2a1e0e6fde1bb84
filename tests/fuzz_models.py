"""Good files of models for the fuzzer, and how they are read."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backsweep.formats.opening import load
from backsweep.formats.timm import mobilenet
from backsweep.models.model import Model
from fuzz_mutations import payload

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """A small network with what exports and checkpoints hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        out: Tensor = self.head(z.view(z.size(0), -1))
        return out


def net() -> nn.Module:
    """The network, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def _saved(value: Any, path: Path, new: bool = True) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=new)


def make_checkpoints(folder: Path, new: bool) -> None:
    state = net().state_dict()
    _saved(state, folder / "plain.pth", new)
    _saved(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, folder / "wrapped.pth", new
    )
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    _saved({"state_dict": half, "lr": np.float64(0.1)}, folder / "scalar.pth", new)
    _saved(net(), folder / "whole.pth", new)


def make_pickles(folder: Path) -> None:
    for i, blob in enumerate(payload("/nonexistent/ran")):
        (folder / f"{i}.pkl").write_bytes(
            b"\x80\x02" + blob.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04")
        )


def make_safetensors(folder: Path) -> None:
    said = json.dumps(
        {"shape": SHAPE, "classes": 5, "labels": list("abcde"), "mean": [0.5] * 3, "std": [0.2] * 3}
    )
    save_file(net().state_dict(), folder / "plain.safetensors")
    save_file(net().state_dict(), folder / "said.safetensors", metadata={"backsweep.model": said})


def make_exported(folder: Path) -> None:
    x = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0))
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net(), (x,), dynamic_shapes=shapes), folder / "net.pt2")


def make_torchscript(folder: Path) -> None:
    x = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net(), x).save(str(folder / "traced.pt"))
        torch.jit.script(net()).save(str(folder / "scripted.pt"))
        torch.jit.freeze(torch.jit.script(net())).save(str(folder / "frozen.pt"))


def make_shards(folder: Path) -> None:
    state, place = net().state_dict(), folder / "net"
    place.mkdir()
    table = {name: f"{i % 2}.safetensors" for i, name in enumerate(state)}
    for file in set(table.values()):
        save_file({k: v for k, v in state.items() if table[k] == file}, place / file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def make_onnx(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net(), (torch.rand(2, *SHAPE),), str(folder / "net.onnx"), dynamo=False,
                          dynamic_axes={"x": {0: "batch"}}, input_names=["x"])  # fmt: skip


def make_hugging_face(folder: Path) -> None:
    transformers: Any = importlib.import_module("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, id2label={0: "cat", 1: "dog", 2: "owl"}, **sizes
    )
    prep = {
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True,
        "rescale_factor": 1 / 255, "size": {"height": 8, "width": 8},
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(prep))
    pickled = folder / "pickled"
    shutil.copytree(folder / "vit", pickled)
    _saved(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    _timm(folder / "timm")


def _timm(folder: Path) -> None:
    config = {
        "architecture": "mobilenetv2_050", "num_classes": 3, "label_names": ["cat", "dog", "owl"],
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = mobilenet.mobilenet_v2(3, 3, 0.5)
    save_file(made.state_dict(), folder / "model.safetensors")


def _used(model: Model) -> Tensor:
    """What a scan does first."""
    small = model.shape if np.prod(model.shape) < 2**20 else None
    return model.logits(torch.rand(3, *small)) if small is not None else torch.empty(0)


@torch.no_grad()
def read_weights(path: Path) -> object:
    return _used(load(path, net, data_shape=SHAPE))


@torch.no_grad()
def read_model(path: Path) -> object:
    return _used(load(path, data_shape=SHAPE))
