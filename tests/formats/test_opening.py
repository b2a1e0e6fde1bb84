"""Weights, checkpoints, Hugging Face folders, and everything that is no model."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import pickle
import socket
import struct
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.opening import load
from backsweep.models.model import Model

ARCH = "backsweep.archs:digits_cnn"
SHAPE = (1, 8, 8)
X = torch.rand((3, *SHAPE), generator=torch.Generator().manual_seed(0))
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def digits() -> nn.Module:
    from backsweep.models.architectures import digits_cnn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return digits_cnn().eval()


def saved(value: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Whole(nn.Module):
    """A network that someone saves whole."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits()


def write(folder: Path, name: str, blob: bytes) -> Path:
    path = folder / name
    path.write_bytes(blob)
    return path


def refusal(path: Path, *args: Any, **kwargs: Any) -> str:
    """The message of the error, which must be one line that begins with the path."""
    with pytest.raises(BadInput) as caught:
        load(path, *args, **kwargs)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


# ---------------------------------------------------------------------- weights that load


NET = digits()
WEIGHTS = NET.state_dict()
CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "safetensors": lambda: safetensors.torch.save(WEIGHTS),
    "zip": lambda: saved(WEIGHTS),
    "legacy": lambda: saved(WEIGHTS, legacy=True),
    "state_dict": lambda: saved({"epoch": 3, "state_dict": WEIGHTS, "optimizer": {"lr": [0.1]}}),
    "model": lambda: saved({"model": WEIGHTS}),
    "model_state_dict": lambda: saved({"loss": torch.ones(()), "model_state_dict": WEIGHTS}),
    "net": lambda: saved({"net": {f"module.{k}": v for k, v in WEIGHTS.items()}, "acc": 91.2}),
    "compiled": lambda: saved({f"_orig_mod.module.{k}": v for k, v in WEIGHTS.items()}),
    "half": lambda: saved({k: v.half() for k, v in WEIGHTS.items()}),
    "parameters": lambda: saved({k: nn.Parameter(v) for k, v in WEIGHTS.items()}),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_weights(tmp_path: Path, kind: str) -> None:
    blob = CHECKPOINTS[kind]()
    path = write(tmp_path, "whatever.bin", blob)
    model = load(path, ARCH, shape=SHAPE)
    assert isinstance(model, Model)
    assert (model.shape, model.classes, model.source) == (SHAPE, 10, str(path))
    assert model.digest == hashlib.sha256(blob).hexdigest()
    assert not model.resize
    torch.testing.assert_close(model.logits(X), NET(X), atol=1e-2 if kind == "half" else 1e-6, rtol=0)


def test_settings_reach_the_model(tmp_path: Path) -> None:
    path = write(tmp_path, "m.safetensors", safetensors.torch.save(WEIGHTS))
    labels = [str(i) for i in range(10)]
    model = load(str(path), digits, shape=SHAPE, classes=10, mean=[0.5], std=[0.25], layer="6", labels=labels)
    assert model.label(3) == "3"
    assert model.features(X).shape == (3, 64)
    torch.testing.assert_close(model.logits(X), NET((X - 0.5) / 0.25))


def test_header_of_safetensors_says_the_rest(tmp_path: Path) -> None:
    said = {"shape": SHAPE, "classes": 10, "mean": [0.5], "std": [0.5], "labels": list("abcdefghij")}
    blob = safetensors.torch.save(WEIGHTS, metadata={"backsweep.model": json.dumps(said)})
    model = load(write(tmp_path, "m", blob), ARCH)
    assert (model.shape, model.mean, model.label(1)) == (SHAPE, (0.5,), "b")
    said["std"] = [float("nan")]
    blob = safetensors.torch.save(WEIGHTS, metadata={"backsweep.model": json.dumps(said)})
    assert "not all finite" in refusal(write(tmp_path, "m", blob), ARCH)


def test_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "m.pt", saved(WEIGHTS))
    assert "shape=(3, 32, 32)" in refusal(path, ARCH)
    assert load(path, ARCH, data_shape=SHAPE).shape == SHAPE
    assert "does not take inputs of shape (3, 8, 8)" in refusal(path, ARCH, shape=(3, 8, 8))
    assert "are no images" in refusal(path, ARCH, shape=(1, 2**20, 2**20))
    assert "classes=10" in refusal(path, ARCH, shape=SHAPE, classes=7)

    def sized() -> nn.Module:
        net = digits()
        net.input_shape = SHAPE  # type: ignore[assignment]
        return net

    assert load(path, sized).shape == SHAPE


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
        net[2].weight = net[1].weight
        return net

    net = tied()
    weights = {k: v for k, v in net.state_dict().items() if k != "2.weight"}
    model = load(write(tmp_path, "m", safetensors.torch.save(weights)), tied, shape=SHAPE)
    torch.testing.assert_close(model.logits(X), net(X))


# ---------------------------------------------------------------------- weights that do not


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (
            {"other.weight": torch.ones(2)},
            ["missing '0.weight', '0.bias', '2.weight' and 5 more", "unexpected"],
        ),
        ({**WEIGHTS, "0.weight": torch.ones(16, 3, 3, 3)}, ["of another shape", "(16, 3, 3, 3)"]),
        ({**WEIGHTS, "0.bias": torch.ones(16).int()}, ["of another shape '0.bias"]),
        ({**WEIGHTS, "evil\n\x1b[31m": torch.ones(1)}, ["unexpected", "evil"]),
        ({**WEIGHTS, "8.bias": torch.full((10,), torch.nan)}, ["'8.bias' holds NaN"]),
        ({**WEIGHTS, "8.bias": torch.ones(10, device="meta")}, ["'8.bias, which has no values'"]),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, weights: dict[str, Tensor], words: list[str]) -> None:
    message = refusal(write(tmp_path, "m.pt", saved(weights)), ARCH, shape=SHAPE)
    assert all(word in message for word in words)


@pytest.mark.parametrize("value", [torch.ones(3), [1, 2], {"epoch": 1}, {}, {"model": {"epoch": 1}}, 3])
def test_checkpoints_without_weights(tmp_path: Path, value: Any) -> None:
    message = refusal(write(tmp_path, "m.pt", saved(value)), ARCH, shape=SHAPE)
    assert "no weights" in message
    assert "torch.save(model.state_dict()" in message


ARCHS = """
    import torch
    from backsweep.archs import digits_cnn

    def net(): return digits_cnn()
    def three(): return 3
    def needy(classes): return digits_cnn(classes)
    def broken(): raise OSError("no\\ncamera")
    number = 7
"""


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (None, "name the code that builds it"),
        ("my_nets", "package.module:factory"),
        ("my_nets:", "package.module:factory"),
        ("no_such_module_:net", "ModuleNotFoundError"),
        ("my_nets:no_such_net", "AttributeError"),
        ("my_nets:three", "returns int"),
        ("my_nets:needy", "TypeError"),
        ("my_nets:broken", "OSError: no camera"),
        ("my_nets:number", "TypeError"),
    ],
)
def test_arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str | None, words: str) -> None:
    (tmp_path / "my_nets.py").write_text(textwrap.dedent(ARCHS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_nets", raising=False)
    path = write(tmp_path, "m.pt", saved(WEIGHTS))
    assert words in refusal(path, arch, shape=SHAPE)
    state = torch.get_rng_state()
    assert load(path, "my_nets:net", shape=SHAPE).classes == 10
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------------- pickles


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle", "instead of weights"])
def test_a_payload_never_runs(tmp_path: Path, kind: str) -> None:
    proof, marker = tmp_path / "proof", tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists(), "the payload works where pickles are trusted"
    evil = Payload(marker)
    blob = {
        "zip": lambda: saved(evil),
        "legacy": lambda: saved(evil, legacy=True),
        "plain pickle": lambda: pickle.dumps({"state_dict": evil}),
        "instead of weights": lambda: saved({"state_dict": {**WEIGHTS, "0.weight": evil}}),
    }[kind]()
    message = refusal(write(tmp_path, "m.safetensors", blob), ARCH, shape=SHAPE)
    assert ("missing '0.weight'" if kind == "instead of weights" else "holds no weights") in message
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_payload_beside_the_weights_stays_a_name(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "marker"
    weights = {**WEIGHTS, "x": Payload(marker)}
    model = load(write(tmp_path, "m", saved({"state_dict": weights}, legacy)), ARCH, shape=SHAPE)
    assert torch.equal(model.logits(X), NET(X))
    assert any("left objects unread" in note for note in model.notes)
    assert any("Path" in name for name in model.unknown)
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_gives_its_weights(tmp_path: Path, legacy: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blob = saved(Whole(), legacy)
    model = load(write(tmp_path, "m.pt", blob), ARCH, shape=SHAPE)
    assert torch.equal(model.logits(X), NET(X))
    assert model.notes == (
        f"read the weights of a pickled {__name__}.Whole; none of its code was run",
        "dropped the prefix 'net.' of all weights",
    )
    assert f"{__name__}.Whole" in model.unknown


# ---------------------------------------------------------------------- what is no model


def zipped(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/data/0", bytes(2**24))
    return buffer.getvalue()


FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"Hello, here is my model.\n" * 9, "not a model file"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), "not a model file"),
    "torchscript": (lambda: zipped(["m/data.pkl", "m/code/net.py", "m/constants.pkl"]), "TorchScript"),
    "onnx": (lambda: b"\x08\x08\x12\x07pytorch:" + bytes(32), "ONNX"),
    "keras": (lambda: zipped(["metadata.json", "config.json", "model.weights.h5"]), "Keras"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "Keras"),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow"),
    "npz": (lambda: zipped(["x.npy", "y.npy"]), "NumPy"),
    "zip": (lambda: zipped(["holiday.jpg"]), "no known kind"),
    "bomb": (bomb, "zip bomb"),
    "cut zip": (lambda: saved(WEIGHTS)[:-30], "damaged or cut short"),
    "cut legacy": (lambda: saved(WEIGHTS, legacy=True)[:900], "damaged or cut short"),
    "cut safetensors": (lambda: safetensors.torch.save(WEIGHTS)[:900], "damaged or cut short"),
    "no pickle": (lambda: b"\x80\x02nonsense", "damaged or cut short"),
    "huge header": (lambda: struct.pack("<Q", 2**40) + b"{" + bytes(64), "damaged or cut short"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files(tmp_path: Path, kind: str) -> None:
    make, words = FOREIGN[kind]
    assert words in refusal(write(tmp_path, "m.pt", make()), ARCH, shape=SHAPE)


def test_paths(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nowhere.pt")
    assert "config.json" in refusal(tmp_path)
    assert "folder" in refusal(tmp_path, ARCH)
    (tmp_path / "saved_model.pb").touch()
    assert "TensorFlow" in refusal(tmp_path)


def mutated(draw: Callable[[Any], Any], blob: bytes) -> bytes:
    """The blob cut short, or with some of its bytes changed, where structure is more often."""
    if draw(st.booleans()):
        return blob[: draw(st.integers(0, len(blob) - 1))]
    changed = bytearray(blob)
    edge = min(len(blob) - 1, 1200)
    near = st.one_of(st.integers(0, edge), st.integers(len(blob) - edge, len(blob) - 1))
    for place in draw(st.lists(near | st.integers(0, len(blob) - 1), min_size=1, max_size=4)):
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_damage_is_told_in_one_line(tmp_path: Path, kind: str) -> None:
    blob = CHECKPOINTS[kind]()

    @FUZZ
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        path = write(tmp_path, "m", mutated(data.draw, blob))
        try:
            assert isinstance(load(path, digits, shape=SHAPE), Model)
        except BadInput as e:
            assert str(e).isprintable()

    damaged()


def test_damage_behind_the_checksums(tmp_path: Path) -> None:
    """The zip container is sound; the pickle in it is not."""
    blob = saved(WEIGHTS)
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        members = {i.filename: archive.read(i) for i in archive.infolist()}
    name = next(n for n in members if n.endswith("data.pkl"))

    @FUZZ
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for n, content in members.items():
                archive.writestr(n, mutated(data.draw, content) if n == name else content)
        try:
            load(write(tmp_path, "m", buffer.getvalue()), digits, shape=SHAPE)
        except BadInput as e:
            assert str(e).isprintable()

    damaged()


# ---------------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A small ViT with a preprocessor, as transformers saves it."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        transformers: Any = importlib.import_module("transformers")
        torch.manual_seed(0)
        transformers.utils.logging.disable_progress_bar()
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            image_size=16, patch_size=8, id2label={0: "cat", 1: "dog", 2: "owl"},
        )  # fmt: skip
        net = transformers.ViTForImageClassification(config).eval()
        net.save_pretrained(folder)
    prep = {
        "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7],
        "do_rescale": True, "rescale_factor": 1 / 255, "size": {"height": 16, "width": 16},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(prep))
    return folder, net


@pytest.fixture
def folder(vit: tuple[Path, nn.Module], tmp_path: Path) -> Path:
    """A copy to spoil."""
    place = tmp_path / "copy"
    place.mkdir()
    for file in vit[0].iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_hugging_face(
    vit: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    path, net = vit
    model = load(path)
    assert capfd.readouterr() == ("", "")
    assert (model.shape, model.classes, model.resize) == ((3, 16, 16), 3, True)
    assert model.labels == ("cat", "dog", "owl")
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7)))
    with torch.no_grad():
        want = net((x - mean) / std).logits
    torch.testing.assert_close(model.logits(x), want)
    assert model.features(x).shape == (2, 16)
    (gradient,) = torch.autograd.grad(model.logits(x).sum(), x)
    assert gradient.abs().sum() > 0
    assert load(path).digest == model.digest


def test_digest_of_a_folder_is_of_its_files(vit: tuple[Path, nn.Module], folder: Path) -> None:
    whole = load(folder).digest
    assert whole == load(vit[0]).digest
    (folder / "README.md").write_text("not read")
    assert load(folder).digest == whole
    change(folder / "config.json", note="other")
    assert load(folder).digest != whole


def test_sharded(vit: tuple[Path, nn.Module], folder: Path) -> None:
    weights = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    index = {}
    for i, part in enumerate((dict(list(weights.items())[:5]), dict(list(weights.items())[5:]))):
        (folder / f"part-{i}.safetensors").write_bytes(safetensors.torch.save(part))
        index.update(dict.fromkeys(part, f"part-{i}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(load(folder).logits(x), load(vit[0]).logits(x))
    (folder / "part-1.safetensors").unlink()
    assert "'part-1.safetensors'" in refusal(folder)
    index["classifier.bias"] = "../part-1.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert "'../part-1.safetensors'" in refusal(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"auto_map": {"AutoConfig": "evil.Config"}}, "code of its own"),
        ({"sub": {"auto_map": {}}}, "code of its own"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"model_type": "timm_wrapper", "architecture": "resnet18"}, "timm"),
        ({"model_type": "no_such"}, "is not known to transformers"),
        ({"model_type": ["vit"]}, "is not known to transformers"),
        ({"hidden_size": 32}, "do not fit its config.json"),
    ],
)
def test_refused_configs(folder: Path, values: dict[str, Any], words: str) -> None:
    change(folder / "config.json", **values)
    assert words in refusal(folder)


@pytest.mark.parametrize("names", [{"0": "a", "1": "b"}, {"0": "a", "7": "b", "2": "c"}])
def test_names_of_too_few_classes_are_said_and_the_weights_decide(
    folder: Path, names: dict[str, str]
) -> None:
    change(folder / "config.json", id2label=names)
    model = load(folder)
    assert model.classes == 3
    assert any("id2label" in note for note in model.notes), model.notes


def test_implementations_are_not_the_files_choice(folder: Path) -> None:
    change(folder / "config.json", _attn_implementation="evil/kernel", attn_implementation="evil/kernel")
    assert load(folder).classes == 3


@pytest.mark.parametrize(
    ("prep", "shape", "mean", "std"),
    [
        ({"do_normalize": False}, (3, 16, 16), (0.0,), (1.0,)),
        ({"do_normalize": False, "do_rescale": False}, (3, 16, 16), (0.0,), (1 / 255,)),
        (
            {"do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True},
            (3, 16, 16), (0.5,), (0.5,),
        ),
        ({"include_top": True}, (3, 16, 16), (0.5, 0.4, 0.3), (0.25, 0.36, 0.49)),
        ({"size": 16}, (3, 16, 16), (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)),
        ({"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 16}, (3, 16, 16), None, None),
    ],
)  # fmt: skip
def test_preprocessing(folder: Path, prep: dict[str, Any], shape: Any, mean: Any, std: Any) -> None:
    change(folder / "preprocessor_config.json", **prep)
    model = load(folder)
    assert model.shape == shape
    if mean is not None:
        assert model.mean == pytest.approx(mean)
        assert model.std == pytest.approx(std)


def test_bgr_networks_see_bgr(vit: tuple[Path, nn.Module], folder: Path) -> None:
    change(folder / "preprocessor_config.json", do_flip_channel_order=True, do_normalize=False)
    model = load(folder)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.copy().logits(x), vit[1](x.flip(1)).logits)


def test_folders_without_safetensors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder / "marker")))
    assert "save_pretrained" in refusal(folder)
    assert not (folder / "marker").exists()


def test_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert "pip install backsweep[hf]" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_damaged_folders(folder: Path, name: str) -> None:
    blob = (folder / name).read_bytes()

    @settings(FUZZ, max_examples=20)
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        write(folder, name, mutated(data.draw, blob))
        try:
            assert isinstance(load(folder), Model)
        except BadInput as e:
            assert str(e).isprintable()

    damaged()


@pytest.mark.parametrize("extra", range(0, 256, 8))
def test_whatever_byte_the_length_of_a_safetensors_header_begins_with(tmp_path: Path, extra: int) -> None:
    """The first byte 0x80 is also how a pickle begins."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors.torch.save(digits().state_dict(), {"note": "x" * extra}))
    assert load(path, "backsweep.archs:digits_cnn", shape=(1, 8, 8)).classes == 10


def test_load_is_a_function_whatever_was_used_before() -> None:
    code = "import backsweep, backsweep.formats.opening; assert callable(backsweep.load)"
    subprocess.run([sys.executable, "-c", code], check=True)
