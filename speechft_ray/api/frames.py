"""Makes tables of pandas, which takes half a second to load and so waits until it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def make_frame(records: Sequence[Mapping[str, object]], columns: Sequence[str]) -> pd.DataFrame:
    """Returns a table with these columns in this order; what a record lacks is missing there."""
    import pandas as pd

    return pd.DataFrame.from_records(list(records), columns=list(columns))
