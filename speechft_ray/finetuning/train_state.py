"""Encoder, heads and optimiser of a run: what changes while it lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning.adapters import adapt, adapted_weights
from speechft_ray.finetuning.data import Lesson
from speechft_ray.finetuning.phases import learnable
from speechft_ray.finetuning.seeding import Draw, seed_torch
from speechft_ray.speech.encoders.base import (
    FAMILIES,
    MASK_EMBEDDING,
    Encoder,
    EncoderFamily,
    EncoderWeights,
)


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What changes during a run. ``parameters`` are those of the encoder that may learn, by their
    names in its module: its own, or those of its adapters. ``anchors`` are the start values of
    ``weights``."""

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

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Returns the encoder's own weights that change, by their names in its family: as they
        compute now, adapters merged."""
        return adapted_weights(self.encoder.module()) or self.parameters


def build_learner(
    spec: FinetuneSpec, start: EncoderWeights, lessons: Sequence[Lesson], device: torch.device
) -> Learner:
    """Returns the encoder at its start with fresh heads, one per objective, on the last hidden
    state."""
    family = FAMILIES.get(start.family)
    encoder = family.build(start)
    module = encoder.module().to(device)
    _without_layerdrop(module)
    learning = learnable(
        (name for name, _ in module.named_parameters()),
        freeze_front_end=spec.freeze_front_end,
        front_end_prefixes=family.front_end_prefixes,
        pretraining_only_prefixes=_fixed(family, lessons),
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
    if spec.adapter is not None:
        seed_torch(spec.seed, Draw.ADAPTER)
        parameters = adapt(module, spec.adapter, learning)
    weights = adapted_weights(module) or parameters
    return Learner(
        encoder=encoder,
        heads=heads.to(device),
        # Adam's defaults and no weight decay (official configs); parameters without a gradient are
        # left alone. Fused, it takes a third of the time of a loop over tensors on a CPU as well.
        optimizer=torch.optim.Adam(
            [*parameters.values(), *heads.parameters()], lr=spec.peak_learning_rate, fused=True
        ),
        parameters=parameters,
        anchors={name: value.detach().clone() for name, value in weights.items()},
        device=device,
    )


def _fixed(family: EncoderFamily, lessons: Sequence[Lesson]) -> list[str]:
    """Returns the prefixes of pre-training's parameters that keep their value: where frames are
    masked, the mask embedding learns, as in pre-training."""
    masks = any(lesson.kind.masking is not None for lesson in lessons)
    return [
        prefix
        for prefix in family.pretraining_only_prefixes
        if not (masks and prefix == MASK_EMBEDDING)
    ]


def _without_layerdrop(module: nn.Module) -> None:
    """Makes every layer take part in every update (s3prl's upstream experts force ``layerdrop`` to
    0)."""
    for part in module.modules():
        for name in ("layerdrop", "encoder_layerdrop"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
