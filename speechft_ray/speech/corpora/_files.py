"""What is known of many audio files: length, rate, channels and content, measured once and
remembered.

A file's facts hold while its size and time of change stay, so a second open of a corpus reads no
audio. The first reads every byte for the sha256: LibriSpeech's 100 hours are 6 GB, VoxCeleb1 is 40
GB.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import file_sha256, fingerprint
from speechft_ray.speech.audio import AudioInfo, read_audio_info, resolve_inside
from speechft_ray.speech.corpora.base import Progress

_THREADS = 8
_BLOCK_FILES = 256
"""Files given to a thread at once: one by one, the giving takes longer than looking at a known
file."""

Examine = Callable[[Path], AudioInfo]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One audio file: ``samples`` at 16 kHz as they will be read, its own rate and channels, and
    the sha256 of its bytes."""

    size_bytes: int
    modified_ns: int
    samples: int
    rate_hz: int
    channels: int
    sha256: str


class Measured(NamedTuple):
    """Facts of the files that can be used, and a sentence for each that cannot; both by path."""

    facts: dict[str, Fact]
    faults: dict[str, str]


def measure(
    root: Path,
    paths: Sequence[str],
    cache: Path,
    progress: Progress | None = None,
    *,
    name: str,
    examined: Examine = read_audio_info,
) -> Measured:
    """Measures audio files below ``root``, or finds them measured in ``cache``. ``paths`` are
    relative and stay inside.

    ``name`` tells measurements apart that differ for one file, as those of different ``examined``
    functions do. Raises ``UserError`` when ``cache`` cannot be written.
    """
    store = cache / f"{name}-{fingerprint(str(root.resolve()))}.json"
    known = _load(store)
    found = Measured({}, {})
    blocks = [paths[start : start + _BLOCK_FILES] for start in range(0, len(paths), _BLOCK_FILES)]
    with ThreadPoolExecutor(max_workers=_THREADS) as threads:
        measured = threads.map(
            lambda block: [_measure(root, path, known.get(path), examined) for path in block],
            blocks,
        )
        done = 0
        for block, facts in zip(blocks, measured, strict=True):
            for path, fact in zip(block, facts, strict=True):
                if isinstance(fact, Fact):
                    found.facts[path] = fact
                else:
                    found.faults[path] = fact
            done += len(block)
            if progress is not None:
                progress(done, len(paths))
    if any(known.get(path) != fact for path, fact in found.facts.items()):
        _save(store, {**known, **found.facts})
    return found


def _measure(root: Path, path: str, known: Fact | None, examined: Examine) -> Fact | str:
    try:
        place = resolve_inside(root, path)
        state = place.stat()
        if known is not None and (known.size_bytes, known.modified_ns) == (
            state.st_size,
            state.st_mtime_ns,
        ):
            return known
        sound = examined(place)
        return Fact(
            size_bytes=state.st_size,
            modified_ns=state.st_mtime_ns,
            sha256=file_sha256(place),
            **vars(sound),
        )
    except FileNotFoundError:
        return f"the file `{path}` does not exist"
    except (UserError, OSError) as error:
        return str(error)


def _load(store: Path) -> dict[str, Fact]:
    try:
        return {
            path: Fact(**fields)
            for path, fields in json.loads(store.read_text(encoding="utf-8")).items()
        }
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
    ):  # absent, or not ours: everything is measured again
        return {}


def _save(store: Path, facts: Mapping[str, Fact]) -> None:
    made = None
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=store.parent, prefix=".facts-", delete=False, encoding="utf-8"
        ) as file:
            made = Path(file.name)
            json.dump({path: vars(fact) for path, fact in facts.items()}, file)
        made.replace(store)
    except OSError as error:
        if made is not None:
            made.unlink(missing_ok=True)
        raise UserError(
            f"{store} cannot be written: {error}. Free some space, or choose another --storage folder."
        ) from error
