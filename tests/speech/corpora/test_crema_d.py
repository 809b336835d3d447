"""CREMA-D: the folds of EMO-SUPERB, acted and perceived emotions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import CORPORA
from speechft_ray.speech.corpora.crema_d import ACTOR_SETS, split_of
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import crema_d

PUBLISHED = (
    (
        1,
        {
            1037: "train",
            1067: "train",
            1091: "train",
            1010: "test",
            1001: "test",
            1018: "test",
            1019: "dev",
            1036: "dev",
        },
    ),
    (2, {1037: "dev", 1039: "dev", 1052: "dev", 1053: "dev"}),
    (3, {1055: "dev", 1062: "dev", 1070: "dev", 1071: "dev"}),
    (4, {1073: "dev", 1074: "dev", 1082: "dev", 1091: "dev"}),
    (5, {1001: "dev", 1003: "dev", 1014: "dev", 1017: "dev"}),
)
"""Rows of EMO-SUPERB's ``labels_consensus_1.csv`` to ``_5.csv``: actors and their ``Split_Set``."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crema_d.lay_out(tmp_path_factory.mktemp("crema_d") / "root")


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tree, tmp_path / "root"))


@pytest.mark.parametrize(("fold", "actors"), PUBLISHED)
def test_folds_are_those_of_emo_superb(fold: int, actors: dict[int, str]) -> None:
    assert {actor: split_of(actor, fold) for actor in actors} == actors
    every = [
        split_of(actor, fold) for first, last in ACTOR_SETS for actor in range(first, last + 1)
    ]
    assert len(every) == 91 and every.count("train") == (55 if fold <= 3 else 54)


def test_each_actor_is_tested_once_and_in_one_split(tree: Path) -> None:
    test_actors: list[str] = []
    for fold in range(1, 6):
        corpus = open_at("crema_d", tree, fold=fold)
        speakers = [
            {u.labels["speaker"] for u in corpus.split(split)} for split in ("train", "dev", "test")
        ]
        assert sizes(corpus) == {"train": 36, "dev": 12, "test": 12} and len(
            set.union(*speakers)
        ) == sum(map(len, speakers))
        test_actors += speakers[2]
    assert sorted(test_actors) == [str(actor) for actor in crema_d.ACTORS]


def test_a_complete_copy_has_the_rows_of_emo_superb() -> None:
    """7,442 clips less the one without speech; fold 1 has the 141 batches of 32 that its config
    counts an epoch by."""
    kind = CORPORA.get("crema_d")
    counts = [kind.expected(kind.options.model_validate({"fold": fold})) for fold in range(1, 6)]
    assert [sum(expected.utterances.values()) for expected in counts if expected] == [7441] * 5
    assert counts[0] is not None and counts[0].utterances == {
        "train": 4508,
        "dev": 1470,
        "test": 1463,
    }
    assert -(-counts[0].utterances["train"] // 32) == 15_510 / 110


def test_labels_are_acted_and_perceived_emotions(tree: Path) -> None:
    corpus = open_at("crema_d", tree)
    labels_by_key = {utterance.key: utterance.labels for utterance in corpus.utterances}
    assert labels_by_key["AudioWAV/1036_DFA_ANG_XX.wav"] == {
        "emotion": "ang", "speaker": "1036", "sentence": "dfa", "perceived": "ang",
    }  # fmt: skip
    emotions = {
        Path(key).stem: (labels["emotion"], labels["perceived"])
        for key, labels in labels_by_key.items()
    }
    assert emotions[crema_d.TIED] == ("sad", "sad"), "of equal votes the acted emotion counts"
    pairs = {
        ("dis", "neu"),
        *((emotion, emotion) for emotion in ("ang", "fea", "hap", "neu", "sad")),
    }
    assert set(emotions.values()) == pairs


def test_without_votes_the_perceived_emotion_is_missing(root: Path) -> None:
    (root / "labels_consensus_1.csv").unlink()
    corpus = open_at("crema_d", root)
    assert corpus.columns == {"emotion", "speaker", "sentence"}
    assert "corpora prepare crema_d" in corpus.missing_columns["perceived"] and not corpus.notes


def test_the_clip_without_speech_is_left_out(root: Path) -> None:
    (root / "AudioWAV/1076_MTI_SAD_XX.wav").write_bytes(b"")
    corpus = open_at("crema_d", root)
    assert corpus.notes == ("1076_MTI_SAD_XX.wav holds no speech and is left out.",)
    assert len(corpus.utterances) == len(crema_d.clip_names())


def test_files_that_do_not_match_are_reported(root: Path) -> None:
    clip, votes = root / "AudioWAV/1001_DFA_ANG_XX.wav", root / "labels_consensus_1.csv"
    for name in ("1001_DFA_JOY_XX", "1092_DFA_ANG_XX", "copy of 1001_DFA_ANG_XX"):
        clip.rename(clip.with_stem(name))
        with pytest.raises(UserError, match=rf"{name}.wav is not named like 1001_DFA_ANG_XX.wav"):
            open_at("crema_d", root)
        clip.with_stem(name).rename(clip)
    lines = votes.read_text().splitlines()
    for content, mistake in (
        ([lines[0].replace("fear", "scare"), *lines[1:]], "lacks the columns fear"),
        (
            [lines[0], lines[1].replace("0.95", "much"), *lines[2:]],
            "line 2 must be a file name and a share of votes",
        ),
        (
            [*lines[:-1], lines[-1].split(",")[0]],
            f"line {len(lines)} must be a file name and a share of votes",
        ),
        (lines[:-2], "has no line for 2 recordings"),
    ):
        votes.write_text("\n".join(content))
        with pytest.raises(UserError, match=mistake):
            open_at("crema_d", root)
    shutil.rmtree(root / "AudioWAV")
    (root / "AudioWAV").mkdir()
    with pytest.raises(UserError, match=r"holds no \.wav file"):
        open_at("crema_d", root)


@pytest.mark.parametrize("in_votes", ["X", "XX"])
@pytest.mark.parametrize("on_disk", ["X", "XX"])
def test_the_clip_that_was_renamed_opens_in_every_copy(
    root: Path, on_disk: str, in_votes: str
) -> None:
    """``1040_ITH_SAD_X.wav`` until 2022, ``1040_ITH_SAD_XX.wav`` since; here another sentence."""
    name, votes = "1037_DFA_SAD_XX", root / "labels_consensus_1.csv"
    short = name.removesuffix("X")
    assert f"{name}.wav" in votes.read_text()
    if on_disk == "X":
        (root / f"AudioWAV/{name}.wav").rename(root / f"AudioWAV/{short}.wav")
    if in_votes == "X":
        votes.write_text(votes.read_text().replace(name, short))
    corpus = open_at("crema_d", root)
    key = f"AudioWAV/{short if on_disk == 'X' else name}.wav"
    labels = {utterance.key: utterance.labels for utterance in corpus.utterances}
    assert labels[key]["perceived"] == labels[key]["emotion"] == "sad"
    shutil.copy(root / key, root / f"AudioWAV/{short if on_disk == 'XX' else name}.wav")
    assert len(open_at("crema_d", root).utterances) == len(corpus.utterances), "both names: one"


def test_a_repository_without_git_lfs_is_named(root: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
    (root / "labels_consensus_1.csv").write_text(pointer)
    with pytest.raises(UserError, match=r"labels_consensus_1\.csv is a Git LFS pointer"):
        open_at("crema_d", root)
