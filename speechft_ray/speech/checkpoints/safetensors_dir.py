"""Our own format: one safetensors file that carries its manifest, alone or in a folder.

The manifest (family, configuration, sha256 of every tensor, how the encoder was made) lies in the file's own metadata, so one
rename publishes everything. A folder holds ``encoder.safetensors`` and, for people, the same manifest as ``manifest.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import canonical
from speechft_ray.speech.encoders.base import EncoderWeights

FILE, MANIFEST = "encoder.safetensors", "manifest.json"
FORMAT = 1
"""Raised when a reader of the old format would misread the new one."""

_KEY = "speechft_ray"
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Returns the sha256 of a tensor's bytes in its own dtype, row-major and little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def write_encoder(
    path: Path, weights: EncoderWeights, made: Mapping[str, Any], dtype: Literal["float32", "float16"] = "float32"
) -> None:
    """Writes an encoder, whole or not at all: a file when ``path`` ends in ``.safetensors``, else a folder.

    ``made`` is plain JSON data on how the encoder came to be. float16 halves the file and rounds; raises ``UserError`` when a
    value does not fit into it, or is not finite.
    """
    state = {name: tensor.detach().to("cpu", _DTYPES[dtype]).contiguous() for name, tensor in weights.state.items()}
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UserError(f"{len(broken)} tensors are not finite in {dtype}, first {broken[0]}: {path} was not written.")
    manifest = {
        "format": FORMAT,
        "family": weights.family,
        "config": dict(weights.config),
        "dtype": dtype,
        "made": dict(made),
        "sha256": {name: tensor_sha256(tensor) for name, tensor in state.items()},
    }
    text = canonical(manifest)  # refuses what JSON cannot say
    file = path if path.suffix == ".safetensors" else path / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    _publish(file, lambda part: save_file(state, part, metadata={_KEY: text}))
    if file != path:
        readable = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        _publish(path / MANIFEST, lambda part: part.write_text(readable, encoding="utf-8"))


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of an encoder file or folder. Raises ``UserError`` when it is not of our format."""
    file = _file(path)
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}). Copy it again from where it came.") from error
    if text is None:
        raise UserError(f"{file} is a safetensors file without a speechft_ray manifest, so its architecture is unknown.")
    try:
        manifest = json.loads(text)
        complete = {"format", "family", "config", "sha256"} <= manifest.keys()
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"the manifest inside {file} is not JSON of this format. Copy the file again.") from error
    if not complete or manifest["format"] != FORMAT:
        raise UserError(f"{file} has a manifest of format {manifest.get('format')}, but this version reads format {FORMAT}.")
    return dict(manifest)


def read_encoder(path: Path) -> EncoderWeights:
    """Reads an encoder written by ``write_encoder``; every tensor must have its recorded sha256. Weights come back in float32.

    Raises ``UserError`` for a file that is missing, cut short, of another format, or has a byte changed.
    """
    manifest, file = read_manifest(path), _file(path)
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
        state = {name: opened.get_tensor(name) for name in names}
    if set(names) != set(manifest["sha256"]):
        raise UserError(f"{file} and its manifest name different tensors. Copy the file again from where it came.")
    damaged = [name for name, tensor in state.items() if tensor_sha256(tensor) != manifest["sha256"][name]]
    if damaged:
        raise UserError(
            f"{file} is damaged: {len(damaged)} of {len(state)} tensors do not have the sha256 of its manifest, "
            f"first {damaged[0]}. Copy the file again from where it came."
        )
    loaded = {name: tensor.to(torch.float32) for name, tensor in state.items()}
    return EncoderWeights(family=manifest["family"], config=manifest["config"], state=loaded)


def _file(path: Path) -> Path:
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no encoder at {path}: expected a `.safetensors` file or a folder with `{FILE}`.")
    return file


def _publish(path: Path, write: Any) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    part = Path(name)
    try:
        write(part)
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
