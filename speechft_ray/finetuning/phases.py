"""Which encoder parameters learn at which update. Pure: names and numbers only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def head_only_updates(fraction: float, updates: int) -> int:
    """Returns how many updates at the start teach the head alone: floor(fraction * updates).

    The paper's beta is 0.1 (official configs, ``grad_scheduler.finetune_steps``). The product is
    rounded to nine digits first, so that 0.29 of 100 is 29 in spite of binary fractions.
    """
    return math.floor(round(fraction * updates, 9))


def is_head_only(update: int, fraction: float, updates: int) -> bool:
    """Whether update number ``update`` (from 0) teaches the head alone."""
    return update < head_only_updates(fraction, updates)


def learnable(
    names: Iterable[str],
    *,
    freeze_front_end: bool,
    front_end_prefixes: Sequence[str],
    pretraining_only_prefixes: Sequence[str],
) -> frozenset[str]:
    """Returns the encoder parameters that learn once the head-only phase is over.

    The front end never learns if ``freeze_front_end`` (paper section 3.1), whatever the phase; the
    head-only phase holds whatever the front end does. Parameters of pre-training take no part in
    features and keep their start value.
    """
    frozen = tuple(pretraining_only_prefixes) + (
        tuple(front_end_prefixes) if freeze_front_end else ()
    )
    return frozenset(name for name in names if not name.startswith(frozen))
