"""What a method is: the base of detectors, attacks and repairs.

A method is a frozen dataclass in a file of its own. Its fields are its settings: the constructor,
`-p name.field=value` and the record in the report are one thing. A method is found by its module, or by
the entry point of a package that brings it; there is nothing to register.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True)
class Method:
    """Base of every plugin. `name` is how a user calls it, `summary` one line for `list`.

    A kind of method is a subclass that says where its methods are found.

    Attributes:
        noun: what a method of this kind is called, "detector", "attack" or "repair".
        package: the package with one method in each module.
        group: entry points of packages from outside that bring methods of this kind.
        needs: what it must have of a network beside the network's answers.
        of_classes: whether it is for networks that classify alone, as most are.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    noun: ClassVar[str] = "method"
    package: ClassVar[str] = ""
    group: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ("gradients", "layers", "weights")
    of_classes: ClassVar[bool] = True

    @property
    def itself(self) -> Method:
        """The method that `name` and `settings` are of: another one for what only wraps it."""
        return self

    @classmethod
    def completed(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings that an older version recorded, completed so that they mean what they meant."""
        return settings

    def settings(self) -> dict[str, Any]:
        """The constructor fields, as the report records them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
