"""Looking into a network while it runs: what goes in and out of its affine operations and its layers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

AFFINE = {"linear", "addmm", "conv1d", "conv2d", "convolution"}
BATCH_NORMS = {
    "batch_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
}
LAYER_NORMS = {"layer_norm", "native_layer_norm"}


def _affine_input(name: str, args: tuple[Any, ...]) -> Tensor:
    """Input of an affine call, which `addmm(bias, input, weight)` takes second."""
    return args[1] if name == "addmm" else args[0]


class Tap(TorchFunctionMode):
    """Watches every affine operation (fully connected or convolutional) of one forward pass.

    It works below the level of modules, so a head that is written as a function and the graph of
    an exported program are seen just as an `nn.Linear` is.

    Args:
        wanted: index of the one operation to watch, in the order in which they run; None: all.
        shift: added to the output of the watched operation.
        lift: give the watched operation its input as a leaf that gradients are asked of.

    Attributes:
        seen: input and output of each watched operation.
        weights: what each was multiplied with.
    """

    def __init__(
        self, wanted: int | None = None, shift: Tensor | None = None, lift: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.wanted = wanted
        self.shift = shift
        self.lift = lift
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.weights: list[Tensor] = []
        self.calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "").split(".")[0]
        if self.lift and name in AFFINE and args and self.calls == self.wanted:
            place = 1 if name == "addmm" else 0
            args = (*args[:place], args[place].detach().requires_grad_(), *args[place + 1 :])
        out = func(*args, **(kwargs or {}))
        if name in AFFINE and args:
            if self.wanted is None or self.calls == self.wanted:
                self.seen.append((_affine_input(name, args), out))
                self.weights.append(args[2] if name == "addmm" else args[1])
                out = out if self.shift is None else added(out, self.shift)
            self.calls += 1
        return out


class Calls(TorchFunctionMode):
    """Tells of the calls of some functions in a forward pass, below the level of modules as `Tap` works.

    Args:
        names: of the functions, those of all their variants.
        told: gets the function and what it is about to be called with.
    """

    def __init__(
        self,
        names: Set[str],
        told: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], None],
    ) -> None:
        super().__init__()
        self.names, self.told = names, told

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "").split(".")[0] in self.names:
            self.told(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def added(out: Tensor, shift: Tensor) -> Tensor:
    """An output with a shift for each input added, (N, 1, D) also where all tokens are rows, (N T, D)."""
    if out.ndim == 2 and shift.ndim == 3:
        shift = shift[:, 0].repeat_interleave(len(out) // len(shift), 0)
    return out + shift


class Kept(dict[Any, Any]):
    """What a working copy has computed and can compute again; it stays where it is when the copy travels."""

    last: tuple[Tensor, Tensor] | None = None

    @contextlib.contextmanager
    def said(self, x: Tensor, logits: Tensor) -> Iterator[Tensor]:
        """While this lasts, the answer to the very tensor x is known to be `logits`."""
        self.last = (x, logits)
        try:
            yield logits
        finally:
            self.last = None

    def answer(self, x: Tensor) -> Tensor | None:
        """What was said of the very tensor x; None where nothing was, or another thread asked meanwhile."""
        last = self.last
        return last[1] if last is not None and last[0] is x else None

    def __reduce__(self) -> Any:
        return Kept, ()


def dense_of(net: nn.Module, most: int = 1) -> list[nn.Linear]:
    """The last `most` fully connected layers of a network of one's own, or as many as there are."""
    return [m for m in net.modules() if isinstance(m, nn.Linear)][-most:]


def entering(net: nn.Module, x: Tensor, layer: nn.Module) -> Tensor:
    """What enters a layer (N, ...) when the network is asked about x; of the last one the penultimate
    representation."""
    caught: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
    try:
        net(x)
    finally:
        hook.remove()
    return caught[0]


def leaving(layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """What leaves a layer (N, ...) while `run` runs; other threads may be using the network."""
    caught, here = list[Tensor](), threading.get_ident()

    def catch(_module: nn.Module, _inputs: Any, out: Tensor) -> None:
        if threading.get_ident() == here:
            caught.append(out)

    hook = layer.register_forward_hook(catch)
    try:
        run()
    finally:
        hook.remove()
    return caught[-1]


def pool(z: Tensor) -> Tensor:
    """Feature map (N, D, H, W) or token sequence (N, T, D) -> one vector per sample (N, D)."""
    if z.ndim == 4:
        return z.mean((2, 3))
    return z.flatten(1, -2).mean(1) if z.ndim == 3 else z.flatten(1)


def set_mode(net: nn.Module, training: bool) -> None:
    """`net.train(training)`, also for an exported program, whose mode is fixed by its export."""
    with contextlib.suppress(NotImplementedError):
        net.train(training)
