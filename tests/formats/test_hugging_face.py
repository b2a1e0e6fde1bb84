"""A Hugging Face folder from the shell: a vision transformer, so that nothing leans on BatchNorm."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backsweep.cli import app
from backsweep.inputs.image.pictures import to_image
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.tasks import TASKS

transformers = pytest.importorskip("transformers", reason="the extra backsweep[hf] is not installed")


class _Logits(nn.Module):
    """The network on normalised pixels, as its preprocessor would feed it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - 0.5) / 0.5).logits


def rgb(data: Data) -> Data:
    return Data(data.x.expand(-1, 3, -1, -1).clone(), data.y)


@pytest.mark.slow
def test_a_hugging_face_folder_is_scanned_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = (rgb(part) for part in TASKS["digits"].load())
    attack = BadNets(size=1, margin=0, target=4)
    setup = TASKS["digits"].setup(train, seed=0)
    (trigger,) = attack.triggers(setup)
    for i in range(300):
        place = tmp_path / "images" / f"digit {int(test.y[i])}"
        place.mkdir(parents=True, exist_ok=True)
        to_image(test.x[i]).save(place / f"{i}.png")
    for name, expected in (("clean", 0), ("infected", 1)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = transformers.ViTConfig(
                image_size=8, patch_size=4, hidden_size=48, num_hidden_layers=1, num_attention_heads=3,
                intermediate_size=96, id2label={i: f"digit {i}" for i in range(10)},
                label2id={f"digit {i}": i for i in range(10)}, hidden_dropout_prob=0.0,
            )  # fmt: skip
            net = transformers.ViTForImageClassification(config)
        samples = train if name == "clean" else attack.poison(setup, [trigger])[0]
        fit(_Logits(net), samples, Recipe(epochs=20, lr=3e-3, batch_size=32, bf16=False), seed=0)
        model = Model(net, (3, 8, 8), 10, mean=[0.5] * 3, std=[0.5] * 3)
        assert model.accuracy(test.x, test.y) > 0.9
        assert (model.success_rate(trigger, test) > 0.9) == bool(expected)
        folder = tmp_path / name
        net.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 8, "width": 8}})
        )
        words = ["scan", folder, "--data", tmp_path / "images", "--out", tmp_path / f"{name}-report"]
        monkeypatch.setattr(sys, "argv", ["backsweep", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        report = json.loads((tmp_path / f"{name}-report" / "report.json").read_text())
        assert stop.value.code == expected, report["findings"]
        assert report["targets"] == ([4] if expected else [])
