"""Task ``sd``: who speaks when, for two overlapping speakers (SUPERB on Libri2Mix; s3prl
``diarization/config.yaml``).

Segments stand in the column ``segments`` as ``speaker:start:end``, in samples at 16 kHz, separated
by blanks. Recordings are cut into chunks of 2000 frames of 20 ms, the last one shorter. A frame of
a speaker counts as speech from the frame nearest to a segment's start to the one nearest to its
end. The loss is that of the better order of the speakers in each chunk; 8 chunks x 4 accumulated.
The best validation has the highest frame accuracy, averaged over chunks; the error rate does not
decide it.

Quirks of ``protocol: superb``: the error rate is the lowest of ten decodings (five thresholds,
median filter or none) on the split that is scored, test included; and a segment that begins before
a chunk and ends after it is not labelled in it, so that recordings above 40 s miss speech.
``protocol: clean`` decodes test as is best on dev, and labels every chunk.

Not reproduced: s3prl pads the last chunk of a recording of several with zeros and scores that too
(Libri2Mix has none so long); it tiles features of slower encoders, which do not exist here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import nn

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import FRAME_STRIDE_SAMPLES
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.heads.diarization import (
    DiarizationHead,
    permutation_free_loss,
    permutation_losses,
)
from speechft_ray.superb.measures.der import Turn, diarization_error_rate, errors_and_speech
from speechft_ray.superb.tasks._segments import Segment, cut_into_segments
from speechft_ray.superb.tasks.base import (
    TASKS,
    Example,
    Protocol,
    Published,
    Task,
    TaskData,
    TaskOptions,
    get_label,
    select_splits,
)

SPEAKERS = 2
CHUNK_FRAMES = 2000
"""``chunk_size``: 40 s."""
LEAST_FRAMES = 2
"""A chunk of one has 320 samples: too few for a frame of any encoder."""
LATEST_END = 8_000
"""Samples by which a segment may end after its recording, as those of an alignment can: 0.5 s."""
THRESHOLDS, MEDIANS = (0.3, 0.4, 0.5, 0.6, 0.7), (1, 11)
"""Decodings that s3prl's ``diarization/score.sh`` tries."""


class SdOptions(TaskOptions):
    """Options of diarisation."""

    protocol: Protocol = "superb"
    """``superb``: the best decoding on test, and s3prl's labels. ``clean``: the decoding
    selected on dev, and complete labels."""
    hidden: int = Field(default=512, ge=1)
    """Width of the LSTM layer (``hidden_size``)."""


class Chunk(NamedTuple):
    """The reference of one chunk."""

    recording: str
    start: int
    """First frame within the recording."""
    labels: np.ndarray
    """0 or 1, ``(frames, SPEAKERS)``."""
    turns: tuple[Turn, ...]
    """Of the whole recording, in samples."""


Decoding = tuple[float, int]
"""Threshold and frames of the median filter."""


def build(corpus: Corpus, columns: Sequence[str], options: SdOptions) -> TaskData:
    """Builds the task. Raises ``UserError`` for segments that cannot be parsed and for recordings
    that do not have two speakers."""
    clean = options.protocol == "clean"
    examples: dict[str, list[Example]] = {}
    segments: list[Segment] = []
    for split, utterances in select_splits(corpus).items():
        pairs = [
            (segment, chunk)
            for utterance in utterances
            for segment, chunk in _cut_chunks(utterance, split, columns[0], clean)
        ]
        examples[split] = [
            Example(segment.utterance, torch.from_numpy(chunk.labels).long(), chunk)
            for segment, chunk in pairs
        ]
        segments += [segment for segment, _ in pairs]

    def head(dim: int) -> nn.Module:
        return DiarizationHead(dim, SPEAKERS, options.hidden)

    return TaskData(
        corpus=cut_into_segments(corpus, segments),
        examples=examples,
        head=head,
        loss=permutation_free_loss,
        predict=predict,
        measure=measure_best_decoding,
        select=frame_accuracy,
        measure_test=measure_decoding_of_dev if clean else None,
        counts=count_errors,
        recording_of=lambda example: str(example.reference.recording),
    )


def predict(logits: torch.Tensor, frames: torch.Tensor) -> list[np.ndarray]:
    """Returns the logits of each chunk, ``(frames, SPEAKERS)``."""
    return [
        row[:length].detach().cpu().numpy()
        for row, length in zip(logits, (frames + 1).tolist(), strict=True)
    ]


def frame_accuracy(predictions: Sequence[np.ndarray], references: Sequence[Chunk]) -> float:
    """Returns the share of correct decisions per frame and speaker, averaged over chunks, for the
    speaker order with the least loss.

    As in s3prl, a chunk without speech counts as 0.
    """
    shares = []
    for logits, chunk in zip(predictions, references, strict=True):
        length = min(len(logits), len(chunk.labels))
        logits, labels = logits[:length], chunk.labels[:length]
        losses, _ = permutation_losses(torch.from_numpy(logits)[None], [torch.from_numpy(labels)])
        ordered = labels if int(losses.argmin()) == 0 else labels[:, ::-1]
        shares.append(float(((logits > 0) == ordered).mean()) if labels.any() else 0.0)
    return sum(shares) / len(shares)


def measure_best_decoding(
    predictions: Sequence[np.ndarray], references: Sequence[Chunk]
) -> dict[str, float]:
    """Returns the error rate of the best decoding, and its parameters."""
    rates = {
        decoding: compute_error_rate(predictions, references, decoding)
        for decoding in _list_decodings()
    }
    best = min(rates, key=lambda decoding: rates[decoding])
    return {
        "sd.der": rates[best],
        **_describe(best),
        "frame_accuracy": 100.0 * frame_accuracy(predictions, references),
    }


def measure_decoding_of_dev(
    dev: Sequence[np.ndarray],
    dev_references: Sequence[Chunk],
    test: Sequence[np.ndarray],
    references: Sequence[Chunk],
) -> dict[str, float]:
    """Returns the error rate on test of the decoding that is best on dev."""
    best = min(
        _list_decodings(), key=lambda decoding: compute_error_rate(dev, dev_references, decoding)
    )
    rate = compute_error_rate(test, references, best)
    return {
        "sd.der": rate,
        **_describe(best),
        "frame_accuracy": 100.0 * frame_accuracy(test, references),
    }


def compute_error_rate(
    predictions: Sequence[np.ndarray], references: Sequence[Chunk], decoding: Decoding
) -> float:
    """Returns the diarisation error rate, in percent, of recordings assembled from their chunks."""
    return diarization_error_rate(*_assemble_recordings(predictions, references, decoding))


def count_errors(
    predictions: Sequence[np.ndarray], references: Sequence[Chunk], metrics: Mapping[str, float]
) -> dict[str, list[tuple[float, float]]]:
    """Returns the time in error and the time of speech of each recording, at the decoding of
    ``metrics``."""
    decoding = (metrics["threshold"], int(metrics["median_frames"]))
    pairs = zip(*_assemble_recordings(predictions, references, decoding), strict=True)
    return {"sd.der": [errors_and_speech(hypothesis, reference) for hypothesis, reference in pairs]}


def _assemble_recordings(
    predictions: Sequence[np.ndarray], references: Sequence[Chunk], decoding: Decoding
) -> tuple[list[list[Turn]], list[tuple[Turn, ...]]]:
    """Returns the predicted and the reference turns of each recording, joined from its chunks."""
    recordings: dict[str, list[tuple[Chunk, np.ndarray]]] = {}
    for logits, chunk in zip(predictions, references, strict=True):
        recordings.setdefault(chunk.recording, []).append((chunk, logits))
    hypotheses: list[list[Turn]] = []
    reference_turns: list[tuple[Turn, ...]] = []
    for chunks in recordings.values():
        ordered = sorted(chunks, key=lambda pair: pair[0].start)
        hypotheses.append(decode(np.concatenate([logits for _, logits in ordered]), decoding))
        reference_turns.append(ordered[0][0].turns)
    return hypotheses, reference_turns


def decode(logits: np.ndarray, decoding: Decoding) -> list[Turn]:
    """Returns the turns, in samples: the frames above the threshold, median-filtered."""
    threshold, median = decoding
    from scipy.ndimage import median_filter  # compiled, and needed for this task alone

    active = 1.0 / (1.0 + np.exp(-logits.astype(np.float64))) > threshold
    turns = []
    for speaker, column in enumerate(active.T):
        smooth = median_filter(column.astype(np.int8), size=median, mode="constant")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], smooth, [0]]))) * FRAME_STRIDE_SAMPLES
        turns += [Turn(str(speaker), start, end) for start, end in edges.reshape(-1, 2).tolist()]
    return turns


def parse_turns(utterance: Utterance, column: str) -> tuple[Turn, ...]:
    """Returns the turns of a recording. Raises ``UserError`` for a segment that cannot be parsed or
    ends after the recording, and for a recording that does not have two speakers."""
    turns = []
    for segment in get_label(utterance, column).split():
        speaker, *times = segment.rsplit(":", 2)
        if (
            len(times) != 2
            or not all(time.isdigit() for time in times)
            or int(times[0]) >= int(times[1])
        ):
            raise UserError(
                f"the utterance `{utterance.key}` has the segment `{segment}` in `{column}`: write "
                "`speaker:start:end`, in samples at 16 kHz with the start before the end."
            )
        if int(times[1]) > utterance.samples + LATEST_END:
            raise UserError(
                f"the utterance `{utterance.key}` has the segment `{segment}` in `{column}`, but "
                f"{utterance.samples} samples at 16 kHz: segments are in samples at 16 kHz, "
                "whatever the rate of the file."
            )
        turns.append(Turn(speaker, int(times[0]), int(times[1])))
    speakers = {turn.speaker for turn in turns}
    if len(speakers) != SPEAKERS:
        raise UserError(
            f"the utterance `{utterance.key}` has {len(speakers)} speakers in `{column}`, not "
            f"{SPEAKERS}: leave it out."
        )
    return tuple(turns)


def label_frames(turns: Sequence[Turn], start: int, end: int, clean: bool) -> np.ndarray:
    """Returns who speaks in the frames ``start`` to ``end - 1``, float32 ``(frames,
    SPEAKERS)``, speakers sorted by name.

    Without ``clean`` a turn counts only when its first frame or its last is among them (s3prl
    ``diarization/dataset.py``).
    """
    speakers = sorted({turn.speaker for turn in turns})
    labels = np.zeros((end - start, SPEAKERS), dtype=np.float32)
    for turn in turns:
        first, last = (int(np.rint(time / FRAME_STRIDE_SAMPLES)) for time in (turn.start, turn.end))
        if start <= first < end or start < last <= end or (clean and first < start and last > end):
            labels[max(0, first - start) : max(0, last - start), speakers.index(turn.speaker)] = 1.0
    return labels


def _cut_chunks(
    utterance: Utterance, split: str, column: str, clean: bool
) -> Iterator[tuple[Segment, Chunk]]:
    frames = utterance.samples // FRAME_STRIDE_SAMPLES
    if frames < LEAST_FRAMES:
        raise UserError(
            f"the utterance `{utterance.key}` has {utterance.samples} samples; a chunk needs "
            f"{LEAST_FRAMES * FRAME_STRIDE_SAMPLES}: leave it out."
        )
    turns = parse_turns(utterance, column)
    for start in range(0, frames, CHUNK_FRAMES):
        end = min(frames, start + CHUNK_FRAMES)
        if end - start < LEAST_FRAMES:
            break
        segment = Segment(
            utterance, split, start * FRAME_STRIDE_SAMPLES, (end - start) * FRAME_STRIDE_SAMPLES
        )
        yield segment, Chunk(utterance.key, start, label_frames(turns, start, end, clean), turns)


def _list_decodings() -> list[Decoding]:
    return [(threshold, median) for median in MEDIANS for threshold in THRESHOLDS]


def _describe(decoding: Decoding) -> dict[str, float]:
    return {"threshold": decoding[0], "median_frames": float(decoding[1])}


TASKS.register(
    "sd",
    Task(
        name="sd",
        columns=("segments",),
        metrics=("sd.der",),
        pooled=False,
        sampling="shuffled",
        learning_rate=1e-4,
        batch_size=32,
        clip_norm=1.0,
        options=SdOptions,
        build=build,
        accumulate=4,
        published=Published("libri2mix", 30_000, 500),
    ),
)
