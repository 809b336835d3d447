"""From one format to another, in one go or not at all."""

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

_OURS = {*HF_FILES, FILE, MANIFEST}


class Conversion(NamedTuple):
    """What was read, and what to tell people of the reading and the writing."""

    found: Checkpoint
    notes: tuple[str, ...]


def convert(
    path: Path, to: str, out: Path, *, config_from: Path | None = None, force: bool = False
) -> Conversion:
    """Writes the encoder of ``path`` in the format ``to`` at ``out``; ``force`` replaces what we
    could have written there.

    Raises ``UserError`` for anything that cannot be read, does not fit together, or does not fit
    the format; nothing is written then, and what lay at ``out`` still does.
    """
    form = FORMATS.get(to)
    if (out.exists() or out.is_symlink()) and not force:
        raise UserError(f"{out} exists already. Give another place, or --force to replace it.")
    if force:
        check_replaceable(out)
    found = load_checkpoint(path, config_from)
    check_family(form, found.weights.family)
    made = {**found.made, "converted": _history(found, path)}
    if not (out.exists() or out.is_symlink()):
        return Conversion(found, form.write(out, found.weights, made))
    fresh = out.with_name(f".{out.stem}-{secrets.token_hex(4)}{out.suffix}")
    notes = form.write(fresh, found.weights, made)
    _swap(fresh, out)
    return Conversion(found, notes)


def check_family(form: CheckpointFormat, family: str) -> None:
    """Raises ``UserError`` when the format cannot hold the family, saying which can."""
    if family not in form.families:
        raise UserError(
            f"--to {form.name} cannot hold a {FAMILIES.get(family).title}: {form.title} is for {', '.join(form.families)}. "
            f"Allowed for this encoder: {', '.join(list_formats(family))}."
        )


def check_replaceable(out: Path) -> None:
    """Raises ``UserError`` for what --force must not remove: links, and folders with anything in
    them that we do not write."""
    if out.is_symlink():
        raise UserError(f"{out} is a link. Give the place itself, or another one.")
    strangers = (
        sorted(file.name for file in out.iterdir() if file.name not in _OURS)
        if out.is_dir()
        else []
    )
    if strangers:
        raise UserError(
            f"{out} is a folder with other things in it, first `{strangers[0]}`. Give another place."
        )


def _swap(fresh: Path, out: Path) -> None:
    if fresh.is_file() and out.is_file():
        fresh.replace(out)
        return
    aside = out.with_name(f".{out.stem}-{secrets.token_hex(4)}.old")
    out.rename(aside)
    try:
        fresh.rename(out)
    except OSError:
        aside.rename(out)
        remove_checkpoint(fresh)
        raise
    remove_checkpoint(aside)


def _history(found: Checkpoint, path: Path) -> list[Mapping[str, Any]]:
    """Every conversion so far, oldest first: from which format, and the name of the file without
    its folder."""
    before = found.made.get("converted", [])
    step = {"from": found.format, "file": path.name, "notes": list(found.notes)}
    return [*(before if isinstance(before, list) else []), step]
