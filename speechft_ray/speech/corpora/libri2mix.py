"""Corpus ``libri2mix``: two readers of LibriSpeech at once (SUPERB's SD), as Kaldi folders beside
the mixed recordings.

``<root>/data/{train,dev,test}`` each hold ``wav.scp``, ``segments``, ``utt2spk``, ``spk2utt``,
``reco2dur`` and ``rttm``, made by the LibriMix scripts of SUPERB (16 kHz, ``max`` mode). Paths in
``wav.scp`` may be relative to the root; absolute ones that point elsewhere are looked for below the
root by their last parts, so that a moved corpus opens.
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
    """The splits are the corpus' own."""


def open_libri2mix(
    options: Libri2MixOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns Libri2Mix, one utterance per mixture, with the columns ``segments`` and ``speaker``.

    ``segments``: blank-separated ``speaker:start_sample:end_sample`` at 16 kHz, by start, as
    ``segments`` and ``utt2spk`` say. ``speaker``: both speakers, sorted. The key is the name of the
    mixture with its split, as the RTTM of the scorer knows it. Raises ``UserError`` for a missing
    folder or file and for entries that do not fit together.
    """
    place = require_root(NAME, root, [f"data/{split}" for split in SPLITS])
    recordings = []
    for split in SPLITS:
        folder = require_folder(NAME, place, f"data/{split}", f"its split {split}")
        waves = _table(folder / "wav.scp")
        paths = _paths_below(place, folder, waves)
        turns = _turns(folder, waves)
        recordings += [
            Recording(
                key=f"{split}/{name}",
                path=paths[name],
                split=split,
                labels=_labels(folder, name, turns[name]),
            )
            for name in waves
        ]
    return assemble(
        NAME, place, recordings, options, cache, progress, speaker_namespace="librispeech"
    )


def _labels(folder: Path, name: str, turns: list[tuple[int, int, str]]) -> dict[str, str]:
    speakers = sorted({speaker for _, _, speaker in turns})
    if len(speakers) != SPEAKERS:
        told = join_names(speakers) or "none"
        raise UserError(
            f"{folder} gives the mixture {name} {len(speakers)} speakers ({told}), but {SPEAKERS} are needed."
        )
    segments = " ".join(f"{speaker}:{start}:{end}" for start, end, speaker in sorted(turns))
    return {"segments": segments, "speaker": " ".join(speakers)}


def _table(file: Path) -> dict[str, str]:
    """Returns a Kaldi table: the first word of each line, and the rest."""
    if not file.is_file():
        raise UserError(f"the corpus `{NAME}` lacks {file}: make its Kaldi folders again.")
    found: dict[str, str] = {}
    for number, line in enumerate(read_lines(file), start=1):
        name, _, rest = line.strip().partition(" ")
        if not rest.strip() or name in found:
            raise bad_line(file, number, line, "a name of its own and a value")
        found[name] = rest.strip()
    return found


def _turns(folder: Path, waves: Mapping[str, str]) -> dict[str, list[tuple[int, int, str]]]:
    """Returns ``(start_sample, end_sample, speaker)`` of every turn by mixture."""
    speakers = _table(folder / "utt2spk")
    found: dict[str, list[tuple[int, int, str]]] = {name: [] for name in waves}
    for number, (turn, told) in enumerate(_table(folder / "segments").items(), start=1):
        mixture, *times = told.split()
        if mixture not in found or turn not in speakers:
            lacking = "wav.scp" if mixture not in found else "utt2spk"
            raise UserError(
                f"{folder / 'segments'} names {turn} of {mixture}, which {lacking} lacks: make the folder again."
            )
        try:
            start, end = (round(float(time) * SAMPLE_RATE_HZ) for time in times)
        except (ValueError, OverflowError) as error:
            wanted = "TURN MIXTURE START END with times in seconds"
            raise bad_line(folder / "segments", number, f"{turn} {told}", wanted) from error
        if not 0 <= start < end:
            raise bad_line(
                folder / "segments", number, f"{turn} {told}", "a turn that ends after it starts"
            )
        found[mixture].append((start, end, speakers[turn]))
    return found


def _paths_below(root: Path, folder: Path, waves: Mapping[str, str]) -> dict[str, str]:
    """Returns the paths of ``wav.scp`` relative to the root; what was elsewhere is found by the
    last parts of its path."""
    found: dict[str, str] = {}
    skipped = 0
    for name, told in waves.items():
        if told.endswith("|"):
            raise UserError(
                f"{folder / 'wav.scp'} gives {name} a command; only paths of files are read."
            )
        parts = PurePosixPath(told).parts
        if not PurePosixPath(told).is_absolute():
            found[name] = told
            continue
        if not (
            skipped and root.joinpath(*parts[skipped:]).is_file()
        ):  # all paths of a folder begin alike: seldom
            skipped = next(
                (cut for cut in range(1, len(parts)) if root.joinpath(*parts[cut:]).is_file()), 0
            )
        if not skipped:
            raise UserError(
                f"{folder / 'wav.scp'} says that {name} is {told}, and no end of that path is below {root}: move the folder of "
                "mixtures there."
            )
        found[name] = str(PurePosixPath(*parts[skipped:]))
    return found


def _expected(options: Libri2MixOptions) -> ExpectedCounts:
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
        layout="data/{train,dev,test}/ with wav.scp, segments, utt2spk; the mixtures anywhere below",
        expected=_expected,
    ),
)
