"""What a checkpoint format is, and where formats register."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.core.registry import Registry
from speechft_ray.speech.checkpoints._parameters import check_fit
from speechft_ray.speech.encoders.base import EncoderWeights


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An encoder as it was found."""

    weights: EncoderWeights
    format: str
    made: Mapping[str, Any] = field(default_factory=dict)
    """How it came to be, plain JSON data: what its writer left in the file. ``parents`` lists the
    encoders it was made from."""
    notes: tuple[str, ...] = ()
    """Sentences for people: what was left out, what was taken from where, what was filled in."""


@dataclass(frozen=True, kw_only=True)
class RawCheckpoint:
    """One file or folder, opened once, for every format to look at."""

    path: Path
    content: Any = None
    """What a file of ``torch.save`` holds; None for folders and safetensors files."""
    config_from: Path | None = None
    """A checkpoint that lends its configuration to one that has none."""


Write = Callable[[Path, EncoderWeights, Mapping[str, Any]], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """A registered format.

    ``title``: what people call it. ``families``: the encoder families that it can hold.
    ``is_folder``: whether it is a folder. ``recognises(source)``: whether this is one, judged by
    its content and never by its name alone. ``read(source)``: raises ``UserError`` for what it
    recognises and cannot use. ``write(path, weights, made)``: writes ``path``, whole or not at all,
    and returns notes; raises ``UserError`` for a place that is taken and for weights that the
    format cannot say. What it writes, ``read`` gives back with bit-equal tensors, the same
    configuration and ``made``.
    """

    name: str
    title: str
    families: tuple[str, ...]
    is_folder: bool
    recognises: Callable[[RawCheckpoint], bool]
    read: Callable[[RawCheckpoint], Checkpoint]
    write: Write


FORMATS: Registry[CheckpointFormat] = Registry(
    "checkpoint format", "speechft_ray.speech.checkpoints"
)


def list_formats(family: str) -> list[str]:
    """Returns the names of the formats that can hold a family, sorted."""
    return [name for name, form in FORMATS.items() if family in form.families]


def atomic(write: Write) -> Write:
    """Returns a writer that leaves ``path`` either complete or absent, and never writes over
    anything or a broken encoder.

    It raises ``UserError`` for a place that is taken or cannot be written, and as ``check_fit``
    does.
    """

    def written(path: Path, weights: EncoderWeights, made: Mapping[str, Any]) -> tuple[str, ...]:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists already. Give another place, or move it away first.")
        check_fit(weights)
        aside: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            part = (
                aside / f"checkpoint{path.suffix}"
            )  # torch.save names things after the file, and takes no hidden one
            notes = write(part, weights, made)
            part.rename(path)
        except OSError as error:
            raise UserError(f"{path} was not written: {error.strerror or error}.") from error
        finally:
            if aside is not None:
                shutil.rmtree(aside)
        return notes

    return written


def remove_checkpoint(path: Path) -> None:
    """Removes a file or folder that we wrote, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
