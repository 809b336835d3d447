"""Seeded selection of utterances, the same on every machine and in every version of Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.corpora.base import Corpus, Utterance


def shuffle_keys(keys: Iterable[str], seed: int) -> list[str]:
    """Returns keys in the order of the hashes of seed and key.

    So one key more or less does not change the order of the others.
    """
    return sorted(keys, key=lambda key: sha256(f"{seed} {key}".encode()).digest())


def split_by_hash(name: str, test_percent: int, dev_percent: int) -> str:
    """Returns the split of what has this name, for corpora without splits: the sha256 of the name,
    modulo 100, is below ``test_percent``, below the sum of both, or neither."""
    number = int(sha256(name.encode()).hexdigest(), 16) % 100
    if number < test_percent:
        return "test"
    return "dev" if number < test_percent + dev_percent else "train"


def select_hours(samples: Mapping[str, int], hours: float | None, seed: int) -> set[str]:
    """Returns as many random keys as it takes to have ``hours``; ``None``: all.

    ``samples``: lengths at 16 kHz by key.
    """
    selected: set[str] = set()
    missing = sum(samples.values()) if hours is None else hours * 3600 * SAMPLE_RATE_HZ
    for key in shuffle_keys(samples, seed):
        if missing <= 0:
            break
        selected.add(key)
        missing -= samples[key]
    return selected


def draw_speaker_splits(
    utterances: Sequence[Utterance], hours: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Draws splits of ``hours`` each that all have every speaker; returns the split by key.

    Every split gets an utterance of every speaker. Then each split in turn takes utterances of the
    speakers in rotation until it has its hours, so numbers of utterances differ by one at most
    between speakers. Where there is less speech than all ``hours``, their proportions hold. Raises
    ``UserError`` when a speaker has fewer utterances than there are splits.
    """
    # The keys of each speaker, in random order.
    samples = {utterance.key: utterance.samples for utterance in utterances}
    keys: dict[str, list[str]] = {}
    for utterance in utterances:
        keys.setdefault(utterance.labels["speaker"], []).append(utterance.key)
    remaining = {speaker: shuffle_keys(keys[speaker], seed) for speaker in shuffle_keys(keys, seed)}
    if few := [speaker for speaker, own in remaining.items() if len(own) < len(hours)]:
        raise UserError(
            f"the speaker `{few[0]}` has {len(remaining[few[0]])} recordings, and {len(hours)} are "
            f"needed for the splits {', '.join(hours)}: leave such speakers out."
        )
    # One utterance of every speaker for every split.
    splits = {own.pop(): split for split in hours for own in remaining.values()}
    # The rest of the hours, speaker by speaker.
    hour = min(3600 * SAMPLE_RATE_HZ, sum(samples.values()) / sum(hours.values()))
    for split in hours:
        missing = hours[split] * hour - sum(
            samples[key] for key, name in splits.items() if name == split
        )
        while missing > 0 and any(remaining.values()):
            for own in remaining.values():
                if missing > 0 and own:
                    splits[own[-1]] = split
                    missing -= samples[own.pop()]
    return splits


def select_utterances(
    corpus: Corpus, splits: Mapping[str, str], notes: Sequence[str] = ()
) -> Corpus:
    """Returns the utterances of ``splits`` with these splits, more ``notes`` and a new identity."""
    return replace(
        corpus,
        fingerprint=fingerprint({"drawn from": corpus.fingerprint, "splits": splits}),
        utterances=[
            replace(one, split=splits[one.key]) for one in corpus.utterances if one.key in splits
        ],
        audio_ids={key: content for key, content in corpus.audio_ids.items() if key in splits},
        notes=(*corpus.notes, *notes),
    )
