"""What the calls in a pickle of tensors, arrays and containers would have made, made by our own code.

The table is closed: a name that is not in it gives nothing. Nothing of torch or NumPy that a file names is
called; sizes, strides and offsets are checked against the memory at hand before a tensor is laid over it.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backsweep.formats.pickles.machine import Budget, Placeholder

_KINDS = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
    "Untyped": torch.uint8, "QInt8": torch.int8, "QInt32": torch.int32, "QUInt8": torch.uint8,
    "QUInt4x2": torch.uint8, "QUInt2x4": torch.uint8,
}  # fmt: skip
STORAGES = {
    f"{place}{kind}Storage": dtype
    for kind, dtype in _KINDS.items()
    for place in ("torch.", "torch.cuda.", "torch.storage.")
}
_TENSORS = {f"{place}{kind}Tensor" for kind in _KINDS for place in ("torch.", "torch.cuda.")}
_DTYPES = {f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
_FACTORIES = {"builtins.dict": dict, "builtins.float": float, "builtins.int": int, "builtins.list": list,
              "builtins.set": set, "builtins.str": str}  # fmt: skip
_MODULES = {"__builtin__.": "builtins.", "copy_reg.": "copyreg.", "numpy.core.": "numpy._core.",
            "torch.tensor.": "torch._tensor."}  # fmt: skip
_NUMBERS = re.compile(r"[biufc](1|2|4|8|16|32)|[SU]\d{1,6}")
_PARAMETER = "torch.nn.parameter.Parameter"
_ARRAY = "numpy.ndarray"


class Storage(Placeholder):
    """Memory that tensors are laid over.

    Attributes:
        memory: all of it, shared by the views that a file has of it.
        dtype: of its numbers, for tensors that do not say their own.
        start, size: bytes of `memory` that belong to this view.
    """

    __slots__ = ("dtype", "memory", "size", "start")

    def __init__(self, memory: torch.UntypedStorage, dtype: torch.dtype, start: int, size: int) -> None:
        super().__init__("torch.storage.TypedStorage", ())
        self.memory, self.dtype, self.start, self.size = memory, dtype, start, size


class Rebuilder:
    """Makes the objects of one file.

    Args:
        budget: of the file.
        nested: reads the archive that a plain pickle holds for each of its tensors.

    Attributes:
        dropped: what was left out of objects that were made otherwise, untrusted text.
    """

    def __init__(self, budget: Budget, nested: Callable[[bytes], Any]) -> None:
        self.budget, self.nested = budget, nested
        self.dropped: list[str] = []

    def rebuild(self, name: str, args: tuple[Any, ...] | None) -> Any:
        """What a name stands for (args None), or what calling it gives; NotImplemented if it is not known.

        Raises:
            ValueError: a known call with sizes that cannot be.
            BadInput: it costs too much.
        """
        for old, new in _MODULES.items():
            if name.startswith(old):
                name = new + name[len(old) :]
        if args is None:
            return _DTYPES.get(name, NotImplemented)
        rule = _CALLS.get(name)
        return NotImplemented if rule is None else rule(self, *args)

    def fill(self, target: Any, state: Any) -> Any:
        """The object with its state, perhaps another one than before."""
        if type(target) is Placeholder:
            name, args = target.name, target.args
            if name == _ARRAY and args == () and type(state) is tuple and len(state) == 5:
                made = self.array(*state[1:])
            elif name == "numpy.dtype" and args:
                made = _dtype(args[0], state)
            elif name == _PARAMETER and args == () and type(state) is tuple and len(state) == 3:
                made = self.parameter(*state)
            elif name in _TENSORS and args == () and type(state) is tuple and len(state) == 4:
                made = self.tensor(*state)
            else:
                made = NotImplemented
            if made is not NotImplemented:
                return made
            target.state = state
        elif type(target) is OrderedDict and type(state) is dict and set(state) == {"_metadata"}:
            target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif state:
            self.dropped.append(f"attributes of a {type(target).__name__}")
        return target

    # ------------------------------------------------------------------ tensors

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> Any:
        """A tensor over a part of a storage."""
        if not isinstance(storage, Storage):
            return NotImplemented
        dtype = storage.dtype if dtype is None else dtype
        size, stride = tuple(size), tuple(stride)
        plain = all(type(n) is int and 0 <= n < 2**60 for n in (offset, *size, *stride))
        if not plain or len(size) != len(stride) or len(size) > 64 or not isinstance(dtype, torch.dtype):
            raise ValueError("sizes of a tensor that cannot be")
        item, count = dtype.itemsize, math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if storage.start % item or (count and (last + 1) * item > storage.size):
            raise ValueError("a tensor outside its memory")
        self.budget.spend(max(0, count * item - storage.size))  # one number may stand in many places
        flat = torch.empty(0, dtype=dtype)
        return flat.set_(storage.memory, storage.start // item + offset, size, stride)

    def tensor_v2(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, _: Any = None, about: Any = None
    ) -> Any:
        """As torch.save writes them."""
        return self.tensor_v3(storage, offset, size, stride, grad, _, None, about)

    def tensor_v3(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, _: Any, dtype: Any,
        about: Any = None,
    ) -> Any:  # fmt: skip
        """Likewise, for dtypes that have no storage of their own."""
        tensor = self.tensor(storage, offset, size, stride, dtype)
        if isinstance(tensor, Tensor):
            tensor.requires_grad_(grad is True)
            if type(about) is dict and about.get("conj") is True:
                tensor = tensor.conj()
            if type(about) is dict and about.get("neg") is True:
                tensor = torch._neg_view(tensor)
        return tensor

    def parameter(self, data: Any = None, grad: Any = True, _: Any = None, state: Any = None) -> Any:
        """A parameter; what a subclass or a user hung on it is left out."""
        if not isinstance(data, Tensor):
            return NotImplemented
        if state and (type(state) is not tuple or any(state)):
            self.dropped.append("attributes of a parameter")
        return nn.Parameter(data.detach(), grad is True)

    def of_type(self, function: Any, kind: Any, args: Any, state: Any) -> Any:
        """A subclass of tensors: the tensor."""
        rule = _CALLS.get(function.name) if isinstance(function, Placeholder) else None
        if rule not in (Rebuilder.tensor_v2, Rebuilder.tensor_v3, Rebuilder.parameter):
            return NotImplemented
        tensor = rule(self, *args)
        name = kind.name if isinstance(kind, Placeholder) else "a tensor"
        if state or name not in ("torch.Tensor", "torch._tensor.Tensor", _PARAMETER):
            self.dropped.append(name)
        return tensor

    def from_array(self, data: Any, dtype: Any, _: Any, grad: Any = False) -> Any:
        """What lived on a device without storages of its own."""
        tensor = torch.from_numpy(data) if isinstance(data, np.ndarray) else data
        if not isinstance(tensor, Tensor) or not isinstance(dtype, torch.dtype):
            return NotImplemented
        self.budget.spend(tensor.numel() * dtype.itemsize)
        return tensor.detach().to(dtype).requires_grad_(grad is True)

    def meta(self, dtype: Any, size: Any, stride: Any, grad: Any) -> Any:
        """A tensor without values."""
        if not isinstance(dtype, torch.dtype):
            return NotImplemented
        return torch.empty_strided(tuple(size), tuple(stride), dtype=dtype, device="meta").requires_grad_(
            grad is True
        )

    def in_pickle(self, content: Any) -> Any:
        """The storage in the archive that a plain pickle keeps of it."""
        return self.nested(bytes(content)) if isinstance(content, bytes | bytearray) else NotImplemented

    # ------------------------------------------------------------------ NumPy

    def array(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> Any:
        """An array of numbers or texts in the byte order of this machine."""
        found = _known(dtype)
        if found is None:
            return NotImplemented
        if type(data) is str:  # as Python 2 wrote bytes
            self.budget.spend(len(data))
            data = data.encode("latin-1")
        if not isinstance(data, bytes | bytearray):
            return NotImplemented
        shape = tuple(shape)
        if not all(type(n) is int and 0 <= n < 2**60 for n in shape) or len(shape) > 32:
            raise ValueError("sizes of an array that cannot be")
        if math.prod(shape) * found.itemsize != len(data):
            raise ValueError("an array outside its memory")
        self.budget.spend(len(data))
        flat = np.frombuffer(data, found) if data else np.empty(0, found)
        return flat.reshape(shape, order="F" if fortran else "C").astype(found.newbyteorder("="))

    def array_5(self, data: Any, dtype: Any, shape: Any, order: Any) -> Any:
        """As protocol 5 writes them."""
        return self.array(shape, dtype, order == "F", data)

    def empty_array(self, kind: Any, *_: Any) -> Any:
        """An array that gets its numbers later."""
        named = isinstance(kind, Placeholder) and kind.args is None
        return Placeholder(_ARRAY, ()) if named and kind.name == _ARRAY else NotImplemented

    def scalar(self, dtype: Any, data: Any = b"") -> Any:
        """One number of NumPy."""
        array = self.array((1,), dtype, False, data)
        return NotImplemented if array is NotImplemented else array[0]

    # ------------------------------------------------------------------ containers

    def ordered(self, pairs: Any = ()) -> Any:
        """A dictionary; of lists of two, as Python 2 wrote them."""
        return self.dictionary(OrderedDict(), pairs)

    def counter(self, counts: Any = ()) -> Any:
        """Likewise."""
        return self.dictionary(Counter(), counts)

    def default(self, factory: Any = None, pairs: Any = ()) -> Any:
        """A dictionary that forgets what it would call, unless that is a plain type."""
        name = factory.name.replace("__builtin__.", "builtins.") if isinstance(factory, Placeholder) else None
        if name is not None and name not in _FACTORIES:
            self.dropped.append(name)
        return self.dictionary(defaultdict(_FACTORIES.get(name or "")), pairs)

    def dictionary(self, made: dict[Any, Any], pairs: Any) -> Any:
        """The dictionary with entries."""
        pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
        if type(pairs) not in (list, tuple) or not all(
            type(p) in (list, tuple) and len(p) == 2 for p in pairs
        ):
            return NotImplemented
        self.budget.spend(100 * len(pairs))
        for key, value in pairs:
            made[self.budget.key(key)] = value
        return made

    def a_set(self, items: Any = ()) -> Any:
        """A set."""
        if type(items) not in (list, tuple):
            return NotImplemented
        self.budget.spend(100 * len(items))
        return {self.budget.key(v) for v in items}

    def a_frozenset(self, items: Any = ()) -> Any:
        """A set that stays as it is."""
        made = self.a_set(items)
        return made if made is NotImplemented else frozenset(made)

    def encoded(self, text: Any = "", encoding: Any = "latin1") -> Any:
        """Bytes, as protocol 2 writes them."""
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            return NotImplemented
        self.budget.spend(len(text))
        return text.encode("latin-1")

    def a_bytearray(self, content: Any = b"", *encoding: Any) -> Any:
        """Bytes that can change."""
        if type(content) is str:
            content = self.encoded(content, *encoding)
        if type(content) is not bytes:
            return NotImplemented
        self.budget.spend(len(content))
        return bytearray(content)

    def a_complex(self, real: Any = 0.0, imaginary: Any = 0.0) -> Any:
        """A complex number."""
        plain = all(type(part) in (int, float) for part in (real, imaginary))
        return complex(real, imaginary) if plain else NotImplemented

    def size(self, sizes: Any = ()) -> Any:
        """The size of a tensor."""
        if type(sizes) not in (list, tuple) or not all(type(n) is int and abs(n) < 2**60 for n in sizes):
            return NotImplemented
        self.budget.spend(8 * len(sizes))
        return torch.Size(sizes)

    def device(self, kind: Any, index: Any = None) -> Any:
        """Where a tensor was; nothing is put there."""
        if type(kind) is not str or not re.fullmatch(r"[a-z]{1,20}(:\d{1,3})?", kind):
            return NotImplemented
        return torch.device(kind) if type(index) is not int else torch.device(kind, index)

    def old_object(self, kind: Any, _: Any, state: Any = None) -> Any:
        """An object of protocols 0 and 1."""
        name = kind.name if isinstance(kind, Placeholder) else "an object"
        return Placeholder(name, () if state is None else (state,))


def _known(dtype: Any) -> np.dtype[Any] | None:
    """The dtype, if it is one of numbers or texts."""
    if isinstance(dtype, Placeholder) and dtype.name == "numpy.dtype" and dtype.args and dtype.state is None:
        dtype = _dtype(dtype.args[0], (3, "=", None, None, None))
    return dtype if isinstance(dtype, np.dtype) else None


def _dtype(code: Any, state: Any) -> Any:
    """A dtype from its code, such as "f4", and the order of its bytes."""
    code = code.decode("latin-1") if type(code) is bytes else code
    if type(code) is not str or not _NUMBERS.fullmatch(code):
        return NotImplemented
    if type(state) is not tuple or len(state) < 5 or any(part is not None for part in state[2:5]):
        return NotImplemented
    order = state[1].decode("latin-1") if type(state[1]) is bytes else state[1]
    found = np.dtype(code)
    return found.newbyteorder(">" if order == ">" else "<") if order in ("<", ">") else found


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": Rebuilder.tensor,
    "torch._utils._rebuild_tensor_v2": Rebuilder.tensor_v2,
    "torch._utils._rebuild_tensor_v3": Rebuilder.tensor_v3,
    "torch._utils._rebuild_parameter": Rebuilder.parameter,
    "torch._utils._rebuild_parameter_with_state": Rebuilder.parameter,
    "torch._tensor._rebuild_from_type_v2": Rebuilder.of_type,
    "torch._utils._rebuild_device_tensor_from_numpy": Rebuilder.from_array,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": Rebuilder.from_array,
    "torch._utils._rebuild_xla_tensor": Rebuilder.from_array,
    "torch._utils._rebuild_meta_tensor_no_storage": Rebuilder.meta,
    "torch.storage._load_from_bytes": Rebuilder.in_pickle,
    _PARAMETER: Rebuilder.parameter,
    "numpy._core.multiarray._reconstruct": Rebuilder.empty_array,
    "numpy._core.multiarray.scalar": Rebuilder.scalar,
    "numpy._core.numeric._frombuffer": Rebuilder.array_5,
    "collections.OrderedDict": Rebuilder.ordered,
    "collections.Counter": Rebuilder.counter,
    "collections.defaultdict": Rebuilder.default,
    "builtins.set": Rebuilder.a_set,
    "builtins.frozenset": Rebuilder.a_frozenset,
    "builtins.bytearray": Rebuilder.a_bytearray,
    "builtins.bytes": Rebuilder.encoded,
    "builtins.complex": Rebuilder.a_complex,
    "_codecs.encode": Rebuilder.encoded,
    "torch.Size": Rebuilder.size,
    "torch.device": Rebuilder.device,
    "copyreg._reconstructor": Rebuilder.old_object,
}
