"""Reads safetensors files, mapped into memory, and writes files atomically."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import check_content

MAX_JSON_BYTES = 16 * 2**20
"""The configuration or index of a large model has less than 1 MB, a dictionary of 100 000 words
about 1 MB."""

MAX_HEADER_BYTES = 100_000_000
"""The most that the format allows (safetensors ``src/tensor.rs``)."""

_LENGTH_BYTES = 8


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as the format demands: the length of a header, at most
    ``MAX_HEADER_BYTES``, and a JSON object. Whether the file is whole is the reader's to say.

    The first byte decides nothing: the length is little-endian, so one in 256 lengths begins like a
    pickle (0x80), and others like a zip file. Neither of those has four zeros and a brace at the
    end of its first nine bytes.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        return length <= MAX_HEADER_BYTES and file.read(1) == b"{"


def open_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns all tensors of a file, as views of its mapping, and its metadata.

    Raises ``UserError`` for a file that is missing, cut short, or not of this format.
    """
    check_content(path)
    try:
        with safe_open(path, framework="pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise make_damaged_error(path, error) from error


def make_damaged_error(path: Path, error: Exception) -> UserError:
    """Returns the error for a file that safetensors cannot read."""
    return UserError(
        f"{path} is not a whole safetensors file ({str(error)[:120]}). Copy it again from where it "
        "came."
    )


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Returns the sha256 of a tensor's bytes in its own dtype, row-major and little-endian, without
    a copy of them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(memoryview(flat.numpy().data)).hexdigest()


def read_json(path: Path) -> Any:
    """Returns a JSON file. Raises ``UserError`` for one that is missing, empty,
    larger than ``MAX_JSON_BYTES`` or not JSON."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes, more than any description of an encoder."
            )
        check_content(path)
        # Editors on Windows begin a file with a byte order mark.
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({str(error)[:80]}). Copy it again from where it came."
        ) from error
