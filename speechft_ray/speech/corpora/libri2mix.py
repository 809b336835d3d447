"""Corpus ``libri2mix``: mixtures of two LibriSpeech speakers (SUPERB's SD), with Kaldi folders.

``<root>/data/{train,dev,test}`` each hold ``wav.scp``, ``segments``, ``utt2spk``, ``spk2utt``,
``reco2dur`` and ``rttm``, written by the LibriMix scripts of SUPERB (16 kHz, ``max`` mode). Paths
in ``wav.scp`` may be relative to the root. Absolute paths are resolved below the root by their last
parts, so that a moved corpus opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    join_names,
    read_lines,
    require_folder,
    require_root,
)
from speechft_ray.speech.corpora.base import (
    CORPORA,
    SPLITS,
    Corpus,
    CorpusKind,
    ExpectedCounts,
    Progress,
)

NAME = "libri2mix"
SPEAKERS = 2


class Libri2MixOptions(DiskOptions):
    """The splits are those of the release."""


def open_libri2mix(
    options: Libri2MixOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns Libri2Mix, one utterance per mixture, with the columns ``segments`` and ``speaker``.

    ``segments``: blank-separated ``speaker:start_sample:end_sample`` at 16 kHz in order of starts,
    from ``segments`` and ``utt2spk``. ``speaker``: both speakers, sorted. The key is split and name
    of the mixture, as in the RTTM of the scorer. Raises ``UserError`` for a missing folder or file
    and for entries that contradict each other.
    """
    place = require_root(NAME, root, [f"data/{split}" for split in SPLITS])
    recordings = []
    for split in SPLITS:
        folder = require_folder(NAME, place, f"data/{split}", f"its split {split}")
        waves = _read_table(folder / "wav.scp")
        paths = _resolve_paths(place, folder, waves)
        turns = _read_turns(folder, waves)
        recordings += [
            Recording(
                key=f"{split}/{name}",
                path=paths[name],
                split=split,
                labels=_make_labels(folder, name, turns[name]),
            )
            for name in waves
        ]
    return assemble(
        NAME, place, recordings, options, cache, progress, speaker_namespace="librispeech"
    )


def _make_labels(folder: Path, name: str, turns: list[tuple[int, int, str]]) -> dict[str, str]:
    speakers = sorted({speaker for _, _, speaker in turns})
    if len(speakers) != SPEAKERS:
        raise UserError(
            f"{folder} gives the mixture {name} {len(speakers)} speakers "
            f"({join_names(speakers) or 'none'}), but {SPEAKERS} are needed."
        )
    segments = " ".join(f"{speaker}:{start}:{end}" for start, end, speaker in sorted(turns))
    return {"segments": segments, "speaker": " ".join(speakers)}


def _read_table(file: Path) -> dict[str, str]:
    """Returns a Kaldi table: the first word of each line to the rest of the line."""
    if not file.is_file():
        raise UserError(f"the corpus `{NAME}` lacks {file}: make its Kaldi folders again.")
    table: dict[str, str] = {}
    for number, line in enumerate(read_lines(file), start=1):
        name, _, rest = line.strip().partition(" ")
        if not rest.strip() or name in table:
            raise bad_line(file, number, line, "a name of its own and a value")
        table[name] = rest.strip()
    return table


def _read_turns(folder: Path, waves: Mapping[str, str]) -> dict[str, list[tuple[int, int, str]]]:
    """Returns ``(start_sample, end_sample, speaker)`` of every turn by mixture."""
    speakers = _read_table(folder / "utt2spk")
    turns: dict[str, list[tuple[int, int, str]]] = {name: [] for name in waves}
    for number, (turn, entry) in enumerate(_read_table(folder / "segments").items(), start=1):
        mixture, *times = entry.split()
        if mixture not in turns or turn not in speakers:
            file = "wav.scp" if mixture not in turns else "utt2spk"
            raise UserError(
                f"{folder / 'segments'} names {turn} of {mixture}, which {file} lacks: make the "
                "folder again."
            )
        try:
            start, end = (round(float(time) * SAMPLE_RATE_HZ) for time in times)
        except (ValueError, OverflowError) as error:
            format_ = "TURN MIXTURE START END with times in seconds"
            raise bad_line(folder / "segments", number, f"{turn} {entry}", format_) from error
        if not 0 <= start < end:
            raise bad_line(
                folder / "segments", number, f"{turn} {entry}", "a turn that ends after it starts"
            )
        turns[mixture].append((start, end, speakers[turn]))
    return turns


def _resolve_paths(root: Path, folder: Path, waves: Mapping[str, str]) -> dict[str, str]:
    """Returns the paths of ``wav.scp`` relative to the root.

    An absolute path is resolved by the longest end of it that exists below the root.
    """
    paths: dict[str, str] = {}
    skipped = 0
    for name, path in waves.items():
        if path.endswith("|"):
            raise UserError(
                f"{folder / 'wav.scp'} gives {name} a command; only paths of files are read."
            )
        parts = PurePosixPath(path).parts
        if not PurePosixPath(path).is_absolute():
            paths[name] = path
            continue
        # All paths of a folder have the same prefix, so it is rarely searched.
        if not (skipped and root.joinpath(*parts[skipped:]).is_file()):
            skipped = next(
                (cut for cut in range(1, len(parts)) if root.joinpath(*parts[cut:]).is_file()), 0
            )
        if not skipped:
            raise UserError(
                f"{folder / 'wav.scp'} says that {name} is {path}, and no end of that path is "
                f"below {root}: move the folder of mixtures there."
            )
        paths[name] = str(PurePosixPath(*parts[skipped:]))
    return paths


def _compute_expected(options: Libri2MixOptions) -> ExpectedCounts:
    return ExpectedCounts(
        source="Cosentino et al. 2020, table 1 (train-100, dev, test)",
        utterances={"train": 13_900, "dev": 3_000, "test": 3_000},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=Libri2MixOptions,
        open=open_libri2mix,
        needs_root=True,
        layout="data/{train,dev,test}/ with wav.scp, segments, utt2spk; mixtures anywhere below",
        expected=_compute_expected,
    ),
)
