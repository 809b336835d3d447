"""Encoder, heads and optimiser of a run, and one update of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning.batches import PART_SECONDS, BatchOrder, Recordings, cropped, on_device
from speechft_ray.finetuning.draws import Draw, generator, seed_torch
from speechft_ray.finetuning.lessons import Example, Lesson, crop_samples
from speechft_ray.finetuning.penalties import l2_sp
from speechft_ray.finetuning.phases import is_head_only, learnable
from speechft_ray.finetuning.schedule import learning_rate
from speechft_ray.speech.batching import batches_by_seconds
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What changes during a run. ``parameters`` are those of the encoder that may learn, ``anchors`` their start values."""

    encoder: Encoder
    heads: nn.ModuleList
    optimizer: torch.optim.Adam
    parameters: Mapping[str, nn.Parameter]
    anchors: Mapping[str, torch.Tensor]
    device: torch.device

    def train(self, mode: bool) -> None:
        """Switches dropout on or off, in encoder and heads."""
        self.encoder.module().train(mode)
        self.heads.train(mode)


class Step(NamedTuple):
    """What one update did; ``taken`` is false when loss or gradient was not finite and nothing was changed."""

    taken: bool
    loss: float
    gradient_norm: float
    """Before clipping."""


def build_learner(spec: FinetuneSpec, start: EncoderWeights, lessons: Sequence[Lesson], device: torch.device) -> Learner:
    """Returns the encoder at its start with fresh heads, one per objective, on the last hidden state."""
    family = FAMILIES.get(start.family)
    encoder = family.build(start)
    module = encoder.module().to(device)
    _without_layerdrop(module)
    learning = learnable(
        (name for name, _ in module.named_parameters()),
        freeze_front_end=spec.freeze_front_end,
        front_end_prefixes=family.front_end_prefixes,
        pretraining_only_prefixes=family.pretraining_only_prefixes,
    )
    heads = nn.ModuleList()
    for index, lesson in enumerate(lessons):
        seed_torch(spec.seed, Draw.HEAD, index)
        heads.append(lesson.kind.build(lesson.options, encoder.dim, lesson.vocabulary.size))
    parameters = {name: value for name, value in module.named_parameters() if name in learning}
    if not parameters:
        raise UserError(
            f"an encoder of the family `{start.family}` has no weights that could be fine-tuned: choose another encoder."
        )
    module.requires_grad_(False)
    return Learner(
        encoder=encoder,
        heads=heads.to(device),
        # Adam's defaults and no weight decay (official configs); parameters without a gradient are left alone.
        optimizer=torch.optim.Adam([*parameters.values(), *heads.parameters()], lr=spec.peak_learning_rate),
        parameters=parameters,
        anchors={name: value.detach().clone() for name, value in parameters.items()},
        device=device,
    )


class Teacher:
    """Takes the updates of a run, one by one. Update ``k`` depends on the learner and on ``k`` alone."""

    def __init__(self, spec: FinetuneSpec, lessons: Sequence[Lesson], recordings: Sequence[Recordings]) -> None:
        self._spec = spec
        self._lessons = lessons
        self._recordings = recordings
        self._crops = [crop_samples(lesson, spec.crop_seconds) for lesson in lessons]
        self._orders = [
            BatchOrder([item.utterance.samples for item in lesson.train], lesson.objective.batch_size, spec.seed, index)
            for index, lesson in enumerate(lessons)
        ]

    def update(self, learner: Learner, update: int) -> Step:
        """Performs update number ``update`` (from 0)."""
        spec = self._spec
        head_only = is_head_only(update, spec.head_only_fraction, spec.updates)
        for value in learner.parameters.values():
            value.requires_grad_(not head_only)
        learner.optimizer.zero_grad(set_to_none=True)
        seed_torch(spec.seed, Draw.UPDATE, update)
        loss = sum(self._backward(learner, index, update) for index in range(len(self._lessons)))
        if spec.anchor_penalty and not head_only:
            penalty = l2_sp(learner.parameters, learner.anchors, spec.anchor_penalty)
            penalty.backward()  # type: ignore[no-untyped-call]
            loss += float(penalty.detach())
        trained = [value for group in learner.optimizer.param_groups for value in group["params"] if value.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(trained, spec.clip_norm))
        taken = math.isfinite(loss) and math.isfinite(norm)
        if taken:
            rate = learning_rate(update, spec.updates, spec.peak_learning_rate, spec.schedule)
            for group in learner.optimizer.param_groups:
                group["lr"] = rate
            learner.optimizer.step()
        return Step(taken, loss, norm)

    def _backward(self, learner: Learner, index: int, update: int) -> float:
        """Adds the gradient of one objective and returns its weighted loss."""
        lesson = self._lessons[index]
        batch = [lesson.train[place] for place in self._orders[index].batch(update)]
        audio = self._audio(index, update, batch)
        units = max(1, sum(lesson.kind.units(item.target) for item in batch))
        total = 0.0
        for part in batches_by_seconds([len(item) for item in audio], PART_SECONDS):
            targets = [batch[place].target for place in part]
            states, frames = learner.encoder.hidden_states(on_device([audio[place] for place in part], learner.device))
            loss = lesson.kind.loss(learner.heads[index](states[-1], frames), frames, targets)
            share = sum(lesson.kind.units(target) for target in targets) / units
            weighted = lesson.objective.weight * share * loss
            weighted.backward()  # type: ignore[no-untyped-call]
            total += float(weighted.detach())
        return total

    def _audio(self, index: int, update: int, batch: Sequence[Example]) -> list[np.ndarray]:
        draw = generator(self._spec.seed, Draw.CROP, index, update)
        return [cropped(self._recordings[index].read(item.utterance), self._crops[index], draw) for item in batch]


def _without_layerdrop(module: nn.Module) -> None:
    """Makes every layer take part in every update (s3prl's upstream experts force ``layerdrop`` to 0)."""
    for part in module.modules():
        for name in ("layerdrop", "encoder_layerdrop"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
