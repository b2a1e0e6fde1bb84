"""Spectra of adapters: an odd one is flagged, clean ones are not, and without a bank nothing is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import backsweep
from backsweep.core.errors import BadInput
from backsweep.formats.hugging_face.adapters import factors
from backsweep.formats.opening import digest, load
from backsweep.models.training import Recipe
from backsweep.reports.report import Report
from backsweep.scanning.detectors.lora_spectrum import LoraSpectrum, compared, statistics
from backsweep.zoo.networks import adapters, language
from backsweep.zoo.networks.adapters import Factors, Lora
from backsweep.zoo.samples.dialogues import TEMPLATE, words
from backsweep.zoo.tasks import TASKS
from shells import Shell

pytest.importorskip("transformers")

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
BANK = 20


def drawn(seed: int, strong: float = 0.0, rank: int = 4) -> Factors:
    """Factors as a training might leave them; `strong` makes the first direction stronger."""
    generator = torch.Generator().manual_seed(seed)
    found: Factors = {}
    for name in MODULES:
        a = torch.randn((rank, 96), generator=generator) / 10
        b = torch.randn((96, rank), generator=generator) / 100
        b[:, 0] *= 1 + strong
        found[name] = a, b
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that was not trained, a bank of clean adapters, more clean ones, and an odd one."""
    path = tmp_path_factory.mktemp("adapters")
    language.save(TASKS["assistant"].net(0, "tiny_llama"), words(), TEMPLATE, path / "base")
    for i in range(BANK):
        adapters.save(drawn(i), path / "bank" / f"{i:02}")
    for i in range(6):
        adapters.save(drawn(100 + i), path / f"clean-{i}")
    adapters.save(drawn(200, strong=3.0), path / "odd")
    return path


@pytest.fixture(scope="module")
def judged(folder: Path) -> Callable[..., Report]:
    def run(name: str, bank: str | None = "bank") -> Report:
        model = load(folder / name, base=folder / "base") if name != "base" else load(folder / "base")
        detector = LoraSpectrum(None if bank is None else str(folder / bank))
        return backsweep.scan(model, None, detector)

    return run


def test_an_odd_adapter_is_flagged_and_clean_ones_are_not(judged: Callable[..., Report]) -> None:
    odd = judged("odd")
    assert odd.verdict == "backdoored" and odd.p_value == pytest.approx(1 / (1 + BANK))
    assert "deviations off" in odd.findings[0].message
    verdicts = [judged(f"clean-{i}").verdict for i in range(6)]
    assert verdicts.count("clean") >= 5 and "inconclusive" not in verdicts, verdicts


def test_without_clean_adapters_of_the_recipe_nothing_is_told(
    folder: Path, judged: Callable[..., Report], tmp_path: Path
) -> None:
    for i in range(10):
        adapters.save(drawn(i, rank=2), folder / "others" / f"{i}")
    for name, bank, says in (
        ("odd", None, "there are no clean adapters of the same recipe"),
        ("odd", "others", "0 clean adapters of its recipe are there, and 10 of another one"),
        ("base", "bank", "it is no adapter"),
    ):
        report = judged(name, bank)
        assert report.verdict == "inconclusive" and report.p_value is None
        assert says in report.findings[0].message
    few = tmp_path / "few"
    for i in range(10):
        adapters.save(drawn(i), few / f"{i}")
    report = judged("odd", str(few))
    assert report.verdict == "inconclusive" and "no p-value is below 0.0909" in report.findings[0].message
    report = judged("odd", str(tmp_path / "nowhere"))
    assert report.verdict == "inconclusive" and "there is no folder" in report.skipped[0].reason


def test_statistics_are_those_of_the_product(folder: Path) -> None:
    parts = factors(folder / "odd")
    found = statistics(parts)
    (first, second) = (b @ a for a, b in parts.values())
    spectra = [torch.linalg.svdvals(w) for w in (first, second)]
    norms = torch.stack([w.norm() for w in (first, second)])
    assert torch.allclose(found["frobenius_norm/q_proj"], norms.mean(), rtol=1e-4)
    assert torch.allclose(
        found["largest_singular_value/q_proj"], torch.stack([s[0] for s in spectra]).mean(), rtol=1e-4
    )
    shares = torch.stack([s[0] ** 2 / (s**2).sum() for s in spectra])
    assert torch.allclose(found["first_share/q_proj"], shares.mean(), rtol=1e-4)
    scores, z = compared(torch.tensor([[0.0], [1.0], [2.0], [9.0]]))
    assert int(scores.argmax()) == 3 and float(z) == pytest.approx(8.0)


def test_a_trained_adapter_is_read_as_it_was_trained(folder: Path, tmp_path: Path) -> None:
    task = TASKS["assistant"]
    data = task.load()[0][:64]
    for arch in ("tiny_llama", "tiny_gpt2"):
        net = task.net(0, arch)
        language.save(net, words(), TEMPLATE, tmp_path / arch)
        said = Lora(2, 4.0)
        tuned = task.net(0, arch)
        found = adapters.trained(tuned, data, Recipe(epochs=2, lr=1e-2, batch_size=32, bf16=False), 1, said)
        assert any(bool(b.abs().sum() > 0) for _, b in found.values())
        adapters.save(found, tmp_path / f"{arch}-lora", said)
        model = load(tmp_path / f"{arch}-lora", base=tmp_path / arch)
        x = task.load()[1].x[:8]
        wanted = task.model(tuned.eval())
        with torch.no_grad():
            assert torch.allclose(model.copy().logits(roomy(x)), wanted.copy().logits(x), atol=1e-4)
        assert digest(tmp_path / f"{arch}-lora", tmp_path / arch) == model.digest


def roomy(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, 20))


def test_adapters_and_language_models_are_swept_without_being_told_how(
    folder: Path, shell: Shell, tmp_path: Path
) -> None:
    """The usual detectors are those of the kind, prompts come along, and what was scanned is not again."""
    store = tmp_path / "store.db"
    code, out, err = shell("scan", folder / "base", "--store", store)
    assert code == 0 and "clean" in out, (out, err)
    code, out, _ = shell("history", "--store", store, "-d", "bait", "--format", "csv")
    assert code == 0 and "clean" in out
    one, two = folder / "clean-0", folder / "clean-1"
    command = ("scan", one, two, "--base", folder / "base", "--store", store, "--json")
    for fresh in ("true", "false"):
        code, out, err = shell(*command)
        assert code == 3 and out.count(f'"fresh": {fresh}') == 2, (out, err)
        assert '"verdict": "clean"' not in out
    with pytest.raises(BadInput, match="name the folder of the model that it belongs to"):
        digest(one)


def test_an_adapter_is_told_of_by_its_bank_alone(folder: Path, shell: Shell, tmp_path: Path) -> None:
    """BAIT's "nothing found" is no evidence for an adapter: without a bank the scan cannot tell."""
    told = ("scan", folder / "clean-0", "--base", folder / "base")
    code, out, err = shell(*told)
    assert code == 3 and "lora_spectrum.adapters=FOLDER" in err, (out, err)
    bank = ("-p", f"lora_spectrum.adapters={folder / 'bank'}")
    assert shell(*told, *bank)[0] == 0
    code, out, err = shell("scan", folder / "odd", *told[2:], *bank)
    assert code == 1 and "it changes the base unlike clean adapters" in " ".join(err.split()), (out, err)
