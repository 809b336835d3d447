"""Reads the lineage of a merged encoder from the store: the merges of its chain, back to the
pre-trained encoder."""

from __future__ import annotations

from typing import Any

from speechft_ray.core.store import MADE_WITH, Store

WEIGHT_DISTANCE = "weight_distance"
"""Fact of a merge: its distance from the pre-trained encoder by part of the encoder."""

NOT_RECIPE = ("files", MADE_WITH, WEIGHT_DISTANCE)
"""What the manifest of a merge has beside the recipe."""


def read_lineage(store: Store, encoder: str) -> list[dict[str, Any]]:
    """Returns the merge recipes from the pre-trained encoder to this one, the earliest first.

    The list is empty for a pre-trained encoder.
    """
    recipes: list[dict[str, Any]] = []
    while store.is_complete("merge", encoder):
        facts = store.manifest("merge", encoder)
        recipes.insert(
            0,
            {"merge": encoder, **{name: facts[name] for name in facts if name not in NOT_RECIPE}},
        )
        encoder = str(facts["base"])
    return recipes


def find_pretrained(store: Store, base: str) -> str:
    """Returns the fingerprint of the pre-trained encoder at the start of a chain, from the base of
    its last merge."""
    recipes = read_lineage(store, base)
    return str(recipes[0]["base"]) if recipes else base
