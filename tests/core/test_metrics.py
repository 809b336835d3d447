"""The metric table."""

from __future__ import annotations

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import METRICS, is_better, metric, metrics_of


def test_names_are_task_and_measure() -> None:
    for name, item in METRICS.items():
        assert name == item.name
        assert name.split(".")[0] == item.task
    assert len({item.title for item in METRICS.values()}) == len(METRICS)


def test_references_agree_with_the_direction() -> None:
    """The value that counts as 1 must be the better one; a swapped pair would reverse the score."""
    scored = [item for item in METRICS.values() if item.fbank is not None or item.sota is not None]
    assert len(scored) == 11  # ten tasks, slot filling has two
    for item in scored:
        assert item.fbank is not None and item.sota is not None
        assert is_better(item.name, item.sota, than=item.fbank)


def test_better_knows_the_direction_and_is_strict() -> None:
    assert is_better("pr.per", 4.0, than=5.0) and not is_better("pr.per", 5.0, than=4.0)
    assert is_better("sid.accuracy", 5.0, than=4.0) and not is_better("sid.accuracy", 4.0, than=5.0)
    assert not is_better("pr.per", 4.0, than=4.0) and not is_better("sid.accuracy", 4.0, than=4.0)


def test_values_are_printed_as_the_paper_prints_them() -> None:
    assert metric("pr.per").format(5.174) == "5.17"
    assert metric("qbe.mtwv").format(0.06868) == "0.0687"


def test_metrics_of_a_task() -> None:
    assert [item.name for item in metrics_of("sf")] == ["sf.slot_type_f1", "sf.slot_value_cer"]
    assert metrics_of("nothing") == []


def test_unknown_metric() -> None:
    with pytest.raises(UserError, match=r"unknown metric `asr.wre`. Did you mean `asr.wer`\?"):
        metric("asr.wre")
