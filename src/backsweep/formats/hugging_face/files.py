"""The files of a folder of Hugging Face: what its configs say, and its weights. No code in them is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.pickles.checkpoints import open_checkpoint
from backsweep.formats.timm import names as timm

CONFIGS = ("config.json", "preprocessor_config.json")
TOKENIZER, SEQUENCES = "tokenizer.json", "ForSequenceClassification"  # of text classifiers
NEXT_TOKEN = ("ForCausalLM", "LMHeadModel")  # of language models, which also have:
TOKENIZER_CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
NO_BASE = (
    "this is an adapter, not a model; name the folder of the model that it belongs to with base= (--base)"
)
PICKLE = "pytorch_model.bin"
INDEX = "model.safetensors.index.json"
_AGAIN = "get all of its files again"
MOST_BYTES = 2**26  # of an index or a config
_NO_CONFIG = "this folder has no config.json, as a Hugging Face model has; name the model file"
_PICKLES = (
    "it holds its weights as a pickle or for another framework; where it was made, call "
    "model.save_pretrained(folder), which writes safetensors"
)


class Folder:
    """The files of a folder, each read once.

    Attributes:
        names: the files that are there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = {p.name for p in path.iterdir() if p.is_file()}
        self._digests: dict[str, str] = {}

    def read(self, name: str, most: int = 2**62) -> bytes:
        """Content of a file, which from then on counts in the digest.

        Raises:
            BadInput: it has more bytes than `most`.
        """
        if (self.path / name).stat().st_size > most:
            raise BadInput(f"{name!r} has more than {most:,} bytes; get it again")
        blob = (self.path / name).read_bytes()
        self._digests[name] = hashlib.sha256(blob).hexdigest()
        return blob

    @property
    def digest(self) -> str:
        """SHA-256 of the names and contents of what was read, in sorted order."""
        return hashlib.sha256(repr(sorted(self._digests.items())).encode()).hexdigest()


def is_adapter(folder: Folder) -> bool:
    """Whether a folder is an adapter of PEFT and no model of its own."""
    return ADAPTER[0] in folder.names and "config.json" not in folder.names


def joined(*digests: str) -> str:
    """The digest of several folders."""
    return hashlib.sha256(repr(digests).encode()).hexdigest()


def digest(path: Path, base: Path | None = None) -> str:
    """The digest of a folder as `read` gives it, from its files alone.

    Args:
        base: the folder that an adapter belongs to, where `path` is one.

    Raises:
        BadInput: not such a folder. Any other error means damage.
    """
    folder = Folder(path)
    if is_adapter(folder):
        if base is None:
            raise BadInput(NO_BASE)
        for name in ADAPTER:
            folder.read(name)
        return joined(digest(base), folder.digest)
    if "config.json" not in folder.names:
        raise BadInput(_NO_CONFIG)
    for name in CONFIGS:
        if name in folder.names:
            folder.read(name)
    count_tokenizer(folder, json.loads(folder.read("config.json")))
    for name in weight_files(folder):
        folder.read(name)
    return folder.digest


def count_tokenizer(folder: Folder, config: Any) -> None:
    """What texts are read with counts in the digest, wherever a network of this config may look at it."""
    for name in tokenizer_files(config):
        if name in folder.names:
            folder.read(name)


def tokenizer_files(config: Any) -> tuple[str, ...]:
    """Names of the files that a network of this config is read with, where they are there."""
    names = config.get("architectures") if isinstance(config, dict) else None
    named = [str(n) for n in names] if isinstance(names, list) else []
    if any(n.endswith(NEXT_TOKEN) for n in named):
        return TOKENIZER, TOKENIZER_CONFIG, TEMPLATE
    return (TOKENIZER,) if any(n.endswith(SEQUENCES) for n in named) else ()


def configs(folder: Folder) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What config.json and, if it is there, preprocessor_config.json say.

    Raises:
        BadInput: it asks for code of its own, or is of no network that is judged. Any other error: damage.
    """
    if "config.json" not in folder.names:
        raise BadInput(_NO_CONFIG)
    found: list[dict[str, Any]] = []
    for name in CONFIGS:
        if name in folder.names:
            found.append(json.loads(folder.read(name, MOST_BYTES)))
            if not isinstance(found[-1], dict):
                raise BadInput(f"its {name} is no table; get the folder again")
    _check_config(found[0])
    _check_task(found[0])
    return found[0], found[1] if len(found) > 1 else None


def weight_files(folder: Folder) -> list[str]:
    """Names of the files that hold the weights.

    Raises:
        BadInput: there are none that can be read.
    """
    if "model.safetensors" in folder.names:
        return ["model.safetensors"]
    if INDEX in folder.names:
        return sorted(set(listed(folder, INDEX).values()))
    if PICKLE in folder.names:
        return [PICKLE]
    if any(n.startswith(("pytorch_model", "tf_model", "flax_model")) for n in folder.names):
        raise BadInput(_PICKLES)
    raise BadInput("this Hugging Face folder has no model.safetensors; get the folder again")


def weights(folder: Folder) -> tuple[dict[str, Tensor], list[str]]:
    """All weights, and what should be known of how they are kept."""
    found: dict[str, Tensor] = {}
    names = weight_files(folder)
    files = listed(folder, INDEX) if names != [PICKLE] and "model.safetensors" not in folder.names else None
    for name in names:
        found |= shard(folder, name, files) if files is not None else tensors(name, folder.read(name))
    notes = [f"its weights are those of {PICKLE}, a pickle: it is read as data, and nothing in it is run"]
    return found, notes if names == [PICKLE] else []


def tensors(name: str, blob: bytes) -> dict[str, Tensor]:
    """The weights in a file of a folder.

    Raises:
        BadInput: it is a pickle of something else. Any other error means damage.
    """
    if name != PICKLE:
        return dict(safetensors.torch.load(blob))
    found = open_checkpoint(blob).value
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    held = {str(k): v.detach() for k, v in found.items() if isinstance(v, Tensor)}
    if not held:
        raise BadInput(f"{PICKLE} holds no weights by name; {_PICKLES}")
    return held


def listed(folder: Folder, index: str) -> dict[str, str]:
    """The file of every weight, as an index says. Names of files stay inside the folder.

    Raises:
        BadInput: it is no index, or of other files than are there. Any other error means damage.
    """
    table = json.loads(folder.read(index, MOST_BYTES))
    files = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise BadInput('it is JSON without a "weight_map", so it is no index of weights; name the model')
    if absent := sorted(set(files.values()) - folder.names):
        raise BadInput(f"it names files that are not in its folder: {some(absent)}; {_AGAIN}")
    return files


def shard(folder: Folder, name: str, files: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights in one file of an index.

    Raises:
        BadInput: they are others than the index says. Any other error means damage.
    """
    part = dict(safetensors.torch.load(folder.read(name)))
    if wrong := sorted(set(part) ^ {key for key, place in files.items() if place == name}):
        raise BadInput(f"{name!r} does not hold what the index says: {some(wrong)}; {_AGAIN}")
    return part


def _check_config(config: dict[str, Any]) -> None:
    """Refuse what would make transformers run other code, and forget what picks implementations."""
    if "auto_map" in config:
        raise BadInput(
            "it asks for Python code of its own (auto_map in config.json), which is never run; "
            "save the weights and name the code with arch= (--arch)"
        )
    if config.get("quantization_config"):
        raise BadInput("it holds quantised weights, which are not readable yet; save it before quantisation")
    for key, value in list(config.items()):
        if key.startswith("_") or key.endswith(("_implementation", "dtype")):
            del config[key]
        elif isinstance(value, dict):
            _check_config(value)


def _check_task(config: dict[str, Any]) -> None:
    """Refuse what is no classifier of single inputs."""
    if str(config.get("model_type")).startswith("timm") and not timm.is_timm(config):
        raise BadInput(
            "it wraps a model of timm, and does not say which (architecture); get the folder again"
        )
    if config.get("problem_type") == "multi_label_classification":
        raise BadInput(
            "it judges labels independently of each other (multi-label); only networks with one class for "
            "each input are judged"
        )
    if config.get("problem_type") == "regression" or len(config.get("id2label") or "..") == 1:
        raise BadInput("it predicts a number (regression, one label), not a class; give a classifier")
