"""Task ``qbe``: which documents contain a spoken query (SUPERB on QUESST 2014, English; s3prl
``quesst14_dtw/config.yaml``).

Nothing is trained: dynamic time warping searches each document for each query, layer by layer.
Documents are the split ``train``, queries the splits ``dev`` and ``test``; the column ``matches``
of a query names the documents that contain it, separated by blanks. The layer with the best maximum
term-weighted value on dev is reported on test.

Order of operations: every dimension is standardised over all frames of the split's queries and all
documents; distances; rows scaled to 0 ... 1; warping; the negative cost per query frame is
standardised over the documents of a query. Quirks kept: queries of less than 5 frames score 0
everywhere, scores are rounded to 4 decimals as s3prl writes them. Not kept: a document whose frames
are all alike (one frame, digital silence) is the worst match of every query here; scaling makes it
a perfect one in s3prl. Gain and resampling belong to the corpus. ``updates``, rates, batch sizes
and seeds of the spec change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.superb.extractor import Advance, Features, iterate_batches
from speechft_ray.superb.measures.mtwv import maximum_term_weighted_value
from speechft_ray.superb.saved_work import NOT_SAVED, SavedWork
from speechft_ray.superb.tasks._dtw import LEAST, Distance, frame_distances, subsequence_costs
from speechft_ray.superb.tasks.base import (
    TASKS,
    Example,
    Published,
    Task,
    TaskOptions,
    TrainingFreeTask,
    select_splits,
)

LEAST_QUERY_FRAMES = 5
AT_ONCE = 32
"""Utterances whose states are in memory at once."""
DECIMALS = 4


class QbeOptions(TaskOptions):
    """Options of query by example."""

    distance: Distance = "cosine_exp"
    """``dist_method`` of s3prl's config; its documentation also runs plain ``cosine``."""


def build(corpus: Corpus, columns: Sequence[str], options: QbeOptions) -> TrainingFreeTask:
    """Builds the task. Raises ``UserError`` for a match that is no document."""
    splits = select_splits(corpus)
    # Sorted by length, so that neighbours need little padding.
    documents = sorted(splits["train"], key=lambda utterance: utterance.samples)
    indices = {utterance.key: index for index, utterance in enumerate(documents)}
    none = torch.empty(0, dtype=torch.long)
    examples = {"train": [Example(utterance, none, None) for utterance in documents]}
    for split in ("dev", "test"):
        examples[split] = [
            Example(query, none, _read_matches(query, columns[0], indices))
            for query in splits[split]
        ]

    def predict(
        features: Mapping[str, Features], work: SavedWork, advance: Advance
    ) -> dict[str, list[np.ndarray]]:
        return {
            split: score_documents(
                features[split], features["train"], options.distance, work, split, advance
            )
            for split in features
            if split != "train"
        }

    return TrainingFreeTask(
        corpus=corpus,
        examples=examples,
        predict=predict,
        measure=measure_best_layer,
        measure_test=measure_layer_of_dev,
    )


def measure_best_layer(
    predictions: Sequence[np.ndarray], references: Sequence[np.ndarray]
) -> dict[str, float]:
    """Returns the value of the best layer, and its index from 0."""
    values = compute_layer_values(predictions, references)
    layer = int(np.argmax(values))
    return {"qbe.mtwv": values[layer], "layer": float(layer)}


def measure_layer_of_dev(
    dev: Sequence[np.ndarray],
    dev_references: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
) -> dict[str, float]:
    """Returns the value on test of the layer that is best on dev."""
    layer = int(np.argmax(compute_layer_values(dev, dev_references)))
    return {"qbe.mtwv": compute_layer_values(test, references)[layer], "layer": float(layer)}


def compute_layer_values(
    predictions: Sequence[np.ndarray], references: Sequence[np.ndarray]
) -> list[float]:
    """Returns the maximum term-weighted value of each layer; a prediction is ``(layers,
    documents)``."""
    layers = range(len(predictions[0]))
    return [
        maximum_term_weighted_value([scores[layer] for scores in predictions], references)
        for layer in layers
    ]


def score_documents(
    queries: Features,
    documents: Features,
    distance: Distance,
    work: SavedWork = NOT_SAVED,
    name: str = "queries",
    advance: Advance = lambda count: None,
) -> list[np.ndarray]:
    """Returns the scores of each query, ``(layers, documents)``.

    The documents are read twice, a few at a time: once for the mean and deviation of each
    dimension, once for the search. ``work``: where the search saves its state under ``name``, and
    goes on from; ``advance`` counts documents.
    """
    # First pass: statistics over all frames of queries and documents; standardise the queries.
    saved = work.load(f"{name}_statistics")
    if saved is None:
        mean, deviation = _compute_statistics([queries, documents])
        if work.is_due():
            work.save(f"{name}_statistics", 0, {"mean": mean, "deviation": deviation})
    else:
        mean, deviation = saved["mean"], saved["deviation"]
    query_states = [
        functional.normalize(((states - mean.to(states)) / deviation.to(states)).double(), dim=2)
        for states in _iterate_states(queries)
    ]
    mean, deviation = mean.to(query_states[0].device), deviation.to(query_states[0].device)
    # Second pass: the cost of every query in a padded batch of documents. What is new since the
    # last state is one more file, named by the documents before it.
    pieces: list[torch.Tensor] = []  # each (queries, layers, documents)
    done = 0
    while (piece := work.load(f"{name}_{done}")) is not None:
        pieces.append(piece["costs"])
        done += piece["costs"].shape[2]
    advance(done)
    unsaved, first = [], done
    for batch in iterate_batches(documents, AT_ONCE, done):
        standardised = torch.split(
            (batch.restore() - mean) / deviation, batch.frames.tolist(), dim=1
        )
        padded = pad_sequence([states.transpose(0, 1) for states in standardised], batch_first=True)
        layers = functional.normalize(
            padded.double().permute(2, 0, 1, 3), dim=3
        )  # -> (layers, documents, longest, dim)
        frames = batch.frames.to(layers.device)
        unsaved.append(
            torch.stack([_compute_costs(query, layers, frames, distance) for query in query_states])
        )
        advance(len(frames))
        done += len(frames)
        if work.is_due():
            work.save(f"{name}_{first}", done, {"costs": torch.cat(unsaved, dim=2)})
            pieces, unsaved, first = [*pieces, *unsaved], [], done
    # Standardise the negative costs of each query over the documents.
    costs = torch.cat([*pieces, *unsaved], dim=2).numpy()
    return [_standardise(-of_query) for of_query in costs]


def _compute_costs(
    query: torch.Tensor, documents: torch.Tensor, frames: torch.Tensor, distance: Distance
) -> torch.Tensor:
    """Returns the cost in each document by layer, float64 ``(layers, documents)`` on the CPU; 0 for
    a query that is too short."""
    if query.shape[1] < LEAST_QUERY_FRAMES:
        return torch.zeros(len(documents), len(frames), dtype=torch.float64)
    costs = [
        subsequence_costs(frame_distances(one, other, frames, distance))
        for one, other in zip(query, documents, strict=True)
    ]
    return torch.stack(costs).cpu()


def _standardise(scores: np.ndarray) -> np.ndarray:
    centred = scores - scores.mean(axis=1, keepdims=True)
    deviation = scores.std(axis=1, keepdims=True)
    rounded: np.ndarray = np.round(centred / np.clip(deviation, LEAST, None), DECIMALS)
    return rounded


def _compute_statistics(features: Sequence[Features]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and unbiased deviation of each layer and dimension over all frames, float32
    ``(layers, 1, dim)``."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for split_features in features:
        for batch in iterate_batches(split_features, AT_ONCE):
            states = batch.restore().double()
            count += states.shape[1]
            total = total.to(states) + states.sum(dim=1, keepdim=True)
            squares = squares.to(states) + states.square().sum(dim=1, keepdim=True)
    mean = total / count
    variance = (squares - count * mean.square()).clamp(min=0.0) / max(1, count - 1)
    return mean.float(), variance.sqrt().clamp(min=LEAST).float()


def _iterate_states(features: Features) -> Iterator[torch.Tensor]:
    for batch in iterate_batches(features, AT_ONCE):
        yield from torch.split(batch.restore(), batch.frames.tolist(), dim=1)


def _read_matches(query: Utterance, column: str, indices: Mapping[str, int]) -> np.ndarray:
    """Returns whether each document contains the query, ``(documents,)``."""
    keys = query.labels.get(column, "").split()
    if unknown := [key for key in keys if key not in indices]:
        raise UserError(
            f"the query `{query.key}` matches `{unknown[0]}`, which is no utterance of train: "
            "correct it."
        )
    matches = np.zeros(len(indices), dtype=bool)
    matches[[indices[key] for key in keys]] = True
    return matches


TASKS.register(
    "qbe",
    Task(
        name="qbe",
        columns=("matches",),
        metrics=("qbe.mtwv",),
        pooled=False,
        sampling="shuffled",
        learning_rate=1.0,
        batch_size=1,
        clip_norm=1.0,
        options=QbeOptions,
        build=build,
        trains=False,
        version=2,  # documents whose frames are all alike
        published=Published("quesst14", 1),
    ),
)
