"""``speechft --version``."""

from __future__ import annotations

import pytest

from speechft_ray import __version__
from speechft_ray.cli import main


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"speechft_ray {__version__}\n"
