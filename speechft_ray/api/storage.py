"""The sweeps of a storage folder as tables of pandas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speechft_ray.api.frames import make_frame
from speechft_ray.api.results import SweepResults
from speechft_ray.commands.stored import list_sweeps, open_store, read_sweep
from speechft_ray.core.store import Store
from speechft_ray.report.winner import list_records, read_record

if TYPE_CHECKING:
    import pandas as pd


def open_storage(path: str | Path = "runs") -> Storage:
    """Opens a storage, a folder or a URL, as ``speechft_ray.open``. Raises ``UserError`` where it
    is not there."""
    return Storage(open_store(path))


class Storage:
    """A storage folder with its sweeps."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __repr__(self) -> str:
        return (
            f"<storage {self.store.address}: {', '.join(list_sweeps(self.store)) or 'no sweeps'}>"
        )

    def sweeps(self) -> pd.DataFrame:
        """Returns one row per sweep: ``sweep``, ``status``, ``best`` (title of the merge that dev
        selected), ``dev_score`` and ``test_score`` of that encoder (points), ``merges``."""
        records = {name: read_record(self.store, name) for name in list_records(self.store)}
        columns = ["sweep", "status", "best", "dev_score", "test_score", "merges"]
        rows: list[dict[str, object]] = []
        for name in list_sweeps(self.store):
            record = records.get(name)
            winner = record.winner if record else None
            rows.append(
                {
                    "sweep": name,
                    "status": record.status if record else "not reported yet",
                    "best": winner.title if winner else None,
                    "dev_score": winner.dev_score if winner else None,
                    "test_score": winner.test_score if winner else None,
                    "merges": len(record.rows) if record else None,
                }
            )
        return make_frame(rows, columns)

    def sweep(self, name: str) -> SweepResults:
        """Returns the results of a sweep. Raises ``UserError`` for a name that is not there, with
        those that are."""
        return SweepResults(self.store, read_sweep(self.store, name))
