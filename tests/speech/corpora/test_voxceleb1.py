"""VoxCeleb1: both lists, removal of pauses, and the dev speakers of ``protocol: clean``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.speech.audio import read_audio
from speechft_ray.speech.corpora._vad import remove_silence
from speechft_ray.speech.corpora.voxceleb1 import VoxCeleb1Options
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import voxceleb1
from tests.speech.layouts.voices import write_audio


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voxceleb1.lay_out(tmp_path_factory.mktemp("voxceleb1") / "root")


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tree, tmp_path / "root"))


def test_identification_follows_the_list(tree: Path) -> None:
    corpus = open_at("voxceleb1", tree)
    assert sizes(corpus) == {"train": 16, "dev": 16, "test": 16}
    splits = {}
    for line in (tree / "iden_split.txt").read_text().splitlines():
        number, listed_name = line.split()
        splits[listed_name] = number
    for utterance in corpus.utterances:
        name = utterance.key.split("/wav/")[1]
        assert {"1": "train", "2": "dev", "3": "test"}[splits[name]] == utterance.split
        assert utterance.labels == {"speaker": name[:7]}
    first = corpus.utterances[0]
    np.testing.assert_array_equal(corpus.read(first), read_audio(first.key, tree))


def test_the_list_may_have_the_name_of_s3prl(root: Path) -> None:
    first = open_at("voxceleb1", root).fingerprint
    (root / "iden_split.txt").rename(root / "veri_test_class.txt")
    assert open_at("voxceleb1", root).fingerprint == first
    (root / "veri_test_class.txt").unlink()
    with pytest.raises(
        UserError, match=r"needs iden_split.txt or veri_test_class.txt .* take it from https://"
    ):
        open_at("voxceleb1", root)


def test_verification_has_trials_no_dev_and_no_pauses(tree: Path) -> None:
    corpus = open_at("voxceleb1", tree, task="verification")
    a, b, c = (
        f"test/wav/{name}"
        for name in (
            "id10270/0Ab_cdEFgh1/00001.wav",
            "id10270/na8-QEFmj44/00002.wav",
            "id10271/0Ab_cdEFgh1/00001.wav",
        )
    )
    assert list(corpus.trials) == [(True, a, b), (False, a, c), (False, b, c)]
    assert {utterance.key for utterance in corpus.split("test")} == {a, b, c}
    assert corpus.split("dev") == []
    trained = corpus.split("train")
    # Of three recordings of each video the third is shorter than 2 s once its pauses are out.
    assert len(trained) == 24 and all(
        u.samples > 32_000 and u.key.startswith("dev/") for u in trained
    )
    assert corpus.notes == ("12 training utterances of less than 2.00 s are left out.",)
    quiet = read_audio(trained[0].key, tree) * np.float32(10 ** (-3 / 20))
    np.testing.assert_array_equal(corpus.read(trained[0]), remove_silence(quiet))
    assert trained[0].samples < len(quiet) - 3_000


def test_clean_verification_holds_out_speakers_with_their_own_trials(tree: Path) -> None:
    corpus = open_at("voxceleb1", tree, task="verification", protocol="clean")
    speakers = {
        split: {u.labels["speaker"] for u in corpus.split(split)}
        for split in ("train", "dev", "test")
    }
    assert (
        len(speakers["dev"]) == 3
        and len(speakers["train"]) == 3
        and not speakers["dev"] & speakers["train"]
    )
    own = [trial for trial in corpus.trials if trial[1].startswith("dev/")]
    assert len(own) == 3 * 100 and sum(same for same, _, _ in own) == 150
    for same, one, other in own:
        assert (one.split("/")[2] == other.split("/")[2]) == same
        assert not same or one.split("/")[3] != other.split("/")[3], "one speaker, two videos"
    assert list(open_at("voxceleb1", tree, task="verification", protocol="clean").trials) == list(
        corpus.trials
    )


def test_what_the_lists_name_but_the_folders_lack_is_reported_or_skipped(root: Path) -> None:
    shutil.rmtree(root / "dev/wav/id10003")
    with pytest.raises(SpecError) as error:
        open_at("voxceleb1", root)
    assert len(error.value.mistakes) == 6 and "and 1 more" in str(error.value)
    assert "id10003/0Ab_cdEFgh1/00001.wav` does not exist" in str(error.value)
    corpus = open_at("voxceleb1", root, on_bad_audio="skip")
    assert corpus.skipped == {"train": 2, "dev": 2, "test": 2}
    (root / "test/wav/id10271/0Ab_cdEFgh1/00001.wav").unlink()
    corpus = open_at("voxceleb1", root, task="verification", on_bad_audio="skip")
    assert len(corpus.trials) == 1 and corpus.skipped == {"test": 1}


def test_a_recording_of_nothing_but_pauses(root: Path) -> None:
    first = open_at("voxceleb1", root, task="verification")
    for part in ("dev/wav/id10001", "test/wav/id10271"):
        write_audio(root / part / "0Ab_cdEFgh1/00001.wav", np.zeros(60_000))
    with pytest.raises(
        SpecError, match=r"id10271/0Ab_cdEFgh1/00001.wav holds nothing but pauses"
    ) as error:
        open_at("voxceleb1", root, task="verification")
    assert len(error.value.mistakes) == 1, "in training it is one of the short ones"
    rest = open_at("voxceleb1", root, task="verification", on_bad_audio="skip")
    assert len(rest.split("train")) == len(first.split("train")) - 1 and rest.skipped == {"test": 1}


def test_lines_that_are_no_entries_are_reported_with_their_number(root: Path) -> None:
    lists = {
        "iden_split.txt": ["4 id10001/a/00001.wav", "1 ../id10001/a.wav"],
        "voxceleb1_test_v2.txt": ["2 a b", "1 a.wav"],
    }
    for name, lines in lists.items():
        for line in lines:
            text = (root / name).read_text()
            (root / name).write_text(f"{text}{line}\n")
            with pytest.raises(UserError, match=rf"{name} line \d+ must be"):
                open_at(
                    "voxceleb1",
                    root,
                    task="identification" if name.startswith("iden") else "verification",
                )
            (root / name).write_text(text)
    shutil.rmtree(root / "test")
    with pytest.raises(UserError, match="its test archive"):
        open_at("voxceleb1", root)


def test_identification_has_nothing_to_clean() -> None:
    with pytest.raises(ValidationError, match="nothing to clean"):
        VoxCeleb1Options.model_validate({"protocol": "clean"})
