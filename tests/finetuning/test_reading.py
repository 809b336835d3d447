"""Fine-tuning reads its next batches while an update is computed, the same to the bit with any
number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.finetuning.batches import MICRO_BATCH_SECONDS, WINDOW_BATCHES, AudioCache
from speechft_ray.finetuning.data import load_objective
from speechft_ray.finetuning.features import AudioClip, FeatureLoader
from speechft_ray.finetuning.train_state import TrainState, build_train_state
from speechft_ray.finetuning.trainer import Trainer
from speechft_ray.finetuning.validation import compute_dev_metrics
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import HiddenStates
from tests.finetuning.toy_models import corpus, objective, spec, start_weights

CPU = torch.device("cpu")
BATCH = 3
SECONDS = 60.0
"""Longest wait for another thread; it is reached only where the code is wrong."""


pytestmark = pytest.mark.usefixtures("toy_family")


@pytest.fixture(autouse=True)
def leaves_no_thread() -> Iterator[None]:
    yield
    assert not [item for item in threading.enumerate() if item.name.startswith("speechft-reader")]


@dataclass(frozen=True, kw_only=True)
class WaitingLoader(FeatureLoader):
    """Each encoding but the last waits until the next batch is being read."""

    begun: threading.Semaphore

    def encode(
        self, clips: Sequence[AudioClip], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        assert self.begun.acquire(timeout=SECONDS)
        return super().encode(clips, masks)


def begin(
    tones: Corpus, updates: int, readers: int, begun: threading.Semaphore | None = None
) -> tuple[TrainState, Trainer]:
    plan = spec(objective(batch_size=BATCH), updates=updates, head_only_fraction=0.0)
    objectives = [load_objective(plan.objectives[0], tones, start_weights())]
    state = build_train_state(plan, start_weights(), objectives, CPU)
    state.train(True)
    parts: dict[str, Any] = {
        "encoder": state.encoder,
        "device": CPU,
        "freeze_front_end": True,
        "audio_caches": [AudioCache(tones, 0)],
        "readers": readers,
    }
    loader = WaitingLoader(**parts, begun=begun) if begun else FeatureLoader(**parts)
    return state, Trainer(plan, objectives, loader, MICRO_BATCH_SECONDS)


def test_the_next_batch_is_read_during_an_update() -> None:
    tones, begun, updates = corpus({"train": 8, "dev": 2}), threading.Semaphore(0), 5
    lock, reads = threading.Lock(), 0

    def read(utterance: Utterance) -> np.ndarray:
        nonlocal reads
        with lock:
            reads += 1
            # The first utterance of every batch but the first; the last update has no next one.
            if (reads % BATCH == 1 and reads > 1) or reads == updates * BATCH:
                begun.release()
        return tones.read(utterance)

    state, trainer = begin(replace(tones, read=read), updates, 1, begun)
    for update in range(updates):
        trainer.train_step(state, update)
    trainer.close()
    assert reads == updates * BATCH


def train(readers: int, updates: int, start: int = 0) -> list[torch.Tensor]:
    state, trainer = begin(corpus({"train": 8, "dev": 2}), updates, readers)
    for update in range(start, updates):
        trainer.train_step(state, update)
    trainer.close()
    return [value.detach().clone() for value in state.encoder.module().parameters()]


def test_weights_are_the_same_to_the_bit_however_many_threads_read() -> None:
    updates = WINDOW_BATCHES + 4
    reference = train(0, updates)
    for readers in (1, 4):
        trained = train(readers, updates)
        assert all(torch.equal(one, other) for one, other in zip(trained, reference, strict=True))


def test_reading_starts_anew_at_any_update() -> None:
    tones = corpus({"train": 8, "dev": 2})
    _, trainer = begin(tones, 12, 2)
    _, other = begin(tones, 12, 0)
    for update in (0, 1, 7, 8, 3, 11, 20):  # also beyond the run
        (batch,), (expected,) = trainer._next_batches(update), other._next_batches(update)
        assert [clip.key for clip in batch.clips] == [clip.key for clip in expected.clips]
    trainer.close()
    other.close()


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_a_damaged_recording_stops_the_update_that_needs_it(readers: int) -> None:
    tones = corpus({"train": 8, "dev": 2})
    key = tones.split("train")[5].key

    def read(utterance: Utterance) -> np.ndarray:
        if utterance.key == key:
            raise UserError(f"{key} is damaged.")
        return tones.read(utterance)

    state, trainer = begin(replace(tones, read=read), 9, readers)
    _, healthy = begin(tones, 9, 0)
    update = 0
    while key not in [clip.key for clip in healthy._next_batches(update)[0].clips]:
        trainer.train_step(state, update)
        update += 1
    with pytest.raises(UserError, match=f"{key} is damaged"):
        trainer.train_step(state, update)


def test_the_dev_accuracy_is_the_share_of_right_answers() -> None:
    tones = corpus({"train": 12, "dev": 5})
    state, trainer = begin(tones, 6, 0)
    for update in range(6):
        trainer.train_step(state, update)
    (accuracy,) = compute_dev_metrics(state, trainer._objectives, trainer._loader)
    classes = sorted({item.labels["tone"] for item in tones.split("train")})
    state.train(False)
    right = 0
    for item in tones.split("dev"):
        with torch.no_grad():
            states, frames = state.encoder.hidden_states([torch.tensor(tones.read(item))])
            guess = int(state.heads[0](states[-1], frames).argmax())
        right += classes[guess] == item.labels["tone"]
    assert right > 0 and accuracy == pytest.approx(100 * right / 5)


def test_dev_metrics_do_not_depend_on_the_readers() -> None:
    tones = corpus({"train": 8, "dev": 5})
    metrics = []
    for readers in (0, 2):
        state, trainer = begin(tones, 2, readers)
        metrics.append(compute_dev_metrics(state, trainer._objectives, trainer._loader))
    assert metrics[0] == metrics[1]
