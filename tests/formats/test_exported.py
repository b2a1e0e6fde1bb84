"""Exported programs: they run as the original does, and nothing else of the file runs."""

from __future__ import annotations

import copy
import functools
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats import exported as pt2
from backsweep.formats.opening import load
from backsweep.models.model import Model

X = torch.rand((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))
FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


class Net(nn.Module):
    """What exports hold: batch statistics, dropout, a buffer, arithmetic on sizes, two outputs."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(6 * 16, 5)
        self.register_buffer("offset", torch.full((6, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm(self.conv(x)) + self.offset)
        z = nn.functional.max_pool2d(z, 2)
        out: Tensor = self.head(self.drop(z.view(z.size(0), -1)))
        return out


class Token(nn.Module):
    """Its batch size is baked in when it is exported for one."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.rand(1, 1, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], 1)
        out: Tensor = self.head(z.mean(1))
        return out


class Counter(Net):
    """Its weights change as it runs."""

    def forward(self, x: Tensor) -> Tensor:
        self.offset.add_(1)
        return super().forward(x)


class Switch(Net):
    """Control flow is an operator of higher order."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.cond(x.sum() > 0, lambda z: z + 1, lambda z: z - 1, (super().forward(x),))
        return out


def program(net: nn.Module, batch: int | None = None, train: bool = False) -> Any:
    """The net as torch.export has it, for any batch size or for one."""
    example = (X[: batch or 2],)
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net.train(train), example, dynamic_shapes=shapes)


def exported(program: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    return buffer.getvalue()


@functools.cache
def sample() -> tuple[Net, bytes]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        net.train()(X)  # batch statistics that are not the initial ones
    blob = exported(program(net))
    return net.eval(), blob


def members(blob: bytes) -> dict[str, bytes]:
    """Content of the archive by the name below its root."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return {i.filename.split("/", 1)[1]: archive.read(i) for i in archive.infolist()}


def packed(content: dict[str, bytes], root: str = "m/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(root + name, data)
    return buffer.getvalue()


def edited(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The sample with another graph."""
    content = members(sample()[1])
    graph = json.loads(content["models/model.json"])
    change(graph)
    return packed({**content, "models/model.json": json.dumps(graph).encode()})


def read(tmp_path: Path, blob: bytes, **kwargs: Any) -> Model:
    path = tmp_path / "model.pt2"
    path.write_bytes(blob)
    return load(path, **kwargs)


def refusal(tmp_path: Path, blob: bytes, **kwargs: Any) -> str:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, blob, **kwargs)
    assert str(caught.value).isprintable()
    return str(caught.value)


# ---------------------------------------------------------------------- it runs as the original does


def same(model: Model, net: nn.Module) -> None:
    x = X.clone().requires_grad_()
    y = X.clone().requires_grad_()
    torch.testing.assert_close(model.logits(x), net(y))
    (got,) = torch.autograd.grad(model.logits(x).square().sum(), x)
    (want,) = torch.autograd.grad(net(y).square().sum(), y)
    torch.testing.assert_close(got, want)


def test_program(tmp_path: Path) -> None:
    net, blob = sample()
    model = read(tmp_path, blob)
    assert (model.shape, model.classes) == ((3, 8, 8), 5)
    same(model, net)
    same(model.copy(), net)
    same(cloudpickle.loads(cloudpickle.dumps(model)), net)  # as it goes to other processes
    assert model.features(X).shape == (4, 96)
    torch.testing.assert_close(model.features(X) @ net.head.weight.T + net.head.bias, model.logits(X))
    assert model.net.state_dict().keys() == net.state_dict().keys()
    net.load_state_dict(model.net.state_dict())
    assert isinstance(model.net.get_parameter("head.weight"), nn.Parameter)


def test_decomposed_program(tmp_path: Path) -> None:
    net, _ = sample()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decomposed = program(net).run_decompositions()
    targets = {str(n.target) for n in decomposed.graph.nodes}
    assert "aten._native_batch_norm_legit_no_training.default" in targets
    model = read(tmp_path, exported(decomposed))
    same(model, net)
    assert model.features(X).shape == (4, 96)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_fixed_batch_size_that_does_not_matter(tmp_path: Path, batch: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    same(read(tmp_path, exported(program(net, batch))), net)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_size_that_matters(tmp_path: Path, batch: int) -> None:
    message = refusal(tmp_path, exported(program(Token(), batch)))
    assert f"takes batches of {batch} and of no other size" in message
    assert "dynamic_shapes" in message
    net = Token()
    same(read(tmp_path, exported(program(net))), net)


def test_shape(tmp_path: Path) -> None:
    _, blob = sample()
    assert read(tmp_path, blob, data_shape=(1, 9, 9)).shape == (3, 8, 8)
    assert "was exported for inputs of shape (3, 8, 8), not (3, 9, 9)" in refusal(
        tmp_path, blob, shape=(3, 9, 9)
    )
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    auto = torch.export.Dim.AUTO
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = exported(torch.export.export(net, (X,), dynamic_shapes=({0: auto, 2: auto, 3: auto},)))
    assert read(tmp_path, free).shape == (3, 8, 8)
    assert read(tmp_path, free, data_shape=(3, 9, 10)).shape == (3, 9, 10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: program(Net(), train=True), "net.eval()"),
        (lambda: program(nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(192, 5)), train=True), "eval()"),
        (lambda: program(Counter().eval()), "writes to its input or its weights"),
        (lambda: program(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 5))), "its input"),
        (lambda: program(Switch().eval()), "not run here"),
    ],
)  # fmt: skip
def test_programs_that_are_refused(tmp_path: Path, make: Callable[[], Any], words: str) -> None:
    assert words in refusal(tmp_path, exported(make()))


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    _, blob = sample()
    assert "leave out arch=" in refusal(tmp_path, blob, arch="backsweep.archs:resnet8")
    assert "leave out layer=" in refusal(tmp_path, blob, layer="head")


# ---------------------------------------------------------------------- older layouts


def legacy(state: Any, constants: Any) -> bytes:
    """What torch 2.7 and before wrote."""
    content = members(sample()[1])
    return packed(
        {
            "version": b"8.2",
            "serialized_exported_program.json": content["models/model.json"],
            "serialized_state_dict.pt": saved(state),
            "serialized_constants.pt": saved(constants),
            "serialized_example_inputs.pt": saved(((X,), {})),
        },
        root="",
    )


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def pickled_weights(state: Any, constants: Any) -> bytes:
    """What torch 2.8 wrote."""
    content = members(sample()[1])
    content = {k: v for k, v in content.items() if not k.startswith(("data/weights", "data/constants"))}
    return packed(
        {**content, "data/weights/model.pt": saved(state), "data/constants/model.pt": saved(constants)}
    )


@pytest.mark.parametrize("layout", [legacy, pickled_weights])
def test_older_layouts(tmp_path: Path, layout: Callable[[Any, Any], bytes]) -> None:
    net, _ = sample()
    weights = {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    same(read(tmp_path, layout(weights, {})), net)


# ---------------------------------------------------------------------- nothing else runs


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def with_entry(kind: str, member: str, blob: bytes, entry: dict[str, Any]) -> bytes:
    """The sample with one weight or constant stored in another way."""
    content = members(sample()[1])
    config = f"data/{kind}/model_{kind}_config.json"
    table = json.loads(content[config])
    key = "head.weight" if kind == "weights" else "extra"
    table["config"][key] = {**table["config"].get(key, {"is_param": False}), "path_name": member, **entry}
    return packed({**content, config: json.dumps(table).encode(), f"data/{kind}/{member}": blob})


PICKLED = {"use_pickle": True, "tensor_meta": None}
UNPICKLED_BY_TORCH: dict[str, Callable[[Any], bytes]] = {
    "a weight": lambda evil: with_entry("weights", "weight_99", saved(evil), {"use_pickle": True}),
    "a constant": lambda evil: with_entry("constants", "tensor_99", saved(evil), PICKLED),
    "a script object": lambda evil: with_entry("constants", "custom_obj_0", pickle.dumps(evil), PICKLED),
    "an opaque object": lambda evil: with_entry("constants", "opaque_obj_0", pickle.dumps(evil), PICKLED),
    "sample inputs": lambda evil: packed(
        {**members(sample()[1]), "data/sample_inputs/model.pt": saved((evil,))}
    ),
    "2.8 weights": lambda evil: pickled_weights(evil, {}),
    "2.8 constants": lambda evil: pickled_weights(sample()[0].state_dict(), {"x": evil}),
    "2.7 weights": lambda evil: legacy({"x": evil}, {}),
    "2.7 constants": lambda evil: legacy(sample()[0].state_dict(), evil),
}


@pytest.mark.parametrize("place", UNPICKLED_BY_TORCH)
def test_a_payload_never_runs(tmp_path: Path, place: str) -> None:
    marker = tmp_path / "marker"
    blob = UNPICKLED_BY_TORCH[place](Payload(marker))
    if place == "sample inputs":  # never looked at
        assert read(tmp_path, blob).classes == 5
    else:
        assert "would run" in refusal(tmp_path, blob)
    assert not marker.exists()


def rename(graph: Any, old: str, new: str) -> Any:
    """The JSON with one string for another, as key and as value."""
    if isinstance(graph, dict):
        return {new if k == old else k: rename(v, old, new) for k, v in graph.items()}
    if isinstance(graph, list):
        return [rename(v, old, new) for v in graph]
    return new if graph == old else graph


def test_source_code_never_runs(tmp_path: Path) -> None:
    """Guards, sizes, names and signatures are text that torch turns into code."""
    marker = tmp_path / "marker"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    def spoil(graph: dict[str, Any]) -> None:
        graph["guards_code"] = [code]
        module = graph["graph_module"]
        for meta in module["graph"]["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code
        for node in module["graph"]["nodes"]:
            node["name"] = f"a={code}"
            node["metadata"] = {"source_fn_stack": f"x,torch.{code}", "stack_trace": f"\n{code}\n"}
        for entry in module["module_call_graph"]:
            entry["signature"] = {"in_spec": code, "out_spec": code, "inputs": [], "outputs": []}
        for name in ("x", "relu", "linear"):
            graph["graph_module"] = rename(graph["graph_module"], name, f"{name}={code}")

    net, _ = sample()
    same(read(tmp_path, edited(spoil)), net)
    assert not marker.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.load", "torch.hub.load", "torch.serialization.os.system", "torch.ops.load_library",
        "_operator.attrgetter", "_operator.methodcaller", "_operator.pow", "math.__loader__.load_module",
        "torch.ops.aten.from_file.default", "torch.ops.aten.relu.__class__", "torch.ops.aten.relu.out",
        "torch.ops.aten.set_.default", "torch.ops.aten.bernoulli.default", "torch.ops.aten.__class__.mro",
        "torch.ops.prim.device.default", "torch.ops.mine.op.default", "#mine:op", "relu", "",
        "torch.ops.aten.relu.default\n",
    ],
)  # fmt: skip
def test_operators_that_are_not_on_the_list(tmp_path: Path, target: str) -> None:
    def spoil(graph: dict[str, Any]) -> None:
        nodes = graph["graph_module"]["graph"]["nodes"]
        next(n for n in nodes if n["target"] == "torch.ops.aten.relu.default")["target"] = target

    assert "not run here" in refusal(tmp_path, edited(spoil))


def test_the_list_knows_every_operator() -> None:
    assert [name for name in pt2._ATEN if not hasattr(torch.ops.aten, name)] == []


def test_short_statistics_are_not_read_past_their_end() -> None:
    x, short = torch.rand(2, 4096, 4, 4), torch.rand(2)
    for args in ((short, short, 0.1, 1e-5), (short, short, False, 0.1, 1e-5)):
        with pytest.raises(RuntimeError, match="running_mean should contain"):
            pt2._batch_norm(x, None, None, *args)
    with pytest.raises(RuntimeError, match="weight should contain"):
        pt2._no_stats(x, short, short, True, 0.1, 1e-5)
    with pytest.raises(ValueError, match="attention"):
        pt2._attention(torch.rand(1, 2, 3, 4), torch.rand(1, 2, 5, 4), torch.rand(1, 2, 1, 4))


def test_arithmetic_on_sizes_ends() -> None:
    multiply = pt2._bounded(lambda a, b: a * b)
    assert multiply(3, 4) == 12
    with pytest.raises(OverflowError):
        multiply(2**62, 2)


def test_other_archives(tmp_path: Path) -> None:
    content = members(sample()[1])
    assert "machine code" in refusal(tmp_path, packed({**content, "data/aotinductor/model/x.so": b""}))
    assert "2 members" in refusal(tmp_path, packed({**content, "models/other.json": b"{}"}))
    lost = {k: v for k, v in content.items() if not k.startswith("models/")}
    assert "0 members" in refusal(tmp_path, packed(lost))
    assert "cannot be read" in refusal(tmp_path, packed({**content, "models/model.json": b"[" * 99_999}))
    empty = {k: b"" if k.startswith("data/weights/weight_") else v for k, v in content.items()}
    assert "too few bytes" in refusal(tmp_path, packed(empty))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**content, "data/weights/weight_0": bytes(2**24)}.items():
            archive.writestr(f"m/{name}", data)
    assert "zip bomb" in refusal(tmp_path, buffer.getvalue())
    doubled = io.BytesIO(packed(content))
    with warnings.catch_warnings(), zipfile.ZipFile(doubled, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("m/models/model.json", b"{}")
    assert "two members of one name" in refusal(tmp_path, doubled.getvalue())


# ---------------------------------------------------------------------- damage


def outcome(tmp_path: Path, blob: bytes) -> None:
    try:
        assert isinstance(read(tmp_path, blob), Model)
    except BadInput as e:
        assert str(e).isprintable()


@FUZZ
@given(st.data())
def test_damaged_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    _, blob = sample()
    if data.draw(st.booleans()):
        changed = blob[: data.draw(st.integers(0, len(blob) - 1))]
    else:
        spoilt = bytearray(blob)
        for place in data.draw(st.lists(st.integers(0, len(blob) - 1), min_size=1, max_size=5)):
            spoilt[place] = data.draw(st.integers(0, 255))
        changed = bytes(spoilt)
    outcome(tmp_path_factory.getbasetemp(), changed)


VALUES = [None, True, -1, 0, 3, 2**40, 1.5, "", "x", "conv2d", [], {}, [1], {"as_int": 7}, {"as_none": True}]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value in the JSON is."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(inner, (*path, key))
    return found


@settings(FUZZ, max_examples=300)
@given(st.data())
def test_damaged_json(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = members(sample()[1])
    name = data.draw(st.sampled_from(["models/model.json"] * 4 + ["data/weights/model_weights_config.json"]))
    table = json.loads(content[name])
    if name == "models/model.json":
        for node in table["graph_module"]["graph"]["nodes"]:
            node["metadata"] = {}
    for *path, last in data.draw(st.lists(st.sampled_from(places(table)), min_size=1, max_size=2)):
        inner = table
        try:
            for key in path:
                inner = inner[key]
            inner[last] = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
        except (KeyError, IndexError, TypeError):
            continue  # the first change took it away
    outcome(tmp_path_factory.getbasetemp(), packed({**content, name: json.dumps(table).encode()}))
