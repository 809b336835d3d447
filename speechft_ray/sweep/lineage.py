"""Where a merged encoder comes from: the merges of a chain, back to the pre-trained encoder, as the
store remembers them."""

from __future__ import annotations

from typing import Any

from speechft_ray.core.store import Store


def read_lineage(store: Store, encoder: str) -> list[dict[str, Any]]:
    """Returns the recipes of an encoder and of all that it starts from, the earliest first; none
    for a pre-trained one."""
    recipes: list[dict[str, Any]] = []
    while store.is_complete("merge", encoder):
        facts = store.manifest("merge", encoder)
        recipes.insert(
            0,
            {"merge": encoder, **{name: value for name, value in facts.items() if name != "files"}},
        )
        encoder = str(facts["base"])
    return recipes


def find_pretrained(store: Store, base: str) -> str:
    """Returns the fingerprint of the pre-trained encoder that a chain began with, given the base of
    its last merge."""
    recipes = read_lineage(store, base)
    return str(recipes[0]["base"]) if recipes else base
