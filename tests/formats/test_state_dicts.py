"""Weights in whatever a checkpoint holds: entries, prefixes, dtypes, what is tied or missing."""

from __future__ import annotations

import argparse
import copy
import io
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.opening import digest, load
from backsweep.inventory.source import is_model
from backsweep.models.model import Model

SHAPE = (1, 8, 8)
X = torch.rand((3, *SHAPE), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Weights, batch statistics and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.register_buffer("scale", torch.ones(4), persistent=False)
        self.register_buffer("order", torch.arange(4))

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.conv(x)).relu().mean((2, 3))
        out: Tensor = self.fc((z * self.get_buffer("scale"))[:, self.get_buffer("order")])
        return out


class Trainer:
    """An object around a network."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.me = net, self


class Attributes(dict[str, Any]):
    """A dictionary of a class of its own."""


def made(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net()
        net.train()(torch.rand(8, *SHAPE))
        return net.eval()


NET = made()
W = NET.state_dict()
OTHER = made(1).state_dict()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, buffer)
    return buffer.getvalue()


def opened(tmp_path: Path, blob: bytes, arch: Callable[[], nn.Module] = Net, **how: Any) -> Model:
    path = tmp_path / "model"
    path.write_bytes(blob)
    return load(path, arch, shape=SHAPE, **how)


def refusal(tmp_path: Path, blob: bytes, arch: Callable[[], nn.Module] = Net, **how: Any) -> str:
    with pytest.raises(BadInput) as caught:
        opened(tmp_path, blob, arch, **how)
    assert str(caught.value).isprintable()
    return str(caught.value)


def alike(model: Model, net: nn.Module, within: float = 1e-5) -> bool:
    """Whether they give the same answers."""
    return torch.allclose(model.copy().logits(X), net(X), atol=within)


def under(prefix: str, weights: dict[str, Any] = W) -> dict[str, Any]:
    return {prefix + k: v for k, v in weights.items()}


TOOK = "took the weights from {!r}".format
DROPPED = "dropped the prefix {!r} of all weights".format
WHOLE = f"read the weights of a pickled {__name__}.Net; none of its code was run"
LACKS = "the network has buffers of its own that the file lacks"
CHECKPOINTS: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "bare": (lambda: saved(W), []),
    "lightning": (
        lambda: saved({
            "state_dict": {**under("model."), "loss.weight": torch.ones(3)}, "epoch": 3, "loops": {},
            "pytorch-lightning_version": "2.2", "hyper_parameters": argparse.Namespace(lr=1),
            "optimizer_states": [torch.optim.Adam(NET.parameters()).state_dict()],
        }),
        [
            TOOK("state_dict"), DROPPED("model."),
            "left out what is under other prefixes: 'state_dict.loss.weight'",
            "left objects unread that are not made: 'argparse.Namespace'",
        ],
    ),
    "net.": (lambda: saved({"state_dict": under("net.")}), [TOOK("state_dict"), DROPPED("net.")]),
    "two prefixes": (lambda: saved(under("module._orig_mod.")), [DROPPED("module.")]),
    "compiled inside": (
        lambda: saved({k.replace("conv.", "conv._orig_mod."): v for k, v in W.items()}), []
    ),
    "model_state": (lambda: saved({"model_state": W, "best": np.float64(1)}), [TOOK("model_state")]),
    "ema": (lambda: saved({"ema_state_dict": W, "epoch": 1}), [TOOK("ema_state_dict")]),
    "nested": (lambda: saved({"ema": {"shadow": W, "decay": 0.999}}), [TOOK("ema.shadow")]),
    "in a list": (lambda: saved([W, {"lr": 0.1}]), [TOOK("0")]),
    "optimiser beside": (
        lambda: saved({"network": W, "optimizer": torch.optim.Adam(NET.parameters()).state_dict()}),
        [TOOK("network")],
    ),
    "parts apart": (
        lambda: saved({"params": {
            part: {k.partition(".")[2]: v for k, v in W.items() if k.startswith(part)}
            for part in ("conv", "norm", "fc")
        } | {"order": W["order"]}}),
        [TOOK("params")],
    ),
    "whole": (lambda: saved(NET), [WHOLE]),
    "whole in a wrapper": (
        lambda: saved(nn.DataParallel(NET)),
        [
            WHOLE.replace(f"{__name__}.Net", "torch.nn.parallel.data_parallel.DataParallel"),
            DROPPED("module."),
        ],
    ),
    "whole beside others": (lambda: saved({"epoch": 3, "model": NET}), [WHOLE]),
    "whole in an object": (lambda: saved(Trainer(NET)), [WHOLE]),
    "an object for a dictionary": (
        lambda: saved(Attributes(weights=W)),
        [TOOK("weights"), f"left objects unread that are not made: '{__name__}.Attributes'"],
    ),
    "arrays": (lambda: pickle.dumps({"net": {k: v.numpy() for k, v in W.items()}}), [TOOK("net")]),
    "a plain pickle": (lambda: pickle.dumps(W), []),
    "safetensors with a prefix": (lambda: safetensors.torch.save(under("backbone.")), [DROPPED("backbone.")]),
    "half": (
        lambda: saved({k: v.half() for k, v in W.items() if k != "order"}),
        [f"{LACKS}: 'order'", "turned float16 weights to float32"],
    ),
    "no counts": (lambda: saved({k: v for k, v in W.items() if "num_batches" not in k}), []),
    "a buffer that is not saved": (
        lambda: saved({**W, "scale": torch.zeros(4)}),
        ["left out buffers that the network makes itself: 'scale'"],
    ),
    "counted operations": (
        lambda: saved({**W, "total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)}), []
    ),
    "twice the same": (
        lambda: saved({"state_dict": W, "best": {k: v.clone() for k, v in W.items()}}),
        [TOOK("state_dict"), "the same weights are in the file once more, as: 'best'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_weights_are_found(tmp_path: Path, kind: str) -> None:
    make, notes = CHECKPOINTS[kind]
    model = opened(tmp_path, make())
    if kind == "half":
        assert alike(model, NET, 1e-2)
    else:
        assert alike(model, NET)
        for name, value in W.items():
            if "num_batches" not in name:
                assert torch.equal(model.net.state_dict()[name], value)
    assert list(model.notes) == notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in W.items()}
    model = opened(tmp_path, saved(weights))
    assert model.notes == (f"turned {str(dtype)[6:]} weights to float32",)
    assert all(torch.equal(v, weights[k].to(v.dtype)) for k, v in model.net.state_dict().items())


def test_the_buffers_of_a_whole_module_are_its_own(tmp_path: Path) -> None:
    """Also those that a state dict would not hold: the module runs with them."""
    net = made()
    net.get_buffer("scale").mul_(3)
    model = opened(tmp_path, saved(net))
    assert alike(model, net)
    assert not alike(model, NET)


def test_tied_weights(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 5))
        net[2].weight = net[1].weight
        return net

    net = tied()
    expected = net(X)
    for weights in (net, under("model.", {k: v for k, v in net.state_dict().items() if k != "2.weight"})):
        assert torch.allclose(opened(tmp_path, saved(weights), tied).logits(X), expected)


# ---------------------------------------------------------------------- several


SEVERAL = {"state_dict": W, "ema": {"module": OTHER}, "optimizer": {"lr": 0.1}}


def test_of_several_the_user_picks(tmp_path: Path) -> None:
    assert refusal(tmp_path, saved(SEVERAL)).endswith(
        "it holds several sets of weights that fit; say which with weights= (--weights): 'ema.module', "
        "'state_dict'"
    )
    for wanted, weights in (("state_dict", W), ("ema", OTHER), ("ema.module", OTHER)):
        model = opened(tmp_path, saved(SEVERAL), weights=wanted)
        assert torch.equal(model.net.state_dict()["fc.weight"], weights["fc.weight"])
        assert model.entry == wanted
        assert model.reading == {"weights": wanted}
    message = refusal(tmp_path, saved(SEVERAL), weights="best")
    assert "it holds no weights under 'best'" in message
    assert "'ema.module', 'state_dict'" in message


def test_several_in_one_dictionary(tmp_path: Path) -> None:
    both = saved({"state_dict": {**under("student."), **under("teacher.", OTHER)}})
    assert "'state_dict.student', 'state_dict.teacher'" in refusal(tmp_path, both)
    model = opened(tmp_path, both, weights="state_dict.teacher")
    assert torch.equal(model.net.state_dict()["fc.weight"], OTHER["fc.weight"])


def test_the_top_is_an_entry_too(tmp_path: Path) -> None:
    blob = saved({**W, "ema": OTHER})
    assert "'ema', '.'" in refusal(tmp_path, blob)
    assert alike(opened(tmp_path, blob, weights="."), NET)


def test_an_entry_that_does_not_fit_is_no_choice(tmp_path: Path) -> None:
    blob = saved({"state_dict": W, "ema": {k: v for k, v in OTHER.items() if k != "fc.bias"}})
    assert alike(opened(tmp_path, blob), NET)
    assert "its weights in 'ema' do not fit" in refusal(tmp_path, blob, weights="ema")


# ---------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda: {"ema": under("model.", {k: v for k, v in W.items() if k != "fc.bias"})},
         "its weights in 'ema' do not fit the network of arch= (missing 'fc.bias')"),
        (lambda: {**W, "fc.evil": torch.ones(2)}, "(unexpected 'fc.evil')"),
        (lambda: under("model.", {**W, "fc.evil": torch.ones(2)}), "(unexpected 'fc.evil')"),
        (lambda: {**W, "fc.bias": torch.ones(7)}, "(of another shape 'fc.bias (7,) for (5,)')"),
        (lambda: {**W, "fc.bias": torch.ones(5) + 1j}, "fc.bias torch.complex64 for torch.float32"),
        (lambda: {k: v for k, v in W.items() if "running_mean" not in k}, "(missing 'norm.running_mean')"),
        (lambda: {**W, "fc.bias": argparse.Namespace()}, "(missing 'fc.bias')"),
        (lambda: list(W.values()), "it holds no weights, only 'list'"),
        (lambda: argparse.Namespace(lr=1), "it holds no weights, only 'argparse.Namespace'"),
        (lambda: nn.Sequential(NET.conv, NET.norm), "do not fit the network"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, value: Callable[[], Any], words: str) -> None:
    assert words in refusal(tmp_path, saved(value()))


def test_weights_ask_for_files_that_have_entries(tmp_path: Path) -> None:
    program = torch.export.export(NET, (X[:2],), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(BadInput, match="no entries to choose from"):
        load(tmp_path / "net.pt2", weights="ema")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_wrapping_is_undone(tmp_path: Path, data: st.DataObject) -> None:
    """Names, depth and neighbours do not matter, as long as one set fits."""
    names = st.sampled_from(["model", "net", "state", "module", "a.b", "x", "fc", "conv"])
    value: Any = under(data.draw(st.sampled_from(["", "model.", "module.net.", "fc."])))
    for _ in range(data.draw(st.integers(0, 3))):
        beside = data.draw(st.dictionaries(names, st.integers() | st.just([torch.ones(2)]), max_size=2))
        value = {**beside, data.draw(names): value}
    assert alike(opened(tmp_path, saved(value)), NET)


# ---------------------------------------------------------------------- shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    folder.mkdir()
    files = {}
    for i, part in enumerate((dict(list(W.items())[:4]), dict(list(W.items())[4:]))):
        (folder / f"part-{i}.safetensors").write_bytes(safetensors.torch.save(under("model.", part)))
        files.update({f"model.{k}": f"part-{i}.safetensors" for k in part})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def test_shards(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    for path in (shards, index):
        model = load(path, Net, shape=SHAPE)
        assert alike(model, NET)
        assert model.digest == digest(path)
        assert model.notes == (DROPPED("model."),)
    with pytest.raises(BadInput, match="--arch"):
        load(index)
    assert is_model(shards), "a folder of models has it as one"
    before = digest(shards)
    (shards / "part-1.safetensors").write_bytes(safetensors.torch.save({}))
    assert digest(shards) != before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["weight_map"].update({"model.fc.bias": "../part-1.safetensors"}), "'../part-1"),
        (lambda t: t["weight_map"].update({"model.fc.bias": "/etc/passwd"}), "its folder: '/etc/passwd'"),
        (lambda t: t["weight_map"].update({"model.fc.bias": "part-7.safetensors"}), "'part-7.safetensors'"),
        (lambda t: t["weight_map"].update({"model.more": "part-0.safetensors"}), "'model.more'"),
        (lambda t: t["weight_map"].pop("model.fc.bias"), "'model.fc.bias'"),
        (lambda t: t["weight_map"].update({"model.fc.bias": 3}), "weight_map"),
        (lambda t: t.pop("weight_map"), "no index of weights"),
        (lambda t: t.update(weight_map=[]), "no index of weights"),
    ],
)  # fmt: skip
def test_an_index_is_checked(shards: Path, change: Callable[[Any], Any], words: str) -> None:
    index = shards / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    change(table)
    index.write_text(json.dumps(table))
    for path in (shards, index):
        with pytest.raises(BadInput) as caught:
            load(path, Net, shape=SHAPE)
        assert words in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")


def test_two_indexes(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    (shards / "ema.safetensors.index.json").write_bytes(index.read_bytes())
    with pytest.raises(BadInput, match="several models"):
        load(shards, Net, shape=SHAPE)
    assert alike(load(index, Net, shape=SHAPE), NET)


def test_json_that_is_cut_short(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    index.write_bytes(index.read_bytes()[:50])
    with pytest.raises(BadInput, match="damaged or cut short"):
        load(index, Net, shape=SHAPE)


def test_the_lent_values_are_not_the_files(tmp_path: Path) -> None:
    """Two loads of one file have nothing in common."""
    one, two = (opened(tmp_path, saved(copy.deepcopy(NET))) for _ in range(2))
    with torch.no_grad():
        one.net.get_parameter("fc.bias").add_(1)
    assert alike(two, NET)
