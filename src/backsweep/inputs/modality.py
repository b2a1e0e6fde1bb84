"""A modality: all that differs between kinds of input, in one object that the loops ask.

A model and its samples name theirs. A file outside `inputs/` never asks "is it an image?": it asks the
modality for what it needs (`spaces`, `families`, `corruptions`, ...), and where that is not there, the method
says so in `applies`. A modality is a folder here with a module `modality`; one from outside is a subclass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image as Pictures
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.inputs.family import Family
from backsweep.inputs.space import Space
from backsweep.inputs.trigger import Trigger

Augment = Callable[[Tensor, torch.Generator], Tensor]
Change = Callable[[Tensor, Tensor], Tensor]  # of inputs (N, *shape), with other clean inputs at hand
Names = tuple[str, ...] | None


@dataclass(frozen=True)
class Wanted:
    """How samples are to be read.

    Attributes:
        shape: of an input of the model, None where it is not known.
        names: class names of the model.
        resize: whether samples of another size are resized.
        split: which of several splits; None: the test split.
        labels: None: as they stand with the samples; "model": none are read.
        whole: whether every sample is needed, so that a large set is not sampled.
    """

    shape: tuple[int, ...] | None = None
    names: Names = None
    resize: bool = False
    split: str | None = None
    labels: str | None = None
    whole: bool = False


@dataclass(frozen=True)
class Found:
    """Samples that were read.

    Attributes:
        x: (N, *shape), as a user's tensor may be.
        y: labels (N,); None: they are not known.
        names: class names.
        notes: what was done, in one line each.
        modality: the kind of input with what the samples say of it; None: as it was.
    """

    x: Tensor
    y: Tensor | None
    names: Names = None
    notes: tuple[str, ...] = ()
    modality: Modality | None = None


@dataclass(frozen=True)
class Modality:
    """One kind of input. What a subclass leaves out is not there for this kind.

    Attributes:
        name: as reports name it.
        noun: what an input is called; a table's is a "row".
        unit: what an input is made of, and what a trigger's size counts: "pixel", "column".
        axes: what the numbers of a shape are.
        suffixes: of files that hold one input, which `decode` reads.
        faint, few: names of the two spaces that every modality has: a faint change of everything, and
            a change of few units.
        recovered: names of the families that a repair's check looks for afresh, beside the two spaces.
        detectors, repairs, guards, audits: names of those that are run by default; empty: the usual.
        guards_of_answers: likewise the guards of a model that only answers.
        of_adapters: detectors that are run beside them of an adapter of a model.
        grid: whether inputs are maps (C, H, W), whose neighbours belong together.
        smooth: whether there are inputs between two inputs, so that they can be mixed and moved by gradients.
        listed: whether a file holds many inputs, in rows or lines, and `read` is asked for them.
        exact: whether a scan can recover what was planted to the letter, which a repair then unlearns first.
        classified: whether answers are classes that samples are labelled with; else samples have no labels.
        fewest: how many samples a scan needs at least.
        answers: what the answers of a network are called.
        found: what is suspected is called: a class, an answer.
    """

    name: ClassVar[str] = ""
    noun: ClassVar[str] = "input"
    unit: ClassVar[str] = "value"
    axes: ClassVar[str] = ""
    suffixes: ClassVar[tuple[str, ...]] = ()
    faint: ClassVar[str] = ""
    few: ClassVar[str] = ""
    recovered: ClassVar[tuple[str, ...]] = ("patch",)
    detectors: ClassVar[tuple[str, ...]] = ()
    repairs: ClassVar[tuple[str, ...]] = ()
    guards: ClassVar[tuple[str, ...]] = ()
    guards_of_answers: ClassVar[tuple[str, ...]] = ()
    of_adapters: ClassVar[tuple[str, ...]] = ()
    audits: ClassVar[tuple[str, ...]] = ()
    grid: ClassVar[bool] = False
    smooth: ClassVar[bool] = True
    listed: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    classified: ClassVar[bool] = True
    fewest: ClassVar[int] = 20
    answers: ClassVar[str] = "classes"
    found: ClassVar[str] = "class"

    # ------------------------------------------------------------------ samples

    def samples(self, x: Tensor) -> Tensor:
        """Samples (N, *shape) in the range of this modality, float32, from a tensor that a user gave.

        Raises:
            BadInput: wrong dimensions, or values outside the range.
        """
        raise NotImplementedError

    def kept(self, x: Tensor) -> Tensor:
        """The same samples as they are kept in memory: `samples` of them, or a smaller form."""
        return self.samples(x)

    def informed(self, x: Tensor) -> Modality:
        """This modality with what samples (N, *shape) say of it, where that is not known."""
        return self

    def joined(self, other: Modality) -> Modality:
        """A model's modality with what that of the samples it is judged with says."""
        return self

    def values(self, x: Tensor) -> Tensor:
        """What is kept, or some of it, as float32; element by element."""
        return x

    def batch(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One input or several, as a user has them, as (N, *shape)."""
        return x[None] if tuple(x.shape) == shape else x

    def recognised(self, path: Path) -> Modality | None:
        """This modality, as the files at a path say, where they are of it; None where they are not."""
        return None

    def read(self, path: Path, wanted: Wanted) -> Found:
        """Samples with labels and class names from a file or folder.

        Raises:
            BadInput: nothing readable is there.
        """
        raise BadInput(f"{self.noun}s are not read from files; give tensors")

    def shipped(self) -> Path | None:
        """A file of samples that comes with Backsweep, for whoever gives none."""
        return None

    def decode(self, body: bytes, shape: tuple[int, ...], resize: bool) -> Tensor:
        """One input (1, *shape) out of the bytes of a file of this kind.

        Raises:
            BadInput: there is no such file, or it is not one.
        """
        raise BadInput(f"{self.noun}s have no file of their own here; send JSON or .npy")

    def spoken(self, texts: Sequence[Any], shape: tuple[int, ...]) -> Tensor:
        """Inputs (N, *shape) out of texts, or pairs of texts, that somebody typed.

        Raises:
            BadInput: inputs of this kind are no texts, or these are neither.
        """
        raise BadInput(f"{self.noun}s are numbers; send a list of numbers, nested as the input is")

    def words_at(self, x: Tensor) -> Tensor | None:
        """Which places of inputs (N, L) hold a word, (N, L); None where inputs are no rows of words."""
        return None

    def features(self, x: Tensor, most: int = 3, forms: bool = True) -> list[list[str]] | None:
        """Names of what inputs x (N, *shape) hold, untrusted text; None where that cannot be named.

        Args:
            most: words that may stand together in one.
            forms: whether to name how an input is built, too.
        """
        return None

    def embeddings(self, net: Callable[[Tensor], Any], x: Tensor) -> Tensor | None:
        """The table (V, D) in which a network looks up the words of inputs x (N, L); None: it does not."""
        return None

    def with_word(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Inputs x (N, L), each with one more word at its start whose embedding is given, (N, D), for `run`.

        Raises:
            BadInput: inputs of this kind have no words.
        """
        raise BadInput(f"{self.noun}s have no words")

    def words(self, x: Tensor) -> str:
        """An input (*shape) as untrusted text; "" where it is none."""
        return ""

    def mismatch(self, have: tuple[int, ...], want: tuple[int, ...]) -> str:
        """What samples of another shape than the model's are, and how that is mended."""
        return (
            f"the samples have shape {have}, the model takes {want}; give {self.noun}s of the model's shape"
        )

    def random(self, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Made-up inputs (count, *shape) of this range, to find out how a network answers."""
        return torch.rand((count, *shape), generator=generator)

    def blank(self, count: int, shape: Sequence[int]) -> Tensor:
        """Inputs (count, *shape) with nothing in them."""
        return torch.zeros((count, *shape))

    def clip(self, x: Tensor) -> Tensor:
        """x brought back into the range of inputs."""
        return x

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an input of this kind can have that shape."""
        return bool(shape)

    def size(self, shape: Sequence[int]) -> int:
        """How many units an input has."""
        raise NotImplementedError

    # ------------------------------------------------------------------ how a network runs on it

    def seen(self, net: Callable[[Tensor], Any], shape: Sequence[int]) -> Modality:
        """The same modality as a network sees it, which may have to be asked for what spaces need.

        Raises:
            BadInput: they do not fit.
        """
        return self

    def run(self, net: Callable[[Tensor], Any], x: Tensor) -> Any:
        """What a network answers to inputs, or to what a space or a family made of them."""
        return net(x)

    def loss(
        self, net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """What a network that learns from samples x (N, *shape) with labels y (N,) makes small."""
        return F.cross_entropy(net(x).float(), y, label_smoothing=label_smoothing)

    def numbers(self, shape: Sequence[int]) -> int:
        """How many numbers an input is when it enters a network, for memory and the size of batches."""
        return math.prod(shape)

    def consensus(self, z: Tensor, inputs: Callable[[], Tensor]) -> Tensor:
        """Embeddings z (N, ...) of some inputs (N, *shape), as one shift for all sees them, (M, ...)."""
        return z

    def forget(
        self, net: nn.Module, x: Tensor, triggers: Sequence[Trigger] = (), unseen: bool = True
    ) -> None:
        """Take out of a network, in place, what it knows of inputs and inputs x (N, *shape) never show.

        Args:
            triggers: what a scan recovered; what it knows of these goes, too.
            unseen: False: that alone goes.
        """

    def late(self, layers: int, moves: Callable[[int], bool]) -> int:
        """Which of the affine layers before the head the late shift is added to: the one a third up.

        Args:
            layers: how many there are.
            moves: whether a shift at a layer changes any answer.
        """
        return max(1, round((layers - 1) / 3))

    def shift(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A batch slightly changed, as a network that learns may see it: training's `augment="shift"`."""
        return x

    def shifts(self, shape: Sequence[int]) -> bool:
        """Whether inputs of a shape are large enough for `shift`."""
        return False

    def varied(self, x: Tensor, generator: torch.Generator) -> Tensor | None:
        """Inputs x (N, *shape) changed at random, each still what it was to a person; None: not known how."""
        return None

    def mix(self, x: Tensor, overlays: Tensor, weight: float) -> Tensor:
        """Each input x (B, *shape) with each overlay (n, *shape) blended in: (B, n, *shape) (STRIP)."""
        return x[:, None] + weight * overlays[None]

    def corruptions(self, shape: Sequence[int]) -> Mapping[str, Callable[[Tensor, int], Tensor]]:
        """Common corruptions by name: inputs and a severity from 1 to 5 -> inputs (TeCo)."""
        return {}

    def breaking(self, shape: Sequence[int]) -> Mapping[str, Change]:
        """Changes by name after which a clean input is hardly what it was (STEP)."""
        return {}

    def preserving(self, shape: Sequence[int]) -> Mapping[str, Change]:
        """Changes by name that a person hardly notices (STEP)."""
        return {}

    # ------------------------------------------------------------------ triggers

    def spaces(self) -> Mapping[str, Space]:
        """Perturbation spaces by name; those in the embeddings of layers are common to all modalities."""
        raise NotImplementedError

    def patch(self) -> Family:
        """Triggers that set few units: a mask and a pattern (Neural Cleanse)."""
        raise NotImplementedError

    def families(self, shape: Sequence[int]) -> Mapping[str, Family]:
        """All families of triggers that can be inverted, by name."""
        return {"patch": self.patch()}

    def elsewhere(self, trigger: Trigger) -> Sequence[Trigger]:
        """A trigger and, where it is found at one place and may be planted to work at others, those."""
        return (trigger,)

    # ------------------------------------------------------------------ files and people

    def described(self) -> dict[str, Any]:
        """What a report's model says of it beside its name; `told` reads it."""
        return {}

    def said(self, rows: Iterable[Tensor]) -> dict[str, Any]:
        """What a report's model has to say, so that these inputs can be shown without the model."""
        return {}

    def told(self, model: Mapping[str, object]) -> Modality:
        """This modality with what a report's model says."""
        return self

    def pack(self, x: Tensor) -> Tensor:
        """Inputs as reports keep them in a file."""
        return x.detach().cpu().contiguous()

    def arrays(self, x: Tensor) -> dict[str, Any] | None:
        """What an .npz file that these inputs are read from holds beside labels; None: there is none."""
        return None

    def unpack(self, x: Tensor) -> Tensor:
        """The inputs that `pack` made small, as far as it kept them."""
        return x.float()

    def cells(self, x: Tensor) -> Sequence[tuple[str, str]]:
        """An input (*shape) as names and values, untrusted text; none where a picture says more."""
        return ()

    def picture(self, x: Tensor) -> Pictures.Image:
        """An input (*shape) as a picture."""
        raise NotImplementedError

    def playable(self, x: Tensor) -> tuple[str, bytes] | None:
        """An input (*shape) as a media type and a file that a browser plays; None: it is only looked at."""
        return None
