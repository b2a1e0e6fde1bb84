"""Networks of Hugging Face: the one that a folder means, of transformers or timm."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.formats.hugging_face import adapters, files, labels, language, preprocessing, sounds, texts
from backsweep.formats.timm import names as timm
from backsweep.inputs.language.causal import Causal
from backsweep.inputs.language.modality import Language
from backsweep.inputs.modality import Modality
from backsweep.inputs.sound.modality import Sound
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.tokens import Tokens


def read(
    path: Path, tokens: Tokens | None = None, base: Path | None = None
) -> tuple[nn.Module, dict[str, Any], str]:
    """The network, what `Model` needs to know of it (shape, mean, std, labels) with notes, and the digest.

    Args:
        path: the folder.
        tokens: the tokenizer of a text classifier or language model, instead of the folder's own.
        base: the folder of the model that an adapter belongs to, where `path` is an adapter.

    Raises:
        BadInput: not such a folder, code of its own, quantised weights, weights that do not fit or cannot be
            read, or transformers is not installed. Any other error means damage.
    """
    adapter = files.Folder(path)
    if base is None and files.is_adapter(adapter):
        raise BadInput(files.NO_BASE)
    if base is not None and adapters.CONFIG not in adapter.names:
        raise BadInput(adapters.NO_ADAPTER)
    if base is not None and not base.is_dir():
        raise BadInput(f"there is no folder {str(base)!r}; check base= (--base)")
    folder = adapter if base is None else files.Folder(base)
    config, prep = files.configs(folder)
    kind: Modality | None = None
    said: dict[str, Any]
    if sounds.is_sound(config) and tokens is None:
        kind = sounds.kind_of(prep)
        files.count_tokenizer(folder, config)
    elif texts.is_text(config):
        kind = Text(texts.tokens_of(folder, config) if tokens is None else tokens)
        if tokens is not None and files.TOKENIZER in folder.names:
            folder.read(files.TOKENIZER)  # it counts in the digest, whatever is used
    elif language.is_language(config):
        kind = language.modality_of(folder, config, tokens)
    elif tokens is not None:
        raise BadInput("it is no classifier of texts; leave out tokenizer= (--tokenizer)")
    weights, kept = files.weights(folder)
    if base is not None:
        weights = adapters.merged(adapter, weights, config)
        kept.append("its weights are those of the base with the adapter merged into them")
    if isinstance(kind, Language):
        said = {"shape": language.shape_of(config, kind), "modality": kind}
        notes = language.notes_of(kind, said["shape"])
        net = network(config, weights, kind)
    elif kind is not None:
        named, notes = labels.labels(config, labels.count(weights))
        shape = (kind.rate,) if isinstance(kind, Sound) else texts.shape_of(config)
        said = {"labels": named, "shape": shape, "modality": kind}
        text = f"of a text {shape[0]} tokens are looked at (--shape)"
        notes += sounds.notes_of(kind, prep) if isinstance(kind, Sound) else [text]
        net = network(config, weights, kind, prep)
    elif timm.is_timm(config):
        net = timm.network(config, weights)
        said, notes = timm.preprocessing(config, weights)
    else:
        said, notes = preprocessing.preprocessing(config, prep)
        said["labels"], more = labels.labels(config, labels.count(weights))
        notes += more
        net = _network(config, weights)
        if prep is not None and prep.get("do_flip_channel_order"):
            net.register_forward_pre_hook(_flip)
    digest = folder.digest if base is None else files.joined(folder.digest, adapter.digest)
    return net, {**said, "notes": [*kept, *notes]}, digest


def network(
    config: dict[str, Any],
    weights: Mapping[str, Tensor],
    kind: Modality | None = None,
    prep: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The network that a config names, with its weights; one over texts or sounds with what they are."""
    if isinstance(kind, Language):
        return Causal(_network(config, weights, kind), kind.layout_of_ids.pad)
    if isinstance(kind, Sound):
        return sounds.Classifier(_network(config, weights, kind), sounds.hearing(config, prep, kind))
    if isinstance(kind, Text):
        return texts.Classifier(_network(config, weights, kind), kind)
    return timm.network(config, weights) if timm.is_timm(config) else _network(config, weights)


def _network(
    config: dict[str, Any], weights: Mapping[str, Tensor], inputs: Modality | None = None
) -> nn.Module:  # fmt: skip
    """The network of transformers' own code for this config. No file is opened, no host is asked."""
    config = labels.completed(config, labels.count(weights))
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
                kind, settings = _kind(transformers, config, _task(inputs))
                if isinstance(inputs, Text):
                    settings = texts.settled(settings, inputs)
                elif inputs is not None:
                    settings = sounds.settled(settings)
                net, info = kind.from_pretrained(
                    None,
                    config=settings,
                    state_dict=dict(weights),
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


def _task(inputs: Modality | None) -> tuple[str, str]:
    """What transformers calls the networks that are meant, and what people do."""
    if isinstance(inputs, Language):
        return "CAUSAL_LM", "language model"
    what = inputs.name if inputs is not None else "image"
    task = {"text": "SEQUENCE", "sound": "AUDIO"}.get(what, "IMAGE")
    return f"{task}_CLASSIFICATION", f"{what} classifier"


def _kind(transformers: Any, config: dict[str, Any], task: tuple[str, str]) -> tuple[Any, Any]:
    """The class of the network, one of transformers' own, and the config as that has it."""
    kind = str(config.get("model_type"))
    if kind not in transformers.CONFIG_MAPPING:
        raise BadInput(
            f"its model_type {kind[:60]!r} is not known to transformers {transformers.__version__}; update "
            "transformers, or export the network (torch.export.save, torch.onnx.export)"
        )
    settings = transformers.CONFIG_MAPPING[kind].from_dict(config)
    known = getattr(transformers, f"MODEL_FOR_{task[0]}_MAPPING")
    if type(settings) not in known:
        raise BadInput(f"its model_type {kind[:60]!r} is no {task[1]} in transformers; give one")
    found = known[type(settings)]
    if isinstance(found, tuple):  # the config says which
        wanted = config.get("architectures") or ()
        found = next((c for c in found if c.__name__ in wanted), found[0])
    return found, settings


def _flip(net: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """RGB to BGR, for networks that were trained on that order."""
    return (args[0].flip(1), *args[1:])
