"""Loads the examples of an objective: head, vocabulary and targets of train and dev.

Every mistake in labels and options is reported before the first update.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.specs import Objective
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES, frame_count
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.corpora.labels import MissingLabelError, describe_missing_labels
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.speech.heads.base import HEADS, HeadKind, HeadOptions, Masking, check_head_options
from speechft_ray.speech.text import Vocabulary, make_unknown_labels_error


@dataclass(frozen=True, kw_only=True)
class Example:
    """One utterance and its target.

    ``target``: class ids ``(length,)``, int64, or int32 for pseudo-labels of frames. ``mask``:
    frames that are masked in validation, bool ``(frames,)``; None where nothing is masked.
    """

    utterance: Utterance
    target: torch.Tensor
    mask: torch.Tensor | None = None


class Examples(NamedTuple):
    """The vocabulary, and the examples of train and dev."""

    vocabulary: Vocabulary
    train: tuple[Example, ...]
    dev: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class ObjectiveData:
    """One objective with its corpus, ready for training and validation."""

    objective: Objective
    corpus: Corpus
    kind: HeadKind
    options: HeadOptions
    vocabulary: Vocabulary
    train: tuple[Example, ...]
    dev: tuple[Example, ...]

    @property
    def crop_step_samples(self) -> int:
        """Crops start at a multiple of this, so that frames keep their pseudo-labels."""
        return 1 if self.kind.masking is None else FRAME_STRIDE_SAMPLES


def load_objective(objective: Objective, corpus: Corpus, start: EncoderWeights) -> ObjectiveData:
    """Loads the examples of an objective.

    The targets of a head that learns from audio alone stay empty; they are predicted later by the
    start encoder (``pseudo_labels.with_pseudo_labels``). Raises ``UserError`` for labels, columns
    and options that cannot be trained on.
    """
    kind, options = HEADS.get(objective.head), check_head_options(objective.head, objective.options)
    if kind.masking is None:
        vocabulary, train, dev = _load_labelled(objective, corpus, kind, options)
    else:
        vocabulary, train, dev = _load_unlabelled(objective, corpus, kind.masking, start)
    if len(train) < objective.batch_size:
        raise UserError(
            f"corpus `{corpus.name}` has {len(train)} training utterances, fewer than one batch of "
            f"{objective.batch_size}: lower `batch_size`, or add recordings."
        )
    return ObjectiveData(
        objective=objective,
        corpus=corpus,
        kind=kind,
        options=options,
        vocabulary=vocabulary,
        train=train,
        dev=dev,
    )


def max_crop_samples(data: ObjectiveData, crop_seconds: float | None) -> int | None:
    """Returns the longest clip to train on; ``None``: whole utterances.

    Raises ``UserError`` below one frame.
    """
    if crop_seconds is None or not data.kind.croppable:
        return None
    samples = round(crop_seconds * 16_000)
    if samples < FRAME_FIELD_SAMPLES:
        raise UserError(
            "`crop_seconds` must be at least 0.025, one frame of the encoder, but is "
            f"{crop_seconds:g} instead."
        )
    return samples


def _load_labelled(
    objective: Objective, corpus: Corpus, kind: HeadKind, options: HeadOptions
) -> Examples:
    column, read_tokens = objective.column, kind.read_tokens
    assert read_tokens is not None  # a head without masking has tokens
    if column is None:
        allowed = ", ".join(sorted(corpus.columns))
        raise UserError(
            f"the head `{objective.head}` learns from labels: name a `column` of the corpus, one "
            f"of {allowed}."
        )
    if column not in corpus.columns:
        raise UserError(
            f"corpus `{corpus.name}`: {unknown_name('label column', column, corpus.columns)}"
        )
    train, dev = (_load_split(corpus, split) for split in ("train", "dev"))
    try:
        vocabulary, dev_vocabulary = (
            Vocabulary.of(
                (token for item in items for token in read_tokens(options, item, column)),
                kind.reserved,
            )
            for items in (train, dev)
        )
    except MissingLabelError as error:
        raise UserError(
            f"corpus `{corpus.name}`: {describe_missing_labels([*train, *dev], error.column)}; the "
            f"head `{objective.head}` needs one everywhere: add it, or leave such utterances out."
        ) from None
    if len(vocabulary.symbols) < 2:
        raise UserError(
            f"corpus `{corpus.name}`: all training utterances have the same label "
            f"`{vocabulary.symbols[0]}` in the column `{column}`, so there is nothing to learn: "
            "name another column."
        )
    if unknown := sorted(set(dev_vocabulary.symbols) - set(vocabulary.symbols)):
        if not kind.has_unknown:
            sentence = make_unknown_labels_error(column, "dev", unknown, vocabulary)
            raise UserError(f"corpus `{corpus.name}`: {sentence}")
        vocabulary = replace(vocabulary, has_unknown=True)
    return Examples(
        vocabulary,
        _make_examples(kind, options, corpus, train, column, vocabulary),
        _make_examples(kind, options, corpus, dev, column, vocabulary),
    )


def _load_unlabelled(
    objective: Objective, corpus: Corpus, masking: Masking, start: EncoderWeights
) -> Examples:
    if objective.column is not None:
        raise UserError(f"the head `{objective.head}` learns from audio alone: leave `column` out.")
    vocabulary = Vocabulary(
        symbols=tuple(map(str, range(masking.count_classes(start)))), reserved=0
    )
    empty = torch.empty(0, dtype=torch.int32)
    train, dev = (
        tuple(Example(utterance=item, target=empty) for item in _load_split(corpus, split))
        for split in ("train", "dev")
    )
    return Examples(vocabulary, train, dev)


def _load_split(corpus: Corpus, split: str) -> Sequence[Utterance]:
    utterances = corpus.split(split)
    if not utterances:
        raise UserError(
            f"corpus `{corpus.name}` has no utterance in the split `{split}`, which fine-tuning "
            "needs: add some."
        )
    return utterances


def _make_examples(
    kind: HeadKind,
    options: HeadOptions,
    corpus: Corpus,
    utterances: Sequence[Utterance],
    column: str,
    vocabulary: Vocabulary,
) -> tuple[Example, ...]:
    examples, make_targets = [], kind.make_targets
    assert make_targets is not None  # a head without masking has targets
    for utterance in utterances:
        try:
            target = make_targets(options, utterance, column, vocabulary)
        except UserError as error:
            raise UserError(
                f"corpus `{corpus.name}`, column `{column}`, utterance `{utterance.key}`: {error}"
            ) from None
        examples.append(Example(utterance=utterance, target=target))
    _check_lengths(kind, corpus, examples)
    return tuple(examples)


def _check_lengths(kind: HeadKind, corpus: Corpus, examples: Iterable[Example]) -> None:
    short = [
        item
        for item in examples
        if frame_count(item.utterance.samples) < kind.min_frames(item.target)
    ]
    if short:
        first = short[0]
        raise UserError(
            f"corpus `{corpus.name}`: {len(short)} utterance(s) of the split "
            f"`{first.utterance.split}` are too short for their labels, the first is "
            f"`{first.utterance.key}` with {frame_count(first.utterance.samples)} frames of 20 ms "
            f"where {kind.min_frames(first.target)} are needed: leave them out, or correct "
            "their labels."
        )
