"""Trains many pooled probes as one stack: every learning rate with every seed in one backward pass.

A pooled probe is small (layer weights, two linear maps), so one alone leaves a processor waiting
for Python. Here ``heads`` of them are one tensor: the sum of their losses has the gradient of each
in its own slice. Clipping and Adam go slice by slice, each small enough for a processor's cache.
Each head is the probe that ``training.train_probes`` trains alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from speechft_ray.superb.curve import ProbeCurve
from speechft_ray.superb.extractor import Advance, Features, Indices, iterate_batches
from speechft_ray.superb.probe import Probe, Schedule, TrainedProbe
from speechft_ray.superb.sampling import sample_batches
from speechft_ray.superb.saved_work import NOT_SAVED, SavedWork
from speechft_ray.superb.selection import (
    Best,
    find_last_update,
    make_trained_probe,
    pack_best,
    unpack_best,
    update_best,
)
from speechft_ray.superb.tasks.base import TaskData
from speechft_ray.superb.training import local_rng

SCORED_AT_ONCE = 128
"""Utterances of one forward pass of scoring: 128 of a Base encoder are 5 MB of means."""

_NAMES = (
    "featurizer.weights",
    "head.projector.weight",
    "head.projector.bias",
    "head.output.weight",
    "head.output.bias",
)
"""Parameters of a pooled probe, in the order in which they are stacked."""


def train_stacked(
    data: TaskData,
    train: Features,
    dev: Features,
    schedule: Schedule,
    rates: Sequence[float],
    seeds: int,
    advance: Advance,
    work: SavedWork = NOT_SAVED,
    curve: ProbeCurve | None = None,
) -> list[list[TrainedProbe]]:
    """Trains a pooled probe for every rate and seed; returns them by ``[rate][seed]``, each at its
    own best validation.

    The learning rate of ``schedule`` is not used. ``advance`` counts updates of all heads.
    ``work``: where the training saves its state, and goes on from; on a CPU the result is the same
    to the bit. At ``Schedule.pause_at`` the state is saved in any case. Raises ``ValueError`` for a
    task without ``pooled_head``.
    """
    if data.pooled_head is None:
        raise ValueError("only tasks with a pooled head can be trained as a stack")
    # Set up: stacked parameters, targets of the train split, one stream of batches per seed.
    first = train.batch(slice(0, 1)).states
    heads = _Heads(data, first, rates, seeds)
    targets = torch.tensor(
        [example.target.tolist() for example in data.examples["train"]], device=first.device
    )  # (utterances, columns)
    orders = [
        sample_batches(
            schedule,
            data.examples["train"],
            torch.Generator().manual_seed(seed),
            data.alternatives,
        )
        for seed in range(seeds)
    ]
    # Resume: the batches of the updates that are done are drawn again, but not read.
    curve = curve or ProbeCurve(schedule.updates, seeds, schedule.metric)
    done, best = _resume(heads, work, curve, schedule.stop)
    resumed_at = done
    advance(done * heads.count)
    joint_order = (
        torch.cat([_next_indices(order) for order in orders]) for _ in range(schedule.stop)
    )
    with closing(train.read_batches(islice(joint_order, done, None))) as batches:
        for update, (joint, batch) in enumerate(batches, done + 1):
            active = [update <= find_last_update(item, schedule) for item in best]
            if not any(active):
                break
            # Train: one batch per seed, which the heads of all rates share.
            assert isinstance(joint, torch.Tensor)
            indices = joint.view(seeds, -1).to(targets.device)  # (seeds, batch)
            states = torch.unflatten(batch.states, 1, indices.shape)  # (layers, seeds, batch, dim)
            losses = heads.step(states, targets[indices], schedule.clip_norm, active)
            # Validate: each head has its own best validation.
            validates = update % schedule.validate_every_updates == 0 or update == schedule.updates
            if validates:
                _validate(data, heads, dev, update, schedule.metric, active, best)
            losses[[not is_active for is_active in active]] = torch.nan
            curve.add_update(update, losses, _list_latest(best, active) if validates else None)
            advance(heads.count)
            done = update
            if work.is_due():
                work.save("probes", done, _make_state(heads, done, best, curve))
    advance((schedule.stop - done) * heads.count)
    if schedule.stop < schedule.updates:
        if done > resumed_at:
            work.save("probes", done, _make_state(heads, done, best, curve))
        # Validate where training pauses; the saved state has no trace of it.
        active = [schedule.stop <= find_last_update(item, schedule) for item in best]
        if any(active) and schedule.stop % schedule.validate_every_updates:
            _validate(data, heads, dev, schedule.stop, schedule.metric, active, best)
    # Unstack: one probe per head, with the parameters of its best validation.
    probes = [
        make_trained_probe(item, data, schedule, _as_probe(data, first, item), skipped)
        for item, skipped in zip(best, heads.skipped, strict=True)
        if item is not None
    ]
    return [probes[start : start + seeds] for start in range(0, heads.count, seeds)]


def _validate(
    data: TaskData,
    heads: _Heads,
    dev: Features,
    update: int,
    metric: str,
    active: Sequence[bool],
    best: list[Best | None],
) -> None:
    """Updates the best validation of each active head."""
    for head, predictions in enumerate(_predict(data, heads, dev)):
        if active[head]:
            state = partial(heads.state_of, head)
            best[head] = update_best(best[head], update, data, predictions, metric, state)


def _list_latest(best: Sequence[Best | None], active: Sequence[bool]) -> list[Mapping[str, float]]:
    """Returns the dev metrics of the heads' latest validation; empty for heads that have ended."""
    return [
        item.latest if item is not None and is_active else {}
        for item, is_active in zip(best, active, strict=True)
    ]


def _make_state(
    heads: _Heads, done: int, best: Sequence[Best | None], curve: ProbeCurve
) -> dict[str, Any]:
    return {
        "curve": curve.make_state(),
        "done": done,
        "parameters": [value.detach() for value in heads.parameters],
        "optimizers": [optimizer.state_dict() for optimizer in heads.optimizers],
        "best": [pack_best(item) for item in best],
        "skipped": heads.skipped,
    }


def _resume(
    heads: _Heads, work: SavedWork, curve: ProbeCurve, stop: int
) -> tuple[int, list[Best | None]]:
    """Loads the saved state, if there is one of at most ``stop`` updates; returns how many are
    done, and the best validation of each head."""
    saved = work.load("probes", stop)
    if saved is None:
        return 0, [None] * heads.count
    for value, earlier in zip(heads.parameters, saved["parameters"], strict=True):
        value.detach().copy_(earlier)  # in place: the optimisers hold views
    for optimizer, state in zip(heads.optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    heads.skipped = list(saved.get("skipped", heads.skipped))  # older versions saved none
    device = heads.parameters[0].device
    curve.load_state(saved["curve"], device)
    return int(saved["done"]), [unpack_best(item, device) for item in saved["best"]]


class _Heads:
    """Stacked parameters, each head with an optimiser of its own. Head ``rate * seeds + seed``
    starts as that seed's probe.

    ``parameters`` and the tensors that the optimisers hold are the same memory.
    """

    def __init__(
        self, data: TaskData, first: torch.Tensor, rates: Sequence[float], seeds: int
    ) -> None:
        assert data.pooled_head is not None
        self.sizes = list(data.pooled_head.classes)
        self.rates, self.seeds, self.count = len(rates), seeds, len(rates) * seeds
        self.skipped = [0] * self.count
        """Updates of each head that changed nothing."""
        # Every rate starts from the same initial parameters of each seed.
        initial = [_initial_parameters(data, first, seed) for seed in range(seeds)]
        stacked = [
            torch.stack(of_seeds).repeat(self.rates, *[1] * of_seeds[0].dim())
            for of_seeds in zip(*initial, strict=True)
        ]
        self.parameters = [value.requires_grad_() for value in stacked]
        # Each head's parameters are views, so that its optimiser updates the stack in place.
        self.heads = [
            [nn.Parameter(value.detach()[head]) for value in stacked] for head in range(self.count)
        ]
        self.optimizers = [
            torch.optim.Adam(self.heads[head], lr=rate, fused=True)
            for head, rate in enumerate(rate for rate in rates for _ in range(seeds))
        ]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Maps ``(layers, seeds, batch, dim)`` to ``(heads, batch, classes)``; head r * seeds + s
        gets the batch of seed s."""
        weights, projection, projection_bias, output, output_bias = self.parameters
        shares = torch.unflatten(
            weights.softmax(1), 0, (self.rates, self.seeds)
        )  # (rates, seeds, layers)
        features = torch.einsum("rsl,lsbd->rsbd", shares, states).flatten(
            0, 1
        )  # -> (heads, batch, dim)
        hidden = torch.baddbmm(projection_bias.unsqueeze(1), features, projection.transpose(1, 2))
        return torch.baddbmm(output_bias.unsqueeze(1), hidden, output.transpose(1, 2))

    def step(
        self,
        states: torch.Tensor,
        targets: torch.Tensor,
        clip_norm: float,
        active: Sequence[bool],
    ) -> torch.Tensor:
        """Makes one update of every active head on ``targets`` ``(seeds, batch, columns)``; a head
        whose norm is not finite keeps its parameters. Returns the loss of each head."""
        # Sum the losses of all heads: each slice gets its own head's gradient.
        logits = self.logits(states)
        by_head = targets.repeat(self.rates, 1, 1)  # (heads, batch, columns)
        loss = torch.zeros((), device=logits.device)
        losses = torch.zeros(self.count, device=logits.device)
        columns = zip(torch.split(logits, self.sizes, dim=2), by_head.unbind(2), strict=True)
        for column_logits, ids in columns:
            each = functional.cross_entropy(
                column_logits.flatten(0, 1), ids.flatten(), reduction="none"
            )
            of_heads = torch.unflatten(each, 0, ids.shape).mean(1)
            loss = loss + of_heads.sum()
            losses += of_heads.detach()
        gradients = torch.autograd.grad(loss, self.parameters)
        # Clip and update head by head. The fused Adam of a CPU needs contiguous gradients.
        for head, (parameters, optimizer) in enumerate(
            zip(self.heads, self.optimizers, strict=True)
        ):
            if not active[head]:
                continue
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient[head].contiguous()
            norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
            if bool(norm.isfinite()):
                optimizer.step()
            else:
                self.skipped[head] += 1
        return losses

    def state_of(self, head: int) -> dict[str, torch.Tensor]:
        """Returns the present parameters of one head, under their names in a probe."""
        return dict(zip(_NAMES, self.heads[head], strict=True))


def _initial_parameters(data: TaskData, first: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Returns the initial parameters of a probe of this seed, in the order of ``_NAMES``."""
    with local_rng(seed, first.device):
        probe = Probe(first.shape[0], data.head(first.shape[2])).to(first.device)
    state = probe.state_dict()
    return [state[name] for name in _NAMES]


def _next_indices(order: Iterator[Indices]) -> torch.Tensor:
    indices = next(order)
    if isinstance(indices, slice):
        raise ValueError("a pooled task samples single utterances, not windows")
    return indices


@torch.no_grad()
def _predict(data: TaskData, heads: _Heads, dev: Features) -> list[list[Any]]:
    predictions: list[list[Any]] = [[] for _ in range(heads.count)]
    for batch in iterate_batches(dev, SCORED_AT_ONCE):
        logits = heads.logits(batch.states.unsqueeze(1).expand(-1, heads.seeds, -1, -1))
        for of_head, head_logits in zip(predictions, logits, strict=True):
            of_head += data.predict(head_logits, batch.frames)
    return predictions


def _as_probe(data: TaskData, first: torch.Tensor, best: Best) -> Probe:
    with local_rng(0, first.device):  # the initial parameters are overwritten
        probe = Probe(first.shape[0], data.head(first.shape[2])).to(first.device)
    probe.load_state_dict(best.state)
    return probe
