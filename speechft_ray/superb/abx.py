"""ABX discrimination of phones on frames, which trains nothing (Schatz et al., "Evaluating speech
features with the minimal-pair ABX task", Interspeech 2013).

A and X are two tokens of one phone, B is a token of another, all of one speaker. An error is a B
that is nearer to X than A is. A token is the mean of its frames; its distance to another is one
minus the cosine. (The paper aligns the frames of two tokens by dynamic time warping instead.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.heads.frame import frame_labels
from speechft_ray.speech.synthesis.phones import SILENCE
from speechft_ray.superb.extractor import Features, iterate_batches

MOST_TOKENS = 10
"""Tokens of one phone and speaker that are compared, the first ones: the number of triples grows
with the cube."""
UTTERANCES_AT_ONCE = 64


class Tokens(NamedTuple):
    """Phones of a split."""

    states: torch.Tensor
    """Means over the frames of each, ``(layers, tokens, dim)`` float32."""
    phones: Sequence[str]
    speakers: Sequence[str]
    """Empty names where the corpus has no column ``speaker``."""


def collect_tokens(utterances: Sequence[Utterance], features: Features) -> Tokens:
    """Returns the phones of utterances by their alignment, without silence.

    Raises ``UserError`` for an utterance without an alignment.
    """
    counts: Counter[tuple[str, str]] = Counter()
    means, names = [], []
    first = 0
    for batch in iterate_batches(features, UTTERANCES_AT_ONCE):
        some = utterances[first : first + len(batch.frames)]
        first += len(some)
        parts = torch.split(batch.restore(), batch.frames.tolist(), dim=1)
        for utterance, states in zip(some, parts, strict=True):
            speaker = utterance.labels.get("speaker", "")
            for phone, start, stop in _list_segments(utterance, states.shape[1]):
                counts[speaker, phone] += 1
                if counts[speaker, phone] <= MOST_TOKENS:
                    means.append(states[:, start:stop].float().mean(1))
                    names.append((phone, speaker))
    if not names:
        raise UserError("no phone of dev has a frame, so none can be compared by ABX.")
    phones, speakers = zip(*names, strict=True)
    return Tokens(torch.stack(means, dim=1), phones, speakers)


def _list_segments(utterance: Utterance, frames: int) -> list[tuple[str, int, int]]:
    """Returns the phone, the first frame and the end of each aligned segment with a frame."""
    if not utterance.alignment:
        raise UserError(
            f"the utterance `{utterance.key}` has no alignment, so its phones cannot be compared "
            "by ABX: screen on tasks with one label per utterance, or leave `screen` out."
        )
    numbered = [(start, str(index)) for index, (start, _) in enumerate(utterance.alignment)]
    own: dict[int, list[int]] = {}
    for frame, owner in enumerate(frame_labels(numbered, utterance.samples)[:frames]):
        if owner is not None:
            own.setdefault(int(owner), []).append(frame)
    labels = [label for _, label in utterance.alignment]
    return [
        (labels[index], of_segment[0], of_segment[-1] + 1)
        for index, of_segment in own.items()
        if labels[index] not in ("", SILENCE)
    ]


def measure_abx(states: torch.Tensor, phones: Sequence[str], speakers: Sequence[str]) -> float:
    """Returns the ABX error in percent of tokens ``(tokens, dim)``: the mean over pairs of phones
    of the mean over speakers of the share of wrong triples; equal distances are half wrong.

    Raises ``UserError`` where no speaker has two tokens of a phone and one of another.
    """
    directions = states / states.norm(dim=1, keepdim=True).clamp(min=1e-12)
    classes = {phone: number for number, phone in enumerate(sorted(set(phones)))}
    numbers = torch.tensor([classes[phone] for phone in phones], device=states.device)
    sums = states.new_zeros(len(classes), len(classes))  # [phone of A and X, phone of B]
    counts = torch.zeros_like(sums)
    for speaker in sorted(set(speakers)):
        own = torch.tensor([name == speaker for name in speakers], device=states.device)
        closeness = directions[own] @ directions[own].T
        of_own = numbers[own]
        for phone in sorted(set(of_own.tolist())):
            is_same = of_own == phone
            if is_same.sum() < 2 or is_same.all():
                continue
            errors = _compare(closeness[is_same][:, is_same], closeness[is_same][:, ~is_same])
            others = of_own[~is_same]
            amounts = others.bincount(minlength=len(classes))
            by_phone = torch.zeros_like(sums[phone]).index_add_(0, others, errors)
            sums[phone] += by_phone / amounts.clamp(min=1)
            counts[phone] += amounts > 0
    if not counts.any():
        raise UserError(
            "ABX compares two tokens of a phone with one of another by the same speaker, and dev "
            "has none: leave `screen` out, or take more utterances."
        )
    pairs = counts > 0
    return float(100 * (sums[pairs] / counts[pairs]).mean())


def _compare(same: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Returns for each B the share of pairs of A and X that are wrong.

    ``same``: closeness of X to A, ``(tokens, tokens)``; ``other``: of X to B.
    """
    gaps = same[:, :, None] - other[:, None, :]  # [X, A, B]
    wrong = (gaps < 0).to(same) + 0.5 * (gaps == 0).to(same)
    is_pair = ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    return wrong[is_pair].mean(0)
