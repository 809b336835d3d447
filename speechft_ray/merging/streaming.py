"""Merging safetensors files tensor by tensor, for models that are larger than memory.

The result is written as it is made. A safetensors file is 8 bytes with the length of the header
(little-endian), the header, which is JSON with the type, shape and place of each tensor, and the
tensors' bytes without gaps; so with the header first, tensors can follow in any order.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from speechft_ray.core.errors import UserError
from speechft_ray.merging.algebra import (
    check_alpha,
    combine_all,
    find_statistics,
    move_into,
    refuse_overflow,
)
from speechft_ray.merging.alignment import State, align, find_parts, find_twins, require_finite
from speechft_ray.merging.base import MergeParams, check
from speechft_ray.merging.param_reader import Part, Reader, source_of

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Number types of safetensors files that are read and written."""


def merge_files(
    method: str,
    params: Mapping[str, Any],
    base: Path,
    donors: Sequence[Path],
    alpha: float,
    out: Path,
    protected_prefixes: Sequence[str] = (),
    device: str = "cpu",
    memory_bytes: int | None = None,
) -> None:
    """Merges safetensors files into the file ``out``, which appears whole or not at all; values are
    those of ``algebra.merge``.

    Inputs that fit into ``memory_bytes`` (``None``: half of what is free) stay mapped into memory.
    Of larger ones no more is there at any time than one tensor of the base, of each donor and of
    the result, and one more, in the number type of the arithmetic: at most the largest tensor times
    (donors + 2). Methods that need a tensor whole (``MergeMethod.blockwise``) add what they work
    with. Each pass of a method then reads the files again, five times for TIES. ``device``: where
    tensors are read to and merged.

    Raises ``UserError`` where ``algebra.merge`` does, for files that cannot be read, and for a disk
    too small for the result.
    """
    checked = check(method, params, donors=len(donors))
    check_alpha(alpha)
    form, *forms = (_form(path) for path in (base, *donors))
    prefixes = tuple(protected_prefixes)
    parts = find_parts(form, find_twins(form), prefixes, checked.pos_conv)
    for index, donor in enumerate(forms):
        align(form, donor, f"donor {index + 1}", prefixes)
    find_statistics(method, None, len(donors))
    require_room(out, sum(tensor.numel() * tensor.element_size() for tensor in form.values()))
    paths = (base, *donors)
    fits = sum(path.stat().st_size for path in paths) <= (
        _free_bytes() // 2 if memory_bytes is None else memory_bytes
    )
    readers = [_mapped(path, device) if fits else _reader(path, device) for path in paths]
    with _writing(out, form) as write, torch.no_grad():
        moved = {key for part in parts for key in part.keys} if alpha > 0.0 else set()
        for key in form.keys() - moved:
            write(key, readers[0](key))
        if moved:
            _merge(method, checked, parts, readers, alpha, write)


def require_room(out: Path, size_bytes: int) -> None:
    """Raises ``UserError`` when the disk of ``out`` has fewer free bytes, before anything is
    computed."""
    free = shutil.disk_usage(out.absolute().parent).free
    if free < size_bytes:
        raise UserError(
            f"the merged model needs {size_bytes / 1e6:,.0f} MB, but {out.absolute().parent} has {free / 1e6:,.0f} MB free: "
            "free some space or give another --out."
        )


def _merge(
    method: str,
    params: MergeParams,
    parts: tuple[Part, ...],
    readers: Sequence[Reader],
    alpha: float,
    write: Any,
) -> None:
    base, *donors = readers
    source = source_of(parts, base, donors, params.number_type, lambda name: ())
    require_finite(source, base, donors)
    for part, combined, untouched in combine_all(method, params, source):
        # The result takes the place of the combined task vector where its number type allows it.
        room = {key: _room(base(key), combined) for key in part.keys}
        move_into(room, part, combined, params.scale, untouched, base, donors, alpha)
        refuse_overflow(room)
        for key, tensor in room.items():
            write(key, tensor)


def _room(like: torch.Tensor, combined: torch.Tensor) -> torch.Tensor:
    fits = like.shape == combined.shape and like.dtype == combined.dtype
    return combined if fits else torch.empty_like(like)


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _mapped(path: Path, device: str) -> Reader:
    with safe_open(path, framework="pt", device=device) as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # not a mapping
    return tensors.__getitem__


def _reader(path: Path, device: str) -> Reader:
    def read(key: str) -> torch.Tensor:
        # Opened again for each tensor: pages of a mapped file count as this process's memory until
        # it is closed.
        with safe_open(path, framework="pt", device=device) as opened:
            tensor: torch.Tensor = opened.get_tensor(key)
            return tensor

    return read


def _form(path: Path) -> dict[str, torch.Tensor]:
    """Returns the names, shapes and types in a file, as tensors without values."""
    form = {}
    try:
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118  # not a mapping
                part = opened.get_slice(key)
                if part.get_dtype() not in DTYPES:
                    raise UserError(
                        f"{path} holds {key} as {part.get_dtype()}. Number types that merge: {', '.join(DTYPES)}."
                    )
                form[key] = torch.empty(
                    part.get_shape(), dtype=DTYPES[part.get_dtype()], device="meta"
                )
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}). Copy it again from where it came."
        ) from error
    return form


@contextmanager
def _writing(out: Path, form: State) -> Iterator[Any]:
    """Yields ``write(key, tensor)`` for a new safetensors file of that form, which replaces ``out``
    when all went well."""
    descriptor, name = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    part = Path(name)
    try:
        header, places = _layout(form)
        os.pwrite(descriptor, header, 0)

        def write(key: str, tensor: torch.Tensor) -> None:
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            rest = flat.numpy().data
            place = len(header) + places[key]
            while rest:
                done = os.pwrite(descriptor, rest, place)
                rest, place = rest[done:], place + done

        yield write
        os.fchmod(descriptor, 0o644)
        os.fsync(descriptor)
        part.replace(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): nothing was kept of it."
        ) from error
    finally:
        os.close(descriptor)
        part.unlink(missing_ok=True)


def _layout(form: State) -> tuple[bytes, dict[str, int]]:
    """Returns the header of a safetensors file, and where behind it each tensor begins, in bytes;
    wide types come first."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places: dict[str, int] = {}
    end = 0
    for key in sorted(form, key=lambda key: (-form[key].element_size(), key)):
        tensor = form[key]
        places[key] = end
        end += tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [places[key], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places
