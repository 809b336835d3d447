"""The interface of checkpoint formats, and their registry."""

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
    """An encoder with what its file says about it."""

    weights: EncoderWeights
    format: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How the encoder was made, plain JSON data from its file. ``parents`` lists the encoders that
    it was made from."""
    notes: tuple[str, ...] = ()
    """Sentences for people: what was left out, where a value came from, what was filled in."""


@dataclass(frozen=True, kw_only=True)
class RawCheckpoint:
    """One file or folder, opened once, before its format is known."""

    path: Path
    content: Any = None
    """Content of a file of ``torch.save``; None for folders and safetensors files."""
    config_from: Path | None = None
    """Another checkpoint, whose configuration is used for a format that has none."""


Write = Callable[[Path, EncoderWeights, Mapping[str, Any]], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """A registered format.

    ``title``: its name in messages. ``families``: the encoder families that it can hold.
    ``is_folder``: whether it is a folder. ``matches(source)``: whether the content is of this
    format, never judged by the file name alone. ``check(weights)``: raises ``UserError`` for an
    encoder of these families that the format cannot hold.

    ``read(source)``: raises ``UserError`` for content that it recognises and cannot use.
    ``write(path, weights, provenance)``: writes ``path`` atomically and returns notes; raises
    ``UserError`` where ``path`` exists and for weights that the format cannot hold. ``read``
    returns what ``write`` wrote: bit-equal tensors, the same configuration and provenance.
    """

    name: str
    title: str
    families: tuple[str, ...]
    is_folder: bool
    matches: Callable[[RawCheckpoint], bool]
    read: Callable[[RawCheckpoint], Checkpoint]
    write: Write
    check: Callable[[EncoderWeights], None] = lambda weights: None


FORMATS: Registry[CheckpointFormat] = Registry(
    "checkpoint format", "speechft_ray.speech.checkpoints"
)


def list_formats(family: str) -> list[str]:
    """Returns the names of the formats that can hold a family, sorted."""
    return [name for name, form in FORMATS.items() if family in form.families]


def atomic(write: Write) -> Write:
    """Returns a writer that leaves ``path`` either complete or absent, overwrites nothing and
    rejects weights that do not fit their configuration.

    It raises ``UserError`` where ``path`` exists or cannot be written, and as ``check_fit`` does.
    """

    def write_atomically(
        path: Path, weights: EncoderWeights, provenance: Mapping[str, Any]
    ) -> tuple[str, ...]:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists already. Give another place, or move it away first.")
        check_fit(weights)
        temporary: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            # torch.save names the entries of its archive after the file, and refuses hidden names.
            part = temporary / f"checkpoint{path.suffix}"
            notes = write(part, weights, provenance)
            part.rename(path)
        except OSError as error:
            raise UserError(f"{path} was not written: {error.strerror or error}.") from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary)
        return notes

    return write_atomically


def remove_checkpoint(path: Path) -> None:
    """Removes the file or folder of a checkpoint, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
