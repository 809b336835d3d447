"""Task ``asv``: whether two utterances are of one speaker (SUPERB on VoxCeleb1; s3prl
``sv_voxceleb1/configs/amsoftmax.yaml``).

An x-vector learns to tell the training speakers apart; a trial's score is the cosine of two
embeddings, the equal error rate is over all trials of a split. AdamW with torch's default decay,
gradient norm up to 1000, 10 utterances x 5 accumulated. Training utterances of more than 8 s are
cropped at random: once here, anew at every draw in s3prl. The gain, the trimming of silence and the
least length of 2 s belong to the corpus.

Quirks of ``protocol: superb``: there is no validation set, the checkpoint with the best equal error
rate on *test* is reported (s3prl tests ten, at every tenth of the updates); and a padded utterance
is pooled over one frame of padding while training. ``protocol: clean`` chooses on dev, the corpus'
own or else every tenth training speaker, who is then not trained on, and pools each utterance's own
frames. Trials that a corpus does not list are made: all pairs of a speaker, up to a limit, and as
many of two speakers.
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
"""16 frames: two for the deviation after the x-vector's layers have taken 14."""
HELD_OUT = 10
"""One training speaker in so many is dev, for ``clean`` on a corpus without one."""
MADE_TRIALS = 20_000
"""Most trials of each kind that are made; VoxCeleb1's list has 18860."""

Trial = tuple[bool, str, str]


class AsvOptions(TaskOptions):
    """Options of speaker verification; the widths are s3prl's."""

    protocol: Protocol = "superb"
    """``superb``: the best checkpoint on test. ``clean``: the best on held-out speakers, and no
    padding in training means."""
    width: int = Field(default=512, ge=1)
    """Of the projection, the x-vector's layers and the embedding (``input_dim``)."""
    pooled_width: int = Field(default=1500, ge=1)
    """Of the x-vector's last layer (``agg_dim``)."""


def build(corpus: Corpus, columns: Sequence[str], options: AsvOptions) -> TaskData:
    """Poses the task. Raises ``UserError`` for utterances of less than 16 frames and for trials
    that name no utterance."""
    column = columns[0]
    splits = _splits(corpus, column, options.protocol)
    cropped = cut_into_segments(
        corpus, [_piece(split, utterance) for split, items in splits.items() for utterance in items]
    )
    speakers = Vocabulary.of(
        (get_label(utterance, column) for utterance in splits["train"]), reserved=0
    )
    if speakers.size == 1:
        raise UserError(
            f"the whole train split has one speaker, `{speakers.symbols[0]}`: nothing to tell apart."
        )
    trials = [_trials(corpus, split, splits[split], column) for split in ("test", "dev")]

    def target(utterance: Utterance) -> torch.Tensor:
        known = utterance.split == "train"
        return torch.tensor(
            speakers.encode([get_label(utterance, column)]) if known else [], dtype=torch.long
        )

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
        known = frozenset(keys)
        asked = next(listed for listed in trials if known.issuperset((listed[0][1], listed[0][2])))
        return {
            "asv.eer": equal_error_rate(
                [same for same, _, _ in asked], trial_scores(predictions, keys, asked)
            )
        }

    return TaskData(
        corpus=cropped,
        examples={
            split: [
                Example(utterance, target(utterance), utterance.key)
                for utterance in cropped.split(split)
            ]
            for split in splits
        },
        head=head,
        loss=loss,
        predict=predict,
        measure=measure,
    )


def trial_scores(
    embeddings: Sequence[torch.Tensor], keys: Sequence[str], trials: Sequence[Trial]
) -> list[float]:
    """Returns the cosine of each trial; embeddings have length 1 and belong to the keys."""
    places = {key: place for place, key in enumerate(keys)}
    left = torch.tensor([places[one] for _, one, _ in trials])
    right = torch.tensor([places[other] for _, _, other in trials])
    stacked = torch.stack(list(embeddings))
    found: list[float] = (stacked[left] * stacked[right]).sum(1).tolist()
    return found


def make_trials(utterances: Sequence[Utterance], column: str) -> list[Trial]:
    """Returns pairs of one speaker and as many of two, at most ``MADE_TRIALS`` of each, the same
    for the same utterances."""
    draw = random.Random("trials")
    by_speaker: dict[str, list[str]] = {}
    for utterance in utterances:
        by_speaker.setdefault(get_label(utterance, column), []).append(utterance.key)
    same = [pair for keys in by_speaker.values() for pair in combinations(keys, 2)]
    draw.shuffle(same)
    different: dict[tuple[str, str], None] = {}
    apart = sum(len(keys) * (len(utterances) - len(keys)) for keys in by_speaker.values()) // 2
    count = min(
        MADE_TRIALS, len(same), (apart + 1) // 2
    )  # half of all pairs at most: a random one is soon a new one
    while len(different) < count:
        one, other = draw.sample(sorted(by_speaker), 2)
        pair = sorted((draw.choice(by_speaker[one]), draw.choice(by_speaker[other])))
        different[pair[0], pair[1]] = None
    return [*((True, *pair) for pair in same[:count]), *((False, *pair) for pair in different)]


def _splits(corpus: Corpus, column: str, protocol: Protocol) -> dict[str, list[Utterance]]:
    """Returns what is trained on, chosen on and tested on."""
    splits = select_splits(corpus, ("train", "test"))
    train, dev = splits["train"], corpus.split("dev")
    if protocol == "superb":
        dev = splits["test"]
    elif not dev:
        speakers = sorted({get_label(utterance, column) for utterance in train})
        held = set(
            speakers[:: min(HELD_OUT, max(2, len(speakers) // 2))]
        )  # at least two, for trials need them
        dev = [utterance for utterance in train if get_label(utterance, column) in held]
        train = [utterance for utterance in train if get_label(utterance, column) not in held]
    return {"train": train, "dev": dev, "test": splits["test"]}


def _trials(
    corpus: Corpus, split: str, utterances: Sequence[Utterance], column: str
) -> Sequence[Trial]:
    keys = {utterance.key for utterance in utterances}
    found = [
        trial for trial in corpus.trials if keys.issuperset((trial[1], trial[2]))
    ] or make_trials(utterances, column)
    if len({same for same, _, _ in found}) < 2:
        raise UserError(
            f"the corpus `{corpus.name}` allows no trials in {split}: they need several speakers, one with two utterances."
        )
    return found


def _piece(split: str, utterance: Utterance) -> Segment:
    """Returns the utterance, or 8 s of it when it is longer and trained on."""
    if utterance.samples < LEAST_SAMPLES:
        raise UserError(
            f"the utterance `{utterance.key}` has {utterance.samples} samples; an x-vector needs {LEAST_SAMPLES}: leave it out."
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
        published=Published("voxceleb1", 200_000, 20_000, {"task": "verification"}),
    ),
)
