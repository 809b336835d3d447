"""Many pooled probes as one problem: every learning rate with every seed, stacked, trained by one
backward pass.

A pooled probe is small (layer weights, two linear maps), so one alone leaves a processor waiting
for Python. Here ``heads`` of them are one tensor: the sum of their losses has the gradient of each
in its own slice. Clipping and Adam go slice by slice, each small enough for a processor's cache.
Each head is the probe that ``probe.train_probe`` trains alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from speechft_ray.superb.features import Advance, Features
from speechft_ray.superb.probe import (
    Best,
    Probe,
    Schedule,
    TrainedProbe,
    local_rng,
    make_trained_probe,
    sample_batches,
    update_best,
)
from speechft_ray.superb.tasks.base import TaskData

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
) -> list[list[TrainedProbe]]:
    """Trains a pooled probe for every rate and seed; returns them by ``[rate][seed]``, each at its
    own best validation.

    ``schedule.learning_rate`` is not used. ``advance`` is told of each update of each head. Raises
    ``ValueError`` for a problem that has no ``pooled_head``.
    """
    if data.pooled_head is None:
        raise ValueError("only problems with a pooled head can be trained as a stack")
    first = train.batch(slice(0, 1)).states
    heads = _Heads(data, first, rates, seeds)
    targets = torch.stack([example.target for example in data.examples["train"]]).to(
        first.device
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
    best: list[Best | None] = [None] * heads.count
    for update in range(1, schedule.updates + 1):
        chosen = torch.stack([_places(order) for order in orders])  # (seeds, batch)
        states = torch.unflatten(
            train.batch(chosen.flatten()).states, 1, chosen.shape
        )  # (layers, seeds, batch, dim)
        heads.step(states, targets[chosen.to(targets.device)], schedule.clip_norm)
        if update % schedule.validate_every_updates == 0 or update == schedule.updates:
            for head, found in enumerate(_answers(data, heads, dev)):
                best[head] = update_best(
                    best[head],
                    update,
                    data,
                    found,
                    schedule.metric,
                    partial(heads.state_of, head),
                )
        advance(heads.count)
    trained = [
        make_trained_probe(item, data, _as_probe(data, first, item))
        for item in best
        if item is not None
    ]
    return [trained[start : start + seeds] for start in range(0, heads.count, seeds)]


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
        starts = [_initial(data, first, seed) for seed in range(seeds)]
        stacked = [
            torch.stack([start[part] for start in starts]).repeat(self._wide(part, starts))
            for part in range(5)
        ]
        self.parameters = [value.requires_grad_() for value in stacked]
        self.heads = [
            [nn.Parameter(value.detach()[head]) for value in stacked] for head in range(self.count)
        ]
        self.optimizers = [
            torch.optim.Adam(self.heads[head], lr=rate, fused=True)
            for head, rate in enumerate(rate for rate in rates for _ in range(seeds))
        ]

    def _wide(self, part: int, starts: Sequence[Sequence[torch.Tensor]]) -> tuple[int, ...]:
        return (self.rates, *[1] * starts[0][part].dim())

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Maps ``(layers, seeds, batch, dim)`` to ``(heads, batch, classes)``; head r * seeds + s
        sees the batch of seed s."""
        weights, projection, projection_bias, output, output_bias = self.parameters
        shares = torch.unflatten(
            weights.softmax(1), 0, (self.rates, self.seeds)
        )  # (rates, seeds, layers)
        features = torch.einsum("rsl,lsbd->rsbd", shares, states).flatten(
            0, 1
        )  # -> (heads, batch, dim)
        hidden = torch.baddbmm(projection_bias.unsqueeze(1), features, projection.transpose(1, 2))
        return torch.baddbmm(output_bias.unsqueeze(1), hidden, output.transpose(1, 2))

    def step(self, states: torch.Tensor, wanted: torch.Tensor, clip_norm: float) -> None:
        """One update of every head on ``wanted`` ``(seeds, batch, columns)``; a head whose norm is
        not finite stands still."""
        logits = self.logits(states)
        by_head = wanted.repeat(self.rates, 1, 1)  # (heads, batch, columns)
        loss = torch.zeros((), device=logits.device)
        for part, ids in zip(
            torch.split(logits, self.sizes, dim=2), by_head.unbind(2), strict=True
        ):
            each = functional.cross_entropy(part.flatten(0, 1), ids.flatten(), reduction="none")
            loss = loss + torch.unflatten(each, 0, ids.shape).mean(1).sum()
        gradients = torch.autograd.grad(loss, self.parameters)
        for head, (parameters, optimizer) in enumerate(
            zip(self.heads, self.optimizers, strict=True)
        ):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient[
                    head
                ].contiguous()  # the fused Adam of a CPU takes strides for granted
            norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
            if bool(norm.isfinite()):
                optimizer.step()

    def state_of(self, head: int) -> dict[str, torch.Tensor]:
        """The parameters of one head as they are now, under their names in a probe."""
        return dict(zip(_NAMES, self.heads[head], strict=True))


def _initial(data: TaskData, first: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """The parameters that a probe of this seed starts with, in the order of
    ``_Heads.parameters``."""
    with local_rng(seed, first.device):
        probe = Probe(first.shape[0], data.head(first.shape[2])).to(first.device)
    state = probe.state_dict()
    return [state[name] for name in _NAMES]


def _places(order: Iterator[torch.Tensor | slice]) -> torch.Tensor:
    chosen = next(order)
    if isinstance(chosen, slice):
        raise ValueError("a pooled problem draws single utterances, not windows")
    return chosen


@torch.no_grad()
def _answers(data: TaskData, heads: _Heads, dev: Features) -> list[list[Any]]:
    predictions: list[list[Any]] = [[] for _ in range(heads.count)]
    for start in range(0, dev.count, SCORED_AT_ONCE):
        batch = dev.batch(slice(start, min(start + SCORED_AT_ONCE, dev.count)))
        logits = heads.logits(batch.states.unsqueeze(1).expand(-1, heads.seeds, -1, -1))
        for known, found in zip(predictions, logits, strict=True):
            known += data.predict(found, batch.frames)
    return predictions


def _as_probe(data: TaskData, first: torch.Tensor, best: Best) -> Probe:
    with local_rng(0, first.device):  # its random start is written over
        probe = Probe(first.shape[0], data.head(first.shape[2])).to(first.device)
    probe.load_state_dict(best.state)
    return probe
