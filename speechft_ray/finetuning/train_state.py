"""The train state of a run: encoder, heads and optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning.adapters import add_adapters, compute_adapted_weights
from speechft_ray.finetuning.data import ObjectiveData
from speechft_ray.finetuning.phases import trainable_names
from speechft_ray.finetuning.seeding import Stream, seed_torch
from speechft_ray.speech.encoders.base import (
    FAMILIES,
    MASK_EMBEDDING,
    Encoder,
    EncoderFamily,
    EncoderWeights,
)


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that changes during a run."""

    encoder: Encoder
    heads: nn.ModuleList
    optimizer: torch.optim.Adam
    parameters: Mapping[str, nn.Parameter]
    """Trainable parameters of the encoder or of its adapters, by their names in its module."""
    anchors: Mapping[str, torch.Tensor]
    """Start values of ``weights``."""
    device: torch.device

    def train(self, mode: bool) -> None:
        """Switches dropout on or off, in encoder and heads."""
        self.encoder.module().train(mode)
        self.heads.train(mode)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Returns the encoder's changing weights, adapters merged, by the family's names."""
        return compute_adapted_weights(self.encoder.module()) or self.parameters


def build_train_state(
    spec: FinetuneSpec,
    start: EncoderWeights,
    objectives: Sequence[ObjectiveData],
    device: torch.device,
) -> TrainState:
    """Builds the encoder with its start weights, and a new head per objective on its last hidden
    state."""
    # Build the encoder and select its trainable parameters.
    family = FAMILIES.get(start.family)
    encoder = family.build(start)
    module = encoder.module().to(device)
    _disable_layerdrop(module)
    trainable = trainable_names(
        (name for name, _ in module.named_parameters()),
        freeze_front_end=spec.freeze_front_end,
        front_end_prefixes=family.front_end_prefixes,
        pretraining_only_prefixes=_pretraining_only_prefixes(family, objectives),
    )
    # Build one head per objective, each from its own seed.
    heads = nn.ModuleList()
    for index, data in enumerate(objectives):
        seed_torch(spec.seed, Stream.HEAD, index)
        heads.append(data.kind.build(data.options, encoder.dim, data.vocabulary.size))
    parameters = {name: value for name, value in module.named_parameters() if name in trainable}
    if not parameters:
        raise UserError(
            f"an encoder of the family `{start.family}` has no weights that could be fine-tuned: "
            "choose another encoder."
        )
    module.requires_grad_(False)
    # Replace the trainable weights by adapters, where the spec asks for them.
    if spec.adapter is not None:
        seed_torch(spec.seed, Stream.ADAPTER)
        parameters = add_adapters(module, spec.adapter, trainable)
    weights = compute_adapted_weights(module) or parameters
    return TrainState(
        encoder=encoder,
        heads=heads.to(device),
        # Adam's defaults and no weight decay (official configs). Parameters without a gradient are
        # not updated. On a CPU, too, fused takes a third of the time of a loop over tensors.
        optimizer=torch.optim.Adam(
            [*parameters.values(), *heads.parameters()], lr=spec.peak_learning_rate, fused=True
        ),
        parameters=parameters,
        anchors={name: value.detach().clone() for name, value in weights.items()},
        device=device,
    )


def _pretraining_only_prefixes(
    family: EncoderFamily, objectives: Sequence[ObjectiveData]
) -> list[str]:
    """Returns the prefixes of pre-training parameters that stay fixed.

    The mask embedding is trainable where frames are masked, as in pre-training.
    """
    masks = any(data.kind.masking is not None for data in objectives)
    return [
        prefix
        for prefix in family.pretraining_only_prefixes
        if not (masks and prefix == MASK_EMBEDDING)
    ]


def _disable_layerdrop(module: nn.Module) -> None:
    """Sets the probability of LayerDrop to 0 (as s3prl's upstream experts do)."""
    for part in module.modules():
        for name in ("layerdrop", "encoder_layerdrop"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
