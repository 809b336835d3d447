"""Drops random positions of task vectors and rescales the others.

Masks do not depend on the machine, the device or the order in which tensors are merged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from speechft_ray.merging.base import spread
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
    """Returns a boolean mask of the kept positions, drawn from seed, donor and tensor name alone.

    ``probability`` of being kept: one number, or one per position in ``like.shape``. ``like``
    begins at position ``start`` of the tensor, a multiple of 4. Each position takes 16 bits, so
    probabilities are rounded to steps of 1/65536. The bits are the raw output of numpy's PCG64 on
    the CPU. numpy guarantees this stream and can advance it to any position, so the mask is the
    same on every machine and device, whole or in blocks.
    """
    raw = (
        np.random.PCG64(_make_seed(seed, donor, name))
        .advance(start // 4)
        .random_raw((like.numel() + 3) // 4)
    )
    bits = np.asarray(raw, dtype="<u8").view("<u2")[: like.numel()]
    if isinstance(probability, float):
        mask = bits < np.uint16(min(max(round(probability * _STEPS), 1), _STEPS - 1))
    else:
        mask = bits < probability.detach().cpu().double().flatten().numpy() * _STEPS
    return torch.from_numpy(mask).reshape(like.shape).to(like.device)


@lru_cache(maxsize=64)
def _make_seed(seed: int, donor: int, name: str) -> np.random.SeedSequence:
    """Returns the seed of a donor's tensor, once for all of its blocks."""
    key = hashlib.sha256(f"{seed}/{donor}/{name}".encode()).digest()
    return np.random.SeedSequence(int.from_bytes(key, "little"))


def mask_and_rescale(
    values: torch.Tensor, mask: torch.Tensor, probability: float | torch.Tensor, rescale: Rescale
) -> torch.Tensor:
    """Returns ``values`` where ``mask`` keeps them, rescaled, else 0.

    ``inverse`` divides by the probability of being kept, which keeps the expectation (DARE, arXiv
    2311.03099); ``l1`` restores the tensor's L1 norm (mergekit).
    """
    remaining = apply_mask(values, mask)
    if rescale == "inverse":
        return remaining / probability
    norm = remaining.abs().sum()
    return remaining * (values.abs().sum() / norm) if rescale == "l1" and norm > 0 else remaining


def apply_mask(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the values that the mask keeps, else 0.

    On a CPU, numpy multiplies by bytes three times as fast as torch.
    """
    if values.device.type != "cpu":
        return values * mask
    return torch.from_numpy(np.asarray(np.multiply(values.numpy(), mask.numpy())))


Density = float | tuple[float, ...]
"""Probability of being kept: one for all donors, or one for each."""

Gains = Mapping[str, tuple[float, ...]]
"""Factors that restore the L1 norm, by name of the group, then by donor."""


def compute_gains(reader: ParamReader, density: Density, rescale: Rescale, seed: int) -> Gains:
    """Returns the factors that restore the L1 norm of each tensor after ``drop``, from the reader's
    cache where they are there; empty where the rescale is not ``l1``."""
    if rescale != "l1" or _keeps_all(density):
        return {}
    key = ("gains", density, seed)
    if key not in reader.cache:
        reader.cache[key] = _LazyGains(reader, density, seed)
    gains: Gains = reader.cache[key]
    return gains


class _LazyGains(Mapping[str, tuple[float, ...]]):
    """Computes the factors of a group when they are first asked for, and keeps its masks until
    ``drop`` takes them: the group is dropped next, and drawing is the slowest step."""

    def __init__(self, reader: ParamReader, density: Density, seed: int) -> None:
        self._reader, self._density, self._seed = reader, density, seed
        self._groups = {group.name: group for group in reader.groups}
        self._gains: dict[str, tuple[float, ...]] = {}
        self._masks: dict[tuple[str, int], list[torch.Tensor]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, name: str) -> tuple[float, ...]:
        if name not in self._gains:
            self._gains[name] = self._compute(name)
        return self._gains[name]

    def take_masks(self, part: ParamSlice) -> list[torch.Tensor] | None:
        """Returns the masks of a block and forgets them; ``None`` where they are not kept."""
        self[part.name]  # computed first, with the masks
        masks = self._masks.pop((part.name, part.start), None)
        fits = masks is not None and masks[0].shape == part.base.shape
        return masks if fits else None

    def _compute(self, name: str) -> tuple[float, ...]:
        before, after = torch.zeros(2, self._reader.donors, dtype=torch.float64)
        self._masks = {}
        for block in self._reader.blocks_of(self._groups[name]):
            masks = _draw_masks(block, self._density, self._seed)
            self._masks[name, block.start] = masks
            for donor, (vector, mask) in enumerate(zip(block.vectors, masks, strict=True)):
                magnitudes = vector.abs()
                before[donor] += float(magnitudes.sum())
                after[donor] += float(apply_mask(magnitudes, mask).sum())
        return tuple(torch.where(after > 0, before / after, 1.0).tolist())


def drop(
    part: ParamSlice, density: Density, rescale: Rescale, seed: int, gains: Gains
) -> tuple[torch.Tensor, ...]:
    """Returns the task vectors of a group or block with random positions set to 0 and the others
    rescaled."""
    if _keeps_all(density):
        return part.vectors
    masks = gains.take_masks(part) if isinstance(gains, _LazyGains) else None
    masks = _draw_masks(part, density, seed) if masks is None else masks
    vectors = tuple(
        apply_mask(vector, mask) for vector, mask in zip(part.vectors, masks, strict=True)
    )
    if rescale == "inverse":
        densities = spread(density, len(vectors))
        return tuple(
            vector.div_(density) for vector, density in zip(vectors, densities, strict=True)
        )
    if not gains:
        return vectors
    return tuple(vector.mul_(gain) for vector, gain in zip(vectors, gains[part.name], strict=True))


def _keeps_all(density: Density) -> bool:
    return density == 1.0 if isinstance(density, float) else all(each == 1.0 for each in density)


def _draw_masks(part: ParamSlice, density: Density, seed: int) -> list[torch.Tensor]:
    return [
        draw_mask(each, seed, donor, part.name, vector, part.start)
        if each < 1.0
        else torch.ones_like(vector, dtype=torch.bool)
        for donor, (vector, each) in enumerate(
            zip(part.vectors, spread(density, len(part.vectors)), strict=True)
        )
    ]
