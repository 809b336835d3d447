"""The probe: a weighted sum over hidden states and a head, trained on features that stand still.

Everything that SUPERB's runner does and nothing else (s3prl ``downstream/runner.py``): one Adam
group at a constant rate for layer weights and head, gradients of several batches accumulated where
a task says so, their norm clipped over all, updates with a norm that is not finite skipped, the
best validation kept. Two differences: the first validation always counts as the best so far, where
s3prl starts from a fixed value that may never be passed; and validation leaves the random numbers
of training alone, where s3prl seeds them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from speechft_ray.core.metrics import is_better
from speechft_ray.speech.heads.featurizer import Featurizer
from speechft_ray.superb.features import Advance, Batch, Features, Indices
from speechft_ray.superb.tasks.base import Example, Sampling, TaskData

SCORED_AT_ONCE = 16
"""Utterances in one forward pass of scoring. Heads do not let padding reach valid frames, so the
number changes no answer."""

WINDOW_SAMPLES = 300_000
"""Audio (18.75 s) from which on a window of utterances is cut to its first half (s3prl
``ctc/corpus/libriphone.py``)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a probe is trained."""

    updates: int
    validate_every_updates: int
    learning_rate: float
    batch_size: int
    """Utterances in one batch, of which an update takes ``accumulate``."""
    clip_norm: float
    sampling: Sampling
    metric: str
    """Chooses the best validation, unless the problem has a ``select``."""
    accumulate: int = 1
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainedProbe:
    """A probe at its best validation."""

    probe: Probe
    best_update: int
    dev: Mapping[str, float]
    """Every metric of dev at ``best_update``."""
    dev_predictions: Sequence[Any]
    """The predictions on dev, in the order of its examples."""


class Probe(nn.Module):
    """Featurizer and head."""

    def __init__(self, layers: int, head: nn.Module) -> None:
        super().__init__()
        self.featurizer = Featurizer(layers, normalize=False)  # features come normalised
        self.head = head

    def features(self, batch: Batch) -> torch.Tensor:
        """Sums the states of a batch over layers and pads the result to ``(batch, frames,
        dim)``."""
        rows: torch.Tensor = self.featurizer(batch.states.unsqueeze(1)).squeeze(0)  # (rows, dim)
        count, longest = len(batch.frames), int(batch.frames.max())
        if longest == 1:
            return rows.unsqueeze(1)  # means: nothing to pad
        places = (torch.arange(longest) < batch.frames[:, None]).flatten().nonzero()[:, 0]
        padded = rows.new_zeros(count * longest, rows.shape[1]).index_copy(
            0, places.to(rows.device), rows
        )
        return torch.unflatten(padded, 0, (count, longest))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the head's logits."""
        logits: torch.Tensor = self.head(self.features(batch), batch.frames)
        return logits


def train_probe(
    data: TaskData, train: Features, dev: Features, schedule: Schedule, seed: int, advance: Advance
) -> TrainedProbe:
    """Trains one probe. Initial weights, batches, dropout and augmentation follow from ``seed``
    alone.

    ``train`` and ``dev`` are the features of ``data.examples`` in their order. ``advance`` is
    told of each update.
    """
    return train_probes(
        data, train, dev, schedule, [(schedule.learning_rate, seed)], seed, advance
    )[0]


def train_probes(
    data: TaskData,
    train: Features,
    dev: Features,
    schedule: Schedule,
    kinds: Sequence[tuple[float, int]],
    order_seed: int,
    advance: Advance,
) -> list[TrainedProbe]:
    """Trains a probe for each ``(learning rate, seed)`` of ``kinds``, all on the same batches,
    which are taken once for all.

    ``schedule.learning_rate`` is not used. The order of batches follows from ``order_seed``;
    initial weights, dropout and augmentation from each probe's own seed, so a probe is the same in
    any company.
    """
    states = train.batch(slice(0, 1)).states
    targets = [example.target for example in data.examples["train"]]
    batches = sample_batches(
        schedule,
        data.examples["train"],
        torch.Generator().manual_seed(order_seed),
        data.alternatives,
    )
    learners = [
        ProbeTrainer(data, states, replace(schedule, learning_rate=rate), seed)
        for rate, seed in kinds
    ]
    for update in range(1, schedule.updates + 1):
        parts = gather_batches(train, targets, list(islice(batches, schedule.accumulate)))
        for learner in learners:
            learner.train_step(data, parts)
        if update % schedule.validate_every_updates == 0 or update == schedule.updates:
            found = predict(data, [learner.probe for learner in learners], dev)
            for learner, mine in zip(learners, found, strict=True):
                learner.validated(update, data, mine)
        advance(len(learners))
    return [learner.trained(data) for learner in learners]


class ProbeTrainer:
    """One probe that is being trained, with its own random numbers and its best validation so
    far."""

    def __init__(self, data: TaskData, states: torch.Tensor, schedule: Schedule, seed: int) -> None:
        self._schedule, self._device = schedule, states.device
        with local_rng(seed, self._device):
            self.probe = Probe(states.shape[0], data.head(states.shape[2])).to(self._device)
            self._random = _random_state(self._device)
        self._optimizer = make_optimizer(self.probe, schedule)
        self._generator = torch.Generator().manual_seed(seed)
        self._best: Best | None = None

    def train_step(self, data: TaskData, parts: Sequence[Part]) -> None:
        with local_rng(None, self._device):
            _set_random_state(self._device, self._random)
            train_step(self.probe, self._optimizer, data, parts, self._schedule, self._generator)
            self._random = _random_state(self._device)

    def validated(self, update: int, data: TaskData, found: list[Any]) -> None:
        self._best = update_best(
            self._best, update, data, found, self._schedule.metric, self.probe.state_dict
        )

    def trained(self, data: TaskData) -> TrainedProbe:
        assert self._best is not None  # the last update validates
        self.probe.load_state_dict(self._best.state)
        return make_trained_probe(self._best, data, self.probe)


def make_optimizer(probe: Probe, schedule: Schedule) -> torch.optim.Optimizer:
    """Returns Adam, or AdamW where weights decay, with layer weights and head in one group."""
    if schedule.weight_decay:
        return torch.optim.AdamW(
            probe.parameters(),
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            fused=True,
        )
    return torch.optim.Adam(probe.parameters(), lr=schedule.learning_rate, fused=True)


class Best(NamedTuple):
    """The best validation so far; ``measured`` is ``None`` where something else than a metric chose
    it."""

    update: int
    quality: float
    measured: dict[str, float] | None
    predictions: list[Any]
    state: dict[str, torch.Tensor]


def update_best(
    best: Best | None,
    update: int,
    data: TaskData,
    found: list[Any],
    metric: str,
    state: Callable[[], Mapping[str, torch.Tensor]],
) -> Best:
    """Returns the better of the best so far and a validation with the predictions ``found``, the
    earlier of two equals."""
    if data.select is not None:
        measured, quality = None, data.select(found, references(data, "dev"))
        improved = best is None or quality > best.quality
    else:
        measured = compute_dev_metrics(data, found)
        quality = measured[metric]
        improved = best is None or is_better(metric, quality, best.quality)
    if best is not None and not improved:
        return best
    return Best(
        update,
        quality,
        measured,
        found,
        {name: value.detach().clone() for name, value in state().items()},
    )


def make_trained_probe(best: Best, data: TaskData, probe: Probe) -> TrainedProbe:
    """Returns what a training ends with; ``probe`` has the parameters of the best validation."""
    measured = best.measured or compute_dev_metrics(data, best.predictions)
    return TrainedProbe(
        probe=probe.eval(), best_update=best.update, dev=measured, dev_predictions=best.predictions
    )


Part = tuple[Batch, Sequence[torch.Tensor]]
"""A batch and its targets."""


def gather_batches(
    train: Features, targets: Sequence[torch.Tensor], parts: Sequence[Indices]
) -> list[Part]:
    """Takes the features and targets of the batches of one update."""
    return [
        (
            train.batch(chosen),
            targets[chosen]
            if isinstance(chosen, slice)
            else [targets[place] for place in chosen.tolist()],
        )
        for chosen in parts
    ]


def train_step(
    probe: Probe,
    optimizer: torch.optim.Optimizer,
    data: TaskData,
    parts: Sequence[Part],
    schedule: Schedule,
    generator: torch.Generator,
) -> torch.Tensor:
    """Makes one update from the mean loss of ``parts`` and returns that loss, a scalar that is not
    waited for on a GPU."""
    probe.train()
    optimizer.zero_grad()
    losses = []
    for batch, wanted in parts:
        features = probe.features(batch)
        if data.augment is not None:
            features = data.augment(features, batch.frames, generator)
        loss = data.loss(probe.head(features, batch.frames), batch.frames, wanted) / len(parts)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(probe.parameters(), schedule.clip_norm)
    if bool(norm.isfinite()):
        optimizer.step()
    return torch.stack(losses).sum()


@torch.no_grad()
def predict(
    data: TaskData, probes: Sequence[Probe], source: Features, advance: Advance = lambda count: None
) -> list[list[Any]]:
    """Returns the predictions of each probe on one split, whose features are taken once for all of
    them."""
    found: list[list[Any]] = [[] for _ in probes]
    for start in range(0, source.count, SCORED_AT_ONCE):
        batch = source.batch(slice(start, min(start + SCORED_AT_ONCE, source.count)))
        for probe, mine in zip(probes, found, strict=True):
            mine += data.predict(probe.eval()(batch), batch.frames)
        advance(len(batch.frames))
    return found


def references(data: TaskData, split: str) -> list[Any]:
    """Returns what the predictions on a split are compared with."""
    return [example.reference for example in data.examples[split]]


def compute_dev_metrics(data: TaskData, predictions: Sequence[Any]) -> dict[str, float]:
    """Returns the metrics of dev, over the examples that count."""
    wanted = references(data, "dev")
    if data.dev_indices is not None:
        predictions, wanted = (
            [items[place] for place in data.dev_indices] for items in (predictions, wanted)
        )
    return data.measure(predictions, wanted)


def sample_batches(
    schedule: Schedule,
    examples: Sequence[Example],
    generator: torch.Generator,
    alternatives: Sequence[Sequence[int]] | None = None,
) -> Iterator[Indices]:
    """Yields training batches without end, in the way that the schedule names.

    With ``alternatives`` (see ``TaskData``), utterances are drawn as if each were one example, and
    then one of its examples.
    """
    if alternatives is None:
        yield from _drawn(schedule, examples, generator)
        return
    counts = torch.tensor([len(places) for places in alternatives])
    table = nn.utils.rnn.pad_sequence(
        [torch.tensor(list(places)) for places in alternatives], batch_first=True
    )
    for chosen in _drawn(schedule, [examples[places[0]] for places in alternatives], generator):
        utterances = torch.arange(len(counts))[chosen]
        which = (
            torch.rand(len(utterances), generator=generator, dtype=torch.float64)
            * counts[utterances]
        ).long()
        yield table[utterances, which]


def _drawn(
    schedule: Schedule, examples: Sequence[Example], generator: torch.Generator
) -> Iterator[Indices]:
    size = min(schedule.batch_size, len(examples))
    if schedule.sampling == "windows":
        return sliding_windows([example.utterance.samples for example in examples], size, generator)
    if schedule.sampling == "buckets":
        return length_buckets([example.utterance.samples for example in examples], size, generator)
    if schedule.sampling == "balanced":
        return class_balanced_batches(
            torch.stack([example.target[0] for example in examples]), size, generator
        )
    return random_epochs(len(examples), size, generator)


def random_epochs(count: int, size: int, generator: torch.Generator) -> Iterator[Indices]:
    """Yields epochs in random order; the last batch of an epoch may be smaller."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), size)


def class_balanced_batches(
    classes: torch.Tensor, size: int, generator: torch.Generator
) -> Iterator[Indices]:
    """Yields draws with replacement in which every class is equally likely (s3prl
    ``speech_commands/expert.py``)."""
    weights = 1.0 / classes.bincount().double()[classes]
    while True:
        yield from torch.split(
            torch.multinomial(weights, len(classes), replacement=True, generator=generator), size
        )


def sliding_windows(
    samples: Sequence[int], size: int, generator: torch.Generator
) -> Iterator[Indices]:
    """Yields neighbours: an epoch has one window from every utterance on, in random order (s3prl
    ``ctc/corpus/libriphone.py``).

    Utterances are sorted by the length of their targets, so neighbours need little padding, and a
    window of kept features is a view of them. A window whose first utterance has more than
    ``WINDOW_SAMPLES`` is halved.
    """
    while True:
        for place in torch.randperm(len(samples), generator=generator).tolist():
            start = min(place, len(samples) - size)
            yield slice(
                start, start + (max(1, size // 2) if samples[start] > WINDOW_SAMPLES else size)
            )


def length_buckets(
    samples: Sequence[int], size: int, generator: torch.Generator
) -> Iterator[Indices]:
    """Yields fixed batches of neighbours by audio length, in random order (s3prl
    ``asr/dataset.py``).

    Buckets of twice ``size``, longest first, are cut in two; what is left below a bucket is one
    batch, or none if it is one utterance alone.
    """
    order = torch.tensor(sorted(range(len(samples)), key=lambda place: -samples[place]))
    whole = len(order) // (2 * size) * 2 * size
    fixed = list(torch.split(order[:whole], size)) if whole else []
    if len(order) - whole > 1 or not fixed:
        fixed.append(order[whole:])
    while True:
        yield from (
            fixed[place] for place in torch.randperm(len(fixed), generator=generator).tolist()
        )


@contextmanager
def local_rng(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds torch's own random numbers inside (``None``: leaves them), and puts their former state
    back.

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
