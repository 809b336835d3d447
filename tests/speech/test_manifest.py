"""The manifest corpus: rows, identity, the cache of file facts, and errors with all mistakes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.speech.corpora import _files
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.corpora.manifest import ManifestOptions, open_manifest

FSDD = Path(__file__).parents[2] / "../shared/data/fsdd"


def write_recording(
    folder: Path, name: str, seconds: float = 0.1, rate_hz: int = 16_000, level: float = 0.1
) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, np.full(round(seconds * rate_hz), level), rate_hz)


def write_collection(folder: Path, lines: list[str] | None = None) -> Path:
    for name in ("a.wav", "sub/b.wav", "c.wav"):
        write_recording(folder, name, rate_hz=8_000 if name == "c.wav" else 16_000)
    rows = [
        "a.wav\ttrain\tann\tGOOD DAY\t0.1",
        "sub/b.wav\tdev\tbob\t\t0.1",
        'c.wav\ttest\tann\t"YES"\t0.1',
    ]
    text = (
        "\n".join(["path\tsplit\tspeaker\ttext\tseconds", *(lines if lines is not None else rows)])
        + "\n"
    )
    (folder / "manifest.tsv").write_text(text, encoding="utf-8")
    return folder


def open_at(root: Path, cache: Path) -> Corpus:
    return open_manifest(ManifestOptions(), root, cache)


def read_mistakes(root: Path, cache: Path) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as error:
        open_at(root, cache)
    return list(error.value.mistakes)


def test_rows_become_utterances(tmp_path: Path) -> None:
    corpus = open_at(write_collection(tmp_path / "home"), tmp_path / "cache")
    assert [(u.key, u.split, u.samples) for u in corpus.utterances] == [
        ("a.wav", "train", 1600),
        ("c.wav", "test", 1600),
        ("sub/b.wav", "dev", 1600),
    ]
    assert corpus.columns == {"speaker", "text"}
    assert corpus.utterances[1].labels == {"speaker": "ann", "text": '"YES"'}
    np.testing.assert_allclose(corpus.read(corpus.utterances[0]), 0.1, atol=1 / 32768)
    assert corpus.name == "manifest/home"


def test_a_file_or_its_folder_windows_line_ends_and_a_byte_order_mark_are_the_same(
    tmp_path: Path,
) -> None:
    home = write_collection(tmp_path / "home")
    first = open_at(home, tmp_path / "cache").fingerprint
    text = (home / "manifest.tsv").read_text(encoding="utf-8").replace("\n", "\r\n")
    (home / "other.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert open_at(home / "other.tsv", tmp_path / "cache").fingerprint == first


def test_identity_is_content_and_not_place_time_or_order(tmp_path: Path) -> None:
    first = open_at(write_collection(tmp_path / "one"), tmp_path / "cache")
    there = write_collection(tmp_path / "two")
    os.utime(there / "a.wav", (1, 1))
    lines = (there / "manifest.tsv").read_text(encoding="utf-8").splitlines()
    (there / "manifest.tsv").write_text(
        "\n".join([lines[0], *reversed(lines[1:])]), encoding="utf-8"
    )
    second = open_at(there, tmp_path / "cache")
    assert second.fingerprint == first.fingerprint
    assert second.utterances == first.utterances


def test_identity_changes_with_one_label_and_with_one_sample(tmp_path: Path) -> None:
    home = write_collection(tmp_path / "home")
    fingerprints = {open_at(home, tmp_path / "cache").fingerprint}
    text = (home / "manifest.tsv").read_text(encoding="utf-8")
    (home / "manifest.tsv").write_text(text.replace("bob", "bea"), encoding="utf-8")
    fingerprints.add(open_at(home, tmp_path / "cache").fingerprint)
    write_recording(home, "a.wav", level=0.2)
    os.utime(home / "a.wav", ns=(5, 5))
    fingerprints.add(open_at(home, tmp_path / "cache").fingerprint)
    assert len(fingerprints) == 3


def test_a_second_open_reads_no_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = write_collection(tmp_path / "home")
    first = open_at(home, tmp_path / "cache")

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(_files, "file_sha256", refuse)
    assert open_at(home, tmp_path / "cache").fingerprint == first.fingerprint
    os.utime(home / "a.wav", (1, 1))
    with pytest.raises(AssertionError, match=r"a\.wav was read again"):
        open_at(home, tmp_path / "cache")


def test_a_broken_cache_is_measured_again(tmp_path: Path) -> None:
    home = write_collection(tmp_path / "home")
    first = open_at(home, tmp_path / "cache").fingerprint
    (store,) = (tmp_path / "cache").glob("manifest-*.json")
    for content in ("{", "[]", '{"a.wav": {"samples": 3}}'):
        store.write_text(content)
        assert open_at(home, tmp_path / "cache").fingerprint == first


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    with pytest.raises(UserError, match=r"cannot be written: .* choose another --storage"):
        open_at(write_collection(tmp_path / "home"), tmp_path / "cache")


def test_all_mistakes_of_the_rows_at_once(tmp_path: Path) -> None:
    lines = [
        "a.wav\ttraining\tx\tx\t1",
        "a.wav\ttest\tx\tx\t1",
        "\ttest\tx\tx\t1",
        "c.wav\ttest\tx",
        "sub/.././a.wav\ttest\tx\tx\t1",
    ]
    assert sorted(read_mistakes(write_collection(tmp_path, lines), tmp_path / "cache")) == [
        ("line 2", "`split` must be one of train, dev, test, but is `training` instead"),
        ("line 3", "`a.wav` is already on line 2"),
        ("line 4", "`path` is empty"),
        ("line 5", "has 3 cells where the header has 5 columns"),
        ("line 6", "`sub/.././a.wav` is already on line 2"),
    ]


def test_a_recording_in_two_splits_is_told(tmp_path: Path) -> None:
    """By the bytes of the file, whatever it is called."""
    lines = [f"{name}\t{split}\tx\tx\t1" for name, split in (("a.wav", "test"), ("c.wav", "dev"))]
    folder = write_collection(tmp_path / "home", [*lines, "copy.wav\ttrain\tx\tx\t1"])
    write_recording(folder, "copy.wav", level=0.2)
    assert not any("two splits" in note for note in open_at(folder, tmp_path / "cache").notes)
    shutil.copy(folder / "a.wav", folder / "copy.wav")
    (note,) = (n for n in open_at(folder, tmp_path / "cache").notes if "two splits" in n)
    assert note.startswith(
        "1 recordings are in two splits, byte for byte: a.wav of test is copy.wav of train. A "
    )


def test_all_mistakes_of_the_audio_at_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_recording(tmp_path, "outside.wav")
    lines = [
        f"{path}\ttest\tx\tx\t1" for path in ("gone.wav", "../outside.wav", "notes.txt", "a.wav")
    ]
    write_collection(home, lines)
    (home / "notes.txt").write_text("not audio")
    mistakes = read_mistakes(home, tmp_path / "cache")
    assert [where for where, _ in mistakes] == ["line 2", "line 3", "line 4"]
    assert "`gone.wav` does not exist" in mistakes[0][1]
    assert "stay inside" in mistakes[1][1]
    assert "not a readable audio file" in mistakes[2][1]


def test_an_error_has_five_of_a_kind_and_counts_the_rest(tmp_path: Path) -> None:
    mistakes = read_mistakes(
        write_collection(tmp_path, [f"gone{index}.wav\ttest\tx\tx\t1" for index in range(12)]),
        tmp_path / "cache",
    )
    assert len(mistakes) == 6
    assert mistakes[5] == ("and 7 more lines", "like line 2")


def test_header_mistakes_and_empty_manifests(tmp_path: Path) -> None:
    file = tmp_path / "manifest.tsv"
    file.write_text("file\tspeaker\tspeaker\n")
    assert [text for _, text in read_mistakes(file, tmp_path)] == [
        "the column `path` is missing",
        "the column `split` is missing",
        "the column `speaker` is named 2 times",
    ]
    for content, words in (("path\tsplit\n\n", "has no rows"), ("", "`path` is missing")):
        file.write_text(content)
        with pytest.raises(UserError, match=words):
            open_at(file, tmp_path)
    file.write_bytes(b"path\xff")
    with pytest.raises(UserError, match="UTF-8"):
        open_at(file, tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        open_at(tmp_path / "absent.tsv", tmp_path)
    with pytest.raises(UserError, match="needs a root"):
        open_manifest(ManifestOptions(), None, tmp_path)


def test_audio_that_changes_after_opening_is_noticed(tmp_path: Path) -> None:
    home = write_collection(tmp_path / "home")
    corpus = open_at(home, tmp_path / "cache")
    write_recording(home, "a.wav", seconds=0.2)
    with pytest.raises(UserError, match="has changed since"):
        corpus.read(corpus.utterances[0])


@pytest.mark.shared
@pytest.mark.skipif(not FSDD.is_dir(), reason="../shared/data/fsdd is missing")
def test_real_recordings_open(tmp_path: Path) -> None:
    corpus = open_at(FSDD, tmp_path)
    assert len(corpus.utterances) == 3000
    assert {u.labels["speaker"] for u in corpus.utterances} == {
        "george",
        "jackson",
        "lucas",
        "nicolas",
        "theo",
        "yweweler",
    }
    assert {split: len(corpus.split(split)) for split in ("train", "dev", "test")} == {
        "train": 2400,
        "dev": 300,
        "test": 300,
    }
    seconds = {}
    for line in (FSDD / "manifest.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        cells = line.split("\t")
        seconds[cells[0]] = float(cells[4])
    assert all(abs(u.seconds - seconds[u.key]) < 1e-3 for u in corpus.utterances)
    assert np.abs(corpus.read(corpus.utterances[17])).max() > 0.01
