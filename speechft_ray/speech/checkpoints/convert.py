"""Converts a checkpoint from one format to another, atomically."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints.base import (
    FORMATS,
    Checkpoint,
    CheckpointFormat,
    list_formats,
    remove_checkpoint,
)
from speechft_ray.speech.checkpoints.hf import FILES as HF_FILES
from speechft_ray.speech.checkpoints.load import load_checkpoint
from speechft_ray.speech.checkpoints.safetensors_dir import FILE, MANIFEST
from speechft_ray.speech.encoders.base import FAMILIES

_REPLACEABLE = {*HF_FILES, FILE, MANIFEST}


class Conversion(NamedTuple):
    """The checkpoint that was read, and the notes of the writer."""

    checkpoint: Checkpoint
    notes: tuple[str, ...]


def convert(
    path: Path, to: str, out: Path, *, config_from: Path | None = None, force: bool = False
) -> Conversion:
    """Writes the encoder of ``path`` in the format ``to`` at ``out``.

    ``force`` replaces a checkpoint that is there.

    Raises ``UserError`` for a checkpoint that cannot be read, is inconsistent, or does not fit the
    format; ``out`` is unchanged then.
    """
    form = FORMATS.get(to)
    if (out.exists() or out.is_symlink()) and not force:
        raise UserError(f"{out} exists already. Give another place, or --force to replace it.")
    if force:
        check_replaceable(out)
    checkpoint = load_checkpoint(path, config_from)
    check_family(form, checkpoint.weights.family)
    provenance = {**checkpoint.provenance, "converted": _history(checkpoint, path)}
    if not (out.exists() or out.is_symlink()):
        return Conversion(checkpoint, form.write(out, checkpoint.weights, provenance))
    replacement = out.with_name(f".{out.stem}-{secrets.token_hex(4)}{out.suffix}")
    notes = form.write(replacement, checkpoint.weights, provenance)
    _replace(replacement, out)
    return Conversion(checkpoint, notes)


def check_family(form: CheckpointFormat, family: str) -> None:
    """Raises ``UserError`` when the format cannot hold the family, saying which can."""
    if family not in form.families:
        raise UserError(
            f"--to {form.name} cannot hold a {FAMILIES.get(family).title}: {form.title} is for "
            f"{', '.join(form.families)}. Allowed for this encoder: "
            f"{', '.join(list_formats(family))}."
        )


def check_replaceable(out: Path) -> None:
    """Raises ``UserError`` for what --force must not remove: links, and folders with files that we
    do not write."""
    if out.is_symlink():
        raise UserError(f"{out} is a link. Give the place itself, or another one.")
    others = (
        sorted(file.name for file in out.iterdir() if file.name not in _REPLACEABLE)
        if out.is_dir()
        else []
    )
    if others:
        raise UserError(
            f"{out} is a folder with other things in it, first `{others[0]}`. Give another place."
        )


def _replace(replacement: Path, out: Path) -> None:
    """Renames ``replacement`` to ``out``; where that fails, ``out`` is as it was."""
    if replacement.is_file() and out.is_file():
        replacement.replace(out)
        return
    backup = out.with_name(f".{out.stem}-{secrets.token_hex(4)}.old")
    out.rename(backup)
    try:
        replacement.rename(out)
    except OSError:
        backup.rename(out)
        remove_checkpoint(replacement)
        raise
    remove_checkpoint(backup)


def _history(checkpoint: Checkpoint, path: Path) -> list[Mapping[str, Any]]:
    """Returns every conversion so far, oldest first: its format, file name and notes."""
    earlier = checkpoint.provenance.get("converted", [])
    step = {"from": checkpoint.format, "file": path.name, "notes": list(checkpoint.notes)}
    return [*(earlier if isinstance(earlier, list) else []), step]
