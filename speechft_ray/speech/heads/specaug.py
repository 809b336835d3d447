"""SpecAugment on encoder features, as s3prl does it for ASR and SF (``downstream/specaug.py``;
numbers from ``asr/config.yaml``). Speech-FT's official configuration of ASR on TED-LIUM has the
same numbers.

Order: time warp, masks over feature channels, masks over time. All utterances of a padded batch are
augmented at once. Every draw comes from the generator that is passed, on the CPU, so results are
the same on every device; ``None`` is torch's global generator.
"""

from __future__ import annotations

import torch

WARP_FRAMES = 5
"""``time_warp_window``: a warp moves its centre by up to so many frames. Utterances of at most
twice as many frames are not warped."""
CHANNEL_MASKS, CHANNEL_MASK_WIDTH = 4, 50
"""``num_freq_mask`` and the exclusive end of ``freq_mask_width_range`` (0 to 49 channels)."""
TIME_MASKS, TIME_MASK_WIDTH = 2, 40
"""``num_time_mask`` and the exclusive end of ``time_mask_width_range`` (0 to 39 frames)."""
CUBIC = -0.75
"""Coefficient of the cubic convolution kernel in torch's bicubic interpolation."""


def spec_augment(
    features: torch.Tensor, frames: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Returns augmented features ``(batch, frames, dim)``, of which ``frames`` ``(batch,)`` are
    valid."""
    batch, length, dim = features.shape
    features = warp_time(features, *draw_warps(frames, generator))
    channels = draw_masks(batch, dim, CHANNEL_MASKS, CHANNEL_MASK_WIDTH, generator)
    times = draw_masks(batch, length, TIME_MASKS, TIME_MASK_WIDTH, generator)
    hidden = times[:, :, None] | channels[:, None, :]
    return features.masked_fill(hidden.to(features.device), 0.0)


def draw_masks(
    batch: int, size: int, count: int, width: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Returns a mask ``(batch, size)``: the union of ``count`` spans of 0 to ``width`` - 1
    positions per utterance.

    As in s3prl, a span starts where even the widest one of the batch would fit, and may cover
    padding.
    """
    widths = torch.randint(0, width, (batch, count, 1), generator=generator)
    starts = torch.randint(
        0, max(1, size - int(widths.max())), (batch, count, 1), generator=generator
    )
    positions = torch.arange(size)
    return ((starts <= positions) & (positions < starts + widths)).any(dim=1)


def draw_warps(
    frames: torch.Tensor, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns ``(frames, centres, destinations)``, each ``(batch,)``: frame ``centre`` is moved to
    frame ``destination``.

    The centre has at least ``WARP_FRAMES`` frames on both sides and moves by -4 to 5 frames. An
    utterance that is too short is not warped.
    """
    frames = frames.cpu()
    choices = (frames - 2 * WARP_FRAMES).clamp(min=1)
    offsets = (torch.rand(len(frames), generator=generator) * choices).long()
    centres = WARP_FRAMES + offsets.clamp(max=choices - 1)
    shifts = torch.randint(1 - WARP_FRAMES, WARP_FRAMES + 1, (len(frames),), generator=generator)
    short = frames <= 2 * WARP_FRAMES
    return frames, centres.masked_fill(short, 0), (centres + shifts).masked_fill(short, 0)


def warp_time(
    features: torch.Tensor, frames: torch.Tensor, centres: torch.Tensor, destinations: torch.Tensor
) -> torch.Tensor:
    """Resizes the frames before and after each centre so that they meet at its destination,
    bicubically along time. Padding is not changed.

    Each new frame is a weighted sum of four old ones, so the whole batch is one product with a
    ``(batch, frames, frames)`` matrix.
    """
    batch, length, _ = features.shape
    position = torch.arange(length).expand(batch, length)
    frames, centres, destinations = frames[:, None], centres[:, None], destinations[:, None]
    before, valid = position < destinations, position < frames
    # Start and size of the side of the centre on which each new frame lies, old and new.
    old_start = torch.where(before, 0, centres)
    old_size = torch.where(before, centres, frames - centres)
    new_start = torch.where(before, 0, destinations)
    new_size = torch.where(before, destinations, frames - destinations)
    # Where each new frame lies among the old ones: at frame centres, ``align_corners=False``.
    source = (position - new_start + 0.5) * (old_size / new_size) - 0.5
    first = source.floor()
    # The weights of the four old frames around it; padding keeps its own frame.
    indices, weights = [], []
    for tap in range(-1, 3):
        index = old_start + (first.long() + tap).clamp(min=0).minimum(old_size - 1)
        indices.append(torch.where(valid, index, position))
        weights.append(torch.where(valid, _cubic((source - first - tap).abs()), float(tap == 0)))
    # Made on the device, to which the four weights of each frame are copied and not the matrix. No
    # two weights of one tap meet, so that each sum has one order on every device.
    matrix = torch.zeros(batch, length, length, device=features.device)
    of_taps = torch.stack(indices).unsqueeze(-1).to(features.device)
    for index, weight in zip(of_taps, torch.stack(weights).to(features.device), strict=True):
        matrix.scatter_add_(2, index, weight.unsqueeze(-1))
    return torch.bmm(matrix.to(features), features)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """The cubic convolution kernel (Keys 1981) for distances of 0 to 2."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
    far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    return torch.where(distance <= 1, near, far)
