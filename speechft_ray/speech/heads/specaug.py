"""SpecAugment on encoder features, as s3prl does it for ASR and SF (``downstream/specaug.py``;
numbers from ``asr/config.yaml``). Speech-FT's official configuration of ASR on TED-LIUM has the
same numbers.

Order: time warp, masks over feature channels, masks over time. All utterances of a padded batch are
done at once; every draw comes from the given generator, on the CPU, so that what is learned is the
same on every device. ``None``: torch's global one.
"""

from __future__ import annotations

import torch

WARP_FRAMES = 5
"""``time_warp_window``: a warp moves its centre by up to so many frames; utterances of twice that
are left alone."""
CHANNEL_MASKS, CHANNEL_MASK_WIDTH = 4, 50
"""``num_freq_mask`` and the exclusive end of ``freq_mask_width_range`` (0 to 49 channels)."""
TIME_MASKS, TIME_MASK_WIDTH = 2, 40
"""``num_time_mask`` and the exclusive end of ``time_mask_width_range`` (0 to 39 frames)."""
CUBIC = -0.75
"""Coefficient of the cubic convolution kernel in torch's bicubic interpolation."""


def spec_augment(
    features: torch.Tensor, frames: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Returns augmented features; ``(batch, frames, dim)`` with ``frames`` valid ones ``(batch,)``,
    in and out."""
    batch, length, dim = features.shape
    features = warp_time(features, *draw_warps(frames, generator))
    channels = draw_masks(batch, dim, CHANNEL_MASKS, CHANNEL_MASK_WIDTH, generator)
    times = draw_masks(batch, length, TIME_MASKS, TIME_MASK_WIDTH, generator)
    hidden = times[:, :, None] | channels[:, None, :]
    return features.masked_fill(hidden.to(features.device), 0.0)


def draw_masks(
    batch: int, size: int, count: int, width: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Returns a mask ``(batch, size)``: the union of ``count`` stretches of 0 to ``width`` - 1
    places per utterance.

    As in s3prl, a stretch starts where even the widest one of the batch would fit, and padding may
    be covered.
    """
    widths = torch.randint(0, width, (batch, count, 1), generator=generator)
    starts = torch.randint(
        0, max(1, size - int(widths.max())), (batch, count, 1), generator=generator
    )
    places = torch.arange(size)
    return ((starts <= places) & (places < starts + widths)).any(dim=1)


def draw_warps(
    frames: torch.Tensor, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns ``(frames, centres, moved)``, each ``(batch,)``: frame ``centre`` comes to lie at
    frame ``moved``.

    The centre keeps ``WARP_FRAMES`` frames on both sides and moves by -4 to 5 frames; too short an
    utterance keeps its frames.
    """
    frames = frames.cpu()
    room = (frames - 2 * WARP_FRAMES).clamp(min=1)
    centres = WARP_FRAMES + (torch.rand(len(frames), generator=generator) * room).long().clamp(
        max=room - 1
    )
    moved = centres + torch.randint(
        1 - WARP_FRAMES, WARP_FRAMES + 1, (len(frames),), generator=generator
    )
    still = frames <= 2 * WARP_FRAMES
    return frames, centres.masked_fill(still, 0), moved.masked_fill(still, 0)


def warp_time(
    features: torch.Tensor, frames: torch.Tensor, centres: torch.Tensor, moved: torch.Tensor
) -> torch.Tensor:
    """Resizes the frames before and after each centre to meet at ``moved``, bicubically along time;
    padding stays.

    Each new frame is a weighted sum of four old ones, so the whole batch is one product with a
    ``(batch, frames, frames)`` matrix.
    """
    batch, length, _ = features.shape
    place = torch.arange(length).expand(batch, length)
    frames, centres, moved = frames[:, None], centres[:, None], moved[:, None]
    left, valid = place < moved, place < frames
    # The piece of each new frame: where it began and how long it was, where it begins and how long
    # it becomes.
    old_start, old_size = (
        torch.where(left, 0, centres),
        torch.where(left, centres, frames - centres),
    )
    new_start, new_size = torch.where(left, 0, moved), torch.where(left, moved, frames - moved)
    source = (place - new_start + 0.5) * (
        old_size / new_size
    ) - 0.5  # frame centres, torch's ``align_corners=False``
    first = source.floor()
    matrix = torch.zeros(batch, length, length)
    for tap in range(-1, 3):
        weight = _cubic((source - first - tap).abs())
        index = old_start + (first.long() + tap).clamp(min=0).minimum(old_size - 1)
        index, weight = (
            torch.where(valid, index, place),
            torch.where(valid, weight, float(tap == 0)),
        )
        matrix.scatter_add_(2, index.unsqueeze(-1), weight.unsqueeze(-1))
    return torch.bmm(matrix.to(features), features)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """The cubic convolution kernel (Keys 1981) for distances of 0 to 2."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
    far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    return torch.where(distance <= 1, near, far)
