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
    check_overflow,
    combine_all,
    interpolate_into,
    make_statistics_lookup,
)
from speechft_ray.merging.alignment import (
    StateDict,
    check_compatible,
    check_finite,
    find_groups,
    find_tied,
)
from speechft_ray.merging.base import MergeParams, validate_params
from speechft_ray.merging.param_reader import GetTensor, ParamGroup, make_reader

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
    checked = validate_params(method, params, donors=len(donors))
    check_alpha(alpha)
    header, *donor_headers = (_read_layout(path) for path in (base, *donors))
    prefixes = tuple(protected_prefixes)
    groups = find_groups(header, find_tied(header), prefixes, checked.pos_conv)
    for index, donor in enumerate(donor_headers):
        check_compatible(header, donor, f"donor {index + 1}", prefixes)
    make_statistics_lookup(method, None, len(donors))
    check_disk_space(out, sum(tensor.numel() * tensor.element_size() for tensor in header.values()))
    paths = (base, *donors)
    fits = sum(path.stat().st_size for path in paths) <= (
        _free_bytes() // 2 if memory_bytes is None else memory_bytes
    )
    getters = [
        _map_file(path, device) if fits else _reopen_for_each(path, device) for path in paths
    ]
    with _open_output(out, header) as write, torch.no_grad():
        merged_keys = {key for group in groups for key in group.keys} if alpha > 0.0 else set()
        for key in header.keys() - merged_keys:
            write(key, getters[0](key))
        if merged_keys:
            _merge(method, checked, groups, getters, alpha, write)


def check_disk_space(out: Path, size_bytes: int) -> None:
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
    groups: tuple[ParamGroup, ...],
    getters: Sequence[GetTensor],
    alpha: float,
    write: Any,
) -> None:
    base, *donors = getters
    reader = make_reader(groups, base, donors, params.dtype, lambda name: ())
    check_finite(reader, base, donors)
    for group, combined, untouched in combine_all(method, params, reader):
        # The result takes the place of the combined task vector where its number type allows it.
        out = {key: _result_buffer(base(key), combined) for key in group.keys}
        interpolate_into(out, group, combined, params.scale, untouched, base, donors, alpha)
        check_overflow(out)
        for key, tensor in out.items():
            write(key, tensor)


def _result_buffer(like: torch.Tensor, combined: torch.Tensor) -> torch.Tensor:
    fits = like.shape == combined.shape and like.dtype == combined.dtype
    return combined if fits else torch.empty_like(like)


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _map_file(path: Path, device: str) -> GetTensor:
    with safe_open(path, framework="pt", device=device) as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # not a mapping
    return tensors.__getitem__


def _reopen_for_each(path: Path, device: str) -> GetTensor:
    def read(key: str) -> torch.Tensor:
        # Opened again for each tensor: pages of a mapped file count as this process's memory until
        # it is closed.
        with safe_open(path, framework="pt", device=device) as opened:
            tensor: torch.Tensor = opened.get_tensor(key)
            return tensor

    return read


def _read_layout(path: Path) -> dict[str, torch.Tensor]:
    """Returns the names, shapes and types in a file, as tensors without values."""
    header = {}
    try:
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118  # not a mapping
                group = opened.get_slice(key)
                if group.get_dtype() not in DTYPES:
                    raise UserError(
                        f"{path} holds {key} as {group.get_dtype()}. Number types that merge: {', '.join(DTYPES)}."
                    )
                header[key] = torch.empty(
                    group.get_shape(), dtype=DTYPES[group.get_dtype()], device="meta"
                )
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}). Copy it again from where it came."
        ) from error
    return header


@contextmanager
def _open_output(out: Path, layout: StateDict) -> Iterator[Any]:
    """Yields ``write(key, tensor)`` for a new safetensors file of that form, which replaces ``out``
    when all went well."""
    descriptor, name = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    temporary = Path(name)
    try:
        header, places = _make_header(layout)
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
        temporary.replace(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): nothing was kept of it."
        ) from error
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _make_header(layout: StateDict) -> tuple[bytes, dict[str, int]]:
    """Returns the header of a safetensors file, and where behind it each tensor begins, in bytes;
    wide types come first."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places: dict[str, int] = {}
    end = 0
    for key in sorted(layout, key=lambda key: (-layout[key].element_size(), key)):
        tensor = layout[key]
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
