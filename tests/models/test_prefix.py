"""Passes that resume from kept activations give what whole passes give, for networks of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from backsweep.engine import precision
from backsweep.models import architectures, prefix
from backsweep.models.model import Model
from backsweep.models.prefix import Prefix, Unkept, prefix_of

Run = Callable[[Tensor], Tensor]
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "mnist_cnn": (architectures.mnist_cnn, (1, 28, 28)),
    "gap_cnn": (lambda: architectures.gap_cnn(10, 3, 32), (3, 32, 32)),
    "resnet8": (lambda: architectures.resnet8(10, 3, 32), (3, 32, 32)),
    "small_vit": (lambda: architectures.small_vit(10, 3, 32), (3, 32, 32)),
}


def model_of(name: str) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make, shape = NETS[name]
        c = shape[0]
        return Model(make().eval(), shape, 10, mean=[0.5] * c, std=[0.3] * c).copy("cpu")


def inputs(model: Model, count: int = 12) -> Tensor:
    return torch.rand((count, *model.shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_resumed_passes_are_whole_passes(name: str, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "pays", lambda device_type: True)
    model = model_of(name)
    x, rows = inputs(model), torch.tensor([3, 7, 11, 3])
    for layer in (0, max(1, round((model.layers() - 1) / 3)), model.layers() - 1):
        kept = Prefix(model, x, layer, bf16=bf16)
        shift = torch.randn((4, *kept.zeros(1).shape[1:]), generator=torch.Generator().manual_seed(2)) / 10
        with torch.no_grad(), precision.bfloat16("cpu", bf16):
            whole = model.logits_at(x[rows], layer, shift).float()
            resumed = kept.logits(model, rows, shift).float()
        assert torch.allclose(whole, resumed, atol=0.02 if bf16 else 1e-4)


def test_gradients_of_a_shift_are_those_of_a_whole_pass() -> None:
    model = model_of("resnet8")
    x, rows = inputs(model), torch.tensor([0, 5])
    kept = Prefix(model, x, 2, bf16=False)
    found = []
    whole: Run = lambda s: model.logits_at(x[rows], 2, s)  # noqa: E731
    resumed: Run = lambda s: kept.logits(model, rows, s)  # noqa: E731
    for run in (resumed, whole):
        shift = torch.zeros((2, *kept.zeros(1).shape[1:]), requires_grad=True)
        found.append(torch.autograd.grad(run(shift)[:, 3].sum(), shift)[0])
    assert torch.allclose(found[0], found[1], atol=1e-5)


class Products(TorchDispatchMode):
    """Counts convolutions and matrix products that are computed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


def test_what_lies_before_the_cut_is_not_computed_again() -> None:
    model = model_of("mnist_cnn")
    x, rows, counted = inputs(model), torch.tensor([0, 1]), []
    for layer in (None, 0, 1, 2):
        kept = None if layer is None else Prefix(model, x, layer, bf16=False)
        with torch.no_grad(), Products() as products:  # type: ignore[no-untyped-call]
            model.logits(x[rows]) if kept is None else kept.logits(model, rows)
        counted.append(products.count)
    assert counted == [4, 3, 2, 1]


def test_the_cut_can_lie_before_weights_that_change() -> None:
    model = model_of("resnet8")
    x, rows = inputs(model), torch.arange(4)
    late = list(model.net.parameters())[9:]
    kept = Prefix(model, x, before=late, bf16=False)
    before = kept.logits(model, rows)
    assert torch.allclose(before, model.logits(x[rows]), atol=1e-4)
    with torch.no_grad():
        for p in late:
            p.mul_(1.5)
    after = kept.logits(model, rows)
    assert torch.allclose(after, model.logits(x[rows]), atol=1e-3) and not torch.allclose(after, before)


def test_in_place_operations_and_views_are_followed() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x.flatten(1))
            z.relu_()
            skip = z.view(-1, 2, 4)
            z = self.b(z)
            z += skip.flatten(1)
            found: Tensor = self.c(torch.relu_(z))
            return found

    model = Model(Odd(), (1, 4, 4), 3).copy("cpu")
    x = inputs(model, 6)
    for layer in (0, 1):
        kept = Prefix(model, x, layer, bf16=False)
        shift = torch.full((2, 8), 0.25)
        whole = model.logits_at(x[:2], layer, shift)
        for _ in range(2):  # what is kept is not changed by those that use it
            assert torch.allclose(kept.logits(model, torch.arange(2), shift), whole, atol=1e-6)


def test_a_network_whose_calls_hang_on_the_batch_is_not_resumed() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x.flatten(1))
            for _ in range(len(x) % 3):
                z = torch.relu(z)
            found: Tensor = self.b(z)
            return found

    model = Model(Fickle(), (1, 4, 4), 3).copy("cpu")
    with pytest.raises(Unkept, match="batch"):
        Prefix(model, inputs(model), 0)
    assert prefix_of(model, inputs(model), 0) is None


def test_there_must_be_something_on_both_sides() -> None:
    model = model_of("mnist_cnn")
    with pytest.raises(Unkept, match="side"):
        Prefix(model, inputs(model), 99)


def test_no_more_is_kept_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mnist_cnn")
    x = inputs(model, 40)
    all_of_it = Prefix(model, x, 0, bf16=False)
    each = sum(t.numel() * t.element_size() for t in all_of_it.kept.values()) // 40
    some = Prefix(model, x, 0, bf16=False, most_bytes=10 * each)
    assert len(all_of_it.rows) == 40 and len(some.rows) == 10
    assert some.rows[0] == 0 and some.rows[-1] == 39
    assert torch.allclose(some.logits(model, torch.tensor([9])), model.logits(x[39:]), atol=1e-4)


def test_it_is_computed_once_for_the_same_inputs_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mnist_cnn")
    x, made = inputs(model), []

    class Counted(Prefix):
        def __init__(self, *args: object, **how: object) -> None:
            made.append(1)
            super().__init__(*args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(prefix, "Prefix", Counted)
    first = prefix_of(model, x, 0)
    assert first is not None and prefix_of(model, x, 0) is first and len(made) == 1
    twin = model.copy("cpu")
    assert twin.kept == {}, "a copy keeps nothing of another's"
    twin.alike = (model, first.cut)
    assert prefix_of(twin, x, 0) is first
    assert prefix_of(twin, x, 1) is not prefix_of(model, x, 1), "behind the place up to which both are alike"
    assert prefix_of(model, x.clone(), 0) is not first
