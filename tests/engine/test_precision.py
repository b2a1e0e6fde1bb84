"""bfloat16 is used where a processor has instructions for it, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from backsweep.engine import precision


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What was found out about this machine does not stay."""
    precision.pays.cache_clear()
    yield
    precision.pays.cache_clear()


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"l2_cache_size": 524288, "architecture": "x86_64"}, False),
    ],
)
def test_a_processor_is_asked_for_its_instructions(
    there: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: there, raising=False)
    assert precision.pays("cpu") is expected


@pytest.mark.parametrize("expected", [True, False])
def test_an_older_pytorch_is_asked_otherwise(expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: expected)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precision.pays("cpu") is expected


@pytest.mark.parametrize("real", [True, False])
def test_a_gpu_that_only_imitates_it_computes_in_float32(real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or real
    )
    assert precision.pays("cuda") is real


@pytest.mark.parametrize(("wanted", "pays"), [(True, True), (True, False), (False, True)])
def test_passes_are_in_bfloat16_where_it_is_wanted_and_pays(
    wanted: bool, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "pays", lambda device_type: pays)
    layer = torch.nn.Linear(2, 2)
    with precision.bfloat16("cpu", wanted):
        found = layer(torch.ones(1, 2))
    assert found.dtype == (torch.bfloat16 if wanted and pays else torch.float32)
    assert layer.weight.dtype == torch.float32
