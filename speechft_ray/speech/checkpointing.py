"""Saved states of an unfinished run: one file per save, named by the sha256 of its bytes."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write
from speechft_ray.core.fingerprint import file_sha256

MAX_STATES = 2
"""States on disk: the newest, and one to fall back on when its bytes are damaged."""

_log = logging.getLogger(__name__)


def save(folder: Path, number: int, state: Mapping[str, Any], kind: str = "state") -> None:
    """Publishes a state by one rename and removes the older ones of its kind.

    ``state`` holds tensors and plain data only. A reader sees a state whole or not at all; a torn
    or flipped file has a name that does not match its bytes. Raises ``UserError`` when the folder
    cannot be written.
    """

    def name_of(file: Path) -> str:
        return f"{kind}-{number:09d}-{file_sha256(file)}.pt"

    try:
        with atomic_write(folder / kind, name_of) as temporary, temporary.open("wb") as file:
            torch.save(dict(state), file)
        for old in _newest_first(folder, kind)[MAX_STATES:]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        reason = (
            error.strerror
            if isinstance(error, OSError)
            else "it was not written as a whole; the disk may be full"
        )
        raise UserError(
            f"the state of the run cannot be saved in `{folder}` ({reason}): free space or choose "
            "another storage folder, and run again; it goes on from the last saved state."
        ) from error


def load(
    folder: Path, identity: str, kind: str = "state", at_most: int | None = None
) -> dict[str, Any] | None:
    """Returns the newest usable state, tensors on the CPU; ``None`` when there is none.

    ``at_most``: states with a larger number are left alone.
    Damaged files, and files with anything but tensors and plain data in them, are logged and
    skipped. Raises ``UserError`` when a state has another ``identity``: it belongs to another run,
    whose work must not be overwritten.
    """
    for path in _newest_first(folder, kind):
        if at_most is not None and int(path.stem.split("-")[1]) > at_most:
            continue
        state = _read(path)
        if state is None:
            _log.warning("the saved state %s is damaged and was skipped", path)
        elif state["identity"] != identity:
            raise UserError(
                f"`{path}` is the saved state of another run (other settings, start weights or "
                "recordings): choose another folder to work in, or remove it if that run is not to "
                "go on."
            )
        else:
            return state
    return None


def _read(path: Path) -> dict[str, Any] | None:
    if file_sha256(path) != path.stem.split("-")[2]:
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):
        return None
    return state


def _newest_first(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"{kind}-*-*.pt"), reverse=True)
