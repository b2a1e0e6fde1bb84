"""TorchScript modules, as ordinary modules: weights by their names, and a run of the source for an answer."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.archives import WAY_OUT
from backsweep.formats.pickles.machine import Placeholder
from backsweep.formats.torchscript.archive import Archive, open_archive
from backsweep.formats.torchscript.interpreter import Run, Weight

_DEEPEST = 60  # objects in objects
_NAMED = {  # where operators have weights, so that a bias is found beside its weight
    "conv1d": 1, "conv2d": 1, "conv3d": 1, "_convolution": 1, "linear": 1, "batch_norm": 1, "layer_norm": 2,
    "group_norm": 2,
}  # fmt: skip
_PARTS = ("weight", "bias", "running_mean", "running_var")


class Script(nn.Module):
    """The module of an archive; its state_dict has the names of the original.

    Args:
        archive: as `open_archive` gives it.

    Attributes:
        places: for each weight, where its memory is in the archive.
    """

    def __init__(self, archive: Archive) -> None:
        super().__init__()
        self._code, self._root = archive.code, archive.root
        self._constants: list[Any] = list(archive.constants)
        self._keys: dict[int, str] = {}  # of a tensor of the file, by identity, while the module is made
        self._stored: dict[str, Tensor] = {}
        self._objects(archive.root, "", 0)
        for index, value in enumerate(self._constants):
            if isinstance(value, Tensor) and value.ndim == 0:
                self._constants[index] = value.item()  # sizes, mostly
            elif isinstance(value, Tensor):
                key = self._constant_name(index)
                weight = value.numel() > 1 and ".running" not in key
                saved = bool(value.is_floating_point() and value.isfinite().all())
                self._constants[index] = self._attach(key, value, weight, saved)
        self._keys.clear()

    def forward(self, x: Tensor) -> Any:
        """What the module answers, for inputs x (N, *shape)."""
        tensors: dict[str, Tensor] = dict(self.named_parameters(remove_duplicate=False))
        tensors.update(self.named_buffers(remove_duplicate=False))
        run = Run(self._code, self._constants, tensors, x.device)
        lent = [x, *run.tensors.values()]
        versions = [t._version for t in lent]
        out = run.method(self._root, "forward", [x], {})
        if versions != [t._version for t in lent]:
            raise BadInput(f"it writes to its input or its weights as it runs; {WAY_OUT}")
        while isinstance(out, tuple | list | dict) and out:
            out = next(iter(out.values())) if isinstance(out, dict) else out[0]
        return out.float() if isinstance(out, Tensor) else out

    # ------------------------------------------------------------------ weights

    def _objects(self, obj: Placeholder, path: str, depth: int) -> None:
        """Register the tensors of an object and of those below it."""
        if depth > _DEEPEST:
            raise ValueError("objects in a circle")
        kind = self._code.get(obj.name)
        listed = _listed(kind, "__parameters__") if isinstance(kind, ast.ClassDef) else set()
        state = obj.state if isinstance(obj.state, dict) else {}
        if isinstance(kind, ast.ClassDef) and any(
            isinstance(f, ast.FunctionDef) and f.name in ("__setstate__", "__getstate__") for f in kind.body
        ):
            raise BadInput(
                f"its class {obj.name[:80]!r} has code for reading it, which is not run; {WAY_OUT}"
            )
        if state.get("training") is True and not depth:
            raise BadInput("it was saved in training mode; call net.eval(), then save it again")
        for name, value in state.items():
            if isinstance(value, Tensor):
                state[name] = self._attach(f"{path}{name}", value, name in listed, True)
            elif isinstance(value, Placeholder) and value.args is not None:
                self._objects(value, f"{path}{name}.", depth + 1)

    def _attach(self, key: str, value: Tensor, parameter: bool, saved: bool) -> Weight:
        """Register a tensor of the file; returns what stands in its place, so that copies find their own."""
        if id(value) in self._keys:
            return Weight(self._keys[id(value)])
        root: nn.Module = self
        *path, name = key.split(".")
        for part in path:
            if part not in root._modules:
                root.add_module(part, nn.Module())
            root = root.get_submodule(part)
        if parameter and value.is_floating_point():
            root.register_parameter(name, nn.Parameter(value))
        else:
            root.register_buffer(name, value, persistent=saved)
        self._keys[id(value)] = key
        self._stored[key] = value
        return Weight(key)

    def _constant_name(self, index: int) -> str:
        """A name for a tensor of a frozen module, after the operator that takes it as its weight."""
        for code in self._code.values():
            for call in (n for n in ast.walk(code) if isinstance(n, ast.Call)):
                if isinstance(call.func, ast.Attribute) and (first := _NAMED.get(call.func.attr)):
                    names = [a.attr if isinstance(a, ast.Attribute) else "" for a in call.args[first:]]
                    if f"c{index}" in names[:4]:
                        weight = names[0] or f"c{index}"
                        return f"{weight}.{_PARTS[names.index(f'c{index}')]}"
        return f"constants.c{index}"


def _listed(kind: ast.ClassDef, name: str) -> set[str]:
    """The texts in a list that a class assigns to a name."""
    for part in kind.body:
        if (
            isinstance(part, ast.Assign)
            and isinstance(part.targets[0], ast.Name)
            and part.targets[0].id == name
        ):
            return {
                n.value
                for n in ast.walk(part.value)
                if isinstance(n, ast.Constant) and isinstance(n.value, str)
            }
    return set()


def read(blob: bytes, shape: Sequence[int] | None = None) -> Script:
    """The module in the bytes of an archive, tried to take any batch size.

    Raises:
        BadInput: an operator that is not on the list, a choice that hangs on a tensor's values, code for
            reading it, training mode, a batch size that cannot be changed. Any other error means damage.
    """
    script = Script(open_archive(blob))
    if shape is None or math.prod(shape) > 2**24:
        return script
    x = torch.rand((3, *shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            one = script(x[:1])
        except (RuntimeError, ValueError, IndexError) as e:
            line = next(iter(str(e).strip().splitlines()), type(e).__name__)
            raise BadInput(
                f"it cannot be run for one image of shape {tuple(shape)} ({line[:160]}); say the true shape "
                "(--shape), or save it so that it takes batches of any size (traced with 2 images)"
            ) from e
        try:
            got = script(x)
            same = torch.allclose(got[:1], one, rtol=1e-3, atol=1e-4 * max(1.0, float(one.abs().max())))
        except (RuntimeError, ValueError, IndexError):
            same = False
    if not same:
        raise BadInput(
            "it answers batches of one size alone; trace it with an example of 2 images and no sizes written "
            "into its code, or torch.jit.script it"
        )
    return script
