"""Corpus ``quesst14``: spoken queries and the documents in which they occur (SUPERB's QbE).

The root is ``quesst14Database``. ``Audio/*.wav`` are documents, ``dev_queries/*.wav`` and
``eval_queries/*.wav`` queries. ``scoring/language_key_{utterances,dev,eval}.lst`` have lines
``<folder>/<path> <language>``, of which s3prl keeps ``nnenglish``.
``scoring/groundtruth_quesst14_{dev,eval}/quesst14_{dev,eval}.rttm`` list the documents of each
query (lines ``LEXEME <document> ... <query> ...``). All audio is attenuated by 3 dB. The task needs
no training: documents are the split train.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path, PurePosixPath

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    read_lines,
    require_root,
)
from speechft_ray.speech.corpora._reading import GAIN_MINUS_3_DB
from speechft_ray.speech.corpora.base import CORPORA, Corpus, CorpusKind, ExpectedCounts, Progress

NAME = "quesst14"
_LISTS = {"train": "utterances", "dev": "dev", "test": "eval"}


class Quesst14Options(DiskOptions):
    """Language of documents and queries."""

    language: str = "nnenglish"
    """As in the lists (s3prl ``quesst14_dtw/dataset.py`` keeps ``nnenglish``)."""


def open_quesst14(
    options: Quesst14Options, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns QUESST 2014 with the column ``matches``.

    ``matches`` of a query are the keys of the documents in which it occurs, separated by blanks.
    Documents are the split train and have no matches. Raises ``UserError`` for a missing list or
    ground truth, and when a list has nothing in the language.
    """
    place = require_root(NAME, root, ["Audio", "scoring", "dev_queries", "eval_queries"])
    paths = {split: _read_list(place, name, options.language) for split, name in _LISTS.items()}
    documents = {PurePosixPath(path).stem: path for path in paths["train"]}
    recordings = [_make_recording(path, "train", ()) for path in paths["train"]]
    for split in ("dev", "test"):
        truth = _read_ground_truth(place, _LISTS[split])
        for path in paths[split]:
            hits = [
                documents[name]
                for name in sorted(truth.get(PurePosixPath(path).stem, ()))
                if name in documents
            ]
            recordings.append(_make_recording(path, split, hits))
    corpus = assemble(NAME, place, recordings, options, cache, progress, transform=GAIN_MINUS_3_DB)
    return _without_skipped_matches(corpus) if corpus.skipped.get("train") else corpus


def _without_skipped_matches(corpus: Corpus) -> Corpus:
    """Returns a corpus whose queries match only documents that were not left out."""
    documents = {utterance.key for utterance in corpus.split("train")}
    utterances = []
    for utterance in corpus.utterances:
        matches = [key for key in utterance.labels["matches"].split() if key in documents]
        utterances.append(replace(utterance, labels={"matches": " ".join(matches)}))
    return replace(corpus, utterances=utterances)


def _make_recording(path: str, split: str, matches: Collection[str]) -> Recording:
    return Recording(key=path, path=path, split=split, labels={"matches": " ".join(matches)})


def _read_list(root: Path, name: str, language: str) -> list[str]:
    """Returns the paths of one list in one language, relative to the root."""
    file = root / f"scoring/language_key_{name}.lst"
    _check_file(file)
    paths, languages = [], set()
    for number, line in enumerate(read_lines(file), start=1):
        parts = line.split()
        path = parts[0].partition("/")[2]  # the first folder is that of the archive
        if len(parts) != 2 or not path:
            raise bad_line(file, number, line, "`FOLDER/PATH LANGUAGE`")
        languages.add(parts[1])
        if parts[1] == language:
            paths.append(path)
    if not paths:
        raise UserError(
            f"{file} lists nothing in `{language}`; "
            f"it has {', '.join(sorted(languages)) or 'no lines'}."
        )
    return paths


def _read_ground_truth(root: Path, part: str) -> dict[str, set[str]]:
    """Returns the documents of each query, both by name."""
    file = root / f"scoring/groundtruth_quesst14_{part}/quesst14_{part}.rttm"
    _check_file(file)
    documents: dict[str, set[str]] = {}
    for number, line in enumerate(read_lines(file), start=1):
        fields = line.split()
        if fields[0] != "LEXEME":
            continue
        query = next((field for field in fields[2:] if field.startswith(f"quesst14_{part}_")), None)
        if query is None:
            raise bad_line(file, number, line, f"`LEXEME document ... quesst14_{part}_NNNN ...`")
        documents.setdefault(query, set()).add(fields[1])
    return documents


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise UserError(
            f"the corpus `{NAME}` lacks {file}, which its archive holds: unpack it again."
        )


def _compute_expected(options: Quesst14Options) -> ExpectedCounts | None:
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
        expected=_compute_expected,
    ),
)
