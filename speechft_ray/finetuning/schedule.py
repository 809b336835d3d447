"""The learning-rate schedule."""

from __future__ import annotations


def learning_rate(
    update: int, updates: int, peak: float, fractions: tuple[float, float, float]
) -> float:
    """Returns the learning rate of update number ``update`` (from 0).

    It rises linearly from 0 to ``peak``, stays there, and falls linearly to 0.

    ``fractions`` are the shares of rise, flat and fall; the official scheduler has 0.1, 0.4 and
    0.5. Update 0 has rate 0 unless the rise is 0; the fall would reach 0 at update ``updates``,
    which does not exist.
    """
    rise, flat = fractions[0] * updates, (fractions[0] + fractions[1]) * updates
    if update < rise:
        return peak * update / rise
    if update < flat or flat >= updates:
        return peak
    return peak * (updates - update) / (updates - flat)
