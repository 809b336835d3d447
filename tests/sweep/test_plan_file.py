"""Plans in the store: what is read is what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Place
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.plan_file import find_plan, list_plans, read_plan, write_plan
from tests.search.search_fakes import search_plan
from tests.sweep.fakes import inputs, sweep


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan, store = make_plan(sweep(), inputs()), Store(tmp_path)
    place = Place(storage=str(tmp_path), encoder="tiny_hubert", roots={"timit": "/data/timit"})
    write_plan(plan, place, store)
    again = read_plan(store, plan.fingerprint)
    assert again == (plan, place)
    # The order of parameters is that of titles.
    assert [list(row.params) for row in again.plan.rows] == [list(row.params) for row in plan.rows]
    assert list(again.plan.jobs) == list(plan.jobs)
    assert list_plans(store) == [(plan.spec.name, plan.fingerprint)]


def test_a_search_keeps_the_jobs_that_no_row_needs(tmp_path: Path) -> None:
    plan, store = search_plan(), Store(tmp_path)
    place = Place(storage=str(tmp_path), encoder="tiny_hubert")
    write_plan(plan.controls, place, store, plan.jobs)
    again = read_plan(store, plan.fingerprint).plan
    assert again.spec == plan.spec and dict(again.jobs) == dict(plan.jobs)
    assert again.rows == plan.controls.rows


@pytest.mark.parametrize("content", [None, "", "[]", '{"spec": {}}'])
def test_a_damaged_plan_is_one_sentence(tmp_path: Path, content: str | None) -> None:
    store = Store(tmp_path)
    path = find_plan(store, "0" * 16)
    if content is not None:
        path.parent.mkdir()
        path.write_text(content)
    with pytest.raises(UserError, match=r"`speechft report` .* writes it") as caught:
        read_plan(store, "0" * 16)
    assert "\n" not in str(caught.value)
    assert list_plans(store) == []
