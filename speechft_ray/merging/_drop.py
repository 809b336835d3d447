"""Random masks that are the same wherever and in whatever order tensors are merged, and what makes
up for the drop."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from speechft_ray.merging.param_reader import ParamReader, ParamSlice

_STEPS = 1 << 16

Rescale = Literal["inverse", "l1", "none"]


def draw_mask(
    probability: float | torch.Tensor,
    seed: int,
    donor: int,
    name: str,
    like: torch.Tensor,
    start: int = 0,
) -> torch.Tensor:
    """Returns which positions are kept, each with its own chance, drawn for this seed, donor and
    tensor name alone.

    ``probability`` is one number or of ``like.shape``; ``like`` begins at position ``start`` of the
    tensor, a multiple of 4. Each position takes 16 bits, so chances are rounded to the next of
    65536 steps. The draw is made on the CPU from the raw bits of numpy's PCG64, whose stream numpy
    guarantees and can enter anywhere, so the mask is the same on every machine and device, whole or
    in blocks.
    """
    key = hashlib.sha256(f"{seed}/{donor}/{name}".encode()).digest()
    raw = (
        np.random.PCG64(int.from_bytes(key, "little"))
        .advance(start // 4)
        .random_raw((like.numel() + 3) // 4)
    )
    drawn = np.asarray(raw, dtype="<u8").view("<u2")[: like.numel()]
    if isinstance(probability, float):
        kept = drawn < np.uint16(min(max(round(probability * _STEPS), 1), _STEPS - 1))
    else:
        kept = drawn < probability.detach().cpu().double().flatten().numpy() * _STEPS
    return torch.from_numpy(kept).reshape(like.shape).to(like.device)


def mask_and_rescale(
    values: torch.Tensor, mask: torch.Tensor, probability: float | torch.Tensor, rescale: Rescale
) -> torch.Tensor:
    """Returns ``values`` where ``mask`` keeps them, else 0, scaled up again.

    ``inverse`` divides by the chance to be kept, which keeps the expectation (DARE, arXiv
    2311.03099); ``l1`` restores the tensor's L1 norm (mergekit).
    """
    kept = apply_mask(values, mask)
    if rescale == "inverse":
        return kept / probability
    after = kept.abs().sum()
    return kept * (values.abs().sum() / after) if rescale == "l1" and after > 0 else kept


def apply_mask(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the values that the mask keeps, else 0. numpy multiplies by bytes three times as fast
    as torch on a CPU."""
    if values.device.type != "cpu":
        return values * mask
    return torch.from_numpy(np.multiply(values.numpy(), mask.numpy()))


Gains = Mapping[str, tuple[float, ...]]
"""What restores the L1 norm, by name of the part, then by donor."""


def compute_gains(reader: ParamReader, density: float, rescale: Rescale, seed: int) -> Gains:
    """Returns what restores the L1 norm of each tensor after ``drop``; empty where nothing has to.
    Reads the model once."""
    if rescale != "l1" or density == 1.0:
        return {}
    key = ("gains", density, seed)
    if key not in reader.cache:
        norms = {
            group.name: torch.zeros(2, reader.donors, dtype=torch.float64)
            for group in reader.groups
        }
        for block in reader.blocks():
            for donor, (vector, mask) in enumerate(
                zip(block.vectors, _draw_masks(block, density, seed), strict=True)
            ):
                sizes = vector.abs()
                norms[block.name][0, donor] += float(sizes.sum())
                norms[block.name][1, donor] += float(apply_mask(sizes, mask).sum())
        reader.cache[key] = {
            name: tuple(torch.where(b > 0, a / b, 1.0).tolist()) for name, (a, b) in norms.items()
        }
    found: Gains = reader.cache[key]
    return found


def drop(
    part: ParamSlice, density: float, rescale: Rescale, seed: int, gains: Gains
) -> tuple[torch.Tensor, ...]:
    """Returns the task vectors of a part or block with random positions set to 0 and the others
    scaled up."""
    if density == 1.0:
        return part.vectors
    kept = tuple(
        apply_mask(vector, mask)
        for vector, mask in zip(part.vectors, _draw_masks(part, density, seed), strict=True)
    )
    if rescale == "inverse":
        return tuple(vector.div_(density) for vector in kept)
    return (
        tuple(vector.mul_(gain) for vector, gain in zip(kept, gains[part.name], strict=True))
        if gains
        else kept
    )


def _draw_masks(part: ParamSlice, density: float, seed: int) -> list[torch.Tensor]:
    return [
        draw_mask(density, seed, donor, part.name, vector, part.start)
        for donor, vector in enumerate(part.vectors)
    ]
