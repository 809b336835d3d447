"""Loads the encoders of a merge with what their loaders noted, and compares their
configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechft_ray.commands.notes import print_notes
from speechft_ray.core.errors import UserError

if TYPE_CHECKING:
    from speechft_ray.speech.encoders.base import EncoderWeights


def load_with_notes(name: str) -> EncoderWeights:
    """Loads an encoder and prints the notes of its format."""
    from speechft_ray.speech.checkpoints.load import load_with_notes

    weights, notes = load_with_notes(name)
    print_notes(name, notes)
    return weights


def read_configuration_beside(name: str) -> EncoderWeights | None:
    """Returns the encoder of the folder of transformers that a plain safetensors file lies in;
    ``None`` where there is none."""
    from speechft_ray.speech.checkpoints.load import load_checkpoint

    folder = Path(name).expanduser().absolute().parent
    try:
        return load_checkpoint(folder).weights if (folder / "config.json").is_file() else None
    except UserError:
        return None


def compare_configurations(
    base: EncoderWeights | None,
    others: Mapping[str, EncoderWeights | None],
    title: str = "the base",
) -> list[str]:
    """Returns notes on encoders that normalise waveforms otherwise than ``base``; ``None`` stands
    for an unknown configuration and is not compared. Raises ``UserError`` for other networks."""
    from speechft_ray.speech.encoders.compatibility import check_same_network

    encoders = {name: other for name, other in others.items() if other is not None}
    return check_same_network(base, encoders, title) if base is not None else []


def compare_donors(
    base: EncoderWeights | None, donors: Sequence[EncoderWeights | None]
) -> tuple[str, ...]:
    """Compares donors with the base; prints and returns notes on what the merge keeps. Raises as
    ``compare_configurations`` does."""
    others = {f"donor {number}": donor for number, donor in enumerate(donors, start=1)}
    notes = [
        f"{note}; the merge does it as the base." for note in compare_configurations(base, others)
    ]
    print_notes("merge", notes)
    return tuple(notes)


def compare_plain_files(base: str, donors: Sequence[str]) -> None:
    """Compares plain safetensors files that lie in folders of transformers, as
    ``compare_donors`` does."""
    compare_donors(
        read_configuration_beside(base), [read_configuration_beside(name) for name in donors]
    )
