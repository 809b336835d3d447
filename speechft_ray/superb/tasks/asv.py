"""Task ``asv``: whether two utterances are of one speaker (SUPERB on VoxCeleb1; s3prl
``sv_voxceleb1/configs/amsoftmax.yaml``).

An x-vector is trained to classify the training speakers; a trial's score is the cosine of two
embeddings, and the equal error rate is over all trials of a split. AdamW with torch's default
decay, gradient norm up to 1000, 10 utterances x 5 accumulated. Training utterances of more than 8 s
are cropped at random: once here, every time they are sampled in s3prl. The gain, the trimming of
silence and the least length of 2 s belong to the corpus.

Quirks of ``protocol: superb``: there is no validation set, the checkpoint with the best equal error
rate on *test* is reported (s3prl tests ten, at every tenth of the updates); since dev is test then,
merges and learning rates are selected on test as well; and a padded utterance is pooled over one
frame of padding in training. ``protocol: clean`` selects on dev, the corpus' own
or else every tenth training speaker, who is then not trained on, and pools each utterance's own
frames. Trials that a corpus does not list are generated: all pairs of a speaker, up to a limit, and
as many of two speakers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import torch
from pydantic import Field
from torch import nn

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES, SAMPLE_RATE_HZ
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.heads.xvector import LOST_FRAMES, XVectorHead, am_softmax
from speechft_ray.speech.text import Vocabulary
from speechft_ray.superb.measures.eer import equal_error_rate
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

CROP_SAMPLES = 8 * SAMPLE_RATE_HZ
"""``max_timestep``: 128000."""
LEAST_SAMPLES = FRAME_FIELD_SAMPLES + (LOST_FRAMES + 1) * FRAME_STRIDE_SAMPLES
"""16 frames: the x-vector's layers use up 14, and a deviation needs two."""
HELD_OUT = 10
"""One training speaker in so many is dev, for ``clean`` on a corpus without one."""
MAX_TRIALS = 20_000
"""Most trials of each kind that are generated; VoxCeleb1's list has 18860."""

Trial = tuple[bool, str, str]


class AsvOptions(TaskOptions):
    """Options of speaker verification; the widths are s3prl's."""

    protocol: Protocol = "superb"
    """``superb``: the best checkpoint on test. ``clean``: the best on held-out speakers, without
    padding in the means of training."""
    width: int = Field(default=512, ge=1)
    """Of the projection, the x-vector's layers and the embedding (``input_dim``)."""
    pooled_width: int = Field(default=1500, ge=1)
    """Of the x-vector's last layer (``agg_dim``)."""


def build(corpus: Corpus, columns: Sequence[str], options: AsvOptions) -> TaskData:
    """Builds the task. Raises ``UserError`` for utterances of less than 16 frames and for splits
    that allow no trials."""
    column = columns[0]
    splits = _make_splits(corpus, column, options.protocol)
    segments = [
        _make_segment(split, utterance) for split, items in splits.items() for utterance in items
    ]
    segmented = cut_into_segments(corpus, segments)
    speakers = Vocabulary.of(
        (get_label(utterance, column) for utterance in splits["train"]), reserved=0
    )
    if speakers.size == 1:
        raise UserError(
            f"the whole train split has one speaker, `{speakers.symbols[0]}`: nothing to tell "
            "apart."
        )
    trials = [_select_trials(corpus, split, splits[split], column) for split in ("test", "dev")]

    def make_target(utterance: Utterance) -> torch.Tensor:
        in_train = utterance.split == "train"
        ids = speakers.encode([get_label(utterance, column)]) if in_train else []
        return torch.tensor(ids, dtype=torch.long)

    def head(dim: int) -> nn.Module:
        clean = options.protocol == "clean"
        return XVectorHead(
            dim, speakers.size, options.width, options.pooled_width, pools_padding=not clean
        )

    def loss(
        outputs: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        return am_softmax(outputs[:, options.width :], frames, targets)

    def predict(outputs: torch.Tensor, frames: torch.Tensor) -> list[torch.Tensor]:
        return list(outputs[:, : options.width].cpu().unbind(0))

    def measure(predictions: Sequence[torch.Tensor], keys: Sequence[str]) -> dict[str, float]:
        of_split = next(listed for listed in trials if {listed[0][1], listed[0][2]} <= set(keys))
        same = [is_same for is_same, _, _ in of_split]
        return {"asv.eer": equal_error_rate(same, score_trials(predictions, keys, of_split))}

    return TaskData(
        corpus=segmented,
        examples={
            split: [
                Example(utterance, make_target(utterance), utterance.key)
                for utterance in segmented.split(split)
            ]
            for split in splits
        },
        head=head,
        loss=loss,
        predict=predict,
        measure=measure,
    )


def score_trials(
    embeddings: Sequence[torch.Tensor], keys: Sequence[str], trials: Sequence[Trial]
) -> list[float]:
    """Returns the cosine of each trial. ``embeddings`` have norm 1, one for each key."""
    indices = {key: index for index, key in enumerate(keys)}
    left = torch.tensor([indices[one] for _, one, _ in trials])
    right = torch.tensor([indices[other] for _, _, other in trials])
    stacked = torch.stack(list(embeddings))
    cosines: list[float] = (stacked[left] * stacked[right]).sum(1).tolist()
    return cosines


def make_trials(utterances: Sequence[Utterance], column: str) -> list[Trial]:
    """Returns pairs of one speaker and as many pairs of two, at most ``MAX_TRIALS`` of each. They
    follow from the utterances alone."""
    rng = random.Random("trials")
    by_speaker: dict[str, list[str]] = {}
    for utterance in utterances:
        by_speaker.setdefault(get_label(utterance, column), []).append(utterance.key)
    same = [pair for keys in by_speaker.values() for pair in combinations(keys, 2)]
    rng.shuffle(same)
    different: dict[tuple[str, str], None] = {}
    # At most half of all pairs of two speakers, so that a random pair is soon a new one.
    all_different = (
        sum(len(keys) * (len(utterances) - len(keys)) for keys in by_speaker.values()) // 2
    )
    count = min(MAX_TRIALS, len(same), (all_different + 1) // 2)
    while len(different) < count:
        one, other = rng.sample(sorted(by_speaker), 2)
        pair = sorted((rng.choice(by_speaker[one]), rng.choice(by_speaker[other])))
        different[pair[0], pair[1]] = None
    return [*((True, *pair) for pair in same[:count]), *((False, *pair) for pair in different)]


def _make_splits(corpus: Corpus, column: str, protocol: Protocol) -> dict[str, Sequence[Utterance]]:
    """Returns the utterances for training, selection and test."""
    splits = select_splits(corpus, ("train", "test"))
    train, dev = splits["train"], corpus.split("dev")
    if protocol == "superb":
        dev = splits["test"]
    elif not dev:
        speakers = sorted({get_label(utterance, column) for utterance in train})
        # At least two speakers, since trials need them.
        held_out = set(speakers[:: min(HELD_OUT, max(2, len(speakers) // 2))])
        dev = [utterance for utterance in train if get_label(utterance, column) in held_out]
        train = [utterance for utterance in train if get_label(utterance, column) not in held_out]
    return {"train": train, "dev": dev, "test": splits["test"]}


def _select_trials(
    corpus: Corpus, split: str, utterances: Sequence[Utterance], column: str
) -> Sequence[Trial]:
    keys = {utterance.key for utterance in utterances}
    listed = [trial for trial in corpus.trials if keys.issuperset((trial[1], trial[2]))]
    trials = listed or make_trials(utterances, column)
    if len({same for same, _, _ in trials}) < 2:
        raise UserError(
            f"the corpus `{corpus.name}` allows no trials in {split}: they need several speakers, "
            "one with two utterances."
        )
    return trials


def _make_segment(split: str, utterance: Utterance) -> Segment:
    """Returns the whole utterance, or 8 s of a longer training utterance."""
    if utterance.samples < LEAST_SAMPLES:
        raise UserError(
            f"the utterance `{utterance.key}` has {utterance.samples} samples; an x-vector needs "
            f"{LEAST_SAMPLES}: leave it out."
        )
    if split != "train" or utterance.samples <= CROP_SAMPLES:
        return Segment(utterance, split, 0, utterance.samples)
    start = random.Random(utterance.key).randint(0, utterance.samples - CROP_SAMPLES)
    return Segment(utterance, split, start, CROP_SAMPLES)


TASKS.register(
    "asv",
    Task(
        name="asv",
        columns=("speaker",),
        metrics=("asv.eer",),
        pooled=False,
        sampling="shuffled",
        learning_rate=1e-4,
        batch_size=50,
        clip_norm=1000.0,
        options=AsvOptions,
        build=build,
        accumulate=5,
        weight_decay=0.01,
        dev_is_test=True,
        published=Published("voxceleb1", 200_000, 20_000, {"task": "verification"}),
    ),
)
