"""Shared by the tasks with a token sequence per utterance: vocabulary, CTC, greedy decoding (s3prl
``downstream/ctc/``).

Id 0 is padding and CTC's blank, 1 is ``<eos>``, 2 ``<unk>``, then the tokens of the train split.
``<eos>`` ends every target and is learned like a token; decoding drops it. s3prl has fixed
vocabularies per corpus; here a token that is not in train becomes ``<unk>`` and, since nothing
decodes to it, counts as an error. ``asr`` has a vocabulary of its own.

Decoding stops at an utterance's last valid frame. s3prl's ``ctc/expert.py`` reads the padded row,
which is the same at its evaluation batch of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import Field

from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.heads.ctc import CtcHead, ctc_loss, greedy_decode
from speechft_ray.speech.heads.specaug import spec_augment
from speechft_ray.speech.text import Vocabulary
from speechft_ray.superb.tasks.base import Example, Measure, TaskData, TaskOptions, select_splits

EOS, UNKNOWN = "<eos>", "<unk>"

BATCH_SIZE = 32
"""Effective batch of s3prl's ``ctc/libriphone.yaml`` (16 x 2 accumulated) and ``ctc/snips.yaml``
(32 x 1)."""

CLIP_NORM = 1.0
"""``runner.gradient_clipping`` of the same configs."""


Counts = tuple[
    Callable[[Sequence[Any], Sequence[Any]], float],
    Callable[[Sequence[Any], Sequence[Any]], Sequence[tuple[float, float]]],
]
"""A rate over a split, in percent, and the pairs of each utterance that it consists of: the sum of
the first numbers over the sum of the second."""


class LinearCtcOptions(TaskOptions):
    """Options of two linear maps per frame."""

    projection: int = Field(default=256, ge=1)
    """Width between the two (s3prl ``ctc/libriphone.yaml``: ``project_dim``)."""


class RecurrentCtcOptions(TaskOptions):
    """Options of a projection with bidirectional LSTM layers; the defaults are s3prl's
    ``ctc/snips.yaml``."""

    projection: int = Field(default=1024, ge=1)
    lstm_layers: int = Field(default=2, ge=0)
    lstm_hidden: int = Field(default=1024, ge=1)
    """Width of one direction."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """After each LSTM layer."""
    specaug: bool = True
    """Whether training features are warped and masked."""


def make_vocabulary(token_lists: Sequence[Sequence[str]]) -> Vocabulary:
    """Returns ``<eos>``, ``<unk>`` and the tokens of the train split, sorted."""
    in_train = {token for tokens in token_lists for token in tokens} - {EOS, UNKNOWN}
    return Vocabulary(symbols=(EOS, UNKNOWN, *sorted(in_train)))


def make_ctc_builder(
    spell: Callable[[Utterance, Sequence[str]], list[str]],
    measures: Mapping[str, Counts],
    render: Callable[[Sequence[str]], Any] = tuple,
    make_vocabulary: Callable[[Sequence[Sequence[str]]], Vocabulary] = make_vocabulary,
    end: str = EOS,
) -> Callable[[Corpus, Sequence[str], Any], TaskData]:
    """Returns the ``build`` function of a CTC task.

    ``spell(utterance, columns)`` turns a label into tokens, ``end`` included. ``measures`` has, by
    metric, the rate of a split and the counts of each utterance. ``render`` turns tokens without
    ``end`` into what the measures compare. ``make_vocabulary`` turns the token lists of train into
    the vocabulary, which must have ``end`` and ``<unk>``.
    """

    def build(
        corpus: Corpus, columns: Sequence[str], options: LinearCtcOptions | RecurrentCtcOptions
    ) -> TaskData:
        splits = select_splits(corpus)
        token_lists = {
            split: [spell(utterance, columns) for utterance in utterances]
            for split, utterances in splits.items()
        }
        vocabulary = make_vocabulary(token_lists["train"])
        symbols = frozenset(vocabulary.symbols)

        def make_example(utterance: Utterance, tokens: Sequence[str]) -> Example:
            ids = vocabulary.encode([token if token in symbols else UNKNOWN for token in tokens])
            return Example(utterance, torch.tensor(ids, dtype=torch.long), without_end(tokens))

        def predict(logits: torch.Tensor, frames: torch.Tensor) -> list[Any]:
            return [without_end(vocabulary.decode(path)) for path in greedy_decode(logits, frames)]

        def without_end(tokens: Sequence[str]) -> Any:
            return render([token for token in tokens if token != end])

        return TaskData(
            corpus=corpus,
            examples={
                split: list(map(make_example, utterances, token_lists[split]))
                for split, utterances in splits.items()
            },
            head=partial(
                CtcHead,
                classes=vocabulary.size,
                **options.model_dump(exclude={"specaug", "protocol"}),
            ),
            loss=ctc_loss,
            predict=predict,
            measure=_join_measures(measures),
            counts=lambda predictions, references, _: {
                name: list(each(predictions, references)) for name, (_, each) in measures.items()
            },
            augment=spec_augment if getattr(options, "specaug", False) else None,
        )

    return build


def _join_measures(measures: Mapping[str, Counts]) -> Measure:
    def measure(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {name: rate(predictions, references) for name, (rate, _) in measures.items()}

    return measure
