"""Our own format: a safetensors file with a manifest in its metadata, alone or in a folder.

The manifest holds family, configuration, sha256 of every tensor, and how the encoder was made from
which parents. It is in the file itself, so one rename publishes everything. A folder holds
``encoder.safetensors`` and, for people, the same manifest as ``manifest.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.speech.checkpoints._parameters import is_finite
from speechft_ray.speech.checkpoints._plain import to_plain_data
from speechft_ray.speech.checkpoints._safetensors import (
    is_safetensors,
    open_safetensors,
    tensor_sha256,
)
from speechft_ray.speech.checkpoints._torch import validate_state_dict
from speechft_ray.speech.checkpoints.base import (
    FORMATS,
    Checkpoint,
    CheckpointFormat,
    RawCheckpoint,
    atomic,
)
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights

FILE, MANIFEST = "encoder.safetensors", "manifest.json"
FORMAT = 1
"""Raised when a reader of the old format would misread the new one."""

_KEY = "speechft_ray"
_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_FIELD_TYPES = {"family": str, "config": dict, "sha256": dict}


def write_encoder(
    path: Path,
    weights: EncoderWeights,
    provenance: Mapping[str, Any],
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes an encoder atomically: a file when ``path`` ends in ``.safetensors``, else a folder.

    ``provenance`` is plain JSON data on how the encoder was made; ``parents`` in it lists the
    encoders it was made from. float16 halves the file and rounds. Raises ``UserError`` when a value
    is not finite in ``dtype``.
    """
    state = {
        name: tensor.detach().to("cpu", _DTYPES[dtype]).contiguous()
        for name, tensor in weights.state.items()
    }
    broken = [name for name, tensor in state.items() if not is_finite(tensor)]
    if broken:
        raise UserError(
            f"{len(broken)} tensors are not finite in {dtype}, first {broken[0]}: {path} was not "
            "written."
        )
    manifest = {
        "format": FORMAT,
        "family": weights.family,
        "config": dict(weights.config),
        "dtype": dtype,
        "made": dict(provenance),
        "sha256": {name: tensor_sha256(tensor) for name, tensor in state.items()},
    }
    text = canonical_json(manifest)  # raises for values that JSON does not have
    file = path if path.suffix == ".safetensors" else path / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        save_file(state, temporary, metadata={_KEY: text})
    if file != path:
        readable = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        with atomic_write(path / MANIFEST) as temporary:
            temporary.write_text(readable, encoding="utf-8")


def read_encoder(path: Path) -> EncoderWeights:
    """Returns an encoder written by ``write_encoder``, after comparing the sha256 of every tensor.

    Weights are float32. Those stored so are views of the file, mapped into memory, and are read
    from disk when they are used. Raises ``UserError`` for a file that is missing, cut short,
    changed, or of another format.
    """
    return _read(path).weights


def matches(source: RawCheckpoint) -> bool:
    """Whether it is a safetensors file, or a folder with ``encoder.safetensors``."""
    if source.path.is_dir():
        return (source.path / FILE).is_file()
    return source.content is None and is_safetensors(source.path)


def _read(path: Path) -> Checkpoint:
    file = _find_file(path)
    state, metadata = open_safetensors(file)
    manifest = _parse_manifest(file, metadata)
    if set(state) != set(manifest["sha256"]):
        raise UserError(
            f"{file} and its manifest name different tensors. Copy the file again from where it "
            "came."
        )
    damaged = [
        name for name, tensor in state.items() if tensor_sha256(tensor) != manifest["sha256"][name]
    ]
    if damaged:
        raise UserError(
            f"{file} is damaged: {len(damaged)} of {len(state)} tensors do not have the sha256 of "
            f"its manifest, first {damaged[0]}. Copy the file again from where it came."
        )
    loaded = validate_state_dict(file, state, "safetensors") if state else {}
    weights = EncoderWeights(family=manifest["family"], config=manifest["config"], state=loaded)
    return Checkpoint(weights=weights, format="safetensors", provenance=manifest["made"])


def _parse_manifest(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(_KEY)
    if text is None:
        raise UserError(
            f"{file} is a safetensors file without a speechft_ray manifest, so its architecture is "
            f"unknown. Give the folder of transformers that it belongs to, with its config.json"
            f"{f': {file.parent}' if (file.parent / 'config.json').is_file() else ''}."
        )
    try:
        manifest = json.loads(text)
        is_complete = {"format", *_FIELD_TYPES} <= manifest.keys()
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"the manifest inside {file} is not JSON of this format. Copy the file again."
        ) from error
    if not is_complete or manifest["format"] != FORMAT:
        raise UserError(
            f"{file} has a manifest of format {str(manifest.get('format'))[:20]}, but this version "
            f"reads format {FORMAT}."
        )
    manifest = {"made": {}, **to_plain_data(manifest, f"the manifest in {file}")}
    if not all(
        isinstance(manifest[key], kind) for key, kind in {**_FIELD_TYPES, "made": dict}.items()
    ):
        raise UserError(
            f"the manifest inside {file} is not JSON of this format. Copy the file again."
        )
    return manifest


def _find_file(path: Path) -> Path:
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"there is no encoder at {path}: expected a `.safetensors` file or a folder with "
            f"`{FILE}`."
        )
    return file


def _write(path: Path, weights: EncoderWeights, provenance: Mapping[str, Any]) -> tuple[str, ...]:
    write_encoder(path, weights, provenance)
    return ()


SAFETENSORS = FORMATS.register(
    "safetensors",
    CheckpointFormat(
        name="safetensors",
        title="speechft_ray (.safetensors with manifest)",
        families=tuple(FAMILIES.names()),
        is_folder=False,
        matches=matches,
        read=lambda source: _read(source.path),
        write=atomic(_write),
    ),
)
