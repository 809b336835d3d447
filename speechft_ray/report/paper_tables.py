"""The tables of Speech-FT (arXiv 2502.12672 v1) as data, and which line of a sweep is which row.

``assets/paper/tables.csv`` has every row of tables 1 to 16, and table VIII of a later version, of
which only the scores are known (from a secondary note). Each number is of one run. The noise that
follows from the sizes of the test sets is in ``compute_sampling_error``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from speechft_ray.core.metrics import METRICS
from speechft_ray.report.lines import TableLine, dev_score

_FILE = Path(__file__).parents[1] / "assets" / "paper" / "tables.csv"

COLUMNS = {
    "superb_score": "score",
    "PR_PER": "pr.per",
    "SID_ACC": "sid.accuracy",
    "ER_ACC": "er.accuracy",
    "SF_F1": "sf.slot_type_f1",
    "SF_CER": "sf.slot_value_cer",
    "zh_CER": "asr_zh.cer",
    "ASR_WER": "asr.wer",
    "KS_ACC": "ks.accuracy",
    "QbE_MTWV": "qbe.mtwv",
    "ASV_EER": "asv.eer",
    "SD_DER": "sd.der",
    "IC_ACC": "ic.accuracy",
}
"""Column of the file: name of the metric."""

RUNS = {
    "ASR on TED-LIUM": "asr-tedlium3",
    "PC on TIMIT": "pc-timit",
    "PC on TIMIT (inferred)": "pc-timit",
    "ER on CREMA-D": "er-crema-d",
    "SID on LibriSpeech": "sid-librispeech",
    "ASR on LibriSpeech": "asr-librispeech",
    "PR on LibriSpeech": "pr-librispeech",
    "SID on VoxCeleb1": "sid-voxceleb1",
    "ER on IEMOCAP": "er-iemocap",
    "continued pre-training on AISHELL-3": "cpt-aishell3",
}
"""Fine-tuning task of the paper: name of the run in ``search_spaces/paper``."""

_TEST_UTTERANCES = {"sid.accuracy": 8251, "er.accuracy": 5531}
"""Test utterances behind a published accuracy: VoxCeleb1's identification test set, and IEMOCAP's
five sessions, each once a test set (SUPERB, arXiv 2105.01051)."""

LATER = 17
"""Number by which table VIII of the later version goes here, behind all others."""

_LATER_NAME = "VIII"

SPACES: Mapping[int, tuple[str, ...]] = {
    1: ("table01",),
    2: ("table01",),
    3: ("table03",),
    4: ("table04",),
    5: ("table04",),
    6: ("table06_wav2vec2_base", "table06_decoar2"),
    7: ("table07",),
    8: ("table08",),
    9: ("table09",),
    10: ("table10",),
    11: ("table07",),
    12: ("table04",),
    13: ("table03",),
    14: ("table09",),
    15: (),
    16: ("table16",),
    LATER: ("table_viii",),
}
"""Search spaces of each table, below ``search_spaces/paper``. Table 15 has references alone."""

TITLES = {
    1: "Score after fine-tuning on one task",
    2: "The metrics behind table 1",
    3: "Continued pre-training on Mandarin",
    4: "Two fine-tuning tasks, four ways",
    5: "Two tasks one after the other against each alone",
    6: "Other pre-trained encoders",
    7: "Interpolation against regularization",
    8: "Interpolation without stable fine-tuning",
    9: "Score across alpha",
    10: "Stable against regular fine-tuning",
    11: "The metrics behind table 7",
    12: "The metrics behind table 5",
    13: "The metrics behind table 3",
    14: "The metrics behind table 9",
    15: "References of the score",
    16: "All ten tasks of SUPERB",
    LATER: "Interpolation against regularization, adapters and an early checkpoint",
}


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row of a table: what was fine-tuned and how, and its numbers by metric name."""

    table: int
    task: str
    """Fine-tuning task in the paper's words; ``none`` for the pre-trained encoder."""
    method: str
    model: str
    alpha: float | None
    strategy: str
    values: Mapping[str, float]
    note: str

    @property
    def title(self) -> str:
        """The row in the paper's words."""
        parts = [self.method, "" if self.task == "none" else self.task, self.strategy]
        return ", ".join(part for part in parts if part not in ("", "none", "single"))


def name_table(number: int) -> str:
    """Returns the name of a table in its paper."""
    return _LATER_NAME if number == LATER else str(number)


def find_table(name: str) -> int | None:
    """Returns the number of a table by its name, or ``None`` where there is none."""
    return next((number for number in SPACES if name_table(number) == name), None)


@cache
def read_published_rows() -> tuple[PublishedRow, ...]:
    """Returns every row of every table."""
    numbers = {name_table(number): number for number in SPACES}
    with _FILE.open(encoding="utf-8", newline="") as file:
        return tuple(
            PublishedRow(
                table=numbers[row["table"]],
                task=row["finetune_task"],
                method=row["method"],
                model=row["model"],
                alpha=float(row["alpha"]) if row["alpha"] else None,
                strategy=row["strategy"],
                values={name: float(row[key]) for key, name in COLUMNS.items() if row[key]},
                note=row["note"],
            )
            for row in csv.DictReader(file)
        )


def list_rows(table: int) -> list[PublishedRow]:
    """Returns the rows of one table."""
    return [row for row in read_published_rows() if row.table == table]


def compute_sampling_error(row: PublishedRow) -> float | None:
    """Returns the standard error of a published score over four tasks, in points, from the numbers
    of test utterances of SID and ER alone; ``None`` where these metrics are not published and for
    the score over ten tasks.

    Accuracies are taken as binomial, and a task is a quarter of the score. PR and SF add to the
    error, and so do other seeds: this is a lower bound.
    """
    if "ks.accuracy" in row.values:
        return None
    row = next(
        (
            other
            for other in (row, *read_published_rows())
            if set(_TEST_UTTERANCES) <= set(other.values)
            and (other.task, other.method, other.model, other.alpha, other.strategy)
            == (row.task, row.method, row.model, row.alpha, row.strategy)
        ),
        row,
    )
    if not set(_TEST_UTTERANCES) <= set(row.values):
        return None
    variance = 0.0
    for name, count in _TEST_UTTERANCES.items():
        share, metric = row.values[name] / 100, METRICS[name]
        assert metric.fbank is not None and metric.sota is not None
        points = 1000 / 4 / (metric.sota - metric.fbank)
        variance += points**2 * 100**2 * share * (1 - share) / count
    return math.sqrt(variance)


def find_line(row: PublishedRow, lines: Sequence[TableLine]) -> TableLine | None:
    """Returns the line of the sweep that is this row, or ``None`` where there is none.

    Of the lambdas of a regularized run it is the one with the best score on dev.
    """
    if row.alpha == 0:
        return next((line for line in lines if line.role == "pre-trained"), None)
    run = _find_run(row)
    matching = [
        line
        for line in lines
        if line.params.get("finetune") == run
        and line.params.get("alpha") == row.alpha
        and (line.params.get("method") == "ties") == (row.strategy == "TIES Merge")
    ]
    return max(matching, key=dev_score, default=None)


_RUN_SUFFIXES = {
    "Regularization": "l2sp",
    "LoRA": "lora",
    "DoRA": "dora",
    "Early checkpoint": "early",
}


def _find_run(row: PublishedRow) -> str | None:
    """Returns the title of the fine-tuning runs behind a row in its search space."""
    by_strategy = {
        "MTF": "mtf-pr-sid",
        "Linear Merge": "pr-librispeech+sid-voxceleb1",
        "TIES Merge": "pr-librispeech+sid-voxceleb1",
        "Sequential": "pr-librispeech>sid-after-merge"
        if row.alpha == 0.25
        else "pr-librispeech>sid-after-tuning",
    }
    if row.strategy in by_strategy:
        return by_strategy[row.strategy]
    run = RUNS.get(row.task)
    if run is None:
        return None
    short = {"pc-timit": "pc", "sid-voxceleb1": "sid", "er-crema-d": "er"}.get(run, run)
    if row.method in _RUN_SUFFIXES:
        return f"{short}-{_RUN_SUFFIXES[row.method]}"
    if row.method in ("Regular fine-tuning", "Speech-FT w/o stable fine-tuning"):
        return f"{short}-regular"
    return run
