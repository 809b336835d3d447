"""The verb ``verify``: reads a whole storage and compares it with its checksums."""

from __future__ import annotations

from rich.console import Console

from speechft_ray.core.store import Store


def verify_store(store: Store, repair: bool, console: Console) -> int:
    """Prints every damaged unit, sets them aside with ``repair``, and returns their number. Raises
    ``UserError`` where the storage cannot be repaired since it can only be read."""
    if repair:
        store.check_writable()
    units = store.list_units()
    damaged = 0
    for stage, key in units:
        damage = store.explain_damage(stage, key, contents=True)
        if damage is None:
            continue
        damaged += 1
        kept = f" Kept as {store.set_aside(stage, key)}." if repair else ""
        console.print(f"damaged: {stage} {key}: {damage}.{kept}")
    console.print(f"{len(units)} units in {store.address}, {damaged} of them damaged.")
    if damaged:
        console.print(
            "Run the sweep again: it computes what was set aside."
            if repair
            else "With --repair they are set aside, and the next run computes them again."
        )
    return damaged
