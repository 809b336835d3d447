"""Which version of this package computed a unit: a fact of its manifest, never part of identity."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from speechft_ray import __version__

PACKAGE = "speechft_ray"
GIT_SECONDS = 10.0
"""Longest wait for git, which may have to look at every file of a checkout on a slow disk."""


@cache
def code_version() -> dict[str, str | None]:
    """Returns the version of the package and the git commit of its checkout, once per process.

    ``commit`` ends in ``-dirty`` where files differ from it. It is ``None`` for a package that does
    not lie in a checkout of its own repository, and where git does not answer. Never raises.
    """
    return {PACKAGE: __version__, "commit": read_commit(Path(__file__).parents[2])}


def read_commit(root: Path) -> str | None:
    """Returns the abbreviated commit of a checkout, or ``None`` when ``root`` is not one."""
    if not (root / ".git").exists() or not (root / PACKAGE).is_dir():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # do not write to the index
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return answer.stdout.strip() or None
