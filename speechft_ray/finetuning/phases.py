"""Trainable encoder parameters of each update: names and numbers only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def head_only_updates(fraction: float, updates: int) -> int:
    """Returns how many updates at the start train the head alone: floor(fraction * updates).

    The paper's beta is 0.1 (official configs, ``grad_scheduler.finetune_steps``). The product is
    rounded to nine digits first, so that 0.29 of 100 is 29 in spite of binary fractions.
    """
    return math.floor(round(fraction * updates, 9))


def is_head_only(update: int, fraction: float, updates: int) -> bool:
    """Whether update number ``update`` (from 0) trains the head alone."""
    return update < head_only_updates(fraction, updates)


def trainable_names(
    names: Iterable[str],
    *,
    freeze_front_end: bool,
    front_end_prefixes: Sequence[str],
    pretraining_only_prefixes: Sequence[str],
) -> frozenset[str]:
    """Returns the encoder parameters that are trainable after the head-only phase.

    With ``freeze_front_end`` the front end stays frozen in both phases (paper section 3.1). The
    head-only phase freezes the whole encoder either way. Parameters that only pre-training uses do
    not affect features and keep their start value.
    """
    frozen = tuple(pretraining_only_prefixes) + (
        tuple(front_end_prefixes) if freeze_front_end else ()
    )
    return frozenset(name for name in names if not name.startswith(frozen))
