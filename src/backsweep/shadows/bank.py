"""A bank of shadow networks, and the meta-classifiers that were tuned with it.

The bank is one safetensors file with a JSON header: queries, decisions and scores of held-out shadows, and
for which input shape, classes and family of networks they hold. A scan needs nothing else. Beside it,
in FILE.shadows/, lie the shadow networks, for tuning again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from backsweep.core import documents
from backsweep.core.errors import BadInput
from backsweep.core.files import writable_folder, write_bytes
from backsweep.core.progress import OnEvent, counted
from backsweep.core.seeds import derive_seed, run_key
from backsweep.core.text import one_line
from backsweep.core.versions import versions
from backsweep.engine.engine import Engine
from backsweep.engine.jobs import Lost
from backsweep.formats.building import named
from backsweep.inputs.samples import Data
from backsweep.models.grouped import nets_in_a_pass
from backsweep.models.model import Model
from backsweep.models.training import Recipe
from backsweep.reports.report import known_schema
from backsweep.shadows import meta_classifier, training
from backsweep.shadows.meta_classifier import Meta, Tuning
from backsweep.shadows.storage import Shelf, file_of, folder_of, key_of, measured, write

SCHEMA, HEADER, WEIGHTS = 1, "backsweep.bank", 4  # a decision has four tensors
TENSORS = ("queries", "scale", "null", "held_out", "reach", "clean")
HELD_OUT, LEAST_HELD_OUT = 0.2, 24  # share of the shadows that are not tuned with, and how many at least
LEAST_SHADOWS = 8  # a side, to tune with
APART = 0.35  # standard deviations between mean images beyond which samples are of another task


@dataclass(frozen=True)
class Bank:
    """What a scan needs of a bank.

    Attributes:
        about: archs, layouts, shape, classes, data, recipe, seed, shadows and held_out (a side), accuracy and
            success of the shadows, versions.
        mean, std: (C, H, W), of the clean samples.
        metas: the tuned meta-classifiers.
        digest: SHA-256 of the file it was read from.
    """

    about: Mapping[str, Any]
    mean: Tensor
    std: Tensor
    metas: tuple[Meta, ...] = ()
    digest: str = ""

    def meta(self, variant: str, form: str = meta_classifier.LOGITS, count: int | None = None) -> Meta:
        """The meta-classifier of a variant, of `count` shadows a side or of the most there are.

        Raises:
            BadInput: the bank has none; how to make one.
        """
        found = [
            m for m in self.metas if [m.variant, m.form, m.shadows] == [variant, form, count or m.shadows]
        ]
        if not found:
            there = ", ".join(f"{m.variant} ({m.form}) of {m.shadows}" for m in self.metas) or "none"
            wanted = f"{variant} ({form})" + (f" of {count} shadows" if count else "")
            raise BadInput(
                f"the bank has no meta-classifier {wanted}, it has {there}; make one: `backsweep bank tune`"
            )
        return max(found, key=lambda m: m.shadows)

    def outside(self, model: Model, data: Data) -> str:
        """Why this bank says nothing of a model, "" when it does: other inputs, classes, networks or task."""
        if reason := self._other_kind(model):
            return reason
        apart = float((((data.x.mean(0) - self.mean) / (self.std + 0.05)) ** 2).mean().sqrt())
        if apart > APART:
            return (
                f"the samples are not of the bank's task: their mean lies {apart:.2f} standard deviations off"
            )
        return ""

    def _other_kind(self, model: Model) -> str:
        about = self.about
        if [list(model.shape), model.classes] != [about["shape"], about["classes"]]:
            return (
                f"the bank is for inputs {tuple(about['shape'])} and {about['classes']} classes, "
                f"the model takes {model.shape} and has {model.classes}"
            )
        if model.gives and model.layout not in about["layouts"]:  # who only has answers vouches for the kind
            return f"the bank is for networks of the kind {', '.join(about['archs'])}, the model is another"
        return ""

    def calibrated(self, models: Sequence[Model]) -> Bank:
        """The bank with p-values that rest on the scores of networks that the caller vouches for.

        Raises:
            BadInput: one of them is not of the bank's kind.
        """
        for model in models:
            if reason := self._other_kind(model):
                raise BadInput(f"{model.source}: {reason}")
        ready = [model.copy() for model in models]
        metas = [
            replace(m, clean=torch.cat([m.scores(answers(model, m)) for model in ready])) for m in self.metas
        ]
        return replace(self, metas=tuple(metas))

    def save(self, path: Path) -> None:
        """Write the file in one step."""
        tensors = {"mean": self.mean, "std": self.std}
        for i, m in enumerate(self.metas):
            tensors |= {f"{i}.{part}": getattr(m, part) for part in TENSORS}
            tensors |= {f"{i}.weight{j}": w for j, w in enumerate(m.weights)}
        plain = [{k: getattr(m, k) for k in ("variant", "shadows", "seed", "form")} for m in self.metas]
        header = {"schema": SCHEMA, "about": self.about, "metas": plain}
        writable_folder(path.resolve().parent)
        content = {name: t.contiguous() for name, t in tensors.items()}
        write_bytes(path, save(content, metadata={HEADER: json.dumps(header)}))

    @staticmethod
    def load(path: str | Path) -> Bank:
        """Read what `save` wrote.

        Raises:
            BadInput: not a bank, damaged, or of a newer schema.
        """
        try:
            with safe_open(str(path), framework="pt") as f:
                header = documents.parsed((f.metadata() or {})[HEADER])
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            known_schema(header, str(path), SCHEMA)
            documents.check("bank", header)
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            metas = tuple(
                Meta(
                    **plain,
                    **{part: tensors[f"{i}.{part}"] for part in TENSORS},
                    weights=tuple(tensors[f"{i}.weight{j}"] for j in range(WEIGHTS)),
                )
                for i, plain in enumerate(header["metas"])
            )
            bank = Bank(header["about"], tensors["mean"], tensors["std"], metas, digest)
            bank.check()
            return bank
        except OSError as e:
            raise BadInput(
                f"cannot read the bank {path}: {e.strerror or e}; make it with `backsweep bank build`"
            ) from e
        except (SafetensorError, KeyError, ValueError) as e:
            raise BadInput(f"{path} is not a bank of Backsweep, or is damaged ({one_line(str(e))})") from e

    def check(self) -> None:
        """Whether all parts fit together.

        Raises:
            ValueError: they do not.
        """
        shape, classes = tuple(self.about["shape"]), int(self.about["classes"])
        if self.mean.shape != shape or self.std.shape != shape:
            raise ValueError("the mean image has another shape")
        for m in self.metas:
            r, hidden = len(m.queries), meta_classifier.HIDDEN
            wanted = [
                (r, hidden, meta_classifier.QUERIES * classes),
                (r, hidden),
                (r, hidden),
                (r,),
                (r, 2),
                (2,),
            ]
            if m.variant not in meta_classifier.VARIANTS or m.form not in meta_classifier.FORMS:
                raise ValueError(f"variant {m.variant!r}, form {m.form!r}")
            if [tuple(w.shape) for w in (*m.weights, m.scale, m.reach)] != wanted:
                raise ValueError("a decision has another shape")
            if m.queries.shape != (r, meta_classifier.QUERIES, *shape):
                raise ValueError("queries have another shape")
            if (m.null.ndim, m.held_out.ndim, m.clean.ndim, m.clean.shape[-1]) != (1, 1, 2, r):
                raise ValueError("scores have another shape")
            for tensor in (*(getattr(m, part) for part in TENSORS), *m.weights):
                if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                    raise ValueError("a tensor is not made of finite numbers")


@torch.no_grad()
def answers(model: Model, m: Meta) -> Tensor:
    """Logits (R, k, 1, classes) of a network on the queries of a meta-classifier: all that is asked of it."""
    return m.arranged(model.logits(m.asked.to(model.device)).float().cpu())


@lru_cache(maxsize=8)
def _opened(path: str, _stamp: tuple[int, int]) -> Bank:
    return Bank.load(path)


def opened(path: str) -> Bank:
    """`Bank.load`, once for many scans as long as the file stays the same."""
    try:
        stat = Path(path).stat()
    except OSError:
        return Bank.load(path)
    return _opened(path, (stat.st_mtime_ns, stat.st_size))


def build(
    data: Data, archs: Sequence[str], count: int, path: Path, *, recipe: Recipe | None = None,
    variants: Sequence[str] = meta_classifier.VARIANTS, tuning: Tuning | None = None, seed: int = 0,
    engine: Engine | None = None, device: str = "cpu", on_event: OnEvent | None = None,
) -> Bank:  # fmt: skip
    """Train a bank and tune its meta-classifiers; what an interrupted run has trained is kept.

    Args:
        data: the defender's clean samples; 2 % of a training set in the paper.
        archs: names in `backsweep.archs`, or "package.module:factory" of the user's own code; the shadows
            are dealt out to them.
        count: clean shadows, and as many trojaned ones.
        path: of the bank; the shadows lie beside it.

    Raises:
        BadInput: too few shadows, or an architecture that does not take the samples.
        Lost: a worker died at every try; the same call goes on where it was.
    """
    held_out = max(LEAST_HELD_OUT, round(HELD_OUT * count))
    if count - held_out < LEAST_SHADOWS:
        raise BadInput(f"{count} shadows a side are too few; give at least {LEAST_HELD_OUT + LEAST_SHADOWS}")
    recipe = recipe or training.standard(len(data))
    shape, classes = tuple(data.x.shape[1:]), int(data.y.max()) + 1
    layouts = [Model(named(a, classes, shape, 0).eval(), shape, classes).layout for a in archs]
    about: dict[str, Any] = {
        "archs": list(archs), "layouts": layouts, "shape": list(shape), "classes": classes,
        "data": {"source": data.source, "sha256": data.digest, "samples": len(data)},
        "recipe": asdict(recipe), "seed": seed, "shadows": count - held_out, "held_out": held_out,
    }  # fmt: skip
    folder = writable_folder(folder_of(path))
    parts = [
        (archs[i % len(archs)], indices)
        for i, indices in enumerate(training.groups(2 * count, shape, recipe, device))
    ]
    keys = [
        run_key(**{k: about[k] for k in ("data", "recipe", "seed")}, arch=a, indices=list(i))
        for a, i in parts
    ]
    todo = [i for i, (_, indices) in enumerate(parts) if key_of(file_of(folder, indices)) != keys[i]]
    jobs = (
        partial(
            training.train, partial(named, parts[i][0], classes, shape), data, classes, parts[i][1], recipe,
            seed, device,
        )
        for i in todo
    )  # fmt: skip
    tell = counted("shadows", len(parts), len(parts) - len(todo), on_event)
    for at, group in (engine or Engine()).run(jobs, shared=(data,)):
        if isinstance(group, Lost):
            raise group
        arch, indices = parts[todo[at]]
        write(file_of(folder, indices), group, {"key": keys[todo[at]], "arch": arch, "first": indices[0]})
        tell()
    kept = {file_of(folder, indices) for _, indices in parts}
    for old in set(folder.glob("*.safetensors")) - kept:  # of a larger bank, or of other settings
        old.unlink()
    about |= measured(folder) | versions()
    bank = Bank(about, data.x.mean(0), data.x.std(0))
    return tuned(bank, path, variants, archs=archs, seed=seed, tuning=tuning, on_event=on_event)


def tuned(
    bank: Bank, path: Path, variants: Sequence[str], *, counts: Sequence[int | None] = (None,),
    archs: Sequence[str] = (), seed: int = 0, tuning: Tuning | None = None, on_event: OnEvent | None = None,
) -> Bank:  # fmt: skip
    """The bank with further meta-classifiers, tuned with its shadows; the file is written anew.

    One of the same variant and number of shadows is replaced.

    Args:
        path: of the bank.
        counts: shadows a side to tune with, each; None is all that are not held out.
        archs: code of the user's own that may be run, as the bank names it.

    Raises:
        BadInput: more shadows than there are, they are not there, or code that was not allowed.
    """
    about, most = bank.about, int(bank.about["shadows"])
    for arch in about["archs"]:
        if ":" in arch and arch not in archs:
            raise BadInput(
                f"the bank is for networks that the code {arch!r} makes; allow it with --arch {arch}"
            )
    wanted = [(v, most if c is None else c) for v in variants for c in counts]
    for variant, count in wanted:
        if variant not in meta_classifier.VARIANTS:
            raise BadInput(
                f"there is no variant {variant!r}; there are {', '.join(meta_classifier.VARIANTS)}"
            )
        if not LEAST_SHADOWS <= count <= most:
            raise BadInput(f"{count} shadows a side cannot be tuned with; the bank has {most}")
    tell = counted("tuning", len(wanted), 0, on_event)
    size = min(
        (tuning or Tuning()).nets,
        meta_classifier.NETS,
        nets_in_a_pass(about["shape"], meta_classifier.QUERIES),
    )
    first = 2 * most
    held_out = Shelf(folder_of(path), about, range(first, first + 2 * int(about["held_out"])), size)
    for variant, count in wanted:
        shelf = Shelf(folder_of(path), about, range(2 * count), size)
        own = derive_seed(seed, "meta", variant, count)
        found = meta_classifier.tune(
            shelf, held_out, (bank.mean, bank.std), about["classes"], variant, own, tuning
        )
        own_key = (found.variant, found.form, found.shadows)
        others = tuple(m for m in bank.metas if (m.variant, m.form, m.shadows) != own_key)
        bank = replace(bank, metas=(*others, found))
        tell()
    bank.save(path)
    return bank
