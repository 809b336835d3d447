"""The index of a corpus: staleness, damage, concurrent makers, many rows, odd names."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import file_sha256
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.corpora.index import find_index, index_corpus
from speechft_ray.speech.corpora.manifest import ManifestOptions, open_manifest
from speechft_ray.stages.sources import open_corpus

OPTIONS = ManifestOptions()


def write_manifest(folder: Path, names: list[str], *, linked: bool = False) -> Path:
    """Writes recordings with a manifest; with ``linked`` all are links to one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        if linked and number:
            os.link(folder / names[0], folder / name)
        else:
            wave = 0.1 * np.sin(np.arange(800) * (number + 1) / 30)
            soundfile.write(folder / name, wave, 16_000, format="WAV")
    lines = [f"{name}\t{('train', 'dev', 'test')[i % 3]}\ts{i % 7}" for i, name in enumerate(names)]
    (folder / "manifest.tsv").write_bytes(
        "\n".join(["path\tsplit\tspeaker", *lines]).encode("utf-8", "surrogateescape")
    )
    return folder


def index_at(root: Path, cache: Path, notes: list[str] | None = None) -> Corpus:
    return index_corpus("manifest", OPTIONS, root, cache, note=(notes or []).append)


def find_file(cache: Path) -> Path:
    (file,) = (cache / "index").glob("manifest-*.safetensors")
    return file


def test_a_file_that_is_touched_or_changed_is_indexed_again_and_said(tmp_path: Path) -> None:
    root = write_manifest(tmp_path / "home", [f"{n}.wav" for n in range(6)])
    first = index_at(root, tmp_path / "cache")
    notes: list[str] = [""]
    (root / "other.txt").write_text("no row names it")
    index_at(root, tmp_path / "cache", notes)
    assert notes == [""]
    os.utime(root / "3.wav", (7, 7))
    assert index_at(root, tmp_path / "cache", notes).fingerprint == first.fingerprint
    assert f"files in {root} have changed since the corpus `manifest` was indexed" in notes[1]
    soundfile.write(root / "3.wav", np.full(900, 0.2), 16_000)
    changed = index_at(root, tmp_path / "cache", notes)
    assert len(notes) == 3 and changed.fingerprint != first.fingerprint
    assert {item.key: item.samples for item in changed.utterances}["3.wav"] == 900


def test_a_recording_that_was_missing_is_noticed_when_it_is_there(tmp_path: Path) -> None:
    root, options = tmp_path / "home", ManifestOptions(on_bad_audio="skip")
    write_manifest(root, [f"{n}.wav" for n in range(6)])
    (root / "4.wav").rename(tmp_path / "4.wav")
    counts = []
    for _ in range(2):
        corpus = index_corpus("manifest", options, root, tmp_path / "cache")
        counts.append((len(corpus.utterances), dict(corpus.skipped)))
        (tmp_path / "4.wav").exists() and (tmp_path / "4.wav").rename(root / "4.wav")
    assert counts == [(5, {"dev": 1}), (6, {})]


@pytest.mark.parametrize("damage", ["truncated", "foreign", "flipped", "empty", "other header"])
def test_a_damaged_or_foreign_index_is_made_again(damage: str, tmp_path: Path) -> None:
    root = write_manifest(tmp_path / "home", ["a.wav", "b.wav", "c.wav"])
    first = index_at(root, tmp_path / "cache")
    file = find_file(tmp_path / "cache")
    content = file.read_bytes()
    place = content.index(b"a.wav") if b"a.wav" in content else len(content) - 5
    file.write_bytes(
        {
            "truncated": content[:-20],
            "foreign": b"PK\x03\x04" + content,
            "flipped": content[:place] + b"x" + content[place + 1 :],
            "empty": b"",
            "other header": (2).to_bytes(8, "little") + b"{}" + content[10:],
        }[damage]
    )
    assert find_index("manifest", OPTIONS, root, tmp_path / "cache") is None
    notes: list[str] = [""]
    again = index_at(root, tmp_path / "cache", notes)
    assert again.fingerprint == first.fingerprint and again.utterances == first.utterances
    assert find_index("manifest", OPTIONS, root, tmp_path / "cache") is not None
    assert notes == [""], "it was not the recordings that changed"


def test_concurrent_makers_leave_one_good_index(tmp_path: Path) -> None:
    root = write_manifest(tmp_path / "home", [f"{n:03d}.wav" for n in range(40)])
    corpora: list[Corpus] = []
    makers = [
        threading.Thread(target=lambda: corpora.append(index_at(root, tmp_path / "cache")))
        for _ in range(4)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len({corpus.fingerprint for corpus in corpora}) == 1 and len(corpora) == 4
    stored = find_index("manifest", OPTIONS, root, tmp_path / "cache")
    assert stored is not None and stored.utterances == corpora[0].utterances
    assert [path.name for path in (tmp_path / "cache" / "index").iterdir()] == [
        find_file(tmp_path / "cache").name
    ]


def test_a_manifest_of_many_rows_in_any_order_of_paths(tmp_path: Path) -> None:
    """Links to one file are utterances of their own; rows are found by key wherever they are."""
    names = [f"{(7 * n) % 3001:05d}.wav" for n in range(3001)]
    root = write_manifest(tmp_path / "home", names, linked=True)
    direct = open_manifest(OPTIONS, root, tmp_path / "direct")
    corpus = index_at(root, tmp_path / "cache")
    assert corpus.fingerprint == direct.fingerprint and len(corpus.utterances) == 3001
    assert (
        corpus.utterances[-1] == direct.utterances[-1]
        and corpus.utterances[5:9] == (direct.utterances[5:9])
    )
    dev = corpus.split("dev")
    assert len(dev) == 1000 and dev[123] == direct.split("dev")[123]
    assert dict(corpus.audio_ids) == dict(direct.audio_ids)
    assert len(corpus.read(corpus.utterances[2000])) == 800
    with pytest.raises(KeyError):
        corpus.audio_ids["no such key"]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.wav"), "日本語.wav", "é.wav"]
    try:
        root = write_manifest(tmp_path / "home", names[1:])
    except OSError:
        pytest.skip("the file system refuses such names")
    from speechft_ray.speech.corpora._columns import TextColumn, make_texts

    column = TextColumn(make_texts("key", names), "key")
    assert [column[row] for row in range(3)] == names
    corpus = index_at(root, tmp_path / "cache")
    assert corpus.utterances == open_manifest(OPTIONS, root, tmp_path / "direct").utterances


def test_a_job_refuses_a_corpus_that_changed_after_it_was_planned(tmp_path: Path) -> None:
    root = write_manifest(tmp_path / "home", ["a.wav", "b.wav", "c.wav"])
    planned = index_at(root, tmp_path / "runs" / "corpora")
    place = Place(storage=str(tmp_path / "runs"), encoder="x", manifest=str(root))
    spec = CorpusSpec(name="manifest")
    opened = open_corpus(spec, place, identity=planned.fingerprint)
    assert opened.utterances == planned.utterances
    with pytest.raises(UserError, match=r"has changed since this job was planned"):
        open_corpus(spec, place, identity="0123456789abcdef")


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    root = write_manifest(tmp_path / "home", ["a.wav", "b.wav", "c.wav"])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "index").write_text("a file in the place of the folder")
    with pytest.raises(UserError, match=r"cannot be written: .* choose another --storage"):
        index_at(root, tmp_path / "cache")


def test_measuring_goes_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured before a stop is not measured again; nor what was before a kill, up to the
    last time that it was saved."""
    from speechft_ray.speech.corpora import _files

    names = [f"{n:03d}.wav" for n in range(12)]
    root = write_manifest(tmp_path / "home", names)
    monkeypatch.setattr(_files, "_BLOCK_FILES", 2)
    monkeypatch.setattr(_files, "_SAVE_EVERY_SECONDS", -1)

    killed: list[bytes] = []

    def stop(done: int, total: int) -> None:
        if done > 6:
            (store,) = (tmp_path / "cache").glob("manifest-*.json")
            killed.append(store.read_bytes())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_corpus("manifest", OPTIONS, root, tmp_path / "cache", stop)
    hashed: list[str] = []

    def hash_file(path: Path) -> str:
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(_files, "file_sha256", hash_file)
    index_at(root, tmp_path / "cache")
    assert sorted(hashed) == names[8:]
    (store,) = (tmp_path / "cache").glob("manifest-*.json")
    store.write_bytes(killed[0])
    find_file(tmp_path / "cache").unlink()
    hashed.clear()
    index_at(root, tmp_path / "cache")
    assert sorted(hashed) == names[6:]
