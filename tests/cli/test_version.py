"""``speechft --version``, and what every verb does before it prints."""

from __future__ import annotations

import io
import sys

import pytest

from speechft_ray import __version__
from speechft_ray.cli import main


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"speechft_ray {__version__}\n"


def test_a_character_that_the_terminal_lacks_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["--version"]) == 0
    print("\u2605 2")
    terminal.flush()
    assert terminal.buffer.getvalue().splitlines()[1] == b"? 2"
