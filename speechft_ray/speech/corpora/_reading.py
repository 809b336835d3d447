"""Reads the recordings of a corpus on disk, and refuses those that are no longer what was measured.

The size of a file is checked at each reading. Its bytes are hashed at the first reading in a
process; parts of a longer file have its size and time checked instead, unless the time differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import file_sha256, fingerprint
from speechft_ray.speech.audio import hash_samples, read_audio, resolve_inside
from speechft_ray.speech.corpora._disk import describe_missing_file, join_below
from speechft_ray.speech.corpora.base import AudioSource, CorpusFiles, Utterance


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A transform of every wave of a corpus.

    ``name`` is part of the identity. With ``keeps_length`` no file is decoded to measure it.
    """

    name: str
    apply: Callable[[np.ndarray], np.ndarray]
    keeps_length: bool = True


IDENTITY = Transform(name="", apply=lambda wave: wave)
GAIN_MINUS_3_DB = Transform(
    name="gain -3 dB", apply=lambda wave: wave * np.float32(10 ** (-3 / 20))
)
"""s3prl reads KS and QbE through SoX with ``gain -3.0``."""


class RecordingReader:
    """Reads the utterances of a corpus from its files."""

    def __init__(self, files: CorpusFiles, transform: Transform = IDENTITY) -> None:
        self._files, self._transform = files, transform
        self._verified: set[str] = set()

    def read(self, utterance: Utterance) -> np.ndarray:
        """Returns an utterance as mono float32 at 16 kHz. Raises ``UserError`` for a file that has
        changed."""
        source = self._files.source_of(utterance.key)
        place = self._find_place(source)
        self._check(place, source)
        wave = self._transform.apply(read_audio(place, part=source.cut))
        if len(wave) != utterance.samples:
            raise UserError(
                f"{place} has changed since the corpus was opened: it gives {len(wave)} samples "
                f"where it gave {utterance.samples}. Start again."
            )
        return wave

    def hash(self, utterance: Utterance, at_most: int | None) -> str:
        """Returns the hash of an utterance's samples before the transform (``hash_samples``)."""
        source = self._files.source_of(utterance.key)
        return hash_samples(self._find_place(source), source.cut, at_most)

    def _find_place(self, source: AudioSource) -> Path:
        find = resolve_inside if self._files.stays_inside else join_below
        return find(self._files.root, source.path)

    def _check(self, place: Path, source: AudioSource) -> None:
        try:
            state = place.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{describe_missing_file(self._files.root, source.path)}, but did when the corpus "
                f"in {self._files.root} was opened. Start again."
            ) from None
        except OSError as error:
            raise UserError(f"{place} cannot be read: {error.strerror or error}.") from error
        if state.st_size != source.size_bytes:
            raise UserError(
                f"{place} has changed since the corpus was opened: it has {state.st_size} bytes "
                f"where it had {source.size_bytes}. Start again."
            )
        is_part_of_same_file = source.cut is not None and state.st_mtime_ns == source.modified_ns
        if source.path in self._verified or is_part_of_same_file:
            return
        sha256 = file_sha256(place)
        if source.sha256 not in (sha256, hash_longer_file(sha256, source.file_samples)):
            raise UserError(
                f"{place} has changed since the corpus was opened: it has other content of the "
                "same size. Restore it, or `touch` it so that it is measured again, and start "
                "again."
            )
        self._verified.add(source.path)


def hash_longer_file(sha256: str, samples: int) -> str:
    """Returns what stands for the sha256 of a file that is longer than its header says: earlier
    versions read less of these bytes, and stored results of that."""
    return fingerprint([sha256, samples])
