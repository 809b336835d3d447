"""Merging safetensors files tensor by tensor, for models that are larger than memory.

Each tensor is written as soon as it is merged. A safetensors file consists of 8 bytes with the
length of the header (little-endian), the header, which is JSON with the dtype, shape and offsets of
each tensor, and the tensors' bytes without gaps. With the header written first, tensors can follow
in any order.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write
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
    check_while_reading,
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
"""Dtypes of safetensors files that are read and written."""

Write = Callable[[str, torch.Tensor], None]
"""Writes the tensor of a key into the output file."""


def merge_files(
    method: str,
    params: Mapping[str, Any],
    base: Path,
    donors: Sequence[Path],
    alpha: float,
    out: Path,
    memory_bytes: int | None = None,
) -> None:
    """Merges safetensors files into the file ``out``, which appears whole or not at all.

    Values are those of ``algebra.merge``. Inputs that fit into ``memory_bytes`` (``None``: half of
    the memory that is free or can be freed) stay mapped into memory. Larger ones are read tensor by
    tensor: memory then holds at most one tensor of the base, of each donor and of the result, and
    one more, in the dtype of the arithmetic, which is the largest tensor times (donors + 2).
    Methods that need a tensor whole (not ``MergeMethod.blockwise``) add their own working memory.
    Each pass of a method reads the files again, three times for TIES.

    Raises ``UserError`` where ``algebra.merge`` does, for files that cannot be read, and for a disk
    too small for the result.
    """
    # Check parameters, names, shapes and disk space; only the headers of the files are read.
    checked = validate_params(method, params, donors=len(donors))
    check_alpha(alpha)
    layout, *donor_layouts = (_read_layout(path) for path in (base, *donors))
    groups = find_groups(layout, find_tied(layout), (), checked.pos_conv)
    for index, donor_layout in enumerate(donor_layouts):
        check_compatible(layout, donor_layout, f"donor {index + 1}", ())
    make_statistics_lookup(method, None, len(donors))
    check_disk_space(out, sum(tensor.numel() * tensor.element_size() for tensor in layout.values()))
    # Map small inputs once; open large ones again for each tensor.
    paths = (base, *donors)
    limit = _free_memory_bytes() // 2 if memory_bytes is None else memory_bytes
    open_tensors = _map_file if sum(path.stat().st_size for path in paths) <= limit else _reopen
    getters = [open_tensors(path) for path in paths]
    # Copy what is not merged, then write each group as soon as it is merged.
    merged_keys = {key for group in groups for key in group.keys} if alpha > 0.0 else set()
    with _open_output(out, layout) as write, torch.no_grad():
        for key in layout.keys() - merged_keys:
            write(key, getters[0](key))
        if merged_keys:
            _merge(method, checked, groups, getters, alpha, write)


def check_disk_space(out: Path, size_bytes: int) -> None:
    """Raises ``UserError`` when the disk of ``out`` has fewer than ``size_bytes`` free."""
    folder = out.absolute().parent
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise UserError(
            f"the merged model needs {size_bytes / 1e6:,.0f} MB, but {folder} has "
            f"{free / 1e6:,.0f} MB free: free some space or give another --out."
        )


def _merge(
    method: str,
    params: MergeParams,
    groups: tuple[ParamGroup, ...],
    getters: Sequence[GetTensor],
    alpha: float,
    write: Write,
) -> None:
    """Merges group by group and writes each result."""
    base, *donors = getters
    reader = make_reader(groups, base, donors, params.dtype, lambda name: ())
    reader = check_while_reading(reader, base, donors)
    for combined in combine_all(method, params, reader):
        # The result overwrites the combined task vector where shape and dtype allow it.
        out = {key: _result_buffer(base(key), combined.vector) for key in combined.group.keys}
        interpolate_into(out, combined, params.scale, base, donors, alpha)
        check_overflow(out)
        for key, tensor in out.items():
            write(key, tensor)


def _result_buffer(like: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    fits = like.shape == vector.shape and like.dtype == vector.dtype
    return vector if fits else torch.empty_like(like)


def _free_memory_bytes() -> int:
    """Returns the memory that is free or holds pages of files that can be read again: a page cache
    full of the inputs themselves is no reason to map them anew for each tensor."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _map_file(path: Path) -> GetTensor:
    """Maps all tensors of a file into memory."""
    with safe_open(path, framework="pt") as file:
        keys = file.keys()
        tensors = {key: file.get_tensor(key) for key in keys}
    return tensors.__getitem__


def _reopen(path: Path) -> GetTensor:
    """Opens the file again for each tensor: pages of a mapped file count as this process's memory
    until it is closed."""

    def read(key: str) -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(key)
            return tensor

    return read


def _read_layout(path: Path) -> dict[str, torch.Tensor]:
    """Returns the names, shapes and dtypes in a file, as tensors without values."""
    layout = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # no mapping
                view = file.get_slice(key)
                dtype = view.get_dtype()
                if dtype not in DTYPES:
                    raise UserError(
                        f"{path} holds {key} as {dtype}. "
                        f"Number types that merge: {', '.join(DTYPES)}."
                    )
                layout[key] = torch.empty(view.get_shape(), dtype=DTYPES[dtype], device="meta")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}). Copy it again from where it came."
        ) from error
    return layout


@contextmanager
def _open_output(out: Path, layout: StateDict) -> Iterator[Write]:
    """Yields ``write(key, tensor)`` for a new safetensors file of that layout.

    The file replaces ``out`` when the block ends without an exception; else nothing is left of it.
    """
    # The header is known before any value, so tensors can be written in any order.
    header, offsets = _make_header(layout)
    try:
        with atomic_write(out) as temporary, temporary.open("wb") as file:
            os.pwrite(file.fileno(), header, 0)

            def write(key: str, tensor: torch.Tensor) -> None:
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                rest = flat.numpy().data
                position = len(header) + offsets[key]
                while rest:
                    written = os.pwrite(file.fileno(), rest, position)
                    rest, position = rest[written:], position + written

            yield write
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): nothing was kept of it."
        ) from error


def _make_header(layout: StateDict) -> tuple[bytes, dict[str, int]]:
    """Returns the header of a safetensors file and the offset of each tensor behind it, in bytes.

    Wide dtypes come first, so that every tensor is aligned.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for key in sorted(layout, key=lambda key: (-layout[key].element_size(), key)):
        tensor = layout[key]
        offsets[key] = end
        end += tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offsets[key], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets
