"""The verbs ``ls`` and ``gc``: prints what a storage holds, and removes what no sweep needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from speechft_ray.commands.stored import list_sweeps
from speechft_ray.commands.unused import (
    StorageUse,
    Unused,
    measure_use,
    remove_unused,
)
from speechft_ray.core.store import CACHE, WORK, Store, measure_folder
from speechft_ray.report.winner import Winner, list_records, read_record

SHOWN_ITEMS = 20


def print_sweeps(store: Store, console: Console) -> None:
    """Prints every sweep with its result and size, then the folders of the storage."""
    use = measure_use(store)
    table = Table("sweep", "status", "best on dev", "test", "merges", "size", "alone", box=None)
    records = {name: read_record(store, name) for name in list_records(store)}
    for name, fingerprint in list_sweeps(store).items():
        record = records.get(name)
        driver = use.running.get(fingerprint)
        winner = record.winner if record else None
        score = winner.test_score if winner else None
        table.add_row(
            name,
            f"runs on {driver}" if driver else record.status if record else "not reported yet",
            Text(_describe_winner(winner) if winner else ""),
            "" if score is None else f"{score:.2f}",
            str(len(record.rows)) if record else "",
            format_bytes(sum(use.bytes_of.get(unit, 0) for unit in use.needed_by[name])),
            format_bytes(_measure_alone(use, name)),
        )
    console.print(table)
    sizes = Counter[str]()
    for (stage, _), size in use.bytes_of.items():
        sizes[stage] += size
    sizes |= {name: measure_folder(store.root / name) for name in ("corpora", CACHE, WORK)}
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items() if size)
    text = Text(f"\n{store.address}: {parts or 'empty'}")
    console.print(text, highlight=False, soft_wrap=True)
    if use.unused:
        console.print(
            f"unused: {_describe(use.unused)}; `speechft gc` lists them",
            highlight=False,
        )


def collect_unused(
    store: Store, console: Console, *, yes: bool, forget: str | None, hours: float
) -> None:
    """Prints what no sweep needs, and removes it with ``yes``. Raises ``UserError``."""
    if yes:
        store.check_writable()
    use = measure_use(store, forget, hours)
    table = Table.grid(padding=(0, 2, 0, 0))
    for item in sorted(use.unused, key=lambda item: -item.bytes)[:SHOWN_ITEMS]:
        table.add_row(format_bytes(item.bytes), item.what)
    console.print(table)
    if len(use.unused) > SHOWN_ITEMS:
        rest = sorted(use.unused, key=lambda item: -item.bytes)[SHOWN_ITEMS:]
        console.print(f"{format_bytes(_sum_bytes(rest))}  in {len(rest)} more", highlight=False)
    total = _describe(use.unused)
    if use.recent:
        console.print(
            f"kept, since they are younger than {hours:g} h: {_describe(use.recent)}",
            highlight=False,
        )
    if not yes:
        console.print(f"would be removed: {total}. Nothing was; --yes removes.", highlight=False)
        return
    remove_unused(store, use.unused, forget)
    console.print(f"removed: {total}", highlight=False)


def format_bytes(size: float) -> str:
    """Returns bytes as ``1.4 GB``, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB" if size < 1000 else f"{size / 1000:.1f} TB"


def _describe_winner(winner: Winner) -> str:
    """Returns the line of a table; with several fine-tuning seeds the encoder, since the score is
    its own."""
    return winner.line if len(winner.seeds) == 1 else winner.title


def _measure_alone(use: StorageUse, name: str) -> int:
    """Returns the bytes of the units that this sweep alone needs."""
    others = frozenset().union(*(own for other, own in use.needed_by.items() if other != name))
    return sum(use.bytes_of.get(unit, 0) for unit in use.needed_by[name] - others)


def _describe(items: Sequence[Unused]) -> str:
    noun = "item" if len(items) == 1 else "items"
    return f"{len(items)} {noun}, {format_bytes(_sum_bytes(items))}"


def _sum_bytes(items: Sequence[Unused]) -> int:
    return sum(item.bytes for item in items)
