"""Reads the models of a merge and writes its result: encoders, adapters of one, plain files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from speechft_ray.commands.adapters import is_adapter, read_adapter
from speechft_ray.commands.configurations import (
    compare_donors,
    compare_plain_files,
    load_with_notes,
)
from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import file_sha256
from speechft_ray.merging.alignment import StateDict

if TYPE_CHECKING:
    from speechft_ray.speech.encoders.base import EncoderWeights


@dataclass(frozen=True, kw_only=True)
class MergeModels:
    """The models of a merge in memory."""

    base: StateDict
    donors: tuple[StateDict, ...]
    encoder: EncoderWeights | None
    """The base where it is an encoder; ``None`` for a plain safetensors file."""
    fingerprints: tuple[str, ...]
    """Of the base and of each donor."""
    notes: tuple[str, ...] = ()
    """Where donors normalise waveforms otherwise than the base."""

    def list_protected_prefixes(self) -> tuple[str, ...]:
        """Returns the prefixes of parameters that keep the base's values."""
        from speechft_ray.speech.encoders.compatibility import find_protected_prefixes

        return find_protected_prefixes(self.encoder, self.donors) if self.encoder else ()


def is_plain(name_or_path: str) -> bool:
    """Whether this is a safetensors file without this package's manifest."""
    from speechft_ray.speech.checkpoints._safetensors import is_safetensors

    path = Path(name_or_path).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    if not is_safetensors(path):  # a file of another format, whose reader says what is wrong
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "speechft_ray" not in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}). Copy it again from where it came."
        ) from error


def plain_path(name: str) -> Path:
    """Returns the path of a plain donor. Raises ``UserError`` for anything else."""
    path = Path(name).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(
            f"{name} is not a safetensors file, which it must be, since the base is a plain one."
        )
    return path


def read_models(base: str, donors: Sequence[str]) -> MergeModels:
    """Reads all models of a merge into memory: encoders when the base is one, else plain files.

    A donor may be the folder of a LoRA adapter, or ``MODEL+ADAPTER`` as mergekit writes it. Raises
    ``UserError`` for what cannot be read, and for encoders that are different networks.
    """
    if is_plain(base):
        path = plain_path(base)
        compare_plain_files(base, [_split_adapter(donor)[0] or base for donor in donors])
        start: StateDict = load_file(path)
        states, marks = [], [file_sha256(path)]
        for donor in donors:
            state, mark = _read_plain_donor(donor, start)
            states.append(state)
            marks.append(mark)
        return MergeModels(
            base=start, donors=tuple(states), encoder=None, fingerprints=tuple(marks)
        )
    from speechft_ray.speech.checkpoints.load import weights_fingerprint

    encoder = load_with_notes(base)
    parts = [_split_adapter(donor) for donor in donors]
    encoders = [load_with_notes(whole) if whole else encoder for whole, _ in parts]
    notes = compare_donors(encoder, encoders)
    states, marks = [], [weights_fingerprint(encoder)]
    for tuned, (_, adapter) in zip(encoders, parts, strict=True):
        states.append(_add_adapter(adapter, tuned.state) if adapter else tuned.state)
        marks.append(_adapter_fingerprint(adapter) if adapter else weights_fingerprint(tuned))
    return MergeModels(
        base=encoder.state,
        donors=tuple(states),
        encoder=encoder,
        fingerprints=tuple(marks),
        notes=notes,
    )


def write_merged(
    models: MergeModels, state: StateDict, out: Path, provenance: Mapping[str, Any]
) -> None:
    """Writes a merged model, whole or not at all: an encoder where the base is one, else a plain
    safetensors file with the number types of ``state``.

    Raises ``UserError`` for a plain file whose name does not end in .safetensors.
    """
    from speechft_ray.core.files import atomic_write

    if models.encoder is None:
        from safetensors.torch import save_file

        if out.suffix != ".safetensors":
            raise UserError(
                f"{out} must end in .safetensors, since the base is a plain safetensors file."
            )
        with atomic_write(out) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
        return
    from speechft_ray.speech.checkpoints.safetensors_dir import write_encoder
    from speechft_ray.speech.encoders.base import EncoderWeights

    merged = EncoderWeights(
        family=models.encoder.family,
        config=models.encoder.config,
        state={name: tensor.to(models.base[name].dtype) for name, tensor in state.items()},
    )
    base, *donors = models.fingerprints
    write_encoder(
        out,
        merged,
        {
            "by": "speechft merge",
            **provenance,
            "base": base,
            "donors": donors,
            **({"notes": list(models.notes)} if models.notes else {}),
        },
    )


def has_adapter(name: str) -> bool:
    """Whether a donor is an adapter, or a model with one (``MODEL+ADAPTER``)."""
    return bool(_split_adapter(name)[1])


def _split_adapter(name: str) -> tuple[str, str]:
    """Returns the whole model and the adapter in the name of a donor, either of them empty."""
    if is_adapter(name):
        return "", name
    model, plus, adapter = name.rpartition("+")
    if plus and is_adapter(adapter) and not Path(name).expanduser().exists():
        return model, adapter
    return name, ""


def _read_plain_donor(name: str, base: StateDict) -> tuple[StateDict, str]:
    whole, adapter = _split_adapter(name)
    state: StateDict = load_file(plain_path(whole)) if whole else base
    if not adapter:
        return state, file_sha256(plain_path(whole))
    return _add_adapter(adapter, state), _adapter_fingerprint(adapter)


def _add_adapter(folder: str, state: StateDict) -> StateDict:
    from speechft_ray.merging.adapters import apply_adapter

    return apply_adapter(read_adapter(folder, state), state)


def _adapter_fingerprint(folder: str) -> str:
    from speechft_ray.commands.adapters import WEIGHTS

    return file_sha256(Path(folder).expanduser() / WEIGHTS)
