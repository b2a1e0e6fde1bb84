"""The templates of the HTML pages, and the style sheet that they share."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template


@lru_cache(maxsize=32)
def template(name: str) -> Template:
    """A template of pages or boards. It escapes whatever is put into it."""
    return _environment().get_template(name)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    folders = [resources.files(f"backsweep.render{room}") for room in (".pages", ".boards", ".dashboard", "")]

    def text(name: str) -> str | None:
        found = (folder.joinpath(name) for folder in folders)
        return next((file.read_text(encoding="utf-8") for file in found if file.is_file()), None)

    return Environment(
        loader=FunctionLoader(text),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
