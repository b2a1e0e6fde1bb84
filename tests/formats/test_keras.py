"""Keras models: read as Keras reads them, without Keras, and written back."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras_nets import NETS
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats.keras import reading
from backsweep.formats.keras.hdf5 import Hdf5
from backsweep.formats.opening import load
from backsweep.formats.saving import save

HERE = Path(__file__).parent
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
FORMS = (".keras", ".h5")
CASES = [(name, form) for name in NETS for form in FORMS]
COARSE = {"half": 2e-3, "brain": 2e-2}  # Keras itself computes these in half precision


def run(*args: str) -> str:
    """Another Python, where Keras may be imported."""
    env = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@functools.cache
def folder() -> Path:
    """Files of all networks, and what Keras answers, made once."""
    path = Path(tempfile.mkdtemp(prefix="keras-"))
    run("keras_nets.py", str(path))
    return path


def blob_of(name: str, form: str) -> bytes:
    return (folder() / f"{name}{form}").read_bytes()


def judged(name: str) -> tuple[Tensor, Tensor]:
    """Images as the reader takes them, channels first, and the answers of Keras."""
    held = np.load(folder() / f"{name}.npz")
    x = torch.from_numpy(held["x"])
    if x.ndim == 3:
        x = x[..., None]
    return (x if name == "channels_first" else x.movedim(-1, 1)), torch.from_numpy(held["y"])


@pytest.mark.parametrize(("name", "form"), CASES)
def test_models_answer_as_keras_does(name: str, form: str) -> None:
    x, y = judged(name)
    net, notes = reading.read(blob_of(name, form), tuple(x.shape[1:]))
    x = x.clone().requires_grad_()
    got, near = net.answers(x), COARSE.get(name, 1e-4)
    torch.testing.assert_close(got, y, rtol=near, atol=near)
    (slope,) = torch.autograd.grad(got[:, 0].log().sum() if got.min() > 0 else got[:, 0].sum(), x)
    assert slope.isfinite().all() and slope.abs().max() > 0
    grads = torch.autograd.grad(net(x).square().sum(), list(net.parameters()), allow_unused=True)
    assert all(g is not None for g in grads)
    assert bool(notes) == (name in COARSE or name == "efficient")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["plain", "efficient", "one_sigmoid", "resized", "half", "vit"])
def test_models_are_scanned_by_their_logits(name: str, form: str) -> None:
    x, y = judged(name)
    model = load(folder() / f"{name}{form}", shape=tuple(x.shape[1:]))
    scale = 255 if name == "efficient" else 1
    assert model.pixel_range == scale and not model.answers_probabilities
    logits = model.logits(x / scale)
    for twin in (model.copy(), pickle.loads(pickle.dumps(model))):  # as scans and their workers do
        torch.testing.assert_close(twin.logits(x / scale), logits, rtol=1e-4, atol=1e-4)
    if name == "one_sigmoid":
        torch.testing.assert_close(logits.softmax(1)[:, 1:], y, rtol=1e-4, atol=1e-5)
        assert model.classes == 2
    else:
        want = y if name == "half" else logits.softmax(1)
        torch.testing.assert_close(want, y, rtol=1e-4, atol=1e-5)
    if name not in ("vit", "resized"):
        assert all(model.affine()) and model.features(x / scale).ndim == 2
    if name == "half":
        assert model.notes == ("its float16 and float64 weights are computed with in float32",)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["plain", "resnet", "nested", "vit", "half", "brain", "rows", "depthwise"])
def test_models_are_written_back(tmp_path: Path, name: str, form: str) -> None:
    x, _ = judged(name)
    shape = tuple(x.shape[1:])
    old = folder() / f"{name}{form}"
    model = load(old, shape=shape)
    before = model.logits(x)
    same = save(model, tmp_path / f"same{form}")
    assert Hdf5(inside(same.read_bytes())).blob == inside(old.read_bytes())  # to the bit
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.net.parameters():
            p.add_(0.05 * torch.rand(p.shape, generator=generator))
    path = save(model, tmp_path / f"new{form}")
    again = load(path, shape=shape)
    near = 0.02 if name in COARSE else 1e-6
    torch.testing.assert_close(again.logits(x), model.logits(x), rtol=near, atol=near)
    assert not torch.allclose(again.logits(x), before, atol=1e-3)
    if name in ("resnet", "nested", "rows"):  # and Keras reads it
        held = np.load(folder() / f"{name}.npz")["x"]
        np.save(tmp_path / "x.npy", held)
        run(
            "-W", "ignore", "-c",
            "import sys, keras, numpy as np; m = keras.saving.load_model(sys.argv[1], compile=False);"
            "y = m(np.load(sys.argv[2]), training=False);"
            "np.save(sys.argv[3], keras.ops.convert_to_numpy(y))",
            str(path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy"),
        )  # fmt: skip
        theirs = torch.from_numpy(np.load(tmp_path / "y.npy"))
        torch.testing.assert_close(again.logits(x).softmax(1), theirs, rtol=1e-4, atol=1e-5)


def inside(blob: bytes) -> bytes:
    """The HDF5 part of a file."""
    return reading.open_file(blob)[2].blob


def test_another_network_is_not_written_into_a_file(tmp_path: Path) -> None:
    one, other = (load(folder() / f"{name}.keras") for name in ("plain", "resnet"))
    one.net = other.net
    with pytest.raises(BadInput, match="not that of its file"):
        save(one, tmp_path / "new.keras")


def test_neither_keras_nor_hdf5_is_imported() -> None:
    names = [str(folder() / f"{name}{form}") for name in ("plain", "vit", "nested") for form in FORMS]
    run(
        "-c",
        "import sys; from backsweep.formats.opening import load\n"
        "for name in sys.argv[1:]: load(name)\n"
        "assert not {'h5py', 'keras', 'tensorflow', 'tf_keras'} & set(sys.modules)",
        *names,
    )


def changed(blob: bytes, change: Callable[[Any], None]) -> bytes:
    """An archive with another configuration."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            new.writestr(info.filename, content)
    return out.getvalue()


@pytest.mark.parametrize("name", ["parallel", "nested"])
def test_weights_go_where_keras_puts_them_whatever_the_list_of_layers_says(name: str) -> None:
    """Or a file could show one network here, and another one to Keras."""
    x, y = judged(name)
    blob = changed(blob_of(name, ".keras"), lambda config: config["config"]["layers"].reverse())
    torch.testing.assert_close(reading.read(blob)[0].answers(x), y, rtol=1e-4, atol=1e-5)


def test_the_hdf5_reader_agrees_with_the_library() -> None:
    for name in ("nested", "large", "vit", "scaled"):
        blob = blob_of(name, ".h5")
        mine = Hdf5(blob)
        seen: list[str] = []

        def look(path: str, item: Any, mine: Hdf5 = mine, seen: list[str] = seen) -> None:
            own = mine.find(path)
            assert own is not None
            if isinstance(item, h5py.Dataset):
                assert own.dataset is not None
                np.testing.assert_array_equal(mine.tensor(own.dataset).numpy(), item[()])
                seen.append(path)
            else:
                assert own.members.keys() == set(item)

        with h5py.File(io.BytesIO(blob)) as file:
            file.visititems(look)
            assert mine.root.attributes == dict(file.attrs)
        assert len(seen) > 2


# ---------------------------------------------------------------------- files of Keras 2, made by hand
#
# Keras 2 needs TensorFlow, so these files are written here as it writes them: shapes in the first layer,
# calls as lists, names of weights with ":0", a call of a model counted from 1.


def layer(kind: str, name: str, config: dict[str, Any], calls: list[Any] | None = None) -> dict[str, Any]:
    said: dict[str, Any] = {
        "class_name": kind,
        "config": {"name": name, "trainable": True, "dtype": "float32"} | config,
    }
    return said if calls is None else said | {"name": name, "inbound_nodes": calls}


def keras_2(
    config: dict[str, Any], weights: dict[str, list[tuple[str, Any]]], version: str = "2.15.0"
) -> bytes:
    """A whole model as Keras 2 writes it: weights by layer, in order."""
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "2.15.0", "tensorflow"
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for name, held in weights.items():
            own = group.create_group(name)
            own.attrs["weight_names"] = [key.encode() for key, _ in held]
            for key, value in held:
                own.create_dataset(key, data=np.asarray(value, np.float32))
    return out.getvalue()


RANDOM = np.random.default_rng(0)
KERNEL, MATRIX = RANDOM.normal(size=(3, 3, 1, 4)), RANDOM.normal(size=(16, 3))
CONV = {
    "filters": 4, "kernel_size": [3, 3], "padding": "same", "strides": [2, 2], "activation": "hard_sigmoid",
    "data_format": "channels_last", "use_bias": False, "groups": 1, "dilation_rate": [1, 1],
}  # fmt: skip


def by_hand(x: Tensor) -> Tensor:
    """What the small network of these files answers, before its softmax."""
    kernel = torch.from_numpy(KERNEL).float().permute(3, 2, 0, 1)
    z = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (0, 1, 0, 1)), kernel, stride=2)
    z = (0.2 * z + 0.5).clamp(0, 1)  # hard_sigmoid as Keras 2 has it
    return z.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(MATRIX).float()


def sequential_2(as_list: bool = False) -> bytes:
    layers = [
        layer("Conv2D", "conv2d", CONV | {"batch_input_shape": [None, 4, 4, 1]}),
        layer("Flatten", "flatten", {"data_format": "channels_last"}),
        layer("Dense", "dense", {"units": 3, "activation": "softmax", "use_bias": False}),
    ]
    config = {"class_name": "Sequential", "config": layers if as_list else {"name": "s", "layers": layers}}
    held = {"conv2d": [("conv2d/kernel:0", KERNEL)], "flatten": [], "dense": [("dense/kernel:0", MATRIX)]}
    return keras_2(config, held)


def functional_2() -> bytes:
    """A frozen model in a model, its batch statistics among its other weights; the inner call counts as 1."""
    inner = {
        "class_name": "Functional", "name": "inner", "inbound_nodes": [[["img", 0, 0, {}]]],
        "config": {
            "name": "inner", "trainable": False,
            "layers": [
                layer("InputLayer", "in", {"batch_input_shape": [None, 4, 4, 1]}, []),
                layer("Conv2D", "conv2d", CONV | {"trainable": False}, [[["in", 0, 0, {}]]]),
                layer("BatchNormalization", "bn", {"axis": [3], "epsilon": 0.001, "trainable": False},
                      [[["conv2d", 0, 0, {"training": False}]]]),
                layer("Conv2D", "last", {"filters": 4, "kernel_size": [1, 1], "use_bias": False,
                                         "trainable": False}, [[["bn", 0, 0, {}]]]),
            ],
            "input_layers": [["in", 0, 0]], "output_layers": [["last", 0, 0]],
        },
    }  # fmt: skip
    config = {
        "class_name": "Functional",
        "config": {
            "name": "outer",
            "layers": [
                layer("InputLayer", "img", {"batch_input_shape": [None, 4, 4, 1]}, []), inner,
                layer("Flatten", "flatten", {}, [[["inner", 1, 0, {}]]]),
                layer("Dense", "dense", {"units": 3, "use_bias": False}, [[["flatten", 0, 0, {}]]]),
            ],
            "input_layers": [["img", 0, 0]], "output_layers": [["dense", 0, 0]],
        },
    }  # fmt: skip
    ones, variance = np.ones(4), np.ones(4) - 0.001
    bn = [
        ("bn/gamma:0", ones),
        ("bn/beta:0", 0 * ones),
        ("bn/moving_mean:0", 0 * ones),
        ("bn/moving_variance:0", variance),
    ]
    held = [("conv2d/kernel:0", KERNEL), *bn, ("last/kernel:0", np.eye(4)[None, None])]
    return keras_2(config, {"img": [], "inner": held, "flatten": [], "dense": [("dense/kernel:0", MATRIX)]})


@pytest.mark.parametrize("make", [sequential_2, lambda: sequential_2(True), functional_2])
def test_files_of_keras_2(tmp_path: Path, make: Callable[[], bytes]) -> None:
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    (tmp_path / "m.h5").write_bytes(make())
    model = load(tmp_path / "m.h5")
    assert model.shape == (1, 4, 4)
    torch.testing.assert_close(model.logits(x), by_hand(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        next(model.net.parameters()).mul_(2)
    torch.testing.assert_close(load(save(model, tmp_path / "n.h5")).logits(x), model.logits(x))


def test_a_mean_over_the_border_is_of_what_is_there() -> None:
    """As TensorFlow has it; Keras on PyTorch repeats the border where it cannot pad evenly."""
    layers = [
        layer("AveragePooling2D", "p", {"pool_size": [2, 2], "strides": [2, 2], "padding": "same",
                                        "batch_input_shape": [None, 3, 3, 1]}),
        layer("Flatten", "flatten", {}),
    ]  # fmt: skip
    net, _ = reading.read(keras_2({"class_name": "Sequential", "config": {"layers": layers}}, {}))
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    torch.testing.assert_close(net(x), torch.tensor([[2.0, 3.5, 6.5, 8.0]]))


# ---------------------------------------------------------------------- files that mean harm


def refusal(tmp_path: Path, blob: bytes) -> str:
    path = tmp_path / "m"
    path.write_bytes(blob)
    with pytest.raises(BadInput) as e:
        load(path)
    assert str(e.value).isprintable()
    return str(e.value)


def with_first(said: dict[str, Any]) -> Callable[[Any], None]:
    """A change of the first layer behind the input of `plain`."""
    return lambda config: config["config"]["layers"][1].update(said)


def with_setting(key: str, value: Any) -> Callable[[Any], None]:
    return lambda config: config["config"]["layers"][1]["config"].update({key: value})


def with_shape(*sizes: int) -> Callable[[Any], None]:
    return lambda config: config["config"]["layers"][0]["config"].update(batch_shape=[None, *sizes])


def deep() -> dict[str, Any]:
    """Models in models."""
    said: dict[str, Any] = {"class_name": "Sequential", "config": {"name": "s", "layers": []}}
    for _ in range(60):
        said = {"class_name": "Sequential", "config": {"name": "s", "layers": [said]}}
    return said


CODE = {"class_name": "__lambda__", "config": {"value": "4wEAAAA="}}
LAMBDA = {"class_name": "Lambda", "config": {"name": "l", "function": CODE}}
EVIL = {"module": "evil", "class_name": "ReLU", "config": {}}
INT8 = {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}}
POOL = {"name": "p", "pool_size": [9999, 9999], "strides": 1, "padding": "same"}
WIDER = {"class_name": "MaxPooling2D", "config": POOL}
LARGER = {"class_name": "UpSampling2D", "config": {"name": "u", "size": [9999, 9999]}}
HARM: dict[str, tuple[Callable[[Any], None], str]] = {
    "lambda": (with_first(LAMBDA), "Lambda"),
    "registered": (with_first({"registered_name": "Custom>Conv2D"}), "somebody's own"),
    "module": (with_first({"module": "os"}), "somebody's own"),
    "no module": (with_first({"module": None}), "somebody's own"),
    "unknown": (with_first({"class_name": "Conv9D"}), "Conv9D"),
    "wrapped": (with_first({"class_name": "TimeDistributed", "config": {"name": "t", "layer": LAMBDA}}),
                "Lambda"),
    "model": (lambda config: config.update(class_name="Mine"), "somebody's own class"),
    "model's module": (lambda config: config.update(module="evil", registered_name="Sequential"), "own"),
    "activation": (with_setting("activation", CODE), "activation of its own"),
    "activation's name": (with_setting("activation", "os.system"), "activation of its own"),
    "activation's module": (with_setting("activation", EVIL), "of its own"),
    "setting": (with_setting("surprise", 3), "surprise"),
    "quantised": (with_setting("dtype", INT8), "dtype"),
    "format": (with_setting("data_format", "channels_middle"), "data_format"),
    "filters": (with_setting("filters", 7), "filters=7"),
    "strides": (with_setting("strides", [0, 1]), "strides"),
    "groups": (with_setting("groups", 2**40), "groups"),
    "padding": (with_setting("padding", "causal"), "padding"),
    "shape": (with_shape(8), "cannot be run"),
    "huge": (with_shape(99999, 99999, 3), "too large"),
    "deep": (with_first(deep()), "damaged"),
    "bomb": (lambda config: config["config"]["layers"][2].update(LARGER), "values of one image"),
    "wide": (lambda config: config["config"]["layers"][2].update(WIDER), "values of one image"),
    "no layers": (lambda config: config["config"].update(layers=[]), "damaged"),
    "a list": (lambda config: config.update(config=[[1]]), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARM)
def test_what_is_not_run_is_named(tmp_path: Path, kind: str) -> None:
    change, words = HARM[kind]
    assert words in refusal(tmp_path, changed(blob_of("plain", ".keras"), change))


def test_operations_of_tensorflow_are_named(tmp_path: Path) -> None:
    layers = [
        layer("InputLayer", "img", {"batch_input_shape": [None, 4, 4, 1]}, []),
        layer("TFOpLambda", "tf.add", {"function": "math.add"}, [["img", 0, 0, {"y": 3.0}]]),
    ]
    inner = {
        "name": "m",
        "layers": layers,
        "input_layers": [["img", 0, 0]],
        "output_layers": [["tf.add", 0, 0]],
    }
    assert "tf2onnx" in refusal(tmp_path, keras_2({"class_name": "Functional", "config": inner}, {}))


@pytest.mark.parametrize("mode", [True, False])
def test_training_mode_is_refused(tmp_path: Path, mode: bool) -> None:
    layers = [
        layer("InputLayer", "img", {"batch_input_shape": [None, 4]}, []),
        layer("Dropout", "drop", {"rate": 0.5}, [[["img", 0, 0, {"training": mode}]]]),
    ]
    inner = {
        "name": "m",
        "layers": layers,
        "input_layers": [["img", 0, 0]],
        "output_layers": [["drop", 0, 0]],
    }
    blob = keras_2({"class_name": "Functional", "config": inner}, {})
    if mode:
        assert "training mode" in refusal(tmp_path, blob)
    else:
        assert reading.read(blob)[0].shape == (4,)


def rezipped(**members: bytes) -> bytes:
    """The archive of `plain` with other or more members, packed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob_of("plain", ".keras"))) as old:
        content = {name: old.read(name) for name in old.namelist()} | {
            name.replace("__", "/"): value for name, value in members.items()
        }
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name, value in content.items():
            new.writestr(name, value)
    return out.getvalue()


WEIGHTS = "model.weights.h5"


def with_h5(change: Callable[[h5py.File], None], libver: str | None = None) -> bytes:
    """The archive of `plain` with a changed file of weights."""
    buffer = io.BytesIO(inside(blob_of("plain", ".keras")))
    with h5py.File(buffer, "a", libver=libver) as file:
        change(file)
    return rezipped(**{WEIGHTS: buffer.getvalue()})


PLACE = "layers/conv2d/vars/0"


def replaced(make: Callable[[h5py.Group, Any], None]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        value = file[PLACE][()]
        del file[PLACE]
        make(file["layers/conv2d/vars"], value)

    return change


def virtual(group: h5py.Group, value: Any) -> None:
    layout = h5py.VirtualLayout(value.shape, value.dtype)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", value.shape, value.dtype)
    group.create_virtual_dataset("0", layout)


def linked(link: Any) -> Callable[[h5py.Group, Any], None]:
    return lambda group, value: group.__setitem__("0", link)


def packed(group: h5py.Group, value: Any) -> None:
    group.create_dataset("0", data=value, compression="gzip")


def bomb(group: h5py.Group, value: Any) -> None:
    group.create_dataset("0", (2**20, 2**12), "f4", compression="gzip", fillvalue=0)


def outside(group: h5py.Group, value: Any) -> None:
    group.create_dataset("0", value.shape, value.dtype, external=[("/etc/passwd", 0, value.nbytes)])


BAD_H5: dict[str, tuple[Callable[[h5py.Group, Any], None], str]] = {
    "external link": (linked(h5py.ExternalLink("/etc/passwd", "x")), "links out of it"),
    "soft link": (linked(h5py.SoftLink("/layers/conv2d_1/vars/0")), "soft links"),
    "gzip": (packed, "compressed"),
    "bomb": (bomb, "compressed"),
    "pieces": (lambda g, v: g.create_dataset("0", data=v, chunks=v.shape), "pieces"),
    "virtual": (virtual, "pieces"),
    "outside": (outside, "another file"),
    "no numbers": (lambda g, v: g.create_dataset("0", (2**20, 2**20), "f4"), "damaged"),
    "text": (lambda g, v: g.create_dataset("0", data=[b"text"]), "no integers or floats"),
    "group": (lambda g, v: g.create_group("0"), "without numbers"),
    "missing": (lambda g, v: None, "has 1 weights, not 2"),
    "shape": (lambda g, v: g.create_dataset("0", data=v[0]), "of shape"),
    "integers": (lambda g, v: g.create_dataset("0", data=v.astype(int)), "of shape"),
    "infinite": (lambda g, v: g.create_dataset("0", data=v * np.inf), "NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_H5)
def test_what_keras_does_not_write_in_hdf5_is_refused(tmp_path: Path, kind: str) -> None:
    make, words = BAD_H5[kind]
    assert words in refusal(tmp_path, with_h5(replaced(make)))


def test_what_others_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    """Two layouts of a dataset, names out of order, weights in two places: Keras may take the other ones."""
    blob = bytearray(inside(blob_of("plain", ".keras")))
    file = Hdf5(bytes(blob))
    parent = file.find(PLACE.rpartition("/")[0])
    assert parent is not None
    (start,) = (at for kind, _, at, _ in file._messages(parent.members["0"]) if kind == 5)
    blob[start - 8] = 8  # what was the value of places without one says where the numbers are
    assert "the same thing twice" in refusal(tmp_path, rezipped(**{WEIGHTS: bytes(blob)}))
    turned = inside(blob_of("plain", ".keras")).replace(b"conv2d_1\0", b"aonv2d_1\0")
    assert "not in order" in refusal(tmp_path, rezipped(**{WEIGHTS: turned}))
    two = with_h5(lambda file: file.copy("layers", "_layer_checkpoint_dependencies"))
    assert "two places" in refusal(tmp_path, two)
    moved = with_h5(lambda file: file.move("layers", "_layer_checkpoint_dependencies"))
    x, y = judged("plain")
    torch.testing.assert_close(reading.read(moved)[0].answers(x), y, rtol=1e-4, atol=1e-5)  # of Keras 2.13


def test_archives_that_mean_harm(tmp_path: Path) -> None:
    good = blob_of("plain", ".keras")
    assert "leads out of it" in refusal(tmp_path, rezipped(**{"..__evil": b"x"}))
    assert "archive in an archive" in refusal(tmp_path, rezipped(**{WEIGHTS: good}))
    assert "zip bomb" in refusal(tmp_path, rezipped(assets=bytes(2**25)))
    assert "damaged" in refusal(tmp_path, rezipped(**{"config.json": b"[" * 100_000}))
    assert "damaged" in refusal(tmp_path, rezipped(**{WEIGHTS: b"no"}))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        file["x"] = [1.0]
    assert "layout of HDF5" in refusal(tmp_path, buffer.getvalue())
    assert "no model_config" in refusal(tmp_path, inside(good))


def test_the_first_of_several_outputs_is_read() -> None:
    def two(config: Any) -> None:
        config["config"]["output_layers"] = [config["config"]["output_layers"], ["flatten", 0, 0]]

    x, y = judged("same_strided")
    net, notes = reading.read(changed(blob_of("same_strided", ".keras"), two))
    torch.testing.assert_close(net(x), y, rtol=1e-4, atol=1e-5)
    assert notes == ["it has 2 outputs; the first one is read"]


def test_pixels_of_0_to_255_are_given_unless_the_user_says_otherwise() -> None:
    path = folder() / "efficient.keras"
    assert load(path).pixel_range == 255 and load(path, pixel_range=1).pixel_range == 1


def test_options_that_a_keras_model_answers_itself() -> None:
    path = folder() / "plain.keras"
    for words, options in {
        "leave out arch": {"arch": "a:b"}, "no entries": {"weights": "ema"}, "no layers": {"layer": "dense"},
        "leave out layout": {"layout": "NHWC"}, "takes inputs of shape": {"shape": (3, 9, 9)},
    }.items():  # fmt: skip
        with pytest.raises(BadInput, match=words):
            load(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [".keras", ".h5", "keras 2"])
def test_damage_is_told_in_one_line(tmp_path: Path, form: str) -> None:
    blob = functional_2() if form == "keras 2" else blob_of("plain", form)
    places = [i for i in range(len(blob)) if blob[i]]  # where something is said

    @FUZZ
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        harmed = bytearray(blob)
        for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=4)):
            harmed[place] = data.draw(st.sampled_from([0, 1, 127, 255]) | st.integers(0, 255))
        if data.draw(st.integers(0, 9)) == 0:
            harmed = harmed[: data.draw(st.integers(0, len(harmed)))]
        (tmp_path / "m").write_bytes(harmed)
        try:
            load(tmp_path / "m", shape=None, data_shape=(3, 16, 16))
        except BadInput as e:
            assert str(e).isprintable()

    damaged()
