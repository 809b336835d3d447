"""The probe: a weighted sum over hidden states and a head, trained on features that stand still.

Everything that SUPERB's runner does and nothing else (s3prl ``downstream/runner.py``): one Adam group at a constant rate for
layer weights and head, gradient norm clipped over all, updates with a norm that is not finite skipped, the best validation
kept. Two differences: the first validation always counts as the best so far, where s3prl starts from a fixed value that may
never be passed; and validation leaves the random numbers of training alone, where s3prl seeds them anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from speechft_ray.core.metrics import better
from speechft_ray.speech.heads.featurizer import Featurizer
from speechft_ray.superb.features import Advance, Batch, Chosen, Source
from speechft_ray.superb.tasks.base import Draws, Example, Problem

SCORED_AT_ONCE = 16
"""Utterances in one forward pass of scoring. Heads do not let padding reach valid frames, so the number changes no answer."""

WINDOW_SAMPLES = 300_000
"""Audio (18.75 s) from which on a window of utterances is cut to its first half (s3prl ``ctc/corpus/libriphone.py``)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a probe is trained."""

    updates: int
    validate_every_updates: int
    learning_rate: float
    batch_size: int
    clip_norm: float
    draws: Draws
    metric: str
    """Chooses the best validation."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A probe at its best validation."""

    probe: Probe
    best_update: int
    dev: Mapping[str, float]
    """Every metric of dev at ``best_update``."""


class Probe(nn.Module):
    """Featurizer and head."""

    def __init__(self, layers: int, head: nn.Module) -> None:
        super().__init__()
        self.featurizer = Featurizer(layers, normalize=False)  # features come normalised
        self.head = head

    def features(self, batch: Batch) -> torch.Tensor:
        """Sums the states of a batch over layers and pads the result to ``(batch, frames, dim)``."""
        rows: torch.Tensor = self.featurizer(batch.states.unsqueeze(1)).squeeze(0)  # (rows, dim)
        count, longest = len(batch.frames), int(batch.frames.max())
        if longest == 1:
            return rows.unsqueeze(1)  # means: nothing to pad
        places = (torch.arange(longest) < batch.frames[:, None]).flatten().nonzero()[:, 0]
        padded = rows.new_zeros(count * longest, rows.shape[1]).index_copy(0, places.to(rows.device), rows)
        return torch.unflatten(padded, 0, (count, longest))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the head's logits."""
        logits: torch.Tensor = self.head(self.features(batch), batch.frames)
        return logits


def train_probe(problem: Problem, train: Source, dev: Source, schedule: Schedule, seed: int, advance: Advance) -> Trained:
    """Trains one probe. Initial weights, batches, dropout and augmentation follow from ``seed`` alone.

    ``train`` and ``dev`` are the features of ``problem.examples`` in their order. ``advance`` is told of each update.
    """
    return train_probes(problem, train, dev, schedule, [(schedule.learning_rate, seed)], seed, advance)[0]


def train_probes(
    problem: Problem,
    train: Source,
    dev: Source,
    schedule: Schedule,
    kinds: Sequence[tuple[float, int]],
    order_seed: int,
    advance: Advance,
) -> list[Trained]:
    """Trains a probe for each ``(learning rate, seed)`` of ``kinds``, all on the same batches, which are taken once for all.

    ``schedule.learning_rate`` is not used. The order of batches follows from ``order_seed``; initial weights, dropout and
    augmentation from each probe's own seed, so a probe is the same in any company.
    """
    states = train.take(slice(0, 1)).states
    targets = [example.target for example in problem.examples["train"]]
    batches = draws(schedule, problem.examples["train"], torch.Generator().manual_seed(order_seed))
    learners = [_Learner(problem, states, rate, seed) for rate, seed in kinds]
    for update in range(1, schedule.updates + 1):
        chosen = next(batches)
        batch = train.take(chosen)
        wanted = targets[chosen] if isinstance(chosen, slice) else [targets[place] for place in chosen.tolist()]
        for learner in learners:
            learner.step(problem, batch, wanted, schedule.clip_norm)
        if update % schedule.validate_every_updates == 0 or update == schedule.updates:
            found = score(problem, [learner.probe for learner in learners], dev, "dev")
            for learner, metrics in zip(learners, found, strict=True):
                learner.validated(update, metrics, schedule.metric)
        advance(len(learners))
    return [learner.trained() for learner in learners]


class _Learner:
    """One probe that is being trained, with its own random numbers and its best validation so far."""

    def __init__(self, problem: Problem, states: torch.Tensor, learning_rate: float, seed: int) -> None:
        self._device = states.device
        with seeded(seed, self._device):
            self.probe = Probe(states.shape[0], problem.head(states.shape[2])).to(self._device)
            self._random = _random_state(self._device)
        self._optimizer = torch.optim.Adam(self.probe.parameters(), lr=learning_rate, fused=True)
        self._generator = torch.Generator().manual_seed(seed)
        self._best: tuple[int, dict[str, float], dict[str, torch.Tensor]] | None = None

    def step(self, problem: Problem, batch: Batch, wanted: Sequence[torch.Tensor], clip_norm: float) -> None:
        self.probe.train()
        with seeded(None, self._device):
            _set_random_state(self._device, self._random)
            features = self.probe.features(batch)
            if problem.augment is not None:
                features = problem.augment(features, batch.frames, self._generator)
            loss = problem.loss(self.probe.head(features, batch.frames), batch.frames, wanted)
            self._random = _random_state(self._device)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.probe.parameters(), clip_norm)
        if bool(norm.isfinite()):
            self._optimizer.step()

    def validated(self, update: int, metrics: dict[str, float], metric: str) -> None:
        if self._best is None or better(metric, metrics[metric], self._best[1][metric]):
            self._best = (update, metrics, {name: value.clone() for name, value in self.probe.state_dict().items()})

    def trained(self) -> Trained:
        assert self._best is not None  # the last update validates
        self.probe.load_state_dict(self._best[2])
        return Trained(probe=self.probe.eval(), best_update=self._best[0], dev=self._best[1])


@torch.no_grad()
def score(
    problem: Problem, probes: Sequence[Probe], source: Source, split: str, advance: Advance = lambda count: None
) -> list[dict[str, float]]:
    """Returns the metrics of each probe on one split, whose features are taken once for all of them."""
    answers: list[list[Any]] = [[] for _ in probes]
    for start in range(0, source.count, SCORED_AT_ONCE):
        batch = source.take(slice(start, min(start + SCORED_AT_ONCE, source.count)))
        for probe, found in zip(probes, answers, strict=True):
            found += problem.answers(probe.eval()(batch), batch.frames)
        advance(len(batch.frames))
    references = [example.reference for example in problem.examples[split]]
    return [problem.measure(found, references) for found in answers]


def draws(schedule: Schedule, examples: Sequence[Example], generator: torch.Generator) -> Iterator[Chosen]:
    """Yields training batches without end, in the way that the schedule names."""
    size = min(schedule.batch_size, len(examples))
    if schedule.draws == "windows":
        return windows([example.utterance.samples for example in examples], size, generator)
    if schedule.draws == "balanced":
        return balanced(torch.stack([example.target[0] for example in examples]), size, generator)
    return shuffled(len(examples), size, generator)


def shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[Chosen]:
    """Yields epochs in random order; the last batch of an epoch may be smaller."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), size)


def balanced(classes: torch.Tensor, size: int, generator: torch.Generator) -> Iterator[Chosen]:
    """Yields draws with replacement in which every class is equally likely (s3prl ``speech_commands/expert.py``)."""
    weights = 1.0 / classes.bincount().double()[classes]
    while True:
        yield from torch.split(torch.multinomial(weights, len(classes), replacement=True, generator=generator), size)


def windows(samples: Sequence[int], size: int, generator: torch.Generator) -> Iterator[Chosen]:
    """Yields neighbours: an epoch has one window from every utterance on, in random order (s3prl ``ctc/corpus/libriphone.py``).

    Utterances are sorted by the length of their targets, so neighbours need little padding, and a window of kept features is
    a view of them. A window whose first utterance has more than ``WINDOW_SAMPLES`` is halved.
    """
    while True:
        for place in torch.randperm(len(samples), generator=generator).tolist():
            start = min(place, len(samples) - size)
            yield slice(start, start + (max(1, size // 2) if samples[start] > WINDOW_SAMPLES else size))


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds torch's own random numbers inside (``None``: leaves them), and puts their former state back.

    The state belongs to the whole process: two probes must not train in two threads of one process.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def _random_state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
