"""Folders of Hugging Face image classifiers. Only JSON and safetensors of them are read."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.text import some


class Folder:
    """The files of a folder, each read once.

    Attributes:
        names: the files that are there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = {p.name for p in path.iterdir() if p.is_file()}
        self._digests: dict[str, str] = {}

    def read(self, name: str) -> bytes:
        """Content of a file, which from then on counts in the digest."""
        blob = (self.path / name).read_bytes()
        self._digests[name] = hashlib.sha256(blob).hexdigest()
        return blob

    @property
    def digest(self) -> str:
        """SHA-256 of the names and contents of what was read, in sorted order."""
        return hashlib.sha256(repr(sorted(self._digests.items())).encode()).hexdigest()


def read(path: Path) -> tuple[nn.Module, dict[str, Any], str]:
    """The network, what `Model` needs to know of it (shape, mean, std, labels), and the digest.

    Raises:
        BadInput: not such a folder, code of its own, pickled or quantised weights, weights that do
            not fit, or transformers is not installed. Any other error means damage.
    """
    folder = Folder(path)
    if "config.json" not in folder.names:
        raise BadInput("this folder has no config.json, as a Hugging Face model has; name the model file")
    config = json.loads(folder.read("config.json"))
    _check_config(config)
    prep = {}
    if "preprocessor_config.json" in folder.names:
        prep = json.loads(folder.read("preprocessor_config.json"))
    weights: dict[str, Tensor] = {}
    for name in _weight_files(folder):
        weights.update(safetensors.torch.load(folder.read(name)))
    said = _preprocessing(config, prep)
    net = _network(config, weights)
    if prep.get("do_flip_channel_order"):
        net.register_forward_pre_hook(_flip)
    return net, said, folder.digest


def digest(path: Path) -> str:
    """The digest of a folder as `read` gives it, from its files alone.

    Raises:
        BadInput: not such a folder. Any other error means damage.
    """
    folder = Folder(path)
    if "config.json" not in folder.names:
        raise BadInput("this folder has no config.json, as a Hugging Face model has; name the model file")
    for name in ("config.json", "preprocessor_config.json"):
        if name in folder.names:
            folder.read(name)
    for name in _weight_files(folder):
        folder.read(name)
    return folder.digest


def numbers(values: Iterable[Any]) -> tuple[float, ...]:
    """Finite numbers out of JSON."""
    found = tuple(float(v) for v in values)
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{found} are not all finite")
    return found


def _check_config(config: dict[str, Any]) -> None:
    """Refuse what would make transformers run other code, and forget what picks implementations."""
    if "auto_map" in config:
        raise BadInput(
            "it asks for Python code of its own (auto_map in config.json), which is never run; "
            "save the weights and name the code with arch= (--arch)"
        )
    if config.get("quantization_config"):
        raise BadInput("it holds quantised weights, which are not readable yet; save it before quantisation")
    if str(config.get("model_type")).startswith("timm"):
        raise BadInput("it wraps a model of timm; save its weights and name the code with arch= (--arch)")
    for key, value in list(config.items()):
        if key.startswith("_") or key.endswith(("_implementation", "dtype")):
            del config[key]
        elif isinstance(value, dict):
            _check_config(value)


def _weight_files(folder: Folder) -> list[str]:
    if "model.safetensors" in folder.names:
        return ["model.safetensors"]
    if "model.safetensors.index.json" in folder.names:
        index = json.loads(folder.read("model.safetensors.index.json"))
        shards = sorted(set(index["weight_map"].values()))
        if absent := [s for s in shards if s not in folder.names]:
            raise BadInput(f"it lacks the weight files {some(absent)}; get the folder again")
        return shards
    if any(n.startswith(("pytorch_model", "tf_model", "flax_model")) for n in folder.names):
        raise BadInput(
            "it holds its weights as a pickle or for another framework; where it was made, call "
            "model.save_pretrained(folder), which writes safetensors"
        )
    raise BadInput("this Hugging Face folder has no model.safetensors; get the folder again")


def _preprocessing(config: dict[str, Any], prep: dict[str, Any]) -> dict[str, Any]:
    """Shape, normalisation in units of [0, 1], and labels, from the two JSON files."""
    size = prep.get("size") or config.get("image_size")
    if prep.get("do_center_crop") and prep.get("crop_size"):
        size = prep["crop_size"]
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    said: dict[str, Any] = {}
    if size:
        sides = (size, size) if isinstance(size, int) else size
        said["shape"] = tuple(int(n) for n in (config.get("num_channels", 3), *sides))
    # A pixel u in [0, 1] reaches the network as (255 * factor * u - offset - mean) / std.
    scale = 255 * float(prep.get("rescale_factor", 1 / 255)) if prep.get("do_rescale", True) else 255.0
    offset = 1.0 if prep.get("rescale_offset") else 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if prep.get("do_normalize", "image_mean" in prep):
        mean, std = numbers(prep["image_mean"]), numbers(prep["image_std"])
    if prep.get("include_top"):  # EfficientNet divides a second time
        std = tuple(s * s for s in std)
    said["mean"] = numbers((m + offset) / scale for m in mean)
    said["std"] = numbers(s / scale for s in std)
    names = {int(k): str(v) for k, v in (config.get("id2label") or {}).items()}
    if not all(v.startswith("LABEL_") for v in names.values()):
        said["labels"] = tuple(names[i] for i in range(len(names)))
    return said


def _network(config: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The network of transformers' own code for this config. No file is opened, no host is asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            transformers: Any = importlib.import_module("transformers")
        except ImportError as e:
            raise BadInput("this is a Hugging Face folder; to read it: pip install backsweep[hf]") from e
        log = transformers.utils.logging
        level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity(log.CRITICAL)
        log.disable_progress_bar()
        try:
            with torch.random.fork_rng(devices=[]):
                settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
                with torch.device("meta"):  # only to learn the class
                    kind = type(transformers.AutoModelForImageClassification.from_config(settings))
                net, info = kind.from_pretrained(
                    None,
                    config=settings,
                    state_dict=weights,
                    ignore_mismatched_sizes=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
        finally:
            log.set_verbosity(level)
            if bars:
                log.enable_progress_bar()
    lacking = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if lacking:
        raise BadInput(
            f"its weights do not fit its config.json: missing or of another shape {some(sorted(lacking))}; "
            "get the folder again"
        )
    module: nn.Module = net.float().eval()
    return module


def _flip(net: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """RGB to BGR, for networks that were trained on that order."""
    return (args[0].flip(1), *args[1:])
