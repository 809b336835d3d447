"""Reading a ``.pt`` file of strangers: tensors and plain containers only, no code."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.errors import UserError

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def read_tensors(path: Path) -> Any:
    """Returns what a file of ``torch.save`` holds, its tensors mapped into memory where the file allows.

    Nothing in the file is executed: ``torch.load(weights_only=True)`` builds tensors, containers, numbers and text, and
    refuses all else. Raises ``UserError`` for a file that is no checkpoint, is cut short, or asks for more than that, naming
    what it asks for.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if not head.startswith((_ZIP, _PICKLE)):
        raise UserError(
            f"{path} is not a file of torch.save: it begins with {head!r}. Check that the download is the checkpoint itself."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an unusual pickle protocol: it is read, or refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(_ZIP))
    except pickle.UnpicklingError as error:
        wanted = _unsafe_globals(path) or re.findall(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise UserError(
                f"{path} was refused: to load it, Python would have to run {', '.join(wanted[:5])}. Only tensors and plain "
                "data are read; convert the checkpoint to safetensors where you trust it."
            ) from error
        raise UserError(f"{path} is damaged, or was not written by torch.save. Copy it again from where it came.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise _damaged(path, error) from error


def _unsafe_globals(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the file is broken as well, or older than the zip format: no names then
        return []


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return UserError(f"{path} is damaged or cut short ({reason}). Copy it again from where it came.")
