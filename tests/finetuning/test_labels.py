"""Labels of dev that train lacks, and utterances without one, before the first update."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.finetuning.data import load_objective
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.heads.ctc import count_token_errors
from tests.finetuning.toy_models import corpus, objective, start_weights

TONES = corpus({"train": 6, "dev": 3})


def with_label(key: str, column: str, label: str) -> Corpus:
    """Returns the corpus with another label of one utterance."""
    utterances = [
        replace(item, labels={**item.labels, column: label}) if item.key == key else item
        for item in TONES.utterances
    ]
    return replace(TONES, utterances=utterances)


def test_a_token_of_dev_that_train_lacks_is_an_error_of_every_prediction() -> None:
    """s3prl has ``<unk>`` for it (``downstream/ctc/text.py``), which no transcript is equal to."""
    plain = load_objective(objective("ctc"), TONES, start_weights())
    data = load_objective(
        objective("ctc"), with_label("dev-0", "phones", "p0 new p1"), start_weights()
    )
    assert data.vocabulary.size == plain.vocabulary.size == 4, "the head has the classes of train"
    assert data.dev[0].target.tolist() == [1, 4, 2]
    # The best path of the logits is p0, any class, p1: two of three tokens are right.
    for index in range(1, 4):
        logits = torch.zeros(1, 5, 4)
        for frame, best in enumerate([1, 0, index, 0, 2]):
            logits[0, frame, best] = 1.0
        tally = count_token_errors(logits, torch.tensor([5]), [data.dev[0].target])
        assert tally == (1, 3)


@pytest.mark.parametrize(
    ("head", "key", "column", "label", "sentence"),
    [
        (
            "pooled",
            "dev-1",
            "tone",
            "t9",
            r"column `tone` has 1 label in dev that train does not have \(`t9`\);",
        ),
        (
            "pooled",
            "train-2",
            "tone",
            " ",
            r"the utterance `train-2` has no label in the column `tone` \(1 of 6 in train\);",
        ),
        (
            "ctc",
            "dev-2",
            "phones",
            "",
            r"`dev-2` has no label in the column `phones` \(1 of 3 in dev\);",
        ),
    ],
)
def test_closed_sets_and_missing_labels_are_refused(
    head: str, key: str, column: str, label: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        load_objective(objective(head), with_label(key, column, label), start_weights())
