"""Trains probes on the features of a frozen encoder.

Follows SUPERB's runner (s3prl ``downstream/runner.py``): one Adam group at a constant rate for
layer weights and head, gradients of several batches accumulated where a task says so, their norm
clipped over all parameters, updates with a norm that is not finite skipped, the best validation
selected. Two differences: the first validation always counts as the best so far, where s3prl starts
from a fixed value that may never be passed; and validation leaves the random numbers of training
alone, where s3prl seeds them anew.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from speechft_ray.superb.curve import ProbeCurve
from speechft_ray.superb.extractor import Advance, Batch, Features, Indices
from speechft_ray.superb.probe import Probe, Schedule, TrainedProbe
from speechft_ray.superb.sampling import sample_batches
from speechft_ray.superb.saved_work import NOT_SAVED, SavedWork
from speechft_ray.superb.selection import (
    Best,
    find_last_update,
    make_trained_probe,
    pack_best,
    predict,
    unpack_best,
    update_best,
)
from speechft_ray.superb.tasks.base import TaskData

TargetBatch = tuple[Batch, Sequence[torch.Tensor]]
"""A batch and its targets."""


def train_probes(
    data: TaskData,
    train: Features,
    dev: Features,
    schedule: Schedule,
    rates_and_seeds: Sequence[tuple[float, int]],
    order_seed: int,
    advance: Advance,
    work: SavedWork = NOT_SAVED,
    curve: ProbeCurve | None = None,
) -> list[TrainedProbe]:
    """Trains one probe for each ``(learning rate, seed)``, all on the same batches, which are read
    once for all of them.

    ``train`` and ``dev`` are the features of ``data.examples`` in their order. The learning rate of
    ``schedule`` is not used. The order of batches follows from ``order_seed``; initial weights,
    dropout and augmentation follow from each probe's own seed, so that a probe does not depend on
    which others are trained with it. ``advance`` counts updates of all probes. ``work``: where the
    training saves its state, and goes on from; on a CPU the result is the same to the bit. At
    ``Schedule.pause_at`` the state is saved in any case. ``curve`` gets every update.
    """
    # Set up: one stream of batches for all probes, one trainer for each.
    states = train.batch(slice(0, 1)).restore()
    targets = [example.target for example in data.examples["train"]]
    generator = torch.Generator().manual_seed(order_seed)
    order = sample_batches(schedule, data.examples["train"], generator, data.alternatives)
    trainers = [
        ProbeTrainer(data, states, replace(schedule, learning_rate=rate), seed)
        for rate, seed in rates_and_seeds
    ]
    # Resume: the batches of the updates that are done are drawn again, but not read.
    curve = curve or ProbeCurve(schedule.updates, len(trainers), schedule.metric)
    done = resumed_at = _resume(trainers, work, curve, schedule.stop)
    advance(done * len(trainers))
    order = islice(order, done * schedule.accumulate, schedule.stop * schedule.accumulate)
    with closing(gather_batches(train, targets, order, schedule.accumulate)) as gathered:
        for update, batches in enumerate(gathered, done + 1):
            # Train: every probe on the same batches, unless its patience has ended.
            active = [trainer for trainer in trainers if update <= trainer.last_update]
            if not active:
                break
            for trainer in active:
                trainer.step(batches)
            # Validate: every probe on dev, whose features are read once.
            validates = update % schedule.validate_every_updates == 0 or update == schedule.updates
            if validates:
                predictions = predict(data, [trainer.probe for trainer in active], dev)
                for trainer, of_probe in zip(active, predictions, strict=True):
                    trainer.validate(update, of_probe)
            losses = [
                trainer.loss if trainer in active else trainer.loss.new_tensor(torch.nan)
                for trainer in trainers
            ]
            dev_metrics = [trainer.latest_dev if trainer in active else {} for trainer in trainers]
            curve.add_update(update, torch.stack(losses), dev_metrics if validates else None)
            advance(len(trainers))
            done = update
            if work.is_due():
                work.save("probes", done, _make_state(trainers, done, curve))
    advance((schedule.stop - done) * len(trainers))
    if schedule.stop < schedule.updates:
        if done > resumed_at:
            work.save("probes", done, _make_state(trainers, done, curve))
        _validate_pause(data, trainers, dev, schedule)
    return [trainer.finish() for trainer in trainers]


def _validate_pause(
    data: TaskData, trainers: Sequence[ProbeTrainer], dev: Features, schedule: Schedule
) -> None:
    """Validates the probes where they pause. The saved state has no trace of it."""
    active = [trainer for trainer in trainers if schedule.stop <= trainer.last_update]
    if active and schedule.stop % schedule.validate_every_updates:
        predictions = predict(data, [trainer.probe for trainer in active], dev)
        for trainer, of_probe in zip(active, predictions, strict=True):
            trainer.validate(schedule.stop, of_probe)


def _make_state(trainers: Sequence[ProbeTrainer], done: int, curve: ProbeCurve) -> dict[str, Any]:
    states = [trainer.make_state() for trainer in trainers]
    return {"done": done, "trainers": states, "curve": curve.make_state()}


def _resume(trainers: Sequence[ProbeTrainer], work: SavedWork, curve: ProbeCurve, stop: int) -> int:
    """Loads the saved state, if there is one of at most ``stop`` updates; returns how many are
    done."""
    saved = work.load("probes", stop)
    if saved is None:
        return 0
    for trainer, state in zip(trainers, saved["trainers"], strict=True):
        trainer.load_state(state)
    curve.load_state(saved["curve"], trainers[0].loss.device)
    return int(saved["done"])


class ProbeTrainer:
    """Trains one probe, with its own random numbers and its best validation so far."""

    def __init__(self, data: TaskData, states: torch.Tensor, schedule: Schedule, seed: int) -> None:
        """``states``: those of any batch, for their shape ``(layers, rows, dim)`` and device."""
        self._data, self._schedule, self._device = data, schedule, states.device
        with local_rng(seed, self._device):
            self.probe = Probe(states.shape[0], data.head(states.shape[2])).to(self._device)
            self._random = _random_state(self._device)
        self._optimizer = make_optimizer(self.probe, schedule)
        self._generator = torch.Generator().manual_seed(seed)
        self._best: Best | None = None
        self._skipped = 0
        self.loss = torch.full((), torch.nan, device=self._device)
        """Of the last update."""

    def step(self, batches: Sequence[TargetBatch]) -> None:
        """Makes one update, with this probe's own random numbers."""
        with local_rng(None, self._device):
            _set_random_state(self._device, self._random)
            self.loss, is_finite = train_step(
                self.probe, self._optimizer, self._data, batches, self._schedule, self._generator
            )
            self._skipped += not is_finite
            self._random = _random_state(self._device)

    def validate(self, update: int, predictions: list[Any]) -> None:
        """Updates the best validation with these predictions on dev."""
        self._best = update_best(
            self._best,
            update,
            self._data,
            predictions,
            self._schedule.metric,
            self.probe.state_dict,
        )

    @property
    def latest_dev(self) -> Mapping[str, float]:
        """The metrics of the latest validation."""
        return self._best.latest if self._best is not None else {}

    @property
    def last_update(self) -> int:
        """The update at which training ends, unless a validation until then is better."""
        return find_last_update(self._best, self._schedule)

    def make_state(self) -> dict[str, Any]:
        """Returns all that changes in training, as tensors and plain data."""
        return {
            "probe": self.probe.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": self._random,
            "generator": self._generator.get_state(),
            "best": pack_best(self._best),
            "skipped": self._skipped,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``make_state`` returned in an earlier attempt, on any kind of device."""
        self.probe.load_state_dict(state["probe"])
        self._optimizer.load_state_dict(state["optimizer"])
        if state["random"].shape == self._random.shape:
            self._random = state["random"]
        # Else it is that of a CPU where this is a GPU, or the reverse: drawn anew from the seed.
        self._generator.set_state(state["generator"])
        self._best = unpack_best(state["best"], self._device)
        self._skipped = int(state.get("skipped", 0))  # states of older versions lack it

    def finish(self) -> TrainedProbe:
        """Returns the probe at its best validation."""
        assert (
            self._best is not None
        )  # the last update validates, and so do the first of patience and a pause
        self.probe.load_state_dict(self._best.state)
        return make_trained_probe(self._best, self._data, self._schedule, self.probe, self._skipped)


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


def gather_batches(
    train: Features, targets: Sequence[torch.Tensor], order: Iterable[Indices], accumulate: int
) -> Generator[list[TargetBatch], None, None]:
    """Yields the batches of each update, ``accumulate`` of them, with their targets; those of the
    next updates are read ahead (``Features.read_batches``)."""
    with closing(train.read_batches(order)) as pairs:
        while batches := [
            (batch, _select_targets(targets, indices))
            for indices, batch in islice(pairs, accumulate)
        ]:
            yield batches


def _select_targets(targets: Sequence[torch.Tensor], indices: Indices) -> Sequence[torch.Tensor]:
    if isinstance(indices, slice):
        return targets[indices]
    return [targets[index] for index in indices.tolist()]


def train_step(
    probe: Probe,
    optimizer: torch.optim.Optimizer,
    data: TaskData,
    batches: Sequence[TargetBatch],
    schedule: Schedule,
    generator: torch.Generator,
) -> tuple[torch.Tensor, bool]:
    """Makes one update from the mean loss of ``batches``. Returns that loss, a scalar that is not
    waited for on a GPU, and whether the norm of its gradient was finite; one that was not changes
    nothing."""
    probe.train()
    optimizer.zero_grad()
    # Accumulate the gradients of all batches.
    losses = []
    for batch, targets in batches:
        features = probe.features(batch)
        if data.augment is not None:
            features = data.augment(features, batch.frames, generator)
        logits = probe.head(features, batch.frames)
        loss = data.loss(logits, batch.frames, targets) / len(batches)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    # Clip over all parameters; skip an update whose norm is not finite.
    norm = torch.nn.utils.clip_grad_norm_(probe.parameters(), schedule.clip_norm)
    is_finite = bool(norm.isfinite())
    if is_finite:
        optimizer.step()
    return torch.stack(losses).sum(), is_finite


@contextmanager
def local_rng(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds torch's global random numbers inside (``None``: leaves them), and restores their state
    afterwards.

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
