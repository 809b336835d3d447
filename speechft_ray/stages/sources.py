"""Opens what jobs start from: corpora, and the pre-trained encoder of a sweep, each once per
process as long as its files stay the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.speech.checkpoints.load import load_with_notes, weights_fingerprint
from speechft_ray.speech.corpora.base import CORPORA, Corpus, Progress, find_corpus_folder
from speechft_ray.speech.corpora.index import find_index, index_corpus
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.storage.open import find_local_root

_OPEN_CORPORA: dict[tuple[str, str, str], Corpus] = {}


def open_corpus(
    spec: CorpusSpec, place: Place, progress: Progress | None = None, identity: str = ""
) -> Corpus:
    """Opens a corpus where ``place`` says, once per process and identity; one on disk from its
    index, without a look at its files.

    Raises ``UserError`` when its files are nowhere to be found, and when the corpus is not the one
    of that ``identity``, with which the job was planned.
    """
    kind, cache = CORPORA.get(spec.name), find_local_root(place.storage) / "corpora"
    options = kind.options.model_validate(spec.options)
    root = _find_root(spec, place) if kind.needs_root else None
    key = _make_key(spec, place, root)
    corpus = _OPEN_CORPORA.get(key)
    if corpus is None or identity not in ("", corpus.fingerprint):
        if root is None:
            corpus = kind.open(options, None, cache, progress)
        else:
            corpus = find_index(spec.name, options, root, cache) or index_corpus(
                spec.name, options, root, cache, progress
            )
        _OPEN_CORPORA[key] = corpus
    if identity not in ("", corpus.fingerprint):
        raise UserError(
            f"the corpus `{spec.name}` in {root} has changed since this job was planned: give the "
            "same command again, and what depends on it is computed anew."
        )
    return corpus


def plan_corpus(
    spec: CorpusSpec, place: Place, progress: Progress | None, note: Callable[[str], None]
) -> Corpus:
    """Returns a corpus on disk as it is now, and leaves its index in the store for the jobs.

    ``note`` gets a sentence where it is indexed again. Raises ``UserError``.
    """
    kind, root = CORPORA.get(spec.name), _find_root(spec, place)
    options = kind.options.model_validate(spec.options)
    cache = find_local_root(place.storage) / "corpora"
    corpus = index_corpus(spec.name, options, root, cache, progress, note)
    _OPEN_CORPORA[_make_key(spec, place, root)] = corpus
    return corpus


def _make_key(spec: CorpusSpec, place: Place, root: Path | None) -> tuple[str, str, str]:
    return canonical_json(spec), str(root), place.storage


class StartEncoder(NamedTuple):
    """The pre-trained encoder of a sweep, its fingerprint, and what its file left open (see
    ``Checkpoint.notes``)."""

    weights: EncoderWeights
    fingerprint: str
    notes: tuple[str, ...]


def start_encoder(name: str) -> StartEncoder:
    """Returns the pre-trained encoder of that name, or of that file or folder as it is now."""
    return _load_start(name, _list_states(Path(name).expanduser()))


@lru_cache(maxsize=2)
def _load_start(name: str, states: tuple[tuple[int, ...], ...]) -> StartEncoder:
    weights, notes = load_with_notes(name)
    return StartEncoder(weights, weights_fingerprint(weights), notes)


def _list_states(path: Path) -> tuple[tuple[int, ...], ...]:
    """Returns number, size and time of a file, or of each file of a folder; nothing for a name."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        statuses = [file.stat() for file in files]
    except OSError:
        return ()
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in statuses)


def _find_root(spec: CorpusSpec, place: Place) -> Path:
    if spec.name in place.roots:
        return Path(place.roots[spec.name])
    if spec.name == "manifest":
        if not place.manifest:
            raise UserError(
                "this search space works on your own recordings: "
                "say where they are with --manifest FILE.tsv."
            )
        return Path(place.manifest)
    corpora = Path(place.corpora) if place.corpora else None
    if folder := find_corpus_folder(spec.name, corpora):
        return folder
    install = CORPORA.get(spec.name).install
    if install or corpora is None:
        raise UserError(
            f"the corpus `{spec.name}` must be on disk: {f'`{install}`, or ' if install else ''}"
            f"say with --corpora DIR which folder holds `{spec.name}/`."
        )
    return corpora / spec.name
