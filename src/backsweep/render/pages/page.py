"""The templates of the HTML pages, and the style sheet that they share."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template


@lru_cache(maxsize=8)
def template(name: str) -> Template:
    """A template of this package. It escapes whatever is put into it."""
    return _environment().get_template(name)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    folder = resources.files("backsweep.render")
    return Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
