"""An objective made ready to teach: its head, vocabulary and examples, with every mistake found
before the first update."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.specs import Objective
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES, frame_count
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.speech.heads.base import HEADS, HeadKind, HeadOptions, Masking, head_options
from speechft_ray.speech.text import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Example:
    """One utterance and the class ids to learn from it, ``(length,)``: int64, or int32 where they
    are names of frames.

    ``masked``: which frames the encoder does not hear in a validation, bool ``(frames,)``; None
    where it hears all.
    """

    utterance: Utterance
    target: torch.Tensor
    masked: torch.Tensor | None = None


class Material(NamedTuple):
    """What there is to learn: the classes, and the utterances of train and dev."""

    vocabulary: Vocabulary
    train: tuple[Example, ...]
    dev: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class Lesson:
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
        """Crops start at a multiple of this, so that frames with names of their own keep them."""
        return 1 if self.kind.masking is None else FRAME_STRIDE_SAMPLES


def prepare(objective: Objective, corpus: Corpus, start: EncoderWeights) -> Lesson:
    """Reads the labels of an objective. Raises ``UserError`` for everything that would spoil the
    training.

    A head that learns from audio alone gets its targets later, from the encoder that the run starts
    from (``pseudo_labels.with_names``); until then they are empty.
    """
    kind, options = HEADS.get(objective.head), head_options(objective.head, objective.options)
    if kind.masking is None:
        vocabulary, train, dev = _labelled(objective, corpus, kind, options)
    else:
        vocabulary, train, dev = _unlabelled(objective, corpus, kind.masking, start)
    if len(train) < objective.batch_size:
        raise UserError(
            f"corpus `{corpus.name}` has {len(train)} training utterances, fewer than one batch of {objective.batch_size}: "
            "lower `batch_size`, or add recordings."
        )
    return Lesson(
        objective=objective,
        corpus=corpus,
        kind=kind,
        options=options,
        vocabulary=vocabulary,
        train=train,
        dev=dev,
    )


def crop_samples(lesson: Lesson, crop_seconds: float | None) -> int | None:
    """Returns the longest piece to train on; ``None``: whole utterances. Raises ``UserError`` below
    one frame."""
    if crop_seconds is None or not lesson.kind.croppable:
        return None
    samples = round(crop_seconds * 16_000)
    if samples < FRAME_FIELD_SAMPLES:
        raise UserError(
            f"`crop_seconds` must be at least 0.025, one frame of the encoder, but is {crop_seconds:g} instead."
        )
    return samples


def _labelled(
    objective: Objective, corpus: Corpus, kind: HeadKind, options: HeadOptions
) -> Material:
    column, read_tokens = objective.column, kind.read_tokens
    assert read_tokens is not None  # a head without masking has tokens
    if column is None:
        allowed = ", ".join(sorted(corpus.columns))
        raise UserError(
            f"the head `{objective.head}` learns from labels: name a `column` of the corpus, one of {allowed}."
        )
    if column not in corpus.columns:
        raise UserError(
            f"corpus `{corpus.name}`: {unknown_name('label column', column, corpus.columns)}"
        )
    train, dev = (_utterances(corpus, split) for split in ("train", "dev"))
    vocabulary = Vocabulary.of(
        (token for item in train for token in read_tokens(options, item, column)), kind.reserved
    )
    if len(vocabulary.symbols) < 2:
        raise UserError(
            f"corpus `{corpus.name}`: all training utterances have the same label `{vocabulary.symbols[0]}` in the column "
            f"`{column}`, so there is nothing to learn: name another column."
        )
    taught, checked = (
        _examples(kind, options, corpus, split, column, vocabulary) for split in (train, dev)
    )
    return Material(vocabulary, taught, checked)


def _unlabelled(
    objective: Objective, corpus: Corpus, masking: Masking, start: EncoderWeights
) -> Material:
    if objective.column is not None:
        raise UserError(f"the head `{objective.head}` learns from audio alone: leave `column` out.")
    vocabulary = Vocabulary(
        symbols=tuple(map(str, range(masking.count_classes(start)))), reserved=0
    )
    nameless = torch.empty(0, dtype=torch.int32)
    train, dev = (
        tuple(Example(utterance=item, target=nameless) for item in _utterances(corpus, split))
        for split in ("train", "dev")
    )
    return Material(vocabulary, train, dev)


def _utterances(corpus: Corpus, split: str) -> list[Utterance]:
    found = corpus.split(split)
    if not found:
        raise UserError(
            f"corpus `{corpus.name}` has no utterance in the split `{split}`, which fine-tuning needs: add some."
        )
    return found


def _examples(
    kind: HeadKind,
    options: HeadOptions,
    corpus: Corpus,
    utterances: Sequence[Utterance],
    column: str,
    vocabulary: Vocabulary,
) -> tuple[Example, ...]:
    found, make_targets = [], kind.make_targets
    assert make_targets is not None  # a head without masking has targets
    for utterance in utterances:
        try:
            target = make_targets(options, utterance, column, vocabulary)
        except UserError as error:
            raise UserError(
                f"corpus `{corpus.name}`, column `{column}`, utterance `{utterance.key}`: {error}"
            ) from None
        found.append(Example(utterance=utterance, target=target))
    _check_lengths(kind, corpus, found)
    return tuple(found)


def _check_lengths(kind: HeadKind, corpus: Corpus, examples: Iterable[Example]) -> None:
    short = [
        item
        for item in examples
        if frame_count(item.utterance.samples) < kind.min_frames(item.target)
    ]
    if short:
        first = short[0]
        raise UserError(
            f"corpus `{corpus.name}`: {len(short)} utterance(s) of the split `{first.utterance.split}` are too short for their "
            f"labels, the first is `{first.utterance.key}` with {frame_count(first.utterance.samples)} frames of 20 ms where "
            f"{kind.min_frames(first.target)} are needed: leave them out, or correct their labels."
        )
