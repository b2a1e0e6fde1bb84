"""The command line in this process."""

from __future__ import annotations

import sys

import pytest

from backsweep.cli import app

ARCH = "backsweep.archs:digits_cnn"


class Shell:
    """Runs the command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        self._monkeypatch.setattr(sys, "argv", ["backsweep", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        out, err = self._capsys.readouterr()
        return int(stop.value.code or 0), out, err
