"""A classifier under suspicion: normalisation, bounds, logits and penultimate features.

Normalisation lives here and nowhere else: every method works on inputs in the range of their modality
([0, 1] for images), the space in which a trigger is stamped, and the network's own preprocessing is applied
after the stamp.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.inputs.held import part_of
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.modality import Modality
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models import black_box, outputs
from backsweep.models.layers import Kept, Tap, leaving, pool, set_mode

READING = ("weights", "pixel_range", "input_layout")  # how a model can be read, as reports name it


class Model:
    """A classifier; over images in [0, 1] unless said otherwise.

    Args:
        net: any module that maps (N, *shape) to (N, classes), logits, probabilities or their logarithms, or
            to one number for two classes; alone, or in a tuple or dictionary. Weights of another dtype than
            float32 are computed with in float32, in a copy.
        shape: shape of one input, (channels, height, width).
        classes: number of classes. None: as many as the network yields.
        mean: of the network's own normalisation, per channel, in units of the [0, 1] range; it is
            applied to the input just before the network. None: the network takes [0, 1].
        std: likewise.
        layer: name of the submodule whose output is the penultimate representation. None: the
            input of the last affine operation that yields `classes` values.
        labels: names of the classes.
        pixel_range: what the network takes white for: 1, or 255 if it wants raw pixels. `mean` and `std` are
            then in those units.
        layout: "NCHW", or "NHWC" if the network wants channels last; `shape` is (channels, height, width)
            all the same.
        source: where the model came from, as shown in reports.
        modality: what an input is.

    Raises:
        BadInput: the network does not accept `shape`, does not yield `classes` values, judges labels
            independently of each other, or has weights that are NaN or infinite.

    Attributes:
        resize: whether `load` found that images are to be resized to `shape` on their way in.
        arch, base: the factory that `load` was given and the folder that it is an adapter of, on record.
        references: networks to compare with that were given or made, by name (`washing.py`).
        changes: of a working copy: what an inversion found that others ask about (`screens.py`).
        place, entry: path of its files, and the entry that `load` was asked for.
        origin: digest of the file that it was loaded from; copies keep it.
        unknown: names of what the file holds beside tensors and plain data; untrusted text.
        notes: what was done to read the model, a line each; untrusted text.
        kept: of a working copy: what was computed for clean inputs (`prefix.py`).
        alike: a network that computes the same up to one of its calls, and that call's index.
    """

    resize: bool = False
    arch: str | None = None
    base: str | None = None
    place: str = ""
    origin: str = ""
    entry: str | None = None
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _format: torch.memory_format = torch.contiguous_format
    alike: tuple[Model, int] | None = None
    _layers: int | None = None

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        classes: int | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        layer: str | None = None,
        labels: Sequence[str] | None = None,
        pixel_range: float | None = None,
        layout: str | None = None,
        source: str = "",
        digest: str = "",
        modality: Modality = IMAGE,
    ) -> None:
        self.net, said = outputs.unwrapped(net)
        self.shape = tuple(int(n) for n in shape)
        self.classes = int(classes or 0)
        self.mean, self.std = mean, std
        self.layer = layer
        self.labels = tuple(str(n) for n in labels) if labels else None
        self.pixel_range, self.channels_last = float(pixel_range or 1), layout == "NHWC"
        self.source = source or type(net).__name__
        self.modality = modality
        self.kept = Kept()
        self.references: dict[str, Model | None] = {}
        self.changes: dict[tuple[object, ...], Tensor] = {}
        self._digest = digest
        outputs.check_settings(self.shape, mean, std, layout)
        outputs.check_finite(self.net)
        lent, self._dtype = self.net, torch.float32
        self.net, turned = outputs.in_float32(lent)
        try:
            self._probe()
        except BadInput:
            if not turned:
                raise
            self.net, turned = lent, []  # it may turn its inputs itself to the dtype that it computes in
            self._dtype = next(t.dtype for t in self._tensors() if t.is_floating_point())
            self._probe()
        self.notes = tuple(filter(None, (*said, *turned, self._answer.note())))

    @staticmethod
    def black_box(
        answer: black_box.Answers, shape: Sequence[int], *, batch: int = 64, **settings: Any
    ) -> Model:
        """A model of which only answers are known: `answer`, `batch` as for `Asked`, the rest as for `Model`.

        Raises:
            BadInput: it fails, or answers with something else than class scores.
        """
        model = Model(black_box.Asked(answer, batch), shape, **{"source": "black box", **settings})
        model.notes = (black_box.NOTE, *model.notes)
        return model

    def __repr__(self) -> str:
        return f"Model({self.source!r}, shape={self.shape}, classes={self.classes})"

    # ------------------------------------------------------------------ what methods call

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, classes) for inputs x (N, *shape) in [0, 1]; differentiable in x."""
        if not self._answer.at_head:
            return self._answer.logits(self._run(x))
        with Tap(self._head) as tap:
            self._run(x)
        return self._answer.logits(tap.seen[0][1].float())

    def features(self, x: Tensor) -> Tensor:
        """Penultimate representation (N, D) for inputs x (N, *shape) in [0, 1]."""
        if self.layer is not None:
            return pool(leaving(self.net.get_submodule(self.layer), lambda: self._run(x)))
        if self._head is None:
            raise BadInput(
                "no penultimate layer was found in this network; name one with layer=... (--layer)"
            )
        with Tap(self._head) as tap:
            self._run(x)
        return pool(tap.seen[0][0])

    def layers(self) -> int:
        """Number of affine operations (fully connected or convolutional) before the head.

        They are the embedding layers that `embedded` and `logits_at` know by their index, 0 is the first.
        """
        if self._layers is None:
            with torch.no_grad(), Tap() as tap:
                self._run(self.modality.blank(1, self.shape).to(self.device))
            self._layers = len(tap.seen) - 1 if self._head is None else self._head
        return self._layers

    def affine(self) -> list[str]:
        """Names of the weights of the affine operations, the head last, in the order in which they run.

        "" where an operation multiplies with something that is no parameter (as attention does).
        """
        names = {p.untyped_storage().data_ptr(): n for n, p in self.net.named_parameters()}
        with torch.no_grad(), Tap() as tap:
            self._run(self.modality.blank(1, self.shape).to(self.device))
        count = len(tap.weights) if self._head is None else self._head + 1
        return [names.get(w.untyped_storage().data_ptr(), "") for w in tap.weights[:count]]

    @torch.no_grad()
    def entering(self, x: Tensor, layer: int) -> Tensor:
        """Input of the affine operation `layer`, (N, D), (N, T, D) or (N, D, H, W), for x (N, *shape)."""
        with Tap(layer) as tap:
            self._run(x)
        return tap.seen[0][0]

    @torch.no_grad()
    def embedded(self, x: Tensor, layer: int) -> Tensor:
        """Output of the affine operation `layer` for inputs x (N, *shape): (N, D) or (N, D, H, W)."""
        with Tap(layer) as tap:
            self._run(x)
        return tap.seen[0][1]

    def logits_at(self, x: Tensor, layer: int, shift: Tensor) -> Tensor:
        """Logits (N, classes) when `shift` is added to the output of the affine operation `layer`."""
        with Tap(layer, shift):
            return self.logits(x)

    def head(self) -> tuple[Tensor, Tensor]:
        """Weight (classes, D) and bias (classes,) of the head: logits = features W' + b.

        They are read off the gradient, whatever the head is written as.

        Raises:
            BadInput: the logits are not an affine map of `features`.
        """
        if self._head is None:
            raise BadInput("no penultimate layer was found in this network")
        x = self.modality.random(4, self.shape, torch.Generator().manual_seed(0)).to(self.device)
        with torch.enable_grad(), Tap(self._head, lift=True) as tap:
            out = self.logits(x)
        z = tap.seen[0][0]
        if not out.requires_grad:
            raise BadInput("this network cannot be differentiated")
        rows = [torch.autograd.grad(k, z, retain_graph=True)[0][0].flatten() for k in out[0]]
        weight, out = torch.stack(rows), out.detach()
        with torch.no_grad():
            known = self.features(x)
        if known.shape[1] == weight.shape[1]:
            bias = (out - known @ weight.T)[0]
            if torch.allclose(known @ weight.T + bias, out, rtol=1e-3, atol=1e-3 * float(out.abs().max())):
                return weight, bias
        raise BadInput("the logits of this network are not an affine map of its penultimate layer")

    def logits_and_embedded(self, x: Tensor, layer: int | None) -> tuple[Tensor, Tensor]:
        """Logits and `embedded` (layer None: `features`) in one pass, both differentiable in x."""
        if layer is None and (self.layer is not None or self._head is None):
            return self.logits(x), self.features(x)
        with Tap(self._head if layer is None else layer) as tap:
            logits = self.logits(x)
        before, after = tap.seen[0]
        return logits, pool(before) if layer is None else after

    @torch.no_grad()
    def predict(self, x: Tensor, batch_size: int | None = None) -> Tensor:
        """Predicted class (N,) on the CPU, in batches; by default of about four million values."""
        device = self.device
        batch_size = batch_size or self._batch_size
        parts = [self.logits(b.to(device)).argmax(1).cpu() for b in x.split(batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)

    @property
    def _batch_size(self) -> int:
        return max(1, min(512, 2**22 // self.modality.numbers(self.shape)))

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """Share of x (N, *shape) that is classified as y (N,)."""
        return float((self.predict(x) == y).double().mean())

    def success_rate(self, trigger: Trigger, data: Data) -> float:
        """Attack success rate: share of triggered inputs that reach the class they are sent to.

        Inputs that are of that class already are left out; a source-specific trigger is measured on
        its source class alone.
        """
        wanted = trigger.labels(data.y, self.classes)
        rows = data.y != wanted if trigger.source is None else data.y == trigger.source
        size = part_of(data.x.shape, self._batch_size)
        parts = torch.nonzero(rows).flatten().split(size)
        reached = [self.predict(trigger(data.x[part])) == wanted[part] for part in parts]
        return float(torch.cat(reached).double().mean())

    def label(self, index: int) -> str:
        """Name of a class, untrusted text; its number when it has none."""
        return self.labels[index] if self.labels and index < len(self.labels) else str(index)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensor = next(self._tensors(), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    @property
    def gives(self) -> frozenset[str]:
        """What is to be had of the network beside its answers."""
        return frozenset() if isinstance(self.net, black_box.Asked) else black_box.EVERYTHING

    @property
    def answers_probabilities(self) -> bool:
        """Whether the network yields probabilities and its logits cannot be read off before a softmax."""
        kinds = outputs.PROBABILITIES, outputs.ONE_PROBABILITY
        return self._answer.kind in kinds and self._head is None

    @property
    def digest(self) -> str:
        """SHA-256 of the model file; of the weights of a live module, of some answers of a black box."""
        if not self._digest:
            x = self.modality.random(8, self.shape, torch.Generator().manual_seed(0))
            self._digest = black_box.digest_of(self.net if self.gives else self.logits(x))
        return self._digest

    def by_weights(self) -> Model:
        """The same model, known by the digest of its weights, whatever file they came in."""
        twin = copy.copy(self)
        twin._digest = ""
        return twin

    @property
    def reading(self) -> dict[str, Any]:
        """How it was asked to be read, as far as that is out of the ordinary; for the record."""
        wide, layout = (
            self.pixel_range if self.pixel_range != 1 else None,
            "NHWC" if self.channels_last else None,
        )
        said = zip(READING, (self.entry, wide, layout), strict=True)
        return {name: value for name, value in said if value is not None}

    @property
    def layout(self) -> str:
        """Digest of the shapes of the weights: the same for networks of one architecture."""
        shapes = [tuple(p.shape) for p in self.net.parameters()]
        return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]

    def copy(self, device: torch.device | str | None = None) -> Model:
        """An independent copy to work on: evaluation mode, frozen weights, channels last.

        The lent network stays as it was: weights, mode, `requires_grad`, hooks.
        """
        twin = copy.copy(self)
        twin.net, twin.kept = copy.deepcopy(self.net), Kept()
        twin.references, twin.changes = dict(self.references), {}
        set_mode(twin.net, training=False)
        twin.net.requires_grad_(False)
        if device is not None:
            twin.net.to(device)
        twin._lay_out(torch.channels_last)
        try:
            twin.predict(self.modality.blank(1, self.shape))
        except RuntimeError:  # the network reshapes feature maps with view(), which wants this one
            twin._lay_out(torch.contiguous_format)
        return twin

    # ------------------------------------------------------------------ inside

    def _run(self, x: Tensor) -> Tensor:
        return self._answer.taken(self._answers(x))

    def _answers(self, x: Tensor) -> Any:
        """What the network returns for inputs in the range of their modality."""
        return self.modality.run(self._prepared, x)

    def _prepared(self, x: Tensor) -> Any:
        """What the network returns for inputs that are tensors."""
        if self.pixel_range != 1:
            x = x * self.pixel_range
        if self.mean is not None or self.std is not None:
            shape = (-1, *[1] * (len(self.shape) - 1))
            mean = torch.as_tensor(self.mean or 0.0, dtype=x.dtype, device=x.device)
            std = torch.as_tensor(self.std or 1.0, dtype=x.dtype, device=x.device)
            x = (x - mean.reshape(shape)) / std.reshape(shape)
        x = x.to(self._dtype) if x.is_floating_point() else x
        if self.channels_last:
            return self.net(x.permute(0, 2, 3, 1).contiguous())
        return self.net(x.contiguous(memory_format=self._format if x.ndim == 4 else torch.contiguous_format))

    def _lay_out(self, memory_format: torch.memory_format) -> None:
        self._format = memory_format
        for p in self.net.parameters():
            if p.ndim == 4:
                p.data = p.data.contiguous(memory_format=self._format)

    def _tensors(self) -> Any:
        yield from (*self.net.parameters(), *self.net.buffers())

    def _probe(self) -> None:
        """One forward pass on two made-up inputs: shape, kind of output, penultimate layer."""
        modes = {m: m.training for m in self.net.modules()}
        set_mode(self.net, training=False)
        generator = torch.Generator().manual_seed(0)
        x = self.modality.random(2, self.shape, generator).to(self.device)
        try:
            self.modality = self.modality.seen(self.net, self.shape) if self.gives else self.modality
            with torch.no_grad():
                with Tap() as tap:
                    out = self._answers(x)
                self._answer = outputs.Answer(outputs.part_of(out, 2, self.classes))
                scores, affine = self._answer.taken(out), [after for _, after in tap.seen]
                self.classes = outputs.classes_of(scores, self.classes)
                kind, self._head = outputs.kind_of(scores, affine, self.classes, lambda: self._extremes(x))
                self._answer = outputs.Answer(self._answer.part, kind, self._head)
        except BadInput:
            raise
        except Exception as e:
            line = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise BadInput(f"the network does not take inputs of shape {self.shape}: {line}") from e
        finally:
            for module, training in modes.items():
                module.training = training
        if self.layer is not None and self.layer not in dict(self.net.named_modules()):
            near = ", ".join(n for n, _ in list(self.net.named_children())[-5:])
            raise BadInput(f"there is no layer {self.layer!r} in this network; it has e.g. {near}")

    def _extremes(self, x: Tensor) -> Tensor:
        """Class scores of inputs that differ as much as inputs can."""
        more = self.modality.random(8, self.shape, torch.Generator().manual_seed(1)).to(x.device)
        return torch.cat([self._run(pair) for pair in outputs.extremes(x, more).split(2)])
