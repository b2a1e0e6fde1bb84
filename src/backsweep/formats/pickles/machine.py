"""A machine for pickles that makes data and nothing else.

A pickle is a program: it names functions, calls them and fills what they return. Here a name stays a
text. This machine reads the operations with `pickletools` (which only decodes them) and has its own rule
for each; there is no place in it that imports, looks up an attribute or calls what a file names. A subclass
of `pickle.Unpickler` was not taken: its `find_class` can be overridden, but what it returns is then called,
filled through `__setstate__` and looked up in `copyreg` by code that was written to trust the file.

Plain data (numbers, texts, lists, dictionaries) are made as they are. A call is offered to `rebuild`, whose
fixed table knows tensors, arrays and containers (`rebuilding.py`). Every other object becomes a
`Placeholder`: its name with what it would have been made from.

Work and memory are bounded by the file: operations, what a call copies (`Budget`), what may be a key.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np
import torch

from backsweep.core.errors import BadInput

MOST_OPERATIONS = 4_000_000  # a state dict of a thousand tensors takes some 40,000
_LONGEST_NAME = 1_000
_LONGEST_KEY = 2**16
_ODD_KEYS = 10_000  # numbers and tuples whose hashes a file can make equal: then every look-up is a search
_WHOLE = [
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "FLOAT", "BINFLOAT",
]  # fmt: skip  # operations that push their argument


class Placeholder:
    """An object that was not made, or the name of a class or function that was not looked up.

    Attributes:
        name: what the file calls it, untrusted text.
        args: what it would have been called with; None: it is a name alone.
        state: what its attributes would have been set from.
        items: what was appended to it, if it is a kind of list or set.
        entries: what was put into it, if it is a kind of dictionary.
    """

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: list[tuple[Any, Any]] = []

    def __repr__(self) -> str:
        return f"Placeholder({self.name[:80]!r})"


class Budget:
    """What a file may cost: a call that copies can be asked for again and again by two bytes.

    Attributes:
        operations: how many are left.
        memory: bytes that may still be copied or made.
        odd_keys: how many more keys may be numbers or tuples.
    """

    def __init__(self, size: int) -> None:
        self.operations = MOST_OPERATIONS
        self.memory = 4 * size + 2**26
        self.odd_keys = _ODD_KEYS

    def spend(self, memory: int) -> None:
        """Count bytes, or entries of a container, before they are made.

        Raises:
            BadInput: there are more than a file of this size has any use for.
        """
        self.memory -= memory
        if self.memory < 0:
            raise BadInput("it unpacks to far more than its own size, as a bomb does; do not use it")

    def step(self) -> None:
        """Count one operation.

        Raises:
            BadInput: there are too many.
        """
        self.operations -= 1
        if self.operations < 0:
            raise BadInput(
                f"it holds more than {MOST_OPERATIONS:,} pickled parts; save the weights alone, with "
                'torch.save(model.state_dict(), "model.pth")'
            )

    def key(self, value: Any, depth: int = 0) -> Any:
        """A value that may be a key: its hash is cheap, and it is hard to make many of one hash.

        Anything else is put into a placeholder, which is a key of its own.

        Raises:
            BadInput: there are too many numbers and tuples, whose hashes a file can make equal.
        """
        kind = type(value)
        if kind in (str, bytes):
            if len(value) <= _LONGEST_KEY:
                return value
        elif kind in (bool, type(None), Placeholder, torch.dtype, torch.device) or _small(value):
            return value
        elif kind is tuple and len(value) <= 64 and depth < 3:
            self._odd()
            return tuple(self.key(v, depth + 1) for v in value)
        elif kind in (float, complex) or isinstance(value, np.number) or (kind is int and abs(value) < 2**64):
            self._odd()
            return value
        return Placeholder(f"a key of type {kind.__name__}", (value,))

    def _odd(self) -> None:
        self.odd_keys -= 1
        if self.odd_keys < 0:
            raise BadInput("it holds more keys that are numbers or tuples than a model has; do not use it")


def _small(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**53


Rebuild = Callable[[str, tuple[Any, ...] | None], Any]
Fill = Callable[[Any, Any], Any]
Persistent = Callable[[Any], Any]


class Machine:
    """Runs one pickle after another from a file; see the module.

    Args:
        budget: shared with whatever else reads the same file.
        rebuild: makes what a name stands for (no arguments: None) or the object of a call, or returns
            NotImplemented.
        fill: gives an object its state and returns it, or another to stand in its place.
        persistent: makes the object of a persistent id, or returns NotImplemented.
    """

    def __init__(self, budget: Budget, rebuild: Rebuild, fill: Fill, persistent: Persistent) -> None:
        self.budget = budget
        self.rebuild, self.fill, self.persistent = rebuild, fill, persistent

    def load(self, file: BinaryIO) -> Any:
        """The object of the pickle that begins where the file stands; leaves it behind its end.

        Raises:
            BadInput: it costs too much. Any other error means damage.
        """
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self._places: dict[int, int] = {}  # of placeholders in the memo, by their identity
        for operation, argument, _ in pickletools.genops(file):
            self.budget.step()
            rule = _RULES.get(operation.name)
            if rule is None:
                raise ValueError(f"operation {operation.name}")
            rule(self, argument)
        if self.marks:
            raise ValueError("a mark is left open")
        return self.stack.pop()

    # ------------------------------------------------------------------ parts of the rules

    def _open(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _marked(self) -> list[Any]:
        """What lies above the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _global(self, module: Any, name: Any) -> Any:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is no text")
        if len(module) + len(name) > _LONGEST_NAME:
            raise ValueError("a name of more than a thousand letters")
        path = f"{module}.{name}"
        known = self.rebuild(path, None)
        return Placeholder(path) if known is NotImplemented else known

    def _call(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        if type(args) is not tuple:
            raise ValueError("a call whose arguments are no tuple")
        named = isinstance(function, Placeholder) and function.args is None
        if named and not kwargs:
            made = self.rebuild(function.name, args)
            if made is not NotImplemented:
                return made
        if kwargs:
            args = (*args, kwargs)
        return Placeholder(function.name, args) if named else Placeholder("a call", (function, args))

    def _persistent(self, name: Any) -> Any:
        made = self.persistent(name)
        return Placeholder("a persistent id", (name,)) if made is NotImplemented else made

    def _extend(self, items: Iterable[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.items.extend(items)
        elif type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(self.budget.key(v) for v in items)
        else:
            raise ValueError(f"items for a {type(target).__name__}")

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise ValueError("a key without a value")
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, Placeholder):
            target.entries.extend(pairs)
        elif isinstance(target, dict):
            for key, value in pairs:
                target[self.budget.key(key)] = value
        else:
            raise ValueError(f"keys for a {type(target).__name__}")

    def _build(self, state: Any) -> None:
        target = self.stack[-1]
        filled = self.fill(target, state)
        if filled is not target:  # an array has its numbers only now: it takes the place of its placeholder
            self.stack[-1] = filled
            place = self._places.get(id(target))
            if place is not None and self.memo[place] is target:
                self.memo[place] = filled

    def _put(self, index: int) -> None:
        if not 0 <= index < 2**32:
            raise ValueError("a place in the memo that cannot be")
        value = self.memo[index] = self.stack[-1]
        if type(value) is Placeholder:
            self._places[id(value)] = index

    def _tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise ValueError("an empty stack")
        self.stack[len(self.stack) - size :] = [tuple(self.stack[len(self.stack) - size :])]


Rule = Callable[[Machine, Any], None]


def _call_marked(machine: Machine, name: str | None) -> None:
    """INST has the class in its argument, OBJ below what it is called with."""
    items = machine._marked()
    function = items.pop(0) if name is None else machine._global(*name.split(" ", 1))
    machine.stack.append(machine._call(function, tuple(items)))


def _call_stacked(machine: Machine, count: int) -> None:
    parts = [machine.stack.pop() for _ in range(count)][::-1]
    if count == 3 and type(parts[2]) is not dict:
        raise ValueError("a call whose keywords are no dictionary")
    machine.stack.append(machine._call(*parts))


def _refuse_buffer(machine: Machine, _: Any) -> None:
    raise BadInput(
        "it needs buffers that are kept outside the file (pickle protocol 5); save it again with torch.save"
    )


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_WHOLE, lambda m, a: m.stack.append(a)),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, a: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, a: m._put(a)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a: m.stack.append(m.memo[a])),
    **dict.fromkeys(
        ("EXT1", "EXT2", "EXT4"), lambda m, a: m.stack.append(Placeholder(f"an object of extension {a}"))
    ),
    **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), _refuse_buffer),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, a: _call_stacked(m, 2)),
    "NEWOBJ_EX": lambda m, a: _call_stacked(m, 3),
    **dict.fromkeys(("INST", "OBJ"), _call_marked),
    "MEMOIZE": lambda m, a: m._put(len(m.memo)),
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    "BYTEARRAY8": lambda m, a: m.stack.append(bytearray(a)),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_SET": lambda m, a: m.stack.append(set()),
    "MARK": Machine._open,
    "POP": lambda m, a: _drop(m),
    "POP_MARK": lambda m, a: m._marked().clear(),
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, a: _push(m, tuple(m._marked())),
    "TUPLE1": lambda m, a: m._tuple(1),
    "TUPLE2": lambda m, a: m._tuple(2),
    "TUPLE3": lambda m, a: m._tuple(3),
    "LIST": lambda m, a: _push(m, m._marked()),
    "DICT": lambda m, a: _dictionary(m),
    "FROZENSET": lambda m, a: _push(m, frozenset([m.budget.key(v) for v in m._marked()])),
    "APPEND": lambda m, a: m._extend([m.stack.pop()]),
    "APPENDS": lambda m, a: m._extend(m._marked()),
    "ADDITEMS": lambda m, a: m._extend(m._marked()),
    "SETITEM": lambda m, a: m._update([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, a: m._update(m._marked()),
    "BUILD": lambda m, a: m._build(m.stack.pop()),
    "GLOBAL": lambda m, a: _push(m, m._global(*a.split(" ", 1))),
    "STACK_GLOBAL": lambda m, a: _push(m, m._global(*[m.stack.pop(), m.stack.pop()][::-1])),
    "PERSID": lambda m, a: m.stack.append(m._persistent(a)),
    "BINPERSID": lambda m, a: m.stack.append(m._persistent(m.stack.pop())),
}


def _drop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:  # pickle takes off a mark then, too
        machine._marked()


def _push(machine: Machine, value: Any) -> None:
    # What `value` was made from may have replaced the stack, so it is looked up only now.
    machine.stack.append(value)


def _dictionary(machine: Machine) -> None:
    items = machine._marked()
    machine.stack.append({})
    machine._update(items)
