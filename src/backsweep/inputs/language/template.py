"""Chat templates: what stands before and after the words of a user, found by rendering a template once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line

MOST_LETTERS = 2**16  # of a template
SECONDS = 10.0
MARK = "BACKSWEEP-PROMPT"  # stands for what a user says
_WAY_OUT = "take it out of the folder (chat_template.jinja, or chat_template in tokenizer_config.json)"


def around(template: str, names: Mapping[str, str]) -> tuple[str, str]:
    """The text that a chat template puts before and after the words of one user.

    Args:
        template: in Jinja, of a stranger: rendered in a sandbox, in a process with bounds.
        names: special tokens by the names that templates call them by, such as `bos_token`.

    Raises:
        BadInput: it is too large, fails, takes too long, or does not hold the words exactly once.
    """
    if len(template) > MOST_LETTERS:
        raise BadInput(f"its chat template has more than {MOST_LETTERS:,} letters; {_WAY_OUT}")
    messages = [{"role": "user", "content": MARK}]
    asked = json.dumps({"template": template, "messages": messages, "names": dict(names)})
    script = Path(__file__).with_name("rendering.py")
    try:
        done = subprocess.run(  # noqa: S603 - our own script, isolated
            [sys.executable, "-I", str(script)], input=asked, capture_output=True, text=True,
            encoding="utf-8", timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as e:
        raise BadInput(f"its chat template takes more than {SECONDS:g} s; {_WAY_OUT}") from e
    try:
        answer = json.loads(done.stdout)
    except ValueError as e:
        raise BadInput(f"its chat template takes too much time or memory; {_WAY_OUT}") from e
    if "error" in answer:
        raise BadInput(f"its chat template fails ({one_line(str(answer['error']))[:200]}); {_WAY_OUT}")
    before, mark, after = str(answer["text"]).partition(MARK)
    if not mark or MARK in after:
        raise BadInput(f"its chat template does not hold a user's words once; {_WAY_OUT}")
    return before, after
