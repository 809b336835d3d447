"""Opens untrusted ``.pt`` and ``.bin`` files: tensors, containers and stand-ins only, no code."""

from __future__ import annotations

import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import check_content
from speechft_ray.speech.checkpoints._safetensors import make_damaged_error
from speechft_ray.speech.checkpoints._standins import ALLOWED

MAX_MEMBERS, MAX_PICKLE_BYTES = 100_000, 64 * 2**20
"""A large encoder with its optimizer has about 1 300 tensors, one zip member each, and a pickle
below 1 MB."""

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,300}")  # what state_dict() makes of attributes
_MODULES = ("torch.nn.modules.", "transformers.models.", "s3prl.upstream.", "fairseq.models.")
"""Where the classes of modules are."""
_LOAD_LOCK = threading.Lock()
"""torch's list of allowed names and Python's filters of warnings are global to the process."""


def open_torch_file(path: Path) -> Any:
    """Returns the content of a file of ``torch.save``; since torch 1.6 they can be mapped.

    Nothing in the file is executed: ``torch.load(weights_only=True)`` builds tensors, containers,
    numbers and text, the names in ``_standins.ALLOWED`` become objects without behaviour, and
    everything else is refused. Raises ``UserError`` for a file that is no checkpoint, is cut short,
    unpacks to more than its own size, or refers to other names, naming them.
    """
    with path.open("rb") as file:
        head = file.read(4)
    check_content(path)
    if path.suffix == ".json":
        raise UserError(
            f"{path} is a description and holds no weights. Give its folder, {path.parent}."
        )
    if not head.startswith((_ZIP, _PICKLE)) and path.suffix == ".safetensors":
        raise make_damaged_error(path, ValueError(f"it begins with {head!r}"))
    if not head.startswith((_ZIP, _PICKLE)):
        raise UserError(
            f"{path} is not a file of torch.save: it begins with {head!r}. Check that the download "
            "is the checkpoint itself."
        )
    if path.suffix == ".safetensors":  # torch.load would go by the name
        raise UserError(
            f"{path} is a file of torch.save under the name of a safetensors file. Rename it to "
            "end in .pt."
        )
    if head.startswith(_ZIP):
        _check_archive(path)
    allowed = [(stand_in, name) for name, stand_in in ALLOWED.items()]
    try:
        with (
            _LOAD_LOCK,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(allowed),  # type: ignore[arg-type]
        ):
            # torch warns of an unusual pickle protocol; the file is read, or refused below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=head.startswith(_ZIP)
            )
    except pickle.UnpicklingError as error:
        unsafe = _find_unsafe_globals(path) or re.findall(r"GLOBAL ([\w.]+)", str(error))
        if unsafe:
            names = ", ".join(map(make_printable, unsafe[:5]))
            if any(name.startswith(_MODULES) for name in unsafe):
                raise UserError(
                    f"{path} is a whole module that torch.save pickled, and to load it, Python "
                    f"would have to run {names}. Save its parameters instead: "
                    "`model.save_pretrained(FOLDER)` in transformers, else "
                    "`torch.save(model.state_dict(), FILE)`."
                ) from error
            raise UserError(
                f"{path} was refused: to load it, Python would have to run {names}. Only tensors "
                "and plain data are read; convert the checkpoint to safetensors where you trust it."
            ) from error
        raise UserError(
            f"{path} is damaged, or was not written by torch.save. Copy it again from where it "
            "came."
        ) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        AssertionError,
        MemoryError,
        OverflowError,
        RecursionError,
    ) as error:
        raise _make_damaged_error(path, error) from error


def validate_state_dict(path: Path, table: Any, where: str) -> dict[str, torch.Tensor]:
    """Returns a state dict in float32; tensors that are float32 in the file stay views of it.

    Raises ``UserError`` naming ``where`` for anything but a mapping of names to dense
    floating-point tensors, each inside its own memory.
    """
    if not isinstance(table, Mapping) or not table:
        raise UserError(
            f"{path} has a `{where}` that is not a table of tensors, so it is not a checkpoint of "
            "an encoder."
        )
    state: dict[str, torch.Tensor] = {}
    for name, tensor in table.items():
        if (
            type(name) is not str
            or not _NAME.fullmatch(name)
            or type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        ):
            raise UserError(
                f"{path} has a `{where}` that is not a table of tensors: {str(name)[:80]!r} is a "
                f"{type(tensor).__name__}."
            )
        if (
            tensor.layout is not torch.strided
            or tensor.device.type != "cpu"
            or tensor.dtype not in _KINDS
        ):
            raise UserError(
                f"{path}: `{name}` is {tensor.dtype} ({tensor.layout}), not a dense tensor of "
                "floating-point numbers."
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                f"{path}: `{name}` claims {tensor.numel()} values, more than the file holds for it."
            )
        state[name] = tensor.detach().to(torch.float32)
    return state


def _check_archive(path: Path) -> None:
    """Raises ``UserError`` for a zip file that torch would not write: with compressed, duplicate or
    overlapping entries, which could unpack to more than the file."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _make_damaged_error(path, error) from error
    names = {member.filename for member in members}
    if len(members) > MAX_MEMBERS or len(names) != len(members):
        raise UserError(
            f"{path} was refused: its zip directory has {len(members)} entries, or names one of "
            "them twice."
        )
    end = 0
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UserError(
                f"{path} was refused: {member.filename[:80]!r} in it is compressed and would "
                f"unpack to {member.file_size} bytes; torch.save never compresses. Get the "
                "checkpoint from where it was published."
            )
        if member.header_offset < end or member.header_offset + member.file_size > size:
            raise UserError(
                f"{path} was refused: entries of its zip directory overlap or lie outside the file."
            )
        end = member.header_offset + member.file_size
        if member.filename.endswith(".pkl") and member.file_size > MAX_PICKLE_BYTES:
            raise UserError(
                f"{path} was refused: the description in it has {member.file_size} bytes, at most "
                f"{MAX_PICKLE_BYTES}."
            )


def _find_unsafe_globals(path: Path) -> list[str]:
    try:
        return sorted(
            set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - ALLOWED.keys()
        )
    except Exception:  # a damaged file, or one from before the zip format
        return []


def make_printable(name: str) -> str:
    """Returns a name from an untrusted file for a message: short, and of one line."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:120])


def _make_damaged_error(path: Path, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return UserError(
        f"{path} is damaged or cut short ({reason}). Copy it again from where it came."
    )
