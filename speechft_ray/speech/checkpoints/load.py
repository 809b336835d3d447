"""Loads an encoder from a catalogue name or a path, whatever the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.checkpoints._hints import (
    describe_missing,
    describe_unknown_file,
    describe_unknown_folder,
)
from speechft_ray.speech.checkpoints._safetensors import is_safetensors, tensor_sha256
from speechft_ray.speech.checkpoints._torch import open_torch_file
from speechft_ray.speech.checkpoints.base import FORMATS, Checkpoint, RawCheckpoint
from speechft_ray.speech.checkpoints.cache import download_encoder
from speechft_ray.speech.checkpoints.catalogue import BASELINE, is_encoder_name
from speechft_ray.speech.checkpoints.download import Progress
from speechft_ray.speech.checkpoints.safetensors_dir import FILE
from speechft_ray.speech.encoders.base import EncoderWeights


def load_encoder(name_or_path: str | Path, progress: Progress | None = None) -> EncoderWeights:
    """Returns an encoder by name (the catalogue's, or ``hf:OWNER/NAME``), or from a file or folder
    of any registered format.

    A name that is not in the cache is downloaded; ``progress`` then receives the bytes of each
    file. Nothing in a file is executed; sha256 sums are checked where the format has them. Raises
    ``UserError`` for an unknown name, a missing path, another format, and damaged files.
    """
    return load_with_notes(name_or_path, progress)[0]


def load_with_notes(
    name_or_path: str | Path, progress: Progress | None = None
) -> tuple[EncoderWeights, tuple[str, ...]]:
    """Returns an encoder as ``load_encoder`` does, and the sentences of its format on what was left
    out or filled in."""
    name = str(name_or_path)
    if name == BASELINE:
        return EncoderWeights(family=BASELINE, config={}, state={}), ()
    checkpoint = load_checkpoint(locate_encoder(name, progress))
    return checkpoint.weights, checkpoint.notes


def locate_encoder(name_or_path: str, progress: Progress | None = None) -> Path:
    """Returns the file or folder of a name, downloading it if necessary, or of a path. Raises
    ``UserError`` where neither exists."""
    if name_or_path == BASELINE:
        raise UserError(
            f"`{BASELINE}` is the baseline without parameters: there is no file of it. Give an "
            "encoder that has some."
        )
    path = (
        download_encoder(name_or_path, progress)
        if is_encoder_name(name_or_path)
        else Path(name_or_path).expanduser()
    )
    if not path.exists():
        raise UserError(describe_missing(name_or_path))
    return path


def load_checkpoint(path: Path, config_from: Path | None = None) -> Checkpoint:
    """Returns the encoder of a file or folder with its format, provenance and notes.

    ``config_from`` is a checkpoint whose configuration is used for a format that has none. The file
    is opened once, and its content decides the format. Tensors that are float32 in the file are
    views of it, mapped into memory. Raises ``UserError`` for content of no registered format, for
    damaged files, and for content that a format rejects.
    """
    if not path.exists():
        raise UserError(describe_missing(str(path)))
    if not path.is_file() and not path.is_dir():
        raise UserError(
            f"{path} is neither a file nor a folder. Give the folder or file of an encoder."
        )
    try:
        content = open_torch_file(path) if path.is_file() and not is_safetensors(path) else None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    source = RawCheckpoint(path=path, content=content, config_from=config_from)
    for name, form in FORMATS.items():
        if form.matches(source):
            if config_from is not None and name != "s3prl-downstream":
                raise UserError(
                    f"{path} ({form.title}) holds its own configuration: leave --config-from out."
                )
            return form.read(source)
    raise UserError(_describe_unknown_format(path, content))


def weights_fingerprint(weights: EncoderWeights) -> str:
    """Returns the identity of an encoder, 16 hex digits: family, configuration, and name, shape and
    float32 bytes of each tensor.

    It does not depend on the file, its format or the order of tensors in it.
    """
    tensors = {
        name: [list(tensor.shape), tensor_sha256(tensor.detach().float())]
        for name, tensor in weights.state.items()
    }
    return fingerprint(
        {"family": weights.family, "config": dict(weights.config), "tensors": tensors}
    )


def _describe_unknown_format(path: Path, content: Any) -> str:
    if path.is_dir():
        return describe_unknown_folder(path, FILE)
    return describe_unknown_file(path, content, [form.title for _, form in FORMATS.items()])
