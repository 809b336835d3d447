"""Task data, features and schedules for tests that train probes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.heads.pooled import PooledHead
from speechft_ray.superb.extractor import Features
from speechft_ray.superb.features import InMemoryFeatures
from speechft_ray.superb.probe import Probe, Schedule, TrainedProbe
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks.base import TASKS, TaskData
from speechft_ray.superb.training import train_probes
from tests.superb.toy_models import toy_corpus

LAYERS, DIM = 3, 6


def toy_schedule(**changes: Any) -> Schedule:
    """Returns a short schedule for the task ``sid``, with these fields changed."""
    plain = Schedule(
        updates=20,
        validate_every_updates=5,
        learning_rate=1e-2,
        batch_size=4,
        clip_norm=1.0,
        sampling="shuffled",
        metric="sid.accuracy",
    )
    return replace(plain, **changes)


def toy_spec(task: str = "sid", **fields: Any) -> EvalSpec:
    """Returns the spec of an evaluation of one update."""
    return EvalSpec.model_validate({"task": task, "corpus": CorpusSpec(), "updates": 1, **fields})


def toy_data(task: str = "sid", train: int = 24, dev: int = 12, **options: Any) -> TaskData:
    """Builds a task on a corpus of tones with so many utterances."""
    corpus = toy_corpus({"train": train, "dev": dev, "test": 8})
    data = build_task_data(TASKS.get(task), toy_spec(task, options=options), corpus)
    assert isinstance(data, TaskData)
    return data


def noise_features(data: TaskData, split: str, hint: float = 0.0) -> InMemoryFeatures:
    """Random frames, with a weak hint of the label in one layer, so that learning is neither
    instant nor impossible."""
    generator = torch.Generator().manual_seed(len(split))
    examples = data.examples[split]
    frames = torch.randint(2, 9, (len(examples),), generator=generator)
    states = torch.randn(LAYERS, int(frames.sum()), DIM, generator=generator)
    labels = torch.repeat_interleave(
        torch.stack([example.target[0] for example in examples]), frames
    )
    states[1, torch.arange(len(labels)), labels] += hint
    return InMemoryFeatures(states, frames)


def average_frames(features: InMemoryFeatures) -> InMemoryFeatures:
    """Returns the mean over frames of each utterance."""
    rows = torch.split(features.states, features.frames.tolist(), dim=1)
    return InMemoryFeatures(
        torch.stack([states.mean(dim=1) for states in rows], dim=1),
        torch.ones_like(features.frames),
    )


def train_probe(
    data: TaskData, train: Features, dev: Features, schedule: Schedule, seed: int
) -> TrainedProbe:
    """Trains one probe; everything random follows from ``seed``."""
    rates_and_seeds = [(schedule.learning_rate, seed)]
    return train_probes(data, train, dev, schedule, rates_and_seeds, seed, ignore)[0]


def get_pooled_head(probe: Probe) -> PooledHead:
    """Returns the head of a probe of a task with one label per utterance."""
    assert isinstance(probe.head, PooledHead)
    return probe.head


def ignore(count: int) -> None:
    """An ``Advance`` that does nothing."""
