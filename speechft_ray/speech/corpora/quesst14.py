"""Corpus ``quesst14``: spoken queries to be found in spoken documents (SUPERB's QbE), as
``quesst14Database`` unpacks.

``<root>/Audio/*.wav`` are documents, ``<root>/dev_queries/*.wav`` and ``<root>/eval_queries/*.wav``
queries. ``<root>/scoring/language_key_{utterances,dev,eval}.lst`` hold ``<folder>/<path>
<language>``, of which s3prl keeps ``nnenglish``;
``<root>/scoring/groundtruth_quesst14_{dev,eval}/quesst14_{dev,eval}.rttm`` say in which documents a
query occurs (lines ``LEXEME <document> ... <query> ...``). Everything is heard 3 dB quieter.
Nothing is trained: documents stand in the split train.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._layout import (
    GAIN_MINUS_3_DB,
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    read_lines,
    require_root,
)
from speechft_ray.speech.corpora.base import CORPORA, Corpus, CorpusKind, ExpectedCounts, Progress

NAME = "quesst14"
_LISTS = {"train": "utterances", "dev": "dev", "test": "eval"}


class Quesst14Options(DiskOptions):
    """Which language of documents and queries."""

    language: str = "nnenglish"
    """As the lists write it (s3prl ``quesst14_dtw/dataset.py`` keeps ``nnenglish``)."""


def open_quesst14(
    options: Quesst14Options, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns QUESST 2014 with the column ``matches``: of a query, the keys of the documents it
    occurs in, separated by blanks.

    Documents are the split train and have no matches. Raises ``UserError`` for a missing list or
    ground truth, and when a list has nothing in the language.
    """
    place = require_root(NAME, root, ["Audio", "scoring", "dev_queries", "eval_queries"])
    paths = {split: _listed(place, name, options.language) for split, name in _LISTS.items()}
    documents = {PurePosixPath(path).stem: path for path in paths["train"]}
    recordings = [_recording(path, "train", ()) for path in paths["train"]]
    for split in ("dev", "test"):
        truth = _truth(place, _LISTS[split])
        for path in paths[split]:
            hits = [
                documents[name]
                for name in sorted(truth.get(PurePosixPath(path).stem, ()))
                if name in documents
            ]
            recordings.append(_recording(path, split, hits))
    return assemble(NAME, place, recordings, options, cache, progress, transform=GAIN_MINUS_3_DB)


def _recording(path: str, split: str, matches: Collection[str]) -> Recording:
    return Recording(key=path, path=path, split=split, labels={"matches": " ".join(matches)})


def _listed(root: Path, name: str, language: str) -> list[str]:
    """Returns the paths of one list in one language, relative to the root."""
    file = root / f"scoring/language_key_{name}.lst"
    _needed(file)
    found, languages = [], set()
    for number, line in enumerate(read_lines(file), start=1):
        parts = line.split()
        path = parts[0].partition("/")[2]  # the first folder is that of the archive
        if len(parts) != 2 or not path:
            raise bad_line(file, number, line, "`FOLDER/PATH LANGUAGE`")
        languages.add(parts[1])
        if parts[1] == language:
            found.append(path)
    if not found:
        raise UserError(
            f"{file} lists nothing in `{language}`; it has {', '.join(sorted(languages)) or 'no lines'}."
        )
    return found


def _truth(root: Path, part: str) -> dict[str, set[str]]:
    """Returns the documents of each query, both by name."""
    file = root / f"scoring/groundtruth_quesst14_{part}/quesst14_{part}.rttm"
    _needed(file)
    found: dict[str, set[str]] = {}
    for number, line in enumerate(read_lines(file), start=1):
        fields = line.split()
        if fields[0] != "LEXEME":
            continue
        query = next((field for field in fields[2:] if field.startswith(f"quesst14_{part}_")), None)
        if query is None:
            raise bad_line(file, number, line, f"`LEXEME document ... quesst14_{part}_NNNN ...`")
        found.setdefault(query, set()).add(fields[1])
    return found


def _needed(file: Path) -> None:
    if not file.is_file():
        raise UserError(
            f"the corpus `{NAME}` lacks {file}, which its archive holds: unpack it again."
        )


def _expected(options: Quesst14Options) -> ExpectedCounts | None:
    if options.language != "nnenglish":
        return None
    return ExpectedCounts(
        source="the English lines of the archive's lists, as s3prl counts them",
        utterances={"train": 2_438, "dev": 138, "test": 138},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=Quesst14Options,
        open=open_quesst14,
        needs_root=True,
        layout="Audio/, dev_queries/, eval_queries/ and scoring/ of quesst14Database",
        expected=_expected,
    ),
)
