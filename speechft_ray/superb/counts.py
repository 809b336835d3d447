"""The per-utterance counts behind the metrics of a test set, for the selected probes of an
evaluation; of dev where dev alone is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import JsonValue

from speechft_ray.core.counts import UtteranceCounts
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.corpora.base import NO_SPEAKER, Corpus, Utterance
from speechft_ray.superb.tasks.base import Example, TaskData, TrainingFreeTask


def count_utterances_of(
    data: TaskData | TrainingFreeTask,
    split: Literal["dev", "test"],
    predictions: Sequence[Sequence[Any]],
    metrics: Sequence[Mapping[str, float]],
) -> list[JsonValue]:
    """Returns one ``UtteranceCounts`` of a split as plain data; an empty list for a task without
    counts, or where there are no predictions.

    ``predictions`` and ``metrics`` are those of the split, both seed by seed.
    """
    if not isinstance(data, TaskData) or data.counts is None or not predictions:
        return []
    examples: Sequence[Example] = data.examples[split]
    if split == "dev" and data.dev_indices is not None:
        examples = [examples[index] for index in data.dev_indices]
        predictions = [[of_seed[index] for index in data.dev_indices] for of_seed in predictions]
    references = [example.reference for example in examples]
    seeds = [
        data.counts(of_seed, references, seed_metrics)
        for of_seed, seed_metrics in zip(predictions, metrics, strict=True)
    ]
    counted = _list_counted(data, examples)
    speakers, speaker_of = _find_speakers(data.corpus, counted)
    record = UtteranceCounts(
        utterances=fingerprint([utterance.key for utterance in counted]),
        amounts={
            name: tuple(tuple(amount for amount, _ in seed[name]) for seed in seeds)
            for name in seeds[0]
        },
        of={name: tuple(of for _, of in pairs) for name, pairs in seeds[0].items()},
        speakers=speakers,
        speaker_of=speaker_of,
    )
    return [record.model_dump(mode="json")]


def _list_counted(data: TaskData, examples: Sequence[Example]) -> list[Utterance]:
    """Returns the utterance of each count: that of the first example of a recording."""
    if data.recording_of is None:
        return [example.utterance for example in examples]
    first: dict[str, Utterance] = {}
    for example in examples:
        first.setdefault(data.recording_of(example), example.utterance)
    return list(first.values())


def _find_speakers(
    corpus: Corpus, utterances: Sequence[Utterance]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the identities of the speakers, and the place of each utterance's.

    The speakers of a mixture are one, apart from each of them alone.
    """
    names = [utterance.labels.get("speaker", "").strip() for utterance in utterances]
    speakers = sorted({name for name in names if name not in ("", NO_SPEAKER)})
    if not speakers:
        return (), ()
    places = {name: place for place, name in enumerate(speakers)}
    space = corpus.speaker_namespace or corpus.name
    identities = tuple(fingerprint(["speaker", space, name]) for name in speakers)
    return identities, tuple(places.get(name, -1) for name in names)
