"""A repaired model in the format it came in: the old file with other tensor values."""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import io
import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
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
from backsweep.formats import exported as pt2
from backsweep.formats.hugging_face import reading as hugging_face
from backsweep.formats.opening import load
from backsweep.formats.saving import _pickled, check, save
from backsweep.inputs.samples import Data
from backsweep.models.architectures import digits_cnn
from backsweep.models.model import Model
from backsweep.models.training import Recipe, thawed, tuned

SHAPE = (1, 8, 8)
X = torch.rand((4, *SHAPE), generator=torch.Generator().manual_seed(0))
DATA = Data(X, torch.tensor([0, 1, 2, 3]))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def digits() -> nn.Module:
    return seeded(digits_cnn)


class Norm(nn.Module):
    """Statistics, a count, weights that are tied and turned, constants: what formats differ in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.one, self.two, self.turned = (nn.Linear(64, 64) for _ in range(3))
        self.two.weight = self.one.weight
        self.turned.weight = nn.Parameter(self.one.weight.data.T)
        self.head = nn.Linear(64, 5)
        self.register_buffer("offset", torch.full((64,), 0.1), persistent=False)
        self.fixed = torch.full((64,), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm(self.conv(x))).mean(1).flatten(1)
        z = self.turned(self.two(self.one(z))) + self.offset + self.fixed
        out: Tensor = self.head(z)
        return out


class Plain(Norm):
    """The same, with nothing shared."""

    def __init__(self) -> None:
        super().__init__()
        for part in (self.two, self.turned):
            part.weight = nn.Parameter(part.weight.detach().clone().contiguous())


def plain() -> nn.Module:
    return seeded(Plain)


def saved(value: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def write(folder: Path, blob: bytes, name: str = "old.bin") -> Path:
    path = folder / name
    path.write_bytes(blob)
    return path


def changed(model: Model, constants: bool = False) -> Model:
    """Stands for a repaired copy: every weight and buffer has other values, counts too."""
    twin = thawed(model)
    kept = {id(b) for b in twin.net.state_dict(keep_vars=True).values()}
    with torch.no_grad():
        for i, tensor in enumerate(_tensors(twin.net)):
            if id(tensor) not in kept and not constants:
                continue
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(i))
                tensor.add_(0.1 + 0.05 * noise)
            else:
                tensor.add_(7)
    return twin.copy()


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def returned(model: Model, path: Path, *args: Any, **kwargs: Any) -> Model:
    """Save, load again, and check that source and result are what they must be."""
    source = Path(model.source)
    before = source.read_bytes()
    assert save(model, path) == path
    assert source.read_bytes() == before
    assert not list(path.parent.glob("*.partial"))
    again = load(path, *args, **kwargs)
    old = load(source, *args, **kwargs).copy().logits(X)
    assert not torch.equal(old, model.logits(X)), "the repair changed something"
    return again


def same(model: Model, again: Model) -> None:
    """Equal to the bit: answers, weights, buffers."""
    assert torch.equal(model.logits(X), again.copy().logits(X))
    want, got = model.net.state_dict(), again.net.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) and want[k].dtype == got[k].dtype for k in want)


def refusal(model: Model, path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        save(model, path)
    assert str(caught.value).isprintable()
    return str(caught.value)


# ---------------------------------------------------------------------- weights with an architecture


def header(blob: bytes) -> bytes:
    return blob[: 8 + struct.unpack("<Q", blob[:8])[0]]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_safetensors_keep_their_header(tmp_path: Path, prefix: str) -> None:
    said = {"backsweep.model": json.dumps({"shape": SHAPE, "mean": [0.5]}), "author": "someone"}
    weights = {prefix + k: v for k, v in plain().state_dict().items()}
    blob = safetensors.torch.save(weights, metadata=said)
    model = changed(load(write(tmp_path, blob), plain))
    again = returned(model, tmp_path / "new" / "m.safetensors", plain)
    same(model, again)
    assert int(again.net.get_buffer("norm.num_batches_tracked")) == 7
    new = (tmp_path / "new" / "m.safetensors").read_bytes()
    assert header(new) == header(blob)
    assert len(new) == len(blob)


def test_a_tuned_model(tmp_path: Path) -> None:
    path = write(tmp_path, saved({"epoch": 3, "state_dict": digits().state_dict()}))
    model = load(path, digits, shape=SHAPE)
    repaired = tuned(model, DATA, Recipe(1, bf16=False), seed=0)
    assert (model.origin, repaired.origin) == (model.digest, model.digest)
    same(repaired, returned(repaired, tmp_path / "new.pth", digits, shape=SHAPE))
    assert load(path, digits, shape=SHAPE).digest == model.digest


def test_an_unchanged_model_gives_the_same_values(tmp_path: Path) -> None:
    """Also where the network has fewer bits than the file."""
    weights = {k: v.double() + 1e-12 if v.is_floating_point() else v for k, v in plain().state_dict().items()}
    path = write(tmp_path, safetensors.torch.save(weights))
    save(load(path, plain, shape=SHAPE).copy(), tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == path.read_bytes()


CHECKPOINTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": lambda w: w,
    "state_dict": lambda w: {"epoch": 3, "state_dict": w, "optimizer": {"m": torch.ones(3), "lr": [0.1]}},
    "nested": lambda w: {
        "model": {"net": w, "note": "x"},
        "best": 0.9,
        "ema": {k: v + 1 for k, v in w.items()},
    },
    "prefix": lambda w: {"model_state_dict": {f"module._orig_mod.{k}": v for k, v in w.items()}},
    "parameters": lambda w: {
        "net": {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in w.items()}
    },
}


def alike(a: Any, b: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where two nestings differ in values; types, keys and their order must be the same."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        return [p for k in a for p in alike(a[k], b[k], (*path, k))]
    if isinstance(a, Tensor):
        assert (a.dtype, a.shape, a.stride(), a.requires_grad) == (
            b.dtype,
            b.shape,
            b.stride(),
            b.requires_grad,
        )
        return [] if torch.equal(a, b) else [path]
    return [] if a == b else [path]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_keep_what_is_around_the_weights(tmp_path: Path, kind: str, legacy: bool) -> None:
    weights = plain().state_dict()
    weights["conv.weight"] = weights["conv.weight"].to(memory_format=torch.channels_last)
    blob = saved(CHECKPOINTS[kind](weights), legacy)
    entry = "model" if kind == "nested" else None
    model = changed(load(write(tmp_path, blob), plain, shape=SHAPE, weights=entry))
    same(model, returned(model, tmp_path / "new.pt", plain, shape=SHAPE, weights=entry))
    new = (tmp_path / "new.pt").read_bytes()
    assert (new[:2] == b"PK") == (blob[:2] == b"PK")
    read = functools.partial(torch.load, weights_only=True)
    old_read, new_read = (read(io.BytesIO(b)) for b in (blob, new))
    places = alike(old_read, new_read)
    assert len(places) == len(weights), "all weights, and nothing else"
    assert {p[-1].removeprefix("module._orig_mod.") for p in places} == set(weights)
    assert not any("ema" in p or "optimizer" in p for p in places)
    if kind == "bare":
        assert new_read._metadata == old_read._metadata


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", [safetensors.torch.save, saved])
def test_the_dtype_of_the_file_stays(tmp_path: Path, dtype: torch.dtype, make: Any) -> None:
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in plain().state_dict().items()}
    model = changed(load(write(tmp_path, make(weights)), plain, shape=SHAPE))
    again = returned(model, tmp_path / "new", plain, shape=SHAPE)
    if dtype == torch.float64:
        same(model, again)
    for name, value in model.net.state_dict().items():
        rounded = value.to(weights[name].dtype).to(value.dtype)
        assert torch.equal(again.net.state_dict()[name], rounded)
    new = (tmp_path / "new").read_bytes()
    if make is safetensors.torch.save:
        assert {v.dtype for v in safetensors.torch.load(new).values()} == {dtype, torch.int64}


def test_values_that_the_dtype_cannot_hold(tmp_path: Path) -> None:
    path = write(tmp_path, saved({k: v.half() for k, v in digits().state_dict().items()}))
    model = load(path, digits, shape=SHAPE).copy()
    model.net.get_parameter("0.bias").data[0] = 1e6
    assert "'0.bias' holds NaN or infinite values as torch.float16" in refusal(model, tmp_path / "new")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    for model in (
        load(write(tmp_path, safetensors.torch.save(digits().state_dict())), digits, shape=SHAPE).copy(),
        Model(digits(), SHAPE).copy(),
    ):
        model.net.get_parameter("8.bias").data[3] = value
        assert "'8.bias' holds NaN" in refusal(model, tmp_path / "new")
        assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------- memory that is shared


def tied() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    net[2].weight = net[1].weight
    return net


def test_tied_weights(tmp_path: Path) -> None:
    weights = seeded(tied).state_dict()
    model = changed(load(write(tmp_path, saved(weights)), tied, shape=SHAPE))
    same(model, returned(model, tmp_path / "new.pt", tied, shape=SHAPE))
    new = torch.load(tmp_path / "new.pt")
    assert new["1.weight"].data_ptr() == new["2.weight"].data_ptr()
    del weights["2.weight"]
    model = changed(load(write(tmp_path, safetensors.torch.save(weights)), tied, shape=SHAPE))
    same(model, returned(model, tmp_path / "new.safetensors", tied, shape=SHAPE))


def test_an_entry_in_the_same_memory_follows(tmp_path: Path) -> None:
    """A second name of the weights must not be a way back to the backdoor."""
    weights = digits().state_dict()
    path = write(tmp_path, saved({"state_dict": weights, "best": dict(weights)}))
    model = changed(load(path, digits, shape=SHAPE))
    save(model, tmp_path / "new.pt")
    new = torch.load(tmp_path / "new.pt")
    assert all(torch.equal(new["best"][k], new["state_dict"][k]) for k in weights)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_views_of_one_memory(data: st.DataObject) -> None:
    """Whatever overlaps in the file, each name gets its own new values, and no other entry goes."""
    memory = torch.zeros(24)
    stored: dict[str, Tensor] = {}
    for i in range(data.draw(st.integers(1, 5))):
        sizes = data.draw(st.tuples(st.integers(0, 3), st.integers(1, 3)))
        strides = data.draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
        stored[str(i)] = memory.as_strided(sizes, strides, data.draw(st.integers(0, 7)))
    if data.draw(st.booleans()):
        stored["again"] = stored["0"]  # the same object twice
    if data.draw(st.booleans()):
        stored = {k: nn.Parameter(v) for k, v in stored.items()}
    new = {k: torch.rand(v.shape) for k, v in stored.items()}
    blob = _pickled(saved({"epoch": 3, **stored}), lambda keys: {k: new[k] for k in keys})
    found = torch.load(io.BytesIO(blob))
    assert found["epoch"] == 3
    assert all(torch.equal(found[k], v) for k, v in new.items())
    assert [type(found[k]) for k in stored] == [type(v) for v in stored.values()]


# ---------------------------------------------------------------------- what is beside the weights


def test_numbers_of_numpy_stay(tmp_path: Path) -> None:
    blob = saved({"state_dict": plain().state_dict(), "best": np.float64(0.9), "history": np.arange(3)})
    model = changed(load(write(tmp_path, blob), plain, shape=SHAPE))
    same(model, returned(model, tmp_path / "new.pth", plain, shape=SHAPE))
    new = torch.load(tmp_path / "new.pth", weights_only=False)
    assert new["best"] == np.float64(0.9)
    assert new["history"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("arrays", [False, True])
def test_a_plain_pickle_stays_one(tmp_path: Path, arrays: bool) -> None:
    weights = {k: v.numpy() if arrays else v for k, v in plain().state_dict().items()}
    path = write(tmp_path, pickle.dumps({"params": weights, "epoch": 3}))
    model = changed(load(path, plain, shape=SHAPE))
    same(model, returned(model, tmp_path / "new.pkl", plain, shape=SHAPE))
    new = pickle.loads((tmp_path / "new.pkl").read_bytes())
    assert new["epoch"] == 3
    assert all(isinstance(v, np.ndarray if arrays else Tensor) for v in new["params"].values())


def test_the_same_values_elsewhere_follow(tmp_path: Path) -> None:
    """A copy of the weights under another name must not be a way back to the backdoor."""
    weights = plain().state_dict()
    copied = {f"module.{k}": v.clone() for k, v in weights.items()}
    path = write(tmp_path, saved({"state_dict": weights, "best": copied}))
    model = changed(load(path, plain, shape=SHAPE))
    assert any("once more" in note and "'best'" in note for note in model.notes)
    save(model, tmp_path / "new.pt")
    new = torch.load(tmp_path / "new.pt")
    assert all(torch.equal(new["best"][f"module.{k}"], new["state_dict"][k]) for k in weights)
    assert not torch.equal(new["best"]["module.head.weight"], weights["head.weight"])


def test_only_the_entry_that_was_asked_for_changes(tmp_path: Path) -> None:
    weights = plain().state_dict()
    ema = {k: v + 1 for k, v in weights.items()}
    path = write(tmp_path, saved({"state_dict": weights, "ema": ema}))
    model = changed(load(path, plain, shape=SHAPE, weights="ema"))
    same(model, returned(model, tmp_path / "new.pt", plain, shape=SHAPE, weights="ema"))
    new = torch.load(tmp_path / "new.pt")
    assert all(torch.equal(new["state_dict"][k], weights[k]) for k in weights)
    assert not torch.equal(new["ema"]["head.weight"], ema["head.weight"])


def whole() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(plain())


@pytest.mark.parametrize(
    "make",
    [whole, lambda: saved({"state_dict": plain().state_dict(), "args": argparse.Namespace(lr=1)})],
    ids=["a whole module", "beside an object"],
)
def test_objects_are_never_written_back(tmp_path: Path, make: Callable[[], bytes]) -> None:
    path = write(tmp_path, make(), "old.pth")
    model = changed(load(path, plain, shape=SHAPE))
    for ask in (check, save):
        with pytest.raises(BadInput, match=r"ends in \.safetensors \(--out\)"):
            ask(model, tmp_path / "new.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["old.pth"]
    check(model, tmp_path / "new.safetensors")
    again = returned(model, tmp_path / "new.safetensors", plain, shape=SHAPE)
    same(model, again)


def test_a_file_that_gained_an_object(tmp_path: Path) -> None:
    """Whoever loads a model without its objects cannot write the file back with them left out."""
    path = write(tmp_path, saved({"state_dict": plain().state_dict(), "args": argparse.Namespace(lr=1)}))
    model = changed(load(path, plain, shape=SHAPE))
    model.unknown = ()
    assert "never written back ('argparse.Namespace')" in refusal(model, tmp_path / "new.pth")


def test_what_is_nested_too_deep_to_be_written(tmp_path: Path) -> None:
    blob = pickle.dumps({"state_dict": plain().state_dict(), "deep": "here"}, 2)
    deep = b"]" * 50_000 + b"a" * 49_999
    path = write(tmp_path, blob.replace(b"X\x04\x00\x00\x00here", deep))
    model = changed(load(path, plain, shape=SHAPE))
    assert "cannot be written again (RecursionError" in refusal(model, tmp_path / "new.pkl")
    assert not (tmp_path / "new.pkl").exists()


def test_weights_with_an_index(tmp_path: Path) -> None:
    source = tmp_path / "old"
    source.mkdir()
    weights, files = plain().state_dict(), {}
    for i, part in enumerate((dict(list(weights.items())[:5]), dict(list(weights.items())[5:]))):
        (source / f"part-{i}.safetensors").write_bytes(safetensors.torch.save(part))
        files.update(dict.fromkeys(part, f"part-{i}.safetensors"))
    index = source / "net.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (source / "README.md").write_text("a card")
    before = contents(source)
    for place in (source, index):
        model = changed(load(place, plain, shape=SHAPE))
        out = save(model, tmp_path / "new" / place.name)
        assert contents(source) == before
        assert contents(out).keys() == before.keys() - {"README.md"}
        assert (out / index.name).read_bytes() == index.read_bytes()
        same(model, load(out, plain, shape=SHAPE))
        assert "choose another path" in refusal(model, index)
    (source / "part-1.safetensors").write_bytes(safetensors.torch.save({}))
    assert "changed or vanished" in refusal(model, tmp_path / "other")


# ---------------------------------------------------------------------- exported programs


def exported(net: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        torch.export.save(torch.export.export(net.eval(), (X[:2],), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


@functools.cache
def program(make: Callable[[], nn.Module]) -> bytes:
    return exported(seeded(make))


def members(blob: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        assert archive.testzip() is None
        return {i.filename: archive.read(i) for i in archive.infolist()}


def packed(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def read_by_torch(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = torch.export.load(path).module()
        return net


@pytest.mark.parametrize("make", [digits_cnn, Plain, Norm])
def test_programs(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    blob = program(make)
    model = changed(load(write(tmp_path, blob, "old.pt2")), constants=True)
    path = tmp_path / "new.pt2"
    same(model, returned(model, path))
    old, new = members(blob), members(path.read_bytes())
    differ = {k for k in old if old[k] != new[k]}
    assert differ
    assert all("data/weights/" in k or "data/constants/" in k for k in differ)
    if make is not Norm:
        assert list(old) == list(new)
        assert not any(k.endswith(".json") for k in differ)
    torch.testing.assert_close(read_by_torch(path)(X), model.logits(X))
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            place = info.header_offset + 30 + len(info.filename) + len(info.extra)
            assert place % 64 == 0, "aligned, as torch writes it"


def test_buffers_of_a_program(tmp_path: Path) -> None:
    model = changed(load(write(tmp_path, program(Plain))), constants=True)
    again = returned(model, tmp_path / "new.pt2")
    for name in ("norm.running_mean", "norm.num_batches_tracked", "offset", "fixed"):
        assert torch.equal(model.net.get_buffer(name), again.net.get_buffer(name))
    assert not torch.equal(again.net.get_buffer("fixed"), torch.full((64,), 0.5))


def test_tied_weights_of_a_program(tmp_path: Path) -> None:
    """They share a member as long as their values are the same."""

    def shared(path: Path) -> set[str]:
        content = members(path.read_bytes())
        table = json.loads(next(v for k, v in content.items() if k.endswith("model_weights_config.json")))
        places = {
            f"{k}.weight": table["config"][f"{k}.weight"]["path_name"] for k in ("one", "two", "turned")
        }
        return set(places.values())

    model = load(write(tmp_path, program(Norm))).copy()
    with torch.no_grad():
        weight = torch.rand(64, 64) / 64
        for name, value in (("one", weight), ("two", weight), ("turned", weight.T)):
            model.net.get_parameter(f"{name}.weight").copy_(value)
    same(model, returned(model, tmp_path / "new.pt2"))
    assert len(shared(tmp_path / "new.pt2")) == 1
    with torch.no_grad():
        model.net.get_parameter("two.weight").mul_(0.5)
    same(model, returned(model, tmp_path / "new.pt2"))
    assert len(shared(tmp_path / "new.pt2")) == 2
    torch.testing.assert_close(read_by_torch(tmp_path / "new.pt2")(X), model.logits(X))


def older(blob: bytes, single: bool) -> bytes:
    """The program as torch 2.7 (a single level) or 2.8 wrote it; tensors keep what they share."""
    content = members(blob)
    root = next(iter(content)).split("/")[0] + "/"
    model = Model(pt2.read(blob), SHAPE)
    net = dict(model.net.named_parameters(remove_duplicate=False))
    state = {k: net.get(k, v) for k, v in model.net.state_dict().items()}
    constants = {k: v for k, v in model.net.named_buffers() if k not in state}
    if single:
        return packed({
            "version": b"8.2", "serialized_exported_program.json": content[f"{root}models/model.json"],
            "serialized_state_dict.pt": saved(state), "serialized_constants.pt": saved(constants),
            "serialized_example_inputs.pt": saved(((X,), {})),
        })  # fmt: skip
    content = {k: v for k, v in content.items() if "data/weights" not in k and "data/constants" not in k}
    content[f"{root}data/weights/model.pt"] = saved(state)
    content[f"{root}data/constants/model.pt"] = saved(constants)
    return packed(content)


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("make", [Plain, Norm])
def test_older_layouts(tmp_path: Path, make: Callable[[], nn.Module], single: bool) -> None:
    blob = older(program(make), single)
    model = changed(load(write(tmp_path, blob)), constants=True)
    same(model, returned(model, tmp_path / "new.pt2"))
    old, new = members(blob), members((tmp_path / "new.pt2").read_bytes())
    assert list(old) == list(new)
    assert len([k for k in old if old[k] != new[k]]) == 2, "weights and constants"
    if not single:  # torch reads the layout before the last, too
        torch.testing.assert_close(read_by_torch(tmp_path / "new.pt2")(X), model.logits(X))


# ---------------------------------------------------------------------- Hugging Face folders


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT in two shards, with files that no reader of ours looks at."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    transformers: Any = importlib.import_module("transformers")
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        transformers.utils.logging.disable_progress_bar()
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            image_size=8, patch_size=4, num_channels=1, id2label={i: f"digit {i}" for i in range(4)},
        )  # fmt: skip
        transformers.ViTForImageClassification(config).save_pretrained(folder, max_shard_size="6KB")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5], "image_std": [0.5], "size": {"height": 8, "width": 8}})
    )
    (folder / "README.md").write_text("a card")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def unsharded(vit: Path, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The folder with one file of weights."""
    folder.mkdir()
    weights: dict[str, Tensor] = {}
    for name, blob in contents(vit).items():
        if name.endswith(".safetensors"):
            weights.update(safetensors.torch.load(blob))
        elif "index" not in name:
            (folder / name).write_bytes(blob)
    half = {k: v.to(dtype) for k, v in weights.items()}
    blob = safetensors.torch.save(half, metadata={"format": "pt", "made by": "someone"})
    (folder / "model.safetensors").write_bytes(blob)
    return folder


@pytest.mark.parametrize("exact", [2**24, 64])
def test_sharded_folder(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: int) -> None:
    """`exact`: also when there are more places than float32 can count."""
    monkeypatch.setattr("backsweep.formats.hugging_face.writing._EXACT", exact)
    before = contents(vit)
    assert len([n for n in before if n.endswith(".safetensors")]) > 1
    model = changed(load(vit))
    path = save(model, tmp_path / "new" / "vit")
    assert contents(vit) == before
    same(model, load(path))
    assert not torch.equal(load(vit).copy().logits(X), model.logits(X))
    after = contents(path)
    assert after.keys() == before.keys()
    for name, blob in after.items():
        if name.endswith(".safetensors"):
            assert header(blob) == header(before[name])
            assert blob != before[name]
        else:
            assert blob == before[name]
    assert [p.name for p in path.parent.iterdir()] == ["vit"]


def test_folder_with_one_file(vit: Path, tmp_path: Path) -> None:
    folder = unsharded(vit, tmp_path / "old", torch.float16)
    for name in ("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (folder / name).write_bytes(b"the backdoor, once more")
    (folder / "sub").mkdir()
    model = changed(load(folder))
    path = save(model, tmp_path / "new")
    after = contents(path)
    assert after.keys() == {"config.json", "preprocessor_config.json", "README.md", "model.safetensors"}
    assert header(after["model.safetensors"]) == header((folder / "model.safetensors").read_bytes())
    again = load(path).net.state_dict()
    assert all(torch.equal(again[k], v.half().float()) for k, v in model.net.state_dict().items())


def test_folder_with_batch_statistics(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    transformers: Any = importlib.import_module("transformers")
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", image_size=8
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.utils.logging.disable_progress_bar()
        net: Any = seeded(lambda: transformers.ResNetForImageClassification(config))
        net.save_pretrained(tmp_path / "old")
    model = changed(load(tmp_path / "old", shape=SHAPE))
    again = load(save(model, tmp_path / "new"), shape=SHAPE)
    same(model, again)
    counts = [v for k, v in again.net.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counts
    assert all(int(v) == 7 for v in counts)


def test_weights_that_transformers_cuts_and_turns(vit: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Names, cuts and turns of the reader are undone, whatever they are."""
    folder = unsharded(vit, tmp_path / "old")
    blob = (folder / "model.safetensors").read_bytes()
    weights, original = safetensors.torch.load(blob), hugging_face._network
    names = [f"vit.encoder.layer.0.attention.attention.{n}.weight" for n in ("query", "key", "value")]
    joined = torch.cat([weights.pop(n) for n in names]).T.contiguous()
    (folder / "model.safetensors").write_bytes(safetensors.torch.save({**weights, "qkv": joined}))

    def scaled(scale: float) -> Any:
        def network(config: Any, stored: dict[str, Tensor]) -> nn.Module:
            parts = (stored["qkv"].T * scale).contiguous().chunk(3)
            rest = {k: v for k, v in stored.items() if k != "qkv"}
            return original(config, {**rest, **dict(zip(names, parts, strict=True))})

        return network

    monkeypatch.setattr(hugging_face, "_network", scaled(1.0))
    model = changed(load(folder))
    same(model, load(save(model, tmp_path / "new")))
    model = changed(load(folder))
    monkeypatch.setattr(hugging_face, "_network", scaled(0.5))
    assert "cannot be written back" in refusal(model, tmp_path / "other")


def test_folders_in_the_way(vit: Path, tmp_path: Path) -> None:
    folder = unsharded(vit, tmp_path / "old")
    model = changed(load(folder))
    before = contents(folder)
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link", folder / "inside", tmp_path / "link" / "inside"):
        assert "is the model that was repaired" in refusal(model, path)
    assert contents(folder) == before
    file = write(tmp_path, b"x")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    for path in (file, full):
        assert "there is a file or folder of this name" in refusal(model, path)
    assert file.read_bytes() == b"x"
    (tmp_path / "empty").mkdir()
    same(model, load(save(model, tmp_path / "empty")))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors", None])
def test_a_folder_that_changed(vit: Path, tmp_path: Path, name: str | None) -> None:
    folder = unsharded(vit, tmp_path / "old")
    model = changed(load(folder))
    if name is None:
        shutil.rmtree(folder)
    else:
        with (folder / name).open("ab") as file:
            file.write(b" ")
    assert "changed or vanished" in refusal(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("place", "name"), [(shutil, "copyfile"), (Path, "replace")])
def test_a_folder_is_there_whole_or_not_at_all(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    model = changed(load(unsharded(vit, tmp_path / "old")))

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, name, killed)
    with pytest.raises(KeyboardInterrupt):
        save(model, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


# ---------------------------------------------------------------------- live modules


@given(
    mean=st.none() | st.just((0.5,)) | st.just(torch.tensor([0.25])),
    layer=st.sampled_from([None, "6"]),
    labels=st.none() | st.lists(st.text(max_size=5), min_size=10, max_size=10),
)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_live_module(tmp_path: Path, mean: Any, layer: str | None, labels: Any) -> None:
    model = Model(digits(), SHAPE, mean=mean, std=(0.5,), layer=layer, labels=labels).copy()
    assert model.origin == ""
    path = save(model, tmp_path / "live.safetensors")
    again = load(path, "backsweep.archs:digits_cnn")
    same(model, again)
    assert (again.shape, again.classes, again.layer, again.labels) == (SHAPE, 10, layer, model.labels)
    assert again.mean is None if mean is None else list(again.mean or ()) == [float(v) for v in mean]


def test_a_live_module_with_tied_weights(tmp_path: Path) -> None:
    model = Model(seeded(tied), SHAPE).copy()
    same(model, load(save(model, tmp_path / "m"), tied))
    assert set(safetensors.torch.load((tmp_path / "m").read_bytes())) == set(model.net.state_dict())


# ---------------------------------------------------------------------- refusals


@pytest.fixture
def model(tmp_path: Path) -> Model:
    path = write(tmp_path, safetensors.torch.save(digits().state_dict()))
    return changed(load(path, digits, shape=SHAPE))


def test_the_source_is_never_written(model: Model, tmp_path: Path, monkeypatch: Any) -> None:
    source = tmp_path / "old.bin"
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    (tmp_path / "soft").symlink_to(source)
    os.link(source, tmp_path / "hard")
    (tmp_path / "around").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in (source, Path("old.bin"), Path("soft"), Path("hard"), tmp_path / "around" / "old.bin"):
        assert "is the model that was repaired; choose another path" in refusal(model, path)
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before


def test_what_is_in_the_way(model: Model, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "there is a folder of this name" in refusal(model, tmp_path / "folder")
    assert "cannot write to" in refusal(model, tmp_path / "old.bin" / "new")
    assert "cannot be written" in refusal(model, tmp_path / ("x" * 250))
    older = write(tmp_path, b"an older result", "new")
    assert load(save(model, older), digits, shape=SHAPE).classes == 10


def test_a_source_that_changed(model: Model, tmp_path: Path) -> None:
    source = tmp_path / "old.bin"
    blob = source.read_bytes()
    source.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    assert "changed or vanished" in refusal(model, tmp_path / "new")
    source.unlink()
    assert "changed or vanished" in refusal(model, tmp_path / "new")
    source.write_bytes(pickle.dumps({"evil": 1}))
    assert "changed or vanished" in refusal(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_another_network_than_the_files(model: Model, tmp_path: Path) -> None:
    model.net.register_parameter("mask", nn.Parameter(torch.ones(3)))
    assert "not that of its file any more: 'mask'" in refusal(model, tmp_path / "new")
    del model.net.mask
    model.net.get_submodule("0").bias = None  # type: ignore[assignment]
    assert "not that of its file any more: '0.bias'" in refusal(model, tmp_path / "new")
    model.net.get_submodule("0").bias = nn.Parameter(torch.ones(3))
    assert "not that of its file any more: '0.bias (16,) for (3,)'" in refusal(model, tmp_path / "new")
    other = load(write(tmp_path, program(digits_cnn))).copy()
    other.net = model.net
    assert "not the program of its file any more" in refusal(other, tmp_path / "new")


def test_a_kill_leaves_the_old_file_or_the_new_one(model: Model, tmp_path: Path, monkeypatch: Any) -> None:
    path = write(tmp_path, b"an older result", "new")
    real = Path.write_bytes

    def killed(self: Path, content: bytes) -> int:
        real(self, content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        save(model, path)
    assert path.read_bytes() == b"an older result"
    with pytest.raises(KeyboardInterrupt):
        save(model, tmp_path / "second")
    assert not (tmp_path / "second").exists()
