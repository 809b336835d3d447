"""The index of a corpus on disk: its utterances in columns, made by one process and mapped by all.

``index_corpus`` is for the process that plans: it looks whether any file changed by size or time,
and reads the corpus again if so. ``find_index`` is for workers: it opens what is there, whose files
are checked when they are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.corpora._blocks import map_blocks
from speechft_ray.speech.corpora._columns import read_columns, write_columns
from speechft_ray.speech.corpora._disk import is_litter, read_state
from speechft_ray.speech.corpora._indexed import make_arrays, make_corpus
from speechft_ray.speech.corpora.base import CORPORA, Corpus, FileState, Progress

_FOLDER, _STATE = "index", "state"
_BLOCK_FILES, _BLOCK_FOLDERS = 4096, 64
"""Files and folders of a block."""


def index_corpus(
    name: str,
    options: BaseModel,
    root: Path,
    cache: Path,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Corpus:
    """Returns a corpus on disk from its index, which is made where it is missing or where the files
    are others, by size or time, than those that were indexed.

    ``note`` gets a sentence when it is made again. Raises ``UserError`` as opening the corpus does,
    and when ``cache`` cannot be written.
    """
    kind, path = CORPORA.get(name), _find_path(name, options, root, cache)
    stored = _load(path)
    # Before the corpus is read, so that a change while it is read is noticed next time.
    tree = "" if kind.is_list else _hash_tree(root)
    if stored is not None:
        corpus, state = stored
        if state == (_hash_states(_read_states(corpus)) if kind.is_list else tree):
            return corpus
        note(
            f"files in {root} have changed since the corpus `{name}` was indexed: it is indexed "
            "again."
        )
    corpus = kind.open(options, root, cache, progress)
    state = _hash_states(_list_states(corpus)) if kind.is_list else tree
    arrays, facts = make_arrays(corpus)
    try:
        write_columns(path, arrays, {**facts, _STATE: state})
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error}. Free some space, or choose another --storage "
            "folder."
        ) from error
    return make_corpus(arrays, facts)


def find_index(name: str, options: BaseModel, root: Path, cache: Path) -> Corpus | None:
    """Returns a corpus on disk from its index without a look at its files; ``None`` where there is
    no index, or no root on this machine."""
    stored = _load(_find_path(name, options, root, cache)) if root.exists() else None
    return stored[0] if stored else None


def _find_path(name: str, options: BaseModel, root: Path, cache: Path) -> Path:
    identity = {"options": options, "root": str(root.resolve()), "code": _hash_code()}
    return cache / _FOLDER / f"{name}-{fingerprint(identity)}.safetensors"


@lru_cache(maxsize=1)
def _hash_code() -> str:
    """Returns a hash of what lists the utterances of corpora: other code may list others."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _load(path: Path) -> tuple[Corpus, str] | None:
    try:
        arrays, facts = read_columns(path)
        return make_corpus(arrays, facts), str(facts[_STATE])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, damaged or of another kind: it is made again


States = Iterable[tuple[str, FileState | None]]


def _list_states(corpus: Corpus) -> States:
    """Yields the state that each file had when it was measured."""
    assert corpus.files is not None
    for utterance in corpus.utterances:
        source = corpus.files.source_of(utterance.key)
        yield source.path, FileState(source.size_bytes, source.modified_ns)
    yield from corpus.files.others.items()


def _read_states(corpus: Corpus) -> States:
    """Yields the state that each file has now, read by threads where they wait for a network."""
    assert corpus.files is not None
    root, source_of = corpus.files.root, corpus.files.source_of
    paths = chain(
        (source_of(utterance.key).path for utterance in corpus.utterances), corpus.files.others
    )

    def read_block(block: list[str]) -> list[tuple[str, FileState | None]]:
        return [(path, read_state(root / path)) for path in block]

    blocks = iter(lambda: list(islice(paths, _BLOCK_FILES)), [])
    yield from chain.from_iterable(map_blocks(read_block, blocks))


def _hash_states(states: States) -> str:
    digest = hashlib.sha256()
    for path, state in states:
        text = f"{path}\0{'' if state is None else f'{state.size_bytes} {state.modified_ns}'}\n"
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _hash_tree(root: Path) -> str:
    """Returns a hash of the path, size and time of every file below a folder."""
    digest, visited = hashlib.sha256(), set()
    level = [str(root)]
    while level:  # level by level, so that many folders are read at once
        blocks = [
            level[start : start + _BLOCK_FOLDERS] for start in range(0, len(level), _BLOCK_FOLDERS)
        ]
        level = []
        for block in map_blocks(lambda places: list(map(_scan_folder, places)), blocks):
            for folder in block:
                if folder.identity in visited:  # a link leads there as well
                    continue
                visited.add(folder.identity)
                level += folder.inner
                digest.update(folder.text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class _Folder(NamedTuple):
    """Device and number of a folder, the folders in it, and its files with size and time."""

    identity: tuple[int, int | str]
    inner: list[str]
    text: str


def _scan_folder(place: str) -> _Folder:
    """Reads one folder. What cannot be read has no state: reading the corpus says what is wrong."""
    inner, lines = [], []
    try:
        status = Path(place).stat()
        with os.scandir(place) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    continue
                if entry.is_dir():
                    inner.append(entry.name)
                    lines.append(f"{entry.name}/\n")
                    continue
                try:
                    state = entry.stat()
                    lines.append(f"{entry.name}\0{state.st_size} {state.st_mtime_ns}\n")
                except OSError:
                    lines.append(f"{entry.name}\0\n")
    except OSError:
        return _Folder((-1, place), [], f"{place}\0\n")
    paths = [f"{place}/{name}" for name in sorted(inner)]
    return _Folder((status.st_dev, status.st_ino), paths, f"{''.join(sorted(lines))}\n")
