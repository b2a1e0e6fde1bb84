"""timm's names of architectures, and folders whose config.json names one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line, some
from backsweep.formats.hugging_face.preprocessing import numbers
from backsweep.formats.timm import mobilenet
from backsweep.formats.timm.convnext import ConvNeXt
from backsweep.formats.timm.resnet import ResNet
from backsweep.formats.timm.vit import VisionTransformer

Make = Callable[..., nn.Module]

_WAY_OUT = "export it where timm is: torch.onnx.export, or torch.export.export and torch.export.save (.pt2)"
# what is without effect when a network answers
_IDLE = {
    "num_classes", "in_chans", "drop_rate", "drop_path_rate", "pos_drop_rate", "patch_drop_rate",
    "proj_drop_rate", "attn_drop_rate", "weight_init", "fix_init", "zero_init_last", "head_init_scale",
    "pretrained", "drop_block_rate", "strict_img_size", "dynamic_img_size", "ls_init_value",
}  # fmt: skip

_DEPTHS = {"18": (2, 2, 2, 2), "26": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3),
           "101": (3, 4, 23, 3), "152": (3, 8, 36, 3), "200": (3, 24, 36, 3)}  # fmt: skip
_STEMS = {"": {}, "c": {"stem": 32}, "d": {"stem": 32, "averaged": True}, "s": {"stem": 64}}
_WIDTHS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "medium": (512, 12, 8), "base": (768, 12, 12),
           "large": (1024, 24, 16), "huge": (1280, 32, 16)}  # fmt: skip
_CONVNEXT = {
    "atto": ((2, 2, 6, 2), 40, True), "femto": ((2, 2, 6, 2), 48, True), "pico": ((2, 2, 6, 2), 64, True),
    "nano": ((2, 2, 8, 2), 80, True), "tiny": ((3, 3, 9, 3), 96, False), "small": ((3, 3, 27, 3), 96, False),
    "base": ((3, 3, 27, 3), 128, False), "large": ((3, 3, 27, 3), 192, False),
    "xlarge": ((3, 3, 27, 3), 256, False), "huge": ((3, 3, 27, 3), 352, False),
}  # fmt: skip
_EFFICIENT = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of timm, or of transformers' wrapper around it."""
    return "architecture" in config and config.get("model_type") in (None, "timm_wrapper")


def bare(key: str) -> str:
    """timm's own name of a weight, without what transformers puts before it."""
    return key.removeprefix("timm_model.")


def network(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of a config.json of timm, with its weights.

    Raises:
        BadInput: an architecture or a setting that is not known here, or weights of another network.
    """
    named = {bare(k): v for k, v in weights.items()}
    net = _built(config, named)
    state = {k: v.reshape(()).long() if k.endswith("num_batches_tracked") else v for k, v in named.items()}
    wanted = net.state_dict()
    for name, value in wanted.items():  # older files have no counters; they are of no use here
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros((), dtype=value.dtype))
    wrong = [n for n, v in wanted.items() if n not in state or state[n].shape != v.shape]
    if wrong := sorted({*wrong, *(state.keys() - wanted.keys())}):
        raise BadInput(
            f"its weights do not fit the architecture {_shown(config)}: missing, not expected or of another "
            f"shape {some(wrong)}; {_WAY_OUT}"
        )
    net.load_state_dict(state, assign=True)
    return net.float().eval()


def preprocessing(
    config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], list[str]]:
    """Shape, normalisation and labels as `Model` takes them, and what should be known of them.

    Raises:
        BadInput: they are not there. Any other error means damage.
    """
    prep = _cfg(config)
    missing = [k for k in ("input_size", "mean", "std") if not prep.get(k)]
    if missing:
        raise BadInput(f"its config.json does not say {some(missing)} (in pretrained_cfg); add that")
    size = tuple(int(n) for n in prep["input_size"])
    channels = _inputs(weights) or size[0]
    said: dict[str, Any] = {
        "shape": (channels, *size[1:]),
        "mean": numbers(prep["mean"]),
        "std": numbers(prep["std"]),
    }
    names = config.get("label_names") or prep.get("label_names")
    if isinstance(names, list) and len(names) == _classes(config):
        said["labels"] = [str(n) for n in names]
    notes = []
    share = float(prep.get("crop_pct") or 1)
    if share != 1 or prep.get("interpolation", "bilinear") != "bilinear":
        notes.append(
            f"its own preprocessing resizes by {one_line(str(prep.get('interpolation')))[:20]} and keeps the "
            f"middle {share:.3g} of an image; here images are resized bilinearly as a whole"
        )
    return said, notes


def _cfg(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("pretrained_cfg") or config
    return found if isinstance(found, dict) else {}


def _classes(config: Mapping[str, Any]) -> int:
    found = next((c.get("num_classes") for c in (config, _cfg(config)) if c.get("num_classes")), None)
    if found is None:
        found = len(config.get("id2label") or config.get("label_names") or ())
    if type(found) is not int or not 1 < found < 2**20:
        raise BadInput(f"its config.json says num_classes {found!r}; a classifier has at least 2")
    return found


def _inputs(weights: Mapping[str, Tensor]) -> int:
    """Channels of the images: of the first convolution."""
    first = r"(conv1|conv1\.0|conv_stem|stem\.0|patch_embed\.proj)\.weight"
    found = (v for k, v in weights.items() if re.fullmatch(first, bare(k)) and v.ndim == 4)
    return next((int(v.shape[1]) for v in found), 0)


def _shown(config: Mapping[str, Any]) -> str:
    return repr(one_line(str(config.get("architecture")))[:80])


def _built(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """The network without values."""
    name = str(config["architecture"]).split(".")[0]
    given = config.get("model_args") or {}
    if not isinstance(given, dict):
        raise BadInput("model_args in its config.json is no table; get the folder again")
    args = {k: v for k, v in given.items() if k not in _IDLE}
    size = given.get("img_size") or _cfg(config).get("input_size", (3, 224, 224))[1:]
    sides = (size, size) if isinstance(size, int) else tuple(int(n) for n in size)
    pool = config.get("global_pool", args.pop("global_pool", None))
    found = _maker(name, args, sides, pool)
    if found is None:
        raise BadInput(
            f"timm's architecture {_shown(config)} is not among those that are read (ResNet, ResNeXt, ViT, "
            f"DeiT, ConvNeXt, MobileNet V2 and V3, EfficientNet); {_WAY_OUT}"
        )
    if args:
        raise BadInput(
            f"timm's setting {some(args)} of {_shown(config)} (model_args in config.json) is not known here; "
            f"{_WAY_OUT}"
        )
    with torch.device("meta"):
        return found(_classes(config), _inputs(weights) or 3)


def _maker(name: str, args: dict[str, Any], sides: tuple[int, ...], pool: Any) -> Make | None:
    """What builds an architecture for a number of classes and of channels; takes from `args` what it uses."""
    kinds: tuple[Callable[..., Make | None], ...] = (_resnet, _transformer, _convnext, _mobile)
    return next((m for kind in kinds if (m := kind(name, args, sides, pool)) is not None), None)


def _pooled(name: str, pool: Any, known: tuple[Any, ...]) -> None:
    if pool not in (None, *known):
        raise BadInput(
            f"global_pool {one_line(str(pool))[:40]!r} of timm's {name} is not known here; {_WAY_OUT}"
        )


def _numbers(value: Any) -> tuple[int, ...]:
    """Sizes out of JSON, which could make a network of any size."""
    found = tuple(int(n) for n in value)
    if not 0 < len(found) < 16 or not all(0 < n < 2**16 for n in found):
        raise BadInput(
            f"sizes {value!r} in its config.json are none of an image network".replace("\n", " ")[:200]
        )
    return found


def _number(value: Any) -> int:
    return _numbers([value])[0]


def _resnet(name: str, args: dict[str, Any], _sides: Any, pool: Any) -> Make | None:
    plain = re.fullmatch(r"resnet(18|26|34|50|101|152|200)(c|d|s)?", name)
    wide = re.fullmatch(r"wide_resnet(50|101)_2", name)
    many = re.fullmatch(r"resnext(50|101)(d?)_(32|64)x(\d+)d", name)
    match = plain or wide or many
    if match is None:
        return None
    _pooled(name, pool, ("avg",))
    settings: dict[str, Any] = {}
    if plain:
        settings |= _STEMS[plain[2] or ""]
    elif wide:
        settings["width"] = 128
    elif many:
        settings |= {**_STEMS[many[2]], "groups": int(many[3]), "width": int(many[4])}
    layers = _numbers(args.pop("layers", _DEPTHS[match[1]]))
    if "channels" in args:
        settings["channels"] = _numbers(args.pop("channels"))
    deep = match[1] not in ("18", "34")
    return lambda classes, inputs: ResNet(classes, inputs, layers, deep, **settings)


def _transformer(name: str, args: dict[str, Any], sides: tuple[int, ...], pool: Any) -> Make | None:
    match = re.fullmatch(
        r"(vit|deit|deit3)_(tiny|small|medium|base|large|huge)(_distilled)?_patch(8|14|16|32)_(\d+)", name
    )
    if match is None or (match[3] and match[1] != "deit"):
        return None
    _pooled(name, pool, ("token", "avg"))
    dim, depth, heads = _WIDTHS[match[2]]
    third = match[1] == "deit3"
    scaled = args.pop("init_values", 1e-6 if third else None) is not None
    settings = {
        "dim": _number(args.pop("embed_dim", dim)), "depth": _number(args.pop("depth", depth)),
        "heads": _number(args.pop("num_heads", heads)),
        "patch": _number(args.pop("patch_size", int(match[4]))),
        "ratio": float(args.pop("mlp_ratio", 4.0)), "apart": bool(args.pop("no_embed_class", third)),
        "bias": bool(args.pop("qkv_bias", True)), "distilled": bool(match[3]), "averaged": pool == "avg",
        "scaled": scaled,
    }  # fmt: skip
    if settings["dim"] % settings["heads"] or not 0 < settings["ratio"] < 64:
        raise BadInput(
            f"the sizes of timm's {name} in its config.json do not go together; get the folder again"
        )
    return lambda classes, inputs: VisionTransformer(classes, inputs, (sides[0], sides[1]), **settings)


def _convnext(name: str, args: dict[str, Any], _sides: Any, pool: Any) -> Make | None:
    match = re.fullmatch(r"convnext(v2)?_(\w+)", name)
    if match is None or match[2] not in _CONVNEXT:
        return None
    _pooled(name, pool, ("avg",))
    usual, dim, convolved = _CONVNEXT[match[2]]
    depths = _numbers(args.pop("depths", usual))
    dims = _numbers(args.pop("dims", [dim, 2 * dim, 4 * dim, 8 * dim]))
    settings = {
        "convolved": bool(args.pop("conv_mlp", convolved)),
        "second": bool(args.pop("use_grn", match[1])),
    }
    if len(depths) != len(dims):
        raise BadInput(f"depths and dims of timm's {name} in its config.json differ in number")
    return lambda classes, inputs: ConvNeXt(classes, inputs, depths, dims, **settings)


def _mobile(name: str, args: dict[str, Any], _sides: Any, pool: Any) -> Make | None:
    second = re.fullmatch(r"mobilenetv2_(035|050|075|100|140|110d|120d)", name)
    third = re.fullmatch(r"mobilenetv3_(large|small)_(050|075|100)", name)
    efficient = re.fullmatch(r"efficientnet_b([0-7])", name)
    _pooled(name, pool, ("avg",) if second or third or efficient else (pool,))
    if second:
        fixed = second[1].endswith("d")
        width, depth = int(second[1][:3]) / 100, {"110d": 1.2, "120d": 1.4}.get(second[1], 1.0)
        return lambda classes, inputs: mobilenet.mobilenet_v2(classes, inputs, width, depth, fixed)
    if third:
        return lambda classes, inputs: mobilenet.mobilenet_v3(
            classes, inputs, int(third[2]) / 100, third[1] == "small"
        )
    if not efficient:
        return None
    factors = _EFFICIENT[int(efficient[1])]
    return lambda classes, inputs: mobilenet.efficientnet(classes, inputs, *factors)
