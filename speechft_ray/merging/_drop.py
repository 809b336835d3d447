"""Random masks that are the same wherever and in whatever order tensors are merged, and what makes up for the drop."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch

Rescale = Literal["inverse", "l1", "none"]


def kept_mask(probability: float | torch.Tensor, seed: int, donor: int, name: str, like: torch.Tensor) -> torch.Tensor:
    """Returns which positions are kept, each with its own chance, drawn for this seed, donor and tensor name alone.

    ``probability`` is one number or of ``like.shape``. The draw is made on the CPU from the raw bits of numpy's PCG64, whose
    stream numpy guarantees, so the mask is the same on every machine and device.
    """
    key = hashlib.sha256(f"{seed}/{donor}/{name}".encode()).digest()
    raw = np.random.PCG64(int.from_bytes(key, "little")).random_raw((like.numel() + 1) // 2)
    drawn = np.asarray(raw, dtype="<u8").view("<u4")[: like.numel()]
    if isinstance(probability, float):
        kept = drawn < np.uint32(min(probability * 2**32, 2**32 - 1))
    else:
        kept = drawn < probability.detach().cpu().double().flatten().numpy() * 2**32
    return torch.from_numpy(kept).reshape(like.shape).to(like.device)


def dropped(values: torch.Tensor, mask: torch.Tensor, probability: float | torch.Tensor, rescale: Rescale) -> torch.Tensor:
    """Returns ``values`` where ``mask`` keeps them, else 0, scaled up again.

    ``inverse`` divides by the chance to be kept, which keeps the expectation (DARE, arXiv 2311.03099); ``l1`` restores the
    tensor's L1 norm (mergekit).
    """
    kept = values.where(mask, 0.0)
    if rescale == "inverse":
        return kept / probability
    after = kept.abs().sum()
    return kept * (values.abs().sum() / after) if rescale == "l1" and after > 0 else kept
