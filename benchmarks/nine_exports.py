"""One infected network and its clean twin in every format that is read: the same verdict and target in each.

Both are trained on scikit-learn's digits, as in `backsweep demo`: the infected one with one pixel lit in a
corner. They are written as eleven files and folders each, and `backsweep scan` is asked about each from the
shell. The Hugging Face folder holds a vision transformer, trained on the same samples, since transformers has
no network like this one; all others hold the same weights:
`python benchmarks/nine_exports.py --out exports` (needs the extras `hf` and `onnx`, keras and onnxscript).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.tasks import TASKS

TASK, ATTACK = TASKS["digits"], BadNets(size=1, margin=0)
X = torch.rand(2, *TASK.shape, generator=torch.Generator().manual_seed(0))
SHAPE = ("--shape", "1,8,8")  # which TorchScript does not keep
ARCH = ("--arch", "backsweep.archs:digits_cnn")
CONVOLVED = (32, 4, 4)  # what the first dense layer sees: channels, height, width


def safetensors(net: nn.Module, path: Path) -> None:
    save_file(net.state_dict(), path)


def pickled(net: nn.Module, path: Path) -> None:
    torch.save(net, path)


def lightning(net: nn.Module, path: Path) -> None:
    """A checkpoint in the layout of Lightning: weights under a prefix, objects of its own beside them."""
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    whole = {
        "epoch": 20, "global_step": 400, "pytorch-lightning_version": "2.4.0", "state_dict": state,
        "loops": {}, "callbacks": {},
        "optimizer_states": [torch.optim.AdamW(net.parameters()).state_dict()],
        "lr_schedulers": [], "hyper_parameters": argparse.Namespace(lr=1e-3),
    }  # fmt: skip
    torch.save(whole, path)


def program(net: nn.Module, path: Path) -> None:
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    torch.export.save(torch.export.export(net, (X,), dynamic_shapes=dynamic), path)


def onnx(dynamo: bool) -> Callable[[nn.Module, Path], None]:
    """By PyTorch's newer exporter, or by the one that goes through TorchScript."""
    return lambda net, path: _quiet(lambda: torch.onnx.export(net, (X,), path, dynamo=dynamo))


def traced(net: nn.Module, path: Path) -> None:
    _quiet(lambda: torch.jit.save(torch.jit.trace(net, X), path))


def scripted(net: nn.Module, path: Path) -> None:
    _quiet(lambda: torch.jit.save(torch.jit.script(net), path))


def keras(net: nn.Module, path: Path) -> None:
    """The same layers in Keras, channels last, a softmax behind them; with the same weights."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras as k

    la = k.layers
    twin = k.Sequential([
        la.Input((8, 8, 1)), la.Conv2D(16, 3, padding="same", activation="relu"),
        la.Conv2D(32, 3, padding="same", activation="relu"), la.MaxPooling2D(2), la.Flatten(),
        la.Dense(64, activation="relu"), la.Dense(10, activation="softmax"),
    ])  # fmt: skip
    state = [value.detach().numpy() for value in net.state_dict().values()]
    held = [layer for layer in twin.layers if layer.weights]
    for layer, weight, bias in zip(held, state[::2], state[1::2], strict=True):
        if weight.ndim == 4:
            weight = weight.transpose(2, 3, 1, 0)
        elif weight.shape[1] == np.prod(CONVOLVED):  # flattened channels last
            weight = weight.reshape(-1, *CONVOLVED).transpose(2, 3, 1, 0).reshape(-1, len(weight))
        else:
            weight = weight.T
        layer.set_weights([weight, bias])
    _quiet(lambda: twin.save(path))


def hugging_face(net: nn.Module, path: Path) -> None:
    """A vision transformer, in place of the network."""
    net.get_submodule("net").save_pretrained(path)  # type: ignore[operator]
    prep = {"image_mean": [0.5], "image_std": [0.5], "size": {"height": 8, "width": 8}}
    (path / "preprocessor_config.json").write_text(json.dumps(prep))


class Logits(nn.Module):
    """A network of transformers on normalised pixels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - 0.5) / 0.5).logits


def transformer() -> nn.Module:
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            image_size=8, patch_size=4, num_channels=1, hidden_size=48, num_hidden_layers=1,
            num_attention_heads=3, intermediate_size=96, hidden_dropout_prob=0.0,
            id2label={i: str(i) for i in range(10)}, label2id={str(i): i for i in range(10)},
        )  # fmt: skip
        return Logits(transformers.ViTForImageClassification(config))


# What it is called, the name of the file, how it is written, and what `scan` is told beside it.
FORMATS: dict[str, tuple[str, Callable[[nn.Module, Path], None], tuple[str, ...]]] = {
    "safetensors": ("model.safetensors", safetensors, ARCH),
    "pickled module": ("model.pth", pickled, ARCH),
    "Lightning": ("model.ckpt", lightning, ARCH),
    "torch.export": ("model.pt2", program, ()),
    "ONNX": ("model.onnx", onnx(True), ()),
    "ONNX through TorchScript": ("older.onnx", onnx(False), ()),
    "TorchScript traced": ("traced.pt", traced, SHAPE),
    "TorchScript scripted": ("scripted.pt", scripted, SHAPE),
    "Keras 3": ("model.keras", keras, ()),
    "Keras in HDF5": ("model.h5", keras, ()),
    "Hugging Face": ("vit", hugging_face, ()),
}


def _quiet(do: Callable[[], Any]) -> None:
    """Exporters tell much that is of no use here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out, sys.stdout = sys.stdout, sys.stderr
        try:
            do()
        finally:
            sys.stdout = out


def train(samples: Data, seed: int, hf: bool) -> nn.Module:
    """One network on some samples; of transformers, or of the task."""
    if hf:
        return fit(transformer(), samples, Recipe(epochs=20, lr=3e-3, batch_size=32, bf16=False), seed).eval()
    return fit(TASK.net(seed), samples, TASK.recipe, seed).eval()


def scan(path: Path, data: Path, out: Path, options: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Exit status, verdict and targets of a scan from the shell."""
    words = [sys.executable, "-m", "backsweep", "scan", path, "--data", data, "--out", out, "--seed", seed]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*map(str, words), *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True)  # noqa: S603
    file = out / "report.json"
    report = json.loads(file.read_text()) if file.is_file() else {}
    said = {"exit": done.returncode, "verdict": report.get("verdict", done.stderr.strip()[-200:])}
    return said | {"targets": report.get("targets", [])}


def main() -> None:
    parser = argparse.ArgumentParser(description="One network in every format: the same verdict in each.")
    parser.add_argument("--out", type=Path, default=Path("exports"))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    samples, test = TASK.load()
    setup = TASK.setup(samples, args.seed)
    (trigger,) = ATTACK.triggers(setup)
    data = args.out / "digits.npz"
    np.savez_compressed(data, x=(test.x[:, 0].numpy() * 255).round().astype("uint8"), y=test.y.numpy())
    sets = {"infected": ATTACK.poison(setup, [trigger])[0], "clean": samples}
    nets: dict[tuple[str, bool], nn.Module] = {}
    wrong = 0
    print(f"planted: one pixel, target {trigger.target}\n")
    print("| format | file | infected: exit, verdict, targets | clean: the same |\n|---|---|---|---|")
    for name in args.formats:
        file, write, options = FORMATS[name]
        cells = []
        for kind, given in sets.items():
            hf = write is hugging_face
            if (kind, hf) not in nets:
                nets[kind, hf] = train(given, args.seed, hf)
                model = Model(nets[kind, hf], TASK.shape)
                rate = model.success_rate(trigger, test)
                text = f"{kind}{' transformer' if hf else ''}: accuracy {model.accuracy(test.x, test.y):.1%}"
                print(f"{text}, success of the trigger {rate:.1%}", file=sys.stderr)
            path = args.out / kind / file
            path.parent.mkdir(exist_ok=True)
            write(nets[kind, hf], path)
            report = args.out / kind / f"report of {name}"
            said = scan(path, data, report, options, args.seed)
            cells.append(f"{said['exit']}, {said['verdict']}, {', '.join(map(str, said['targets'])) or '-'}")
            wanted = (1, [trigger.target]) if kind == "infected" else (0, [])
            wrong += (said["exit"], said["targets"]) != wanted
        print(f"| {name} | `{file}` | {' | '.join(cells)} |", flush=True)
    print(f"\n{wrong} of {2 * len(args.formats)} are not as they should be")
    sys.exit(min(wrong, 1))


if __name__ == "__main__":
    main()
