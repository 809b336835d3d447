"""IEMOCAP: labels of the release, folds, and how dev is drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import pytest
import torch
from torch.utils.data import Dataset, random_split

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import CORPORA, Corpus
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import iemocap


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return iemocap.lay_out(tmp_path_factory.mktemp("iemocap") / "root", metadata=True)


@pytest.fixture
def root(tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tree, tmp_path / "root"))


def keys(corpus: Corpus, split: str) -> list[str]:
    return [utterance.key for utterance in corpus.split(split)]


def test_labels_are_the_release_s_with_excitement_as_happiness(tree: Path) -> None:
    corpus = open_at("iemocap", tree, fold=1)
    labels_by_turn = {
        utterance.key.rsplit("/", 1)[1][:-4]: utterance.labels for utterance in corpus.utterances
    }
    labels = [iemocap.LABELS[(index + 1) % 7] for index in range(8)]  # of session 1
    assert labels[3] == "exc" and labels_by_turn["Ses01F_impro01_F003"]["emotion"] == "hap"
    assert labels[1] == "ang" and labels_by_turn["Ses01F_impro01_F001"]["emotion"] == "ang"
    assert labels[4] == "fru" and "Ses01F_impro01_M000" not in labels_by_turn
    assert labels[5] == "xxx" and "Ses01F_impro01_M001" not in labels_by_turn
    assert {label["emotion"] for label in labels_by_turn.values()} == {"neu", "hap", "ang", "sad"}
    # The speaker is the letter of the turn, not of the dialogue.
    assert (
        labels_by_turn["Ses01M_script01_1_F000"]["speaker"] == "Ses01F"
        and labels_by_turn["Ses01M_script01_1_M002"]["speaker"] == "Ses01M"
    )


@pytest.mark.parametrize("fold", [1, 4])
def test_a_fold_s_session_is_the_test_and_dev_a_random_fifth(tree: Path, fold: int) -> None:
    corpus = open_at("iemocap", tree, fold=fold)
    assert {utterance.labels["session"] for utterance in corpus.split("test")} == {str(fold)}
    file = tree / f"meta_data/Session{fold}/train_meta_data.json"
    order = [item["path"] for item in json.loads(file.read_text())["meta_data"]]
    assert order != sorted(order)
    torch.manual_seed(0)
    count = int(0.8 * len(order))
    dataset = cast("Dataset[str]", order)
    parts = random_split(dataset, [count, len(order) - count])  # as in s3prl
    train, dev = ([str(path) for path in part] for part in parts)  # type: ignore[attr-defined]
    assert sorted(train) == keys(corpus, "train") and sorted(dev) == keys(corpus, "dev")
    assert not corpus.notes


def test_without_the_list_of_the_preprocessing_only_the_size_is_s3prl_s(
    tree: Path, root: Path
) -> None:
    shutil.rmtree(root / "meta_data")
    corpus, reference = open_at("iemocap", root), open_at("iemocap", tree)
    assert sizes(corpus) == sizes(reference) and keys(corpus, "dev") != keys(reference, "dev")
    assert any("not its turns" in note for note in corpus.notes)


def test_clean_takes_the_next_session_as_dev(tree: Path) -> None:
    for fold, held_out in ((1, "2"), (5, "1")):
        corpus = open_at("iemocap", tree, fold=fold, protocol="clean")
        speakers = {
            split: {u.labels["speaker"] for u in corpus.split(split)}
            for split in ("train", "dev", "test")
        }
        assert {u.labels["session"] for u in corpus.split("dev")} == {held_out}
        assert (
            not speakers["dev"] & (speakers["train"] | speakers["test"])
            and len(speakers["train"]) == 6
        )


@pytest.mark.parametrize("fold", [1, 3])
def test_tuning_takes_a_whole_session_as_dev_and_has_no_test(tree: Path, fold: int) -> None:
    corpus = open_at("iemocap", tree, fold=fold, protocol="tuning")
    sessions = {
        split: {u.labels["session"] for u in corpus.split(split)}
        for split in ("train", "dev", "test")
    }
    assert sessions == {
        "train": {"1", "2", "3", "4", "5"} - {str(fold)},
        "dev": {str(fold)},
        "test": set(),
    }
    kind = CORPORA.get("iemocap")
    expected = kind.expected(kind.options.model_validate({"protocol": "tuning"}))
    assert expected is not None and expected.utterances == {"train": 4446, "dev": 1085, "test": 0}


def test_expected_sizes_are_those_of_s3prl_s_lists() -> None:
    kind = CORPORA.get("iemocap")
    published = [
        (3556, 890, 1085),
        (3606, 902, 1023),
        (3504, 876, 1151),
        (3600, 900, 1031),
        (3432, 858, 1241),
    ]
    for fold, counts in enumerate(published, start=1):
        expected = kind.expected(kind.options.model_validate({"fold": fold}))
        assert expected is not None and tuple(expected.utterances.values()) == counts


def test_what_is_missing_or_does_not_fit_is_reported(root: Path) -> None:
    (root / "Session2/dialog/EmoEvaluation/Ses02F_impro01.txt").write_text("nothing\n")
    with pytest.raises(UserError, match=r"Ses02F_impro01.txt has no line like"):
        open_at("iemocap", root)
    (root / "Session2/dialog/EmoEvaluation/Ses02F_impro01.txt").unlink()
    with pytest.raises(
        UserError, match=r"lists \d+ turns, but the labels of the other sessions give \d+"
    ):
        open_at("iemocap", root, fold=1)
    (root / "meta_data/Session1/train_meta_data.json").write_text("[]")
    with pytest.raises(UserError, match="is not a list of s3prl's preprocessing"):
        open_at("iemocap", root, fold=1)
    shutil.rmtree(root / "Session3")
    with pytest.raises(UserError, match="the labels of session 3"):
        open_at("iemocap", root)
