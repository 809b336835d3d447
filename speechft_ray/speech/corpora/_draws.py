"""Seeded draws among the utterances of a corpus, the same on every machine and in every version of
Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.corpora.base import Corpus, Utterance


def shuffled(keys: Iterable[str], seed: int) -> list[str]:
    """Returns keys in a random order, that of the hashes of seed and key: one key more or less
    leaves the others' alone."""
    return sorted(keys, key=lambda key: sha256(f"{seed} {key}".encode()).digest())


def first_hours(samples: Mapping[str, int], hours: float | None, seed: int) -> set[str]:
    """Returns as many keys, drawn at random, as it takes to have so many hours; ``samples`` at 16
    kHz by key. ``None``: all."""
    chosen: set[str] = set()
    wanted = sum(samples.values()) if hours is None else hours * 3600 * SAMPLE_RATE_HZ
    for key in shuffled(samples, seed):
        if wanted <= 0:
            break
        chosen.add(key)
        wanted -= samples[key]
    return chosen


def speaker_splits(
    utterances: Sequence[Utterance], hours: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Draws splits that all have every speaker: a split by key, of the utterances that are drawn.
    ``hours`` by split.

    Every split gets an utterance of every speaker; then each in turn goes on round the speakers
    until it has its hours. So speakers have equal numbers, but for one. Where there is less speech
    than ``hours`` in all, their proportions hold. Raises ``UserError`` when a speaker has fewer
    utterances than there are splits.
    """
    samples = {utterance.key: utterance.samples for utterance in utterances}
    keys: dict[str, list[str]] = {}
    for utterance in utterances:
        keys.setdefault(utterance.labels["speaker"], []).append(utterance.key)
    left = {speaker: shuffled(keys[speaker], seed) for speaker in shuffled(keys, seed)}
    if few := [speaker for speaker, own in left.items() if len(own) < len(hours)]:
        raise UserError(
            f"the speaker `{few[0]}` has {len(left[few[0]])} recordings, and {len(hours)} are needed for the splits "
            f"{', '.join(hours)}: leave such speakers out."
        )
    splits = {own.pop(): split for split in hours for own in left.values()}
    hour = min(3600 * SAMPLE_RATE_HZ, sum(samples.values()) / sum(hours.values()))
    for split in hours:
        wanted = hours[split] * hour - sum(
            samples[key] for key, name in splits.items() if name == split
        )
        while wanted > 0 and any(left.values()):
            for own in left.values():
                if wanted > 0 and own:
                    splits[own[-1]] = split
                    wanted -= samples[own.pop()]
    return splits


def drawn(corpus: Corpus, splits: Mapping[str, str], notes: Sequence[str] = ()) -> Corpus:
    """Returns the part of a corpus that ``splits`` names, with these splits and more ``notes``; of
    an identity of its own."""
    return replace(
        corpus,
        fingerprint=fingerprint({"drawn from": corpus.fingerprint, "splits": splits}),
        utterances=[
            replace(one, split=splits[one.key]) for one in corpus.utterances if one.key in splits
        ],
        audio_ids={key: content for key, content in corpus.audio_ids.items() if key in splits},
        notes=(*corpus.notes, *notes),
    )
