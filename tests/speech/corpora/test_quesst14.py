"""QUESST 2014: one language of documents and queries, and which documents a query occurs in."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_ray.core.errors import UserError
from tests.speech.corpora.helpers import open_at, sizes
from tests.speech.layouts import quesst14


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return quesst14.lay_out(tmp_path / "root")


def test_documents_queries_and_their_matches(root: Path) -> None:
    corpus = open_at("quesst14", root)
    assert sizes(corpus) == {"train": 3, "dev": 2, "test": 2}
    matches = {utterance.key: utterance.labels["matches"] for utterance in corpus.utterances}
    # Document 4 holds both, but is in another language.
    assert matches["dev_queries/quesst14_dev_0001.wav"] == "Audio/quesst14_00001.wav"
    assert matches["eval_queries/quesst14_eval_0001.wav"] == "Audio/quesst14_00002.wav"
    assert matches["eval_queries/quesst14_eval_0002.wav"] == ""
    assert all(utterance.labels["matches"] == "" for utterance in corpus.split("train"))
    assert corpus.notes == ("7 of 7 files are not at 16 kHz (8000 Hz) and are resampled.",)


def test_another_language(root: Path) -> None:
    with pytest.raises(
        UserError, match=r"language_key_dev.lst lists nothing in `albanian`; it has nnenglish"
    ):
        open_at("quesst14", root, language="albanian")


def test_what_is_missing_or_malformed_is_reported(root: Path) -> None:
    truth = root / "scoring/groundtruth_quesst14_dev/quesst14_dev.rttm"
    with truth.open("a") as file:
        file.write("LEXEME quesst14_00001 1 0 1\n")
    with pytest.raises(UserError, match=r"quesst14_dev.rttm line 5 must be"):
        open_at("quesst14", root)
    truth.unlink()
    with pytest.raises(UserError, match=r"lacks .*quesst14_dev.rttm"):
        open_at("quesst14", root)
    (root / "scoring/language_key_eval.lst").write_text("quesst14Database/x.wav\n")
    with pytest.raises(UserError, match="`FOLDER/PATH LANGUAGE`"):
        open_at("quesst14", root)


def test_a_document_that_is_left_out_is_no_match(root: Path) -> None:
    """The query stays, and the task finds every match among the documents."""
    (root / "Audio/quesst14_00001.wav").write_bytes(b"cut")
    corpus = open_at("quesst14", root, on_bad_audio="skip")
    assert corpus.skipped == {"train": 1} and sizes(corpus) == {"train": 2, "dev": 2, "test": 2}
    matches = {utterance.key: utterance.labels["matches"] for utterance in corpus.utterances}
    assert matches["dev_queries/quesst14_dev_0001.wav"] == ""
    assert matches["eval_queries/quesst14_eval_0001.wav"] == "Audio/quesst14_00002.wav"


def test_a_list_names_no_file_outside(root: Path) -> None:
    file = root / "scoring/language_key_utterances.lst"
    file.write_text(file.read_text() + "quesst14Database/../../etc/a.wav nnenglish\n")
    with pytest.raises(UserError, match=r"leaves the folder .* without `\.\.`"):
        open_at("quesst14", root)
