"""What a plan refuses of a corpus that is synthesised, before any job fails over it."""

from __future__ import annotations

from typing import Any

import pytest

from speechft_ray.commands.checks import check_names
from speechft_ray.core.errors import SweepError
from tests.sweep.fakes import space, sweep


def change(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """Returns the small space with one field changed."""
    raw = space()
    inner: Any = raw
    for step in path[:-1]:
        inner = inner.setdefault(step, {}) if isinstance(inner, dict) else inner[step]
    inner[path[-1]] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "where", "sentence"),
    [
        (
            ("finetune", 0, "objectives", 0, "column"),
            "phone",
            "finetune[0].objectives[0].column",
            "unknown label column `phone`. Did you mean `phones`?",
        ),
        (
            ("finetune", 0, "objectives", 0, "corpus", "options", "dev"),
            0,
            "finetune[0].objectives[0].corpus.name",
            "no utterances in dev",
        ),
        (("evaluate", 0, "column"), "fones", "evaluate[0].column", "needs the column `fones`"),
        (("evaluate", 1, "corpus", "options", "test"), 0, "evaluate[1].corpus.name", "in test"),
    ],
)
def test_columns_and_splits_that_a_part_lacks(
    path: tuple[str | int, ...], value: object, where: str, sentence: str
) -> None:
    with pytest.raises(SweepError) as error:
        check_names(sweep(**change(path, value)))
    # A run for each of two seeds, and the same mistake in both.
    mistakes = {place: text for place, text in error.value.mistakes if "[1].obj" not in place}
    assert mistakes.keys() == {where} and sentence in mistakes[where]


def test_a_task_whose_column_a_part_lacks_is_refused() -> None:
    raw = change(("evaluate", 1, "task"), "er")
    raw["score"]["topline"]["er.accuracy"] = 100
    with pytest.raises(SweepError, match="needs the column `emotion`"):
        check_names(sweep(**raw))
