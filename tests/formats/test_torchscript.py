"""TorchScript: modules run as the original does, and nothing of the file runs otherwise."""

from __future__ import annotations

import functools
import io
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
from onnx_nets import NETS, SHAPE, net
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.opening import load
from backsweep.formats.saving import save
from backsweep.formats.torchscript.module import read
from backsweep.models.model import Model

X = torch.rand((5, *SHAPE), generator=torch.Generator().manual_seed(0))
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "traced": lambda m: torch.jit.trace(m, X[:2]),
    "scripted": torch.jit.script,
    "frozen": lambda m: torch.jit.freeze(torch.jit.trace(m, X[:2])),
    "frozen script": lambda m: torch.jit.freeze(torch.jit.script(m)),
}
SCRIPTED = "cnn resnet preact vgg mixer convnext mobile dense mha updown shuffle einsum"

CASES = [(name, form) for name in NETS for form in ("traced", "frozen")]
CASES += [(name, form) for name in SCRIPTED.split() for form in ("scripted", "frozen script")]


def saved(module: Any) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


@functools.cache
def blob_of(name: str, form: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(FORMS[form](net(name)))


@pytest.mark.parametrize(("name", "form"), CASES)
def test_modules_answer_as_the_original_does(name: str, form: str) -> None:
    original, script = net(name), read(blob_of(name, form), SHAPE)
    x = X.clone().requires_grad_()
    torch.testing.assert_close(script(x), original(x), rtol=1e-4, atol=1e-5)
    mine, theirs = (torch.autograd.grad(out[:, 1].sum(), x)[0] for out in (script(x), original(x)))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_copies_answer_as_the_original_does(tmp_path: Path, form: str) -> None:
    """A scan works on a copy, and sends it to other processes."""
    (tmp_path / "m.pt").write_bytes(blob_of("cnn", form))
    model = load(tmp_path / "m.pt", shape=SHAPE)
    for twin in (model.copy(), cloudpickle.loads(cloudpickle.dumps(model.copy()))):
        torch.testing.assert_close(twin.logits(X), net("cnn")(X), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            next(twin.net.parameters()).zero_()
        assert not torch.allclose(twin.logits(X), model.logits(X)), "its weights are its own"


@pytest.mark.parametrize("form", FORMS)
def test_a_loaded_module_is_seen_into_and_written_back(tmp_path: Path, form: str) -> None:
    (tmp_path / "old.pt").write_bytes(blob_of("resnet", form))
    model, original = load(tmp_path / "old.pt", shape=SHAPE), Model(net("resnet"), SHAPE)
    assert model.layers() == original.layers() and all(model.affine())
    torch.testing.assert_close(model.features(X), original.features(X), rtol=1e-4, atol=1e-4)
    if form in ("traced", "scripted"):
        assert model.affine() == original.affine()
        assert model.net.state_dict().keys() == original.net.state_dict().keys()
    for twin in (model.copy(), pickle.loads(pickle.dumps(model))):  # as scans and their workers do
        torch.testing.assert_close(twin.logits(X), model.logits(X), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for p in model.net.parameters():
            p.add_(0.05 * torch.rand(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    path = save(model, tmp_path / "new.pt")
    torch.testing.assert_close(load(path, shape=SHAPE).logits(X), model.logits(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.jit.load(io.BytesIO(path.read_bytes()))(X)  # the file is ours
    torch.testing.assert_close(theirs, model.logits(X), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.logits(X), original.logits(X), atol=1e-3)


class Chooses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            x = x + 1
        return x.mean((2, 3))


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.rand_like(x)).mean((2, 3))


class Loops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while int(x.size(0)) > 0:
            x = x + 1
        return x.mean((2, 3))


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1099511627776):
            x = x + 1
        return x.mean((2, 3))


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, 256).mean(2)


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        seen: Any = self.seen
        seen.add_(1)
        return x.mean((2, 3)) + seen


class Remembers(nn.Module):
    """Its `__setstate__` runs while torch.jit.load reads the file."""

    @torch.jit.export
    def __getstate__(self) -> int:
        return 3

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def edited(old: str, new: str) -> bytes:
    """The convolutional network with another text in its code."""
    buffer = io.BytesIO()
    blob = blob_of("cnn", "traced")
    with zipfile.ZipFile(io.BytesIO(blob)) as archive, zipfile.ZipFile(buffer, "w") as out:
        for info in archive.infolist():
            content = archive.read(info)
            if info.filename.endswith(".py"):
                content = content.replace(old.encode(), new.encode())
            out.writestr(info.filename, content)
    return buffer.getvalue()


def scripted(make: Callable[[], nn.Module]) -> Callable[[], bytes]:
    return lambda: saved(torch.jit.script(make().eval()))


POOL = "torch.max_pool2d("
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "choice": (scripted(Chooses), "values of a tensor"),
    "random": (scripted(Draws), "'torch.rand_like'"),
    "while": (scripted(Loops), "While statement"),
    "endless": (scripted(Counts), "statements"),
    "writes": (
        lambda: saved(torch.jit.trace(Writes().eval(), X[:2], check_trace=False)),
        "writes to its input or its weights",
    ),
    "setstate": (scripted(Remembers), "code for reading it"),
    "fixed": (lambda: saved(torch.jit.trace(Fixed().eval(), X[:2])), "batches"),
    "training": (lambda: saved(torch.jit.script(net("resnet").train())), "training mode"),
    "file": (lambda: edited(POOL, "torch.from_file("), "'torch.from_file'"),
    "file of aten": (lambda: edited(POOL, "ops.aten.save("), "'ops.aten.save'"),
    "custom": (lambda: edited(POOL, "ops.acme.evil("), "'ops.acme.evil'"),
    "module": (lambda: edited(POOL, "torch.serialization.load("), "'torch.serialization.load'"),
    "builtin": (lambda: edited(POOL, "__import__("), "'__import__'"),
    "attribute": (lambda: edited(POOL, "self.training.real("), "not run here"),
    "lambda": (lambda: edited(POOL, "(lambda *a: 1)("), "not run here"),
    "no python": (lambda: edited("def forward", "def def forward"), "damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    make, words = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blob = make()
    (tmp_path / "m.pt").write_bytes(blob)
    with pytest.raises(BadInput) as caught:
        load(tmp_path / "m.pt", shape=SHAPE)
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_settings_that_do_not_belong(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(blob_of("cnn", "traced"))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"arch": "a:b", "shape": SHAPE}, "brings its own network"),
        ({}, "say shape="),
        ({"layer": "0", "shape": SHAPE}, "no layers to name"),
    ]
    for options, words in wrong:
        with pytest.raises(BadInput, match=words):
            load(tmp_path / "m.pt", **options)


@pytest.mark.parametrize("where", ["code", "data.pkl"])
def test_changed_members_are_refused_or_run(tmp_path: Path, where: str) -> None:
    with zipfile.ZipFile(io.BytesIO(blob_of("cnn", "traced"))) as archive:
        members = {i.filename: archive.read(i) for i in archive.infolist()}
    chosen = [n for n in members if where in n and not n.endswith("debug_pkl") and members[n]]

    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(chosen))
        content = bytearray(members[name])
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as out:
            for member, old in members.items():
                out.writestr(member, bytes(content) if member == name else old)
        (tmp_path / "m.pt").write_bytes(buffer.getvalue())
        try:
            load(tmp_path / "m.pt", shape=SHAPE)
        except BadInput as e:
            assert str(e).isprintable()

    check()
