"""ONNX models: they answer as onnxruntime and the original network do, and nothing of the file runs."""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_nets import NETS, SHAPE, exported, net
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.onnx.reading import Network, read
from backsweep.formats.opening import digest, load
from backsweep.formats.saving import save
from backsweep.models import neurons
from backsweep.models.model import Model
from conftest import Twins
from shells import Shell

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

X = torch.rand((5, *SHAPE), generator=torch.Generator().manual_seed(0))
FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
LEGACY, DYNAMO = (11, 12, 13, 14, 15, 16, 17), (18, 19, 20, 21, 22)
BY_PIECES = {"swin"}  # a mask is repeated for every image of the exported batch
# name of a net, its exporter, opset, batch size that it is exported for (0: any)
FILES: list[tuple[str, bool, int, int]] = [
    *((name, False, LEGACY[i % 7] if name != "mha" else 17, 0) for i, name in enumerate(NETS)),
    *((name, False, LEGACY[(i + 3) % 7] if name != "mha" else 14, 1 + i % 2) for i, name in enumerate(NETS)),
    *(
        (name, True, DYNAMO[i % 5], i % 2)
        for i, name in enumerate(("resnet", "vit", "updown", "mha", "shuffle"))
    ),
]
SLOW = [(name, True, DYNAMO[i % 5], i % 3) for i, name in enumerate(NETS)]


@functools.cache
def blob_of(name: str, dynamo: bool = False, opset: int = 17, batch: int = 0) -> bytes:
    return exported(net(name), opset, dynamo=dynamo, batch=batch)


def by_onnxruntime(source: bytes | Path, x: Tensor, index: int = 0) -> Tensor:
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    given = source if isinstance(source, bytes) else str(source)
    session = runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[index])


def agrees(name: str, dynamo: bool, opset: int, batch: int) -> None:
    original, blob = net(name), blob_of(name, dynamo, opset, batch)
    network = read(blob)
    assert network.shape == SHAPE
    assert bool(network.piecewise) == (name in BY_PIECES and batch > 0)
    x = X.clone().requires_grad_()
    got = network(x)
    want = (
        torch.cat([by_onnxruntime(blob, part) for part in X[:4].split(batch)])
        if batch
        else by_onnxruntime(blob, X)
    )
    torch.testing.assert_close(got[: len(want)].detach(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, original(x), rtol=1e-4, atol=1e-4)
    mine, theirs = (torch.autograd.grad(out[:, 1].sum(), x)[0] for out in (network(x), original(x)))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def named(file: tuple[str, bool, int, int]) -> str:
    name, dynamo, opset, batch = file
    return f"{name}-{'dynamo' if dynamo else 'legacy'}-{opset}-{batch or 'any'}"


@pytest.mark.parametrize("file", FILES, ids=named)
def test_exports_of_pytorch(file: tuple[str, bool, int, int]) -> None:
    agrees(*file)


@pytest.mark.slow
@pytest.mark.parametrize("file", SLOW, ids=named)
def test_exports_of_the_newer_exporter(file: tuple[str, bool, int, int]) -> None:
    agrees(*file)


# ---------------------------------------------------------------------- graphs made by hand


def value(name: str, kind: int, shape: Sequence[Any] | None) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def made(
    nodes: Sequence[Any],
    weights: dict[str, Any],
    shape: Sequence[Any] = ("n", *SHAPE),
    *,
    opset: int = 17,
    kind: int = 1,
    outputs: Sequence[Any] = (),
    functions: Sequence[Any] = (),
    domains: Sequence[str] = (),
) -> bytes:
    """A model with the input "x" and the output "y"."""
    held = [onnx.numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", kind, shape)], outputs or [value("y", 1, ["n", 5])], held
    )
    imports = [onnx.helper.make_opsetid("", opset), *(onnx.helper.make_opsetid(d, 1) for d in domains)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))
    blob: bytes = model.SerializeToString()
    return blob


def op(name: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(name, inputs.split(), outputs.split(), **attributes)


def w(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def i(*values: int) -> Any:
    return np.array(values, np.int64)


def tail() -> list[Any]:
    return [op("GlobalAveragePool", "z", "g"), op("Flatten", "g", "f"), op("Gemm", "f head.w head.b", "y")]


HEAD = {"head.w": w(4, 5, seed=5), "head.b": w(5, seed=6)}
LOGIC = made(
    [
        op("Greater", "x half", "a"),
        op("Less", "x high", "b"),
        op("And", "a b", "c"),
        op("Xor", "a b", "d"),
        op("Not", "d", "e"),
        op("Or", "c e", "k"),
        op("Where", "k x half", "m"),
        op("Conv", "m conv", "z"),
        *tail()[:2],
        op("Gemm", "f head.w head.b", "s"),
        op("ArgMax", "s", "top", axis=1, keepdims=0),
        op("OneHot", "top five ends", "hot"),
        op("Shape", "s", "size"),
        op("ConstantOfShape", "size", "zero"),
        op("Range", "none five_ one", "count"),
        op("Cast", "count", "floats", to=1),
        op("Mul", "floats tenth", "t"),
        op("BitShift", "shifts one_", "shifted", direction="LEFT"),
        op("Cast", "shifted", "moved", to=1),
        op("NonZero", "moved", "places"),
        op("Size", "places", "many"),
        op("Cast", "many", "number", to=1),
        op("Sum", "s hot zero t number", "u"),
        op("CumSum", "u axis", "v"),
        op("Trilu", "tri", "low", upper=0),
        op("MatMul", "v low", "y"),
    ],
    {
        "half": np.float32(0.5),
        "high": np.float32(0.8),
        "conv": w(4, 3, 3, 3),
        **HEAD,
        "five": i(5),
        "ends": np.array([-0.5, 0.5], np.float32),
        "none": i(0)[0],
        "five_": i(5)[0],
        "one": i(1)[0],
        "tenth": np.float32(0.1),
        "shifts": np.array([0, 3], np.uint8),
        "one_": np.array([1, 1], np.uint8),
        "axis": i(1)[0],
        "tri": w(5, 5),
    },
)
# as tf2onnx writes them: images last, a product with its bias apart, a softmax at the end
CHANNELS_LAST = made(
    [
        op("Sub", "x mean", "c"),
        op("Div", "c std", "d"),
        op("Transpose", "d", "t", perm=[0, 3, 1, 2]),
        op("Conv", "t k", "k1", auto_pad="SAME_UPPER", strides=[2, 2]),
        op("Add", "k1 kb", "k2"),
        op("Relu", "k2", "z"),
        op("MaxPool", "z", "p", kernel_shape=[2, 2], strides=[2, 2]),
        op("Transpose", "p", "l", perm=[0, 2, 3, 1]),
        op("Reshape", "l flat", "r"),
        op("MatMul", "r dense", "m"),
        op("Add", "m bias", "a"),
        op("Softmax", "a", "y"),
    ],
    {
        "mean": np.full((1, 1, 1, 3), 0.4, np.float32),
        "std": np.full((1, 1, 1, 3), 0.3, np.float32),
        "k": w(4, 3, 3, 3),
        "kb": w(1, 4, 1, 1),
        "flat": i(-1, 64),
        "dense": w(64, 5),
        "bias": w(5),
    },
    ("n", 16, 16, 3),
)
QUANTISED = made(
    [
        op("QuantizeLinear", "x xs xz", "q"),
        op("DequantizeLinear", "q xs xz", "dq"),
        op("DequantizeLinear", "k ks kz", "kd", axis=0),
        op("Conv", "dq kd kb", "z"),
        *tail()[:2],
        op("QuantizeLinear", "f fs fz", "fq"),
        op("DequantizeLinear", "fq fs fz", "fd"),
        op("DequantizeLinear", "h hs", "hd"),
        op("MatMul", "fd hd", "m"),
        op("Add", "m head.b", "y"),
    ],
    {
        "xs": np.float32(1 / 255),
        "xz": np.uint8(0),
        "k": (w(4, 3, 3, 3) * 100).astype(np.int8),
        "ks": np.array([0.01, 0.02, 0.01, 0.005], np.float32),
        "kz": np.zeros(4, np.int8),
        "kb": w(4),
        "fs": np.float32(0.01),
        "fz": np.int8(-5),
        "h": (w(4, 5) * 100).astype(np.int8),
        "hs": np.float32(0.02),
        "head.b": w(5),
    },
)
SHARED = made(  # a weight used twice, once the other way round; a Constant node; an alias
    [
        op("Constant", "", "con", value=onnx.numpy_helper.from_array(w(4, 3, 3, 3), "v")),
        op("Conv", "x con", "z"),
        *tail()[:2],
        op("Identity", "sq", "same"),
        op("Transpose", "sq", "turned", perm=[1, 0]),
        op("MatMul", "f sq", "a"),
        op("MatMul", "a turned", "b"),
        op("MatMul", "b same", "c"),
        op("Gemm", "c head.w head.b", "y", alpha=0.5),
    ],
    {"sq": w(4, 4), **HEAD},
)


def referring(node: Any, attribute: str) -> Any:
    """The node of a function, with an attribute of its caller."""
    node.attribute.add(name=attribute, ref_attr_name=attribute, type=onnx.AttributeProto.FLOAT)
    return node


def function(
    name: str, inputs: str, outputs: str, nodes: Sequence[Any], attributes: Sequence[str] = ()
) -> Any:
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("own", 1)]
    return onnx.helper.make_function(
        "own", name, inputs.split(), outputs.split(), nodes, imports, list(attributes)
    )


FUNCTIONS = made(
    [op("Outer", "x conv", "z", domain="own", alpha=0.2), *tail()],
    {"conv": w(4, 3, 3, 3), **HEAD},
    functions=[
        function(
            "Outer",
            "a k",
            "c",
            [
                op("Conv", "a k", "b"),
                op("Inner", "b", "d", domain="own"),
                referring(op("LeakyRelu", "d", "c"), "alpha"),
            ],
            ["alpha"],
        ),
        function("Inner", "a", "b", [op("Neg", "a", "m"), op("Exp", "m", "e"), op("Sub", "a e", "b")]),
    ],
    domains=["own"],
)
BYTES = made(
    [op("Cast", "x", "c", to=1), op("Div", "c most", "d"), op("Conv", "d conv", "z"), *tail()],
    {"most": np.float32(255), "conv": w(4, 3, 3, 3), **HEAD},
    kind=2,
)
HALF = made(
    [
        op("Cast", "x", "h", to=10),
        op("Conv", "h conv", "z"),
        op("GlobalAveragePool", "z", "g"),
        op("Flatten", "g", "f"),
        op("Gemm", "f head.w head.b", "s"),
        op("Cast", "s", "d", to=11),
        op("Add", "d more", "e"),
        op("Cast", "e", "y", to=1),
    ],
    {
        "conv": w(4, 3, 3, 3).astype(np.float16),
        **{k: v.astype(np.float16) for k, v in HEAD.items()},
        "more": w(5).astype(np.float64),
    },
)
BY_HAND = {
    "logic": LOGIC,
    "channels last": CHANNELS_LAST,
    "quantised": QUANTISED,
    "shared": SHARED,
    "functions": FUNCTIONS,
    "half": HALF,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_graphs_made_by_hand(name: str) -> None:
    blob = BY_HAND[name]
    network = read(blob)
    assert network.shape == SHAPE and not network.piecewise
    x = X.permute(0, 2, 3, 1).contiguous() if name == "channels last" else X
    near = 5e-3 if name == "half" else 1e-4
    torch.testing.assert_close(network(X).detach(), by_onnxruntime(blob, x), rtol=near, atol=near)


def test_gradients_pass_quantised_values() -> None:
    x = X.clone().requires_grad_()
    read(QUANTISED)(x)[:, 0].sum().backward()
    assert x.grad is not None and bool((x.grad != 0).any(0).all())


def test_bytes_are_pixels() -> None:
    network, pixels = read(BYTES), (X * 255).round()
    got = network(pixels / 255).detach()
    torch.testing.assert_close(got, by_onnxruntime(BYTES, pixels.to(torch.uint8)), rtol=1e-4, atol=1e-4)


def test_scikit_learn_classifiers() -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    names = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=4, random_state=0)).fit(
            x, names[y]
        )
        blob = skl2onnx.to_onnx(fitted, x[:1], target_opset=17).SerializeToString()
    network = read(blob, shape=(1, 8, 8))
    assert network.shape == (1, 8, 8)
    assert network.labels == sorted(names)
    got = network(torch.from_numpy(x[:20]).reshape(-1, 1, 8, 8)).detach().numpy()
    np.testing.assert_allclose(got, fitted.predict_proba(x[:20]), atol=1e-4)
    assert [int(p.ndim) for p in network.parameters()] == [2, 1, 2, 1]
    assert Model(network, (1, 8, 8)).head()[0].shape == (10, 16)


# ---------------------------------------------------------------------- as a model


def write(path: Path, blob: bytes) -> Path:
    path.write_bytes(blob)
    return path


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_loaded_model_is_seen_into_as_the_original_is(tmp_path: Path, dynamo: bool) -> None:
    original = Model(net("resnet"), SHAPE)
    model = load(write(tmp_path / "net.bin", blob_of("resnet", dynamo, 18 if dynamo else 17)))
    assert (model.shape, model.classes, model.layers()) == (SHAPE, 5, original.layers())
    torch.testing.assert_close(model.features(X), original.features(X), rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(model.head(), original.head(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert all(model.affine())
    layers = neurons.layers(model)
    assert len(layers) == 5 and all(layer.bias for layer in layers)  # batch statistics went into the bias
    twin = model.copy()
    neurons.prune(twin.net, layers[0], torch.tensor([1, 2]))
    assert not twin.embedded(X, 0)[:, 1:3].any() and model.embedded(X, 0)[:, 1:3].any()


def test_names_of_layers_are_those_of_pytorch() -> None:
    network = read(blob_of("preact"))
    names = [name for name, _ in network.named_parameters()]
    assert {"3.weight", "3.bias", "6.weight", "6.bias"} <= set(names)
    assert "1.bn1.running_var" in dict(network.named_buffers())
    statistics = {"s": abs(w(4)) + 1, "b": w(4, seed=1), "m": w(4, seed=2), "v": abs(w(4, seed=3)) + 1}
    nodes = [op("Conv", "x c", "k"), op("BatchNormalization", "k s b m v", "z"), *tail()]
    (layer,) = neurons.layers(Model(read(made(nodes, {"c": w(4, 3, 3, 3), **statistics, **HEAD})), SHAPE))
    assert layer == neurons.Layer("c.weight", "", "s.weight", "s.bias", "s.running_var")
    assert [n for n, _ in read(SHARED).named_parameters()] == [
        "con.weight",
        "sq.weight",
        "head.w.weight",
        "head.w.bias",
    ]


def test_products_with_weights_are_kept_outputs_first() -> None:
    model = Model(read(CHANNELS_LAST), SHAPE)
    parameters = dict(model.net.named_parameters())
    assert {n: tuple(p.shape) for n, p in parameters.items()} == {
        "k.weight": (4, 3, 3, 3),
        "k.bias": (4,),
        "dense.weight": (5, 64),
        "dense.bias": (5,),
    }
    assert model.affine() == ["k.weight", "dense.weight"] and not model.answers_probabilities
    torch.testing.assert_close(model.logits(X).softmax(1), model.net(X), rtol=1e-4, atol=1e-4)


def test_batches_that_cannot_be_freed_run_one_after_another() -> None:
    model = Model(read(blob_of("swin", False, 17, 2)), SHAPE)
    torch.testing.assert_close(model.logits(X), net("swin")(X), rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match="penultimate"):
        model.features(X)


def test_open_sizes(tmp_path: Path) -> None:
    nodes = [op("Conv", "x conv", "z"), *tail()]
    weights = {"conv": w(4, 3, 3, 3), **HEAD}
    path = write(tmp_path / "m.onnx", made(nodes, weights, ["n", 3, "h", "w"]))
    assert load(path, shape=(3, 20, 24)).shape == (3, 20, 24)
    assert load(path, data_shape=(3, 12, 12)).shape == (3, 12, 12)
    for options in ({}, {"shape": (1, 20, 20)}):
        with pytest.raises(BadInput, match=r"say shape=|does not take inputs"):
            load(path, **options)  # type: ignore[arg-type]
    path = write(tmp_path / "fixed.onnx", made(nodes, weights))
    with pytest.raises(BadInput, match=r"exported for inputs of shape \(3, 16, 16\)"):
        load(path, shape=(3, 20, 24))


# ---------------------------------------------------------------------- weights in other files


def beside(folder: Path, blob: bytes = SHARED, name: str = "weights.bin") -> Path:
    """A model whose tensors are in a file beside it."""
    folder.mkdir(exist_ok=True)
    model = onnx.load_from_string(blob)
    onnx.save_model(
        model, str(folder / "m.onnx"), save_as_external_data=True, location=name, size_threshold=0
    )
    return folder / "m.onnx"


def pointed(path: Path, **said: str) -> Path:
    """The model, with other words about where its first tensor is."""
    model = onnx.load(str(path), load_external_data=False)
    entries = {e.key: e.value for e in model.graph.initializer[0].external_data} | said
    del model.graph.initializer[0].external_data[:]
    for key, value in entries.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    return write(path, model.SerializeToString())


def test_weights_beside_the_model(tmp_path: Path) -> None:
    path = beside(tmp_path / "one")
    assert len(path.read_bytes()) < len(SHARED)
    model = load(path)
    torch.testing.assert_close(model.logits(X), read(SHARED)(X).detach())
    assert model.origin == digest(path)
    other = beside(tmp_path / "two")
    held = bytearray((other.parent / "weights.bin").read_bytes())
    held[0] ^= 1
    (other.parent / "weights.bin").write_bytes(held)
    assert path.read_bytes() == other.read_bytes() and digest(other) != digest(path)


def test_weights_outside_the_folder_are_never_opened(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.bin", bytes(2**12))
    path = beside(tmp_path / "m")
    (path.parent / "link.bin").symlink_to(secret)
    (path.parent / "inner").mkdir()
    (path.parent / "up").symlink_to(tmp_path)
    os.mkfifo(path.parent / "pipe")
    before = secret.stat().st_atime_ns
    for place in (
        "../secret.bin",
        str(secret),
        "inner/../../secret.bin",
        "..\\secret.bin",
        "link.bin",
        "up/secret.bin",
        "",
        "inner",
        "none.bin",
        "pipe",
        "a\0b",
        "C:/x",
        "/etc/passwd",
        "\ud7ff" * 500,
    ):
        with pytest.raises(BadInput) as caught:
            load(pointed(path, location=place))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600 + len(str(path))
    assert secret.stat().st_atime_ns == before
    beside(tmp_path / "m")
    for said in (
        {"offset": "-4"},
        {"offset": "99999"},
        {"length": "99999"},
        {"length": "4"},
        {"length": "x"},
        {"offset": "9" * 30},
    ):
        with pytest.raises(BadInput):
            load(pointed(path, **said))
        beside(tmp_path / "m")
    with pytest.raises(BadInput, match="give the model as a path"):
        read(path.read_bytes())


# ---------------------------------------------------------------------- written back


def changed(model: Model) -> Model:
    with torch.no_grad():
        for p in model.net.parameters():
            p.add_(0.05 * torch.rand(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


def layout(blob: bytes) -> Any:
    """Everything but the values of the weights."""
    model = onnx.load_from_string(blob)
    found = [(t.name, t.data_type, tuple(t.dims)) for t in model.graph.initializer]
    return (
        found,
        [n.SerializeToString() for n in model.graph.node if n.op_type != "Constant"],
        model.opset_import,
    )


@pytest.mark.parametrize(
    "name", ["legacy", "dynamo", "channels last", "shared", "half", "outside", "untouched"]
)
def test_repaired_models_are_written_back(tmp_path: Path, name: str) -> None:
    blobs = {
        "legacy": lambda: blob_of("resnet"),
        "dynamo": lambda: blob_of("vit", True, 19, 1),
        "outside": lambda: SHARED,
        "untouched": lambda: blob_of("resnet"),
    }
    blob = blobs[name]() if name in blobs else BY_HAND[name]
    source = beside(tmp_path / "in", blob) if name == "outside" else write(tmp_path / "old.onnx", blob)
    before = source.read_bytes()
    model = load(source)
    model = model if name == "untouched" else changed(model)
    path = save(model, tmp_path / "new.onnx")
    again = load(path)
    assert source.read_bytes() == before
    near = 2e-2 if name == "half" else 1e-5
    torch.testing.assert_close(again.logits(X), model.logits(X), rtol=near, atol=near)
    x = X.permute(0, 2, 3, 1).contiguous() if name == "channels last" else X
    x = x[:1] if name == "dynamo" else x
    torch.testing.assert_close(
        model.net(X)[: len(x)].detach(), by_onnxruntime(path, x), rtol=near, atol=max(near, 1e-4)
    )
    assert name == "outside" or layout(path.read_bytes()) == layout(blob)
    assert (again.digest == model.origin) == (name == "untouched")


def test_quantised_weights_are_written_as_floats(tmp_path: Path) -> None:
    model = changed(load(write(tmp_path / "old.onnx", QUANTISED)))
    path = save(model, tmp_path / "new.onnx")
    torch.testing.assert_close(load(path).logits(X), model.logits(X), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.logits(X), by_onnxruntime(path, X), rtol=1e-4, atol=1e-4)
    held = {t.name: t.data_type for t in onnx.load(str(path)).graph.initializer}
    assert held["kd"] == held["hd"] == 1 and not {"k", "h", "ks", "hs"} & set(
        held
    )  # the old weights are gone


def test_a_model_that_changed_is_not_written(tmp_path: Path) -> None:
    source = beside(tmp_path / "in")
    model = load(source)
    weights = source.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(BadInput, match="changed or vanished"):
        save(model, tmp_path / "new.onnx")


# ---------------------------------------------------------------------- refused


def edited(change: Callable[[Any], Any], blob: bytes = SHARED) -> bytes:
    model = onnx.load_from_string(blob)
    change(model)
    out: bytes = model.SerializeToString()
    return out


def node(name: str, inputs: str = "x", outputs: str = "z", **attributes: Any) -> bytes:
    """A model with this node in it, of which the answer depends."""
    return made([op(name, inputs, outputs, **attributes), *tail()], HEAD, domains=["com.acme"])


def branch() -> Any:
    return onnx.helper.make_graph([op("Relu", "x", "r")], "b", [], [value("r", 1, None)])


def training(model: Any) -> None:
    model.graph.node.insert(0, op("Dropout", "x ratio yes", "d"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "ratio"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.bool_(True), "yes"))
    model.graph.node[2].input[0] = "d"


def endless() -> bytes:
    """Functions that call each other twice, 30 deep: a file of a few kilobytes for 2^30 nodes."""
    functions = [
        function(
            f"F{n}",
            "a",
            "c",
            [op(f"F{n + 1}", "a", "b", domain="own"), op(f"F{n + 1}", "b", "c", domain="own")],
        )
        for n in range(30)
    ]
    functions.append(function("F30", "a", "b", [op("Relu", "a", "b")]))
    return made([op("F0", "x", "z", domain="own"), *tail()], HEAD, functions=functions, domains=["own"])


BATCH_NORM = [np.ones(3, np.float32)] * 4
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "If": (
        lambda: node("If", "x", then_branch=branch(), else_branch=branch()),
        "'If', which chooses what to run",
    ),
    "Loop": (lambda: node("Loop", "x x x", body=branch()), "'Loop', which chooses"),
    "Scan": (lambda: node("Scan", body=branch(), num_scan_inputs=1), "'Scan', which chooses"),
    "LSTM": (lambda: node("LSTM", "x x x", hidden_size=4), "'LSTM', which is a recurrent layer"),
    "GRU": (lambda: node("GRU", "x x x", hidden_size=4), "'GRU', which is a recurrent layer"),
    "random": (lambda: node("RandomNormalLike"), "draws at random"),
    "custom": (lambda: node("Magic", domain="com.acme"), "'com.acme.Magic', which is not run here"),
    "unknown": (lambda: node("Unique"), "'Unique', which is not run here"),
    "trees": (lambda: node("TreeEnsembleClassifier", domain="com.acme"), "TreeEnsembleClassifier"),
    "inner name": (lambda: node("MatMul+Add", "x x"), "not run here"),
    "recursion": (
        lambda: made(
            [op("F", "x", "z", domain="own"), *tail()],
            HEAD,
            domains=["own"],
            functions=[function("F", "a", "b", [op("F", "a", "b", domain="own")])],
        ),
        "functions that call themselves",
    ),
    "endless functions": (endless, "more than 100,000 nodes"),
    "circle": (
        lambda: made([op("Add", "x b", "a"), op("Relu", "a", "b"), op("Relu", "b", "z"), *tail()], HEAD),
        "run in a circle",
    ),
    "missing": (lambda: edited(lambda m: m.graph.initializer.pop(0)), "nothing before it makes"),
    "twice": (lambda: edited(lambda m: m.graph.initializer.append(m.graph.initializer[0])), "same name"),
    "two makers": (
        lambda: edited(lambda m: m.graph.node.append(m.graph.node[1])),
        "two of its values have the name",
    ),
    "two inputs": (
        lambda: edited(
            lambda m: (
                m.graph.input.append(value("more", 1, [4, 4])),
                m.graph.node[-1].input.__setitem__(2, "more"),
            )
        ),
        "need 2 inputs ('x', 'more')",
    ),
    "words": (
        lambda: edited(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 8)),
        "floats or bytes",
    ),
    "whole numbers": (
        lambda: edited(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7)),
        "floats or bytes",
    ),
    "no scores": (
        lambda: edited(lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 7)),
        "none of its outputs",
    ),
    "old": (
        lambda: edited(lambda m: setattr(m.opset_import[0], "version", 9)),
        "opset 9 of ONNX, read are 11 to",
    ),
    "new": (lambda: edited(lambda m: setattr(m.opset_import[0], "version", 99)), "version_converter"),
    "attribute": (lambda: node("Relu", alpha=1), "does not keep to the standard"),
    "kind of attribute": (lambda: node("LeakyRelu", alpha="one"), "does not keep to the standard"),
    "too few": (lambda: node("Conv"), "does not keep to the standard"),
    "sparse": (lambda: edited(lambda m: m.graph.sparse_initializer.add()), "sparse weights"),
    "short": (lambda: edited(lambda m: m.graph.initializer[0].dims.append(2)), "holds 16 values"),
    "negative": (
        lambda: edited(lambda m: m.graph.initializer[0].dims.__setitem__(0, -4)),
        "impossible shape",
    ),
    "vast": (lambda: edited(lambda m: m.graph.initializer[0].dims.extend([2**40])), "impossible shape"),
    "strange": (lambda: edited(lambda m: setattr(m.graph.initializer[0], "data_type", 17)), "ONNX type 17"),
    "training": (lambda: edited(training), "training mode"),
    "training statistics": (
        lambda: made(
            [op("BatchNormalization", "x a b c d", "z e h", training_mode=1), *tail()],
            {**HEAD, **dict(zip("abcd", BATCH_NORM, strict=True))},
        ),
        "training mode",
    ),
    "whole batch": (
        lambda: made(
            [op("ReduceMean", "x", "m", axes=[0]), op("Sub", "x m", "d"), op("Conv", "d conv", "z"), *tail()],
            {"conv": w(4, 3, 3, 3), **HEAD},
        ),
        "depends on the other images",
    ),
    "maps": (lambda: made([op("Conv", "x conv", "y")], {"conv": w(5, 3, 3, 3)}), "not (batch, classes)"),
    "tensor of sizes": (
        lambda: made(
            [
                op("ConstantOfShape", "size", "v"),
                op("ReduceMean", "v", "m", keepdims=0),
                op("Add", "x m", "q"),
                op("Conv", "q conv", "z"),
                *tail(),
            ],
            {"size": i(2**20, 2**20), "conv": w(4, 3, 3, 3), **HEAD},
        ),
        "too large",
    ),
    "shapes": (
        lambda: made([op("Conv", "x conv", "z"), *tail()], {"conv": w(4, 2, 3, 3), **HEAD}),
        "cannot be run",
    ),
    "crop": (
        lambda: made(
            [
                op("Resize", "x roi scales", "r", coordinate_transformation_mode="tf_crop_and_resize"),
                op("Conv", "r conv", "z"),
                *tail(),
            ],
            {
                "roi": np.array([0] * 4 + [1] * 4, np.float32),
                "scales": np.array([1, 1, 2, 2], np.float32),
                "conv": w(4, 3, 3, 3),
                **HEAD,
            },
        ),
        "tf_crop_and_resize",
    ),
    "nothing": (lambda: b"\x08\x08\x12\x07pytorch:" + bytes(32), "cannot be read as ONNX"),
    "empty": (lambda: b"\x08\x08\x12\x00", "opset 0"),
    "not finite": (
        lambda: made([op("Conv", "x conv", "z"), *tail()], {"conv": w(4, 3, 3, 3) * np.inf, **HEAD}),
        "NaN or infinite",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(BadInput) as caught:
        load(write(tmp_path / "m.onnx", make()))
    text = str(caught.value)
    assert words in text and text.isprintable() and len(text) < 700


def test_settings_that_do_not_belong(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", SHARED)
    with pytest.raises(BadInput, match="brings its own network"):
        load(path, "package.module:factory")
    with pytest.raises(BadInput, match="no layers to name"):
        load(path, layer="con")


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(BadInput, match=r"pip install 'backsweep\[onnx\]'"):
        load(write(tmp_path / "m.onnx", SHARED))


# ---------------------------------------------------------------------- damage


def answers_or_refuses(path: Path, blob: bytes) -> None:
    try:
        load(write(path, blob), data_shape=SHAPE)
    except BadInput as e:
        assert str(e).isprintable()


@pytest.mark.parametrize(
    "blob", [SHARED, CHANNELS_LAST, FUNCTIONS], ids=["shared", "channels last", "functions"]
)
def test_changed_bytes_are_refused_or_run(tmp_path: Path, blob: bytes) -> None:
    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        mutated = bytearray(blob)
        for _ in range(data.draw(st.integers(1, 4))):
            mutated[data.draw(st.integers(4, len(blob) - 1))] = data.draw(st.integers(0, 255))
        answers_or_refuses(
            tmp_path / "m.onnx", bytes(mutated[: data.draw(st.integers(8, len(blob)) | st.just(len(blob)))])
        )

    check()


@pytest.mark.parametrize(
    "blob", [LOGIC, QUANTISED, CHANNELS_LAST], ids=["logic", "quantised", "channels last"]
)
def test_changed_graphs_are_refused_or_run(tmp_path: Path, blob: bytes) -> None:
    """The file stays well-formed; what it says does not."""

    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        model = onnx.load_from_string(blob)
        numbers = st.sampled_from([-(2**63), -3, -1, 0, 1, 2, 7, 2**20, 2**31, 2**63 - 1])
        for _ in range(data.draw(st.integers(1, 3))):
            found = data.draw(st.sampled_from(list(model.graph.node)))
            names = [o for n in model.graph.node for o in (*n.input, *n.output)]
            what = data.draw(st.integers(0, 4))
            if what == 0 and found.input:
                found.input[data.draw(st.integers(0, len(found.input) - 1))] = data.draw(
                    st.sampled_from(names)
                )
            elif what == 1 and found.attribute:
                attribute = data.draw(st.sampled_from(list(found.attribute)))
                attribute.i = data.draw(numbers)
                for place in range(len(attribute.ints)):
                    attribute.ints[place] = data.draw(numbers)
            elif what == 2:
                held = data.draw(st.sampled_from(list(model.graph.initializer)))
                raw = np.frombuffer(held.raw_data, np.uint8).copy()
                raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
                held.raw_data = raw.tobytes()
            elif what == 3:
                found.op_type = data.draw(st.sampled_from([n.op_type for n in model.graph.node]))
            else:
                held = data.draw(st.sampled_from(list(model.graph.initializer)))
                held.name = data.draw(
                    st.sampled_from(["", ".", "a.b", "forward", "training", "x" * 900, ".".join("a" * 99)])
                )
        answers_or_refuses(tmp_path / "m.onnx", model.SerializeToString())

    check()


def test_any_name_of_a_weight_is_borne(tmp_path: Path) -> None:
    for name in (
        "training",
        "forward",
        "a.b.c",
        "head",
        "head.w.x",
        "...",
        ".".join("a" * 3000),
        "a" * 5000,
        "_modules",
        "state_dict.weight",
        "\u202e\n",
    ):
        renamed = onnx.load_from_string(SHARED)
        renamed.graph.initializer[1].name = renamed.graph.node[-1].input[1] = name
        blob = renamed.SerializeToString()
        model = load(write(tmp_path / "m.onnx", blob))
        torch.testing.assert_close(model.logits(X), read(SHARED)(X).detach())
        assert save(changed(model), tmp_path / "new.onnx").exists()
        torch.testing.assert_close(load(tmp_path / "new.onnx").logits(X), model.logits(X))


def test_a_network_is_an_ordinary_module() -> None:
    network = read(blob_of("vit"))
    assert isinstance(network, Network)
    other = read(blob_of("vit"))
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(X), network(X))
    loss = network.train()(X).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    assert isinstance(nn.Sequential(network)(X), Tensor)


# ---------------------------------------------------------------------- from the shell


@pytest.mark.slow
def test_scan_and_repair_from_the_shell(shell: Shell, twins: Twins, tmp_path: Path) -> None:
    samples = tmp_path / "digits.npz"
    np.savez(samples, x=(twins.data.x[:, 0].numpy() * 255).astype("uint8"), y=twins.data.y.numpy())
    for name, model, expected in (("bad", twins.infected, 1), ("good", twins.clean, 0)):
        write(tmp_path / f"{name}.onnx", exported(model.net.eval(), 17, batch=1, shape=model.shape))
        words = ["scan", tmp_path / f"{name}.onnx", "--data", samples, "--out", tmp_path / name]
        status, _, stderr = shell(*words, "--device", "cpu")
        assert status == expected, stderr
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["targets"] == ([twins.trigger.target] if expected else [])
    words = ["repair", tmp_path / "bad.onnx", "--data", samples, "--report", tmp_path / "bad"]
    status, _, stderr = shell(*words, "--out", tmp_path / "fixed.onnx", "--device", "cpu")
    assert status == 0, stderr
    fixed = load(tmp_path / "fixed.onnx")
    assert fixed.success_rate(twins.trigger, twins.data) < 0.1
    x = twins.data.x[:1]
    torch.testing.assert_close(
        fixed.logits(x), by_onnxruntime(tmp_path / "fixed.onnx", x), rtol=1e-3, atol=1e-3
    )
