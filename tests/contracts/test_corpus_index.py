"""Contract of every corpus on disk: its index gives what reading the corpus gives."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import CORPORA, SPLITS, Corpus
from speechft_ray.speech.corpora.index import find_index, index_corpus
from tests.contracts.test_corpora import EXAMPLES, ON_DISK, list_audio, open_at

FIELDS = ("name", "fingerprint", "columns", "missing_columns", "skipped", "speaker_namespace")


def index_at(
    name: str, root: Path, cache: Path, note: Callable[[str], None] = print, **options: Any
) -> Corpus:
    model = CORPORA.get(name).options.model_validate({**EXAMPLES[name][0], **options})
    return index_corpus(name, model, root, cache, note=note)


def find_at(name: str, root: Path, cache: Path) -> Corpus | None:
    return find_index(
        name, CORPORA.get(name).options.model_validate(EXAMPLES[name][0]), root, cache
    )


@pytest.fixture
def copy(trees: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Returns a copy of the tree of a corpus, which a test may change."""

    def copy_tree(name: str) -> Path:
        shutil.copytree(trees(name), tmp_path / "root", symlinks=True)
        return tmp_path / "root"

    return copy_tree


def check_equal(corpus: Corpus, direct: Corpus) -> None:
    for field in FIELDS:
        assert getattr(corpus, field) == getattr(direct, field)
    assert list(corpus.utterances) == list(direct.utterances) and list(corpus.notes) == list(
        direct.notes
    )
    for split in SPLITS:
        assert list(corpus.split(split)) == list(direct.split(split))
    assert list(corpus.trials) == list(direct.trials)
    assert dict(corpus.audio_ids) == dict(direct.audio_ids)
    assert corpus.files is not None and direct.files is not None
    for utterance in direct.utterances:
        assert corpus.files.source_of(utterance.key) == direct.files.source_of(utterance.key)


@pytest.mark.parametrize("name", ON_DISK)
def test_an_index_gives_what_reading_the_corpus_gives(
    name: str, trees: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, notes = trees(name), list[str]()
    direct = open_at(name, root, tmp_path / "direct")
    assert find_at(name, root, tmp_path / "cache") is None
    check_equal(index_at(name, root, tmp_path / "cache"), direct)
    worker = find_at(name, root, tmp_path / "cache")
    assert worker is not None
    check_equal(worker, direct)
    for utterance in direct.utterances[:: max(1, len(direct.utterances) // 5)]:
        np.testing.assert_array_equal(worker.read(utterance), direct.read(utterance))
        assert worker.hash_recording is not None and direct.hash_recording is not None
        assert worker.hash_recording(utterance, 500) == direct.hash_recording(utterance, 500)
    # A second time nothing is listed or measured.
    monkeypatch.setattr(Path, "glob", None)
    monkeypatch.setattr("speechft_ray.speech.corpora._layout.measure", None)
    monkeypatch.setattr("speechft_ray.speech.corpora.manifest.measure", None)
    check_equal(index_at(name, root, tmp_path / "cache", notes.append), direct)
    assert not notes


@pytest.mark.parametrize("name", ON_DISK)
def test_every_file_that_changes_or_goes_is_noticed(
    name: str, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    """Whichever file of the tree it is, the index then gives what reading the corpus anew does."""
    root, cache = copy(name), tmp_path / "cache"
    index_at(name, root, cache, on_bad_audio="skip")
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    lists = [path for path in files if path not in list_audio(root)]
    for path in [*lists, *list_audio(root)[:2], *list_audio(root)[-1:]]:
        content, state = path.read_bytes(), path.stat()
        for action in ("change", "remove"):
            if action == "change":
                path.write_bytes(content[: len(content) // 2])
            else:
                path.unlink()
            outcomes = []
            for function, place in ((index_at, cache), (open_at, tmp_path / "direct")):
                try:
                    corpus = function(name, root, place, on_bad_audio="skip")
                    outcomes.append((corpus.fingerprint, list(corpus.utterances)))
                except UserError as error:
                    outcomes.append((str(error), []))
            assert outcomes[0] == outcomes[1], (path, action)
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("name", ON_DISK)
def test_a_file_of_other_size_or_content_is_refused_by_its_name(
    name: str, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    root, cache = copy(name), tmp_path / "cache"
    direct = index_at(name, root, cache)
    assert direct.files is not None
    whole = [item for item in direct.utterances if not direct.files.source_of(item.key).cut]
    for utterance in (direct.utterances[0], *whole[:1]):
        path = root / direct.files.source_of(utterance.key).path
        content, state = path.read_bytes(), path.stat()
        worker = find_at(name, root, cache)
        assert worker is not None
        # More bytes.
        path.write_bytes(content + b"\0\0")
        with pytest.raises(UserError, match=f"{path.name} has changed since .*bytes where it had"):
            worker.read(utterance)
        # Other bytes, of the same number and time; those of a part are not read as a whole.
        path.write_bytes(content[:-2] + bytes(255 - byte for byte in content[-2:]))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        if utterance in whole:
            with pytest.raises(UserError, match=f"{path.name} has changed since .*touch"):
                worker.read(utterance)
        # The same bytes at another time are what was measured.
        path.write_bytes(content)
        os.utime(path, (5, 5))
        assert len(worker.read(utterance)) == utterance.samples
        path.unlink()
        with pytest.raises(UserError, match=path.name):
            worker.read(utterance)
        path.write_bytes(content)
