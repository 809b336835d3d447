"""The results of one sweep as tables of pandas, and its encoders."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from speechft_ray.api.frames import make_frame
from speechft_ray.commands.stored import StoredSweep
from speechft_ray.core.errors import UserError, did_you_mean
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.report.comparison import headline
from speechft_ray.report.lines import TableLine, find_winner, metric_names
from speechft_ray.report.series import make_series
from speechft_ray.report.table import make_records
from speechft_ray.report.winner import select_seed

if TYPE_CHECKING:
    import pandas as pd

    from speechft_ray.speech.encoders.base import EncoderWeights


class SweepResults:
    """What the store has of a sweep. Read once, when it is opened: open it again for more.

    Scores are points of the SUPERB score (0 is FBank, 1000 the topline); the units of metrics are
    those of ``speechft tasks``. Plain columns are test, those that begin with ``dev.`` are dev.
    """

    def __init__(self, store: Store, stored: StoredSweep) -> None:
        self._store, self._stored = store, stored

    def __repr__(self) -> str:
        return f"<sweep {self.name}, {self.status}: {headline(self._lines)}>"

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self._stored.name

    @property
    def status(self) -> str:
        """``finished``, ``failed`` (some jobs), ``stopped``, or ``not reported yet``."""
        return self._stored.status

    @property
    def spec(self) -> SweepSpec:
        """What was run, every axis expanded and every default filled in."""
        return self._stored.plan.spec

    @cached_property
    def _lines(self) -> list[TableLine]:
        return self._stored.data.lines

    def table(self) -> pd.DataFrame:
        """Returns the table of the report, best test score first.

        Columns: ``title``, ``role`` (pre-trained, merge, stable fine-tuning), ``chosen`` (selected
        on dev), ``seeds`` (encoders averaged), ``spread_over``, ``missing``, ``untuned``,
        ``leaks``, ``encoder`` (fingerprint); a column for each parameter (``alpha``, ``method``,
        ...); ``score`` and each metric, with ``.spread`` (sample standard deviation), ``.low`` and
        ``.high`` (95 % interval over test speakers); and the same of dev.
        """
        header, records = make_records(self._lines)
        for record, line in zip(records, self._lines, strict=True):
            record["encoder"] = select_seed(line).key
            record["chosen"] = line.chosen
        place = header.index("leaks") + 1
        return make_frame(records, [*header[:place], "encoder", *header[place:]])

    def best(self) -> pd.Series[object]:
        """Returns the row of ``table`` that dev selected. Raises ``UserError`` while there is
        none."""
        table, line = self.table(), find_winner(self._lines)
        if line is None:
            raise UserError(f"the sweep `{self.name}`: {headline(self._lines)}")
        return table.loc[self._lines.index(line)]

    def encoder(self, row: int | str | None = None) -> EncoderWeights:
        """Returns a merged encoder of the sweep, as ``speechft_ray.load_encoder`` does from a file.

        ``row``: an index or a title of ``table``, or a fingerprint; by default what dev selected.
        Of a row with several fine-tuning seeds, the one with the best dev score. Raises
        ``UserError`` for another row, and where the weights are no longer in the store.
        """
        from speechft_ray.speech.checkpoints.load import load_encoder

        key = self._find_encoder(row)
        file = self._store.folder("merge", key) / "encoder.safetensors"
        if not file.is_file():
            raise UserError(
                f"the weights of {key} are not in {self._store.address}: run the sweep again, "
                "which makes them anew."
            )
        return load_encoder(file)

    def _find_encoder(self, row: int | str | None) -> str:
        lines = self._lines
        if row is None:
            winner = find_winner(lines)
            if winner is None:
                raise UserError(f"the sweep `{self.name}`: {headline(lines)}")
            return select_seed(winner).key
        if isinstance(row, str):
            keys = [item.key for line in lines for item in line.rows if item.key == row]
            titles = [select_seed(line).key for line in lines if line.title == row]
            if keys or titles:
                return (keys or titles)[0]
            near = did_you_mean(row, [line.title for line in lines])
            raise UserError(f"the sweep `{self.name}` has no row `{row}`.{near}")
        if not 0 <= row < len(lines):
            raise UserError(f"the sweep `{self.name}` has the rows 0 to {len(lines) - 1}.")
        return select_seed(lines[row]).key

    def curve(self, metric: str = "score") -> pd.DataFrame:
        """Returns a metric on test by alpha, one series for each set of other parameters; each
        begins at the pre-trained encoder.

        Columns: ``series``, ``alpha``, the metric, ``low`` and ``high`` (95 % interval over test
        speakers), ``spread`` (sample standard deviation) with ``spread_over``, ``dev`` (the metric
        on dev), ``seeds``, ``title``. Raises ``UserError`` for a metric that the sweep lacks.
        """
        names = ["score", *metric_names(self._lines)]
        if metric not in names:
            raise UserError(f"the sweep `{self.name}` has the metrics {', '.join(names)}.")
        records = [
            {
                "series": series.title,
                "alpha": alpha,
                metric: line.mean[metric],
                **dict(zip(("low", "high"), line.intervals.get(metric, ()), strict=False)),
                "spread": line.spread.get(metric),
                "spread_over": line.spread_over,
                "dev": line.dev_mean.get(metric),
                "seeds": line.count,
                "title": line.title,
            }
            for series in make_series(self._lines, metric)
            for alpha, line in series.points
        ]
        shared = ("low", "high", "spread", "spread_over", "dev", "seeds", "title")
        return make_frame(records, ["series", "alpha", metric, *shared])

    def leaks(self) -> pd.DataFrame:
        """Returns one row per fine-tuning run and task whose data overlap; none is good news.

        Columns: ``finetune``, ``task``, ``utterances`` and ``of_utterances`` (of the test set),
        ``speakers`` and ``of_speakers`` (0: cannot be compared), ``sentence``.
        """
        leaks = dict.fromkeys(leak for line in self._lines for leak in line.leaks)
        records = [{**leak._asdict(), "sentence": leak.sentence()} for leak in leaks]
        counts = ("utterances", "of_utterances", "speakers", "of_speakers")
        return make_frame(records, ["finetune", "task", *counts, "sentence"])
