"""What a network was tuned from: read as data, and matched by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.weights import origins


class Tuned(nn.Module):
    """A body that was tuned, and a new head, as in a folder of Hugging Face."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.bert = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        self.classifier = nn.Linear(8, classes)


def before(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    """A body of ones, with some beginning of its names."""
    body = {n.removeprefix("bert."): torch.ones_like(p) for n, p in net.named_parameters() if "bert" in n}
    return {prefix + n: p for n, p in body.items()}


@pytest.mark.parametrize("prefix", ["bert.", "", "model.bert.", "module.model."])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "folder", "folder of a pickle", "module's name"])
def test_a_body_is_found_under_any_beginning(prefix: str, kind: str, tmp_path: Path) -> None:
    net = Tuned()
    there = before(prefix, net) | {"cls.predictions.bias": torch.ones(30)}
    if kind == "safetensors":
        path = tmp_path / "base.safetensors"
        safetensors.torch.save_file(there, path)
    elif kind == "torch":
        path = tmp_path / "base.pth"
        torch.save({"state_dict": there, "epoch": 3}, path)
    elif kind == "folder":
        path = tmp_path
        safetensors.torch.save_file(there, path / "model.safetensors")
    else:
        path = tmp_path
        torch.save(there, path / "pytorch_model.bin")
    found = origins.of(net, path)
    assert set(found) == {n for n, _ in net.named_parameters() if n.startswith("bert.")}
    assert all(bool((t == 1).all()) and t.dtype == torch.float32 for t in found.values())


def test_a_network_and_its_weights_do_as_well() -> None:
    net, old = Tuned(3), Tuned(5)
    for origin in (old, old.state_dict()):
        found = origins.of(net, origin)
        assert "classifier.weight" not in found, "the head has other classes"
        assert torch.equal(found["bert.0.weight"], old.state_dict()["bert.0.weight"])


def test_half_weights_become_whole_ones(tmp_path: Path) -> None:
    net, path = Tuned(), tmp_path / "base.safetensors"
    safetensors.torch.save_file({n: p.detach().half() for n, p in net.named_parameters()}, path)
    assert {t.dtype for t in origins.of(net, path).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "cannot be read|not|empty"),
        (b"\x80\x02garbage", "."),
        (safetensors.torch.save({"a.weight": torch.ones(3, 3)}), "only 0 of"),
        (pickle.dumps({"a": 1}), "holds no weights"),
    ],
)
def test_what_is_no_origin_is_one_line(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "base.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=says) as e:
        origins.of(Tuned(), path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"neither model\.safetensors nor"):
        origins.of(Tuned(), tmp_path)


@given(st.lists(st.sampled_from(["a", "b", "model", "0", "1"]), max_size=3), st.booleans())
def test_names_are_never_mixed_up(parts: list[str], shuffled: bool) -> None:
    net = Tuned()
    there = {".".join([*parts, n]): p.detach() for n, p in net.named_parameters()}
    if shuffled:
        there = dict(reversed(there.items()))
    found = origins.of(net, there)
    assert all(torch.equal(found[n], p) for n, p in net.named_parameters())
