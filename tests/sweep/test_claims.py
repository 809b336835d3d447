"""Two sweeps that share a unit compute it once: the claims of their drivers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from speechft_ray.core.lease import STALE_SECONDS, describe_this_process
from speechft_ray.core.records import Job
from speechft_ray.core.store import Store
from speechft_ray.sweep.claims import UnitClaims, name_claim
from speechft_ray.sweep.lock import hold_lock

Open = Callable[[str], UnitClaims]


def make_job(key: str = "abc", stage: str = "finetune") -> Job:
    fields = {"stage": stage, "fingerprint": key, "label": f"{stage} {key}", "payload": {}}
    return Job.model_validate(fields)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def open_claims(store: Store, notes: list[str]) -> Iterator[Open]:
    """Opens the claims of a driver that holds the lock of a sweep until the test ends."""
    with ExitStack() as stack:

        def open_one(sweep: str) -> UnitClaims:
            stack.enter_context(hold_lock(store, sweep, threading.Event(), notes.append))
            return UnitClaims(store, sweep, notes.append)

        yield open_one


def test_the_second_driver_waits_until_the_first_gives_the_unit_up(
    open_claims: Open, notes: list[str]
) -> None:
    first, second = open_claims("one"), open_claims("two")
    assert first.take(make_job()) and first.take(make_job())
    assert not second.take(make_job()) and not second.take(make_job())
    assert second.take(make_job("other"))
    (line,) = notes
    assert "finetune abc is computed by another sweep" in line
    first.release("abc")
    assert second.take(make_job())
    assert not first.take(make_job())
    second.release_all()
    assert first.take(make_job())


def test_merges_need_no_claim(open_claims: Open) -> None:
    job = make_job(stage="merge")
    assert open_claims("one").take(job) and open_claims("two").take(job)


def test_the_claims_of_a_driver_that_has_ended_are_taken_over(store: Store) -> None:
    stop, second = threading.Event(), UnitClaims(store, "two", print)
    with hold_lock(store, "one", stop, print):
        assert UnitClaims(store, "one", print).take(make_job())
        with hold_lock(store, "two", stop, print):
            assert not second.take(make_job())
    assert second.take(make_job())
    # The same sweep again: its first claim is that of another life.
    with hold_lock(store, "one", stop, print):
        again = UnitClaims(store, "one", print)
        assert again.take(make_job("new"))


def test_a_restarted_driver_takes_its_own_claims_over(store: Store) -> None:
    stop = threading.Event()
    with hold_lock(store, "one", stop, print):
        assert UnitClaims(store, "one", print).take(make_job())
    with hold_lock(store, "one", stop, print):
        claims = UnitClaims(store, "one", print)
        assert claims.take(make_job())
        with hold_lock(store, "two", stop, print):
            other = UnitClaims(store, "two", print)
            assert not other.take(make_job())
            claims.release_all()
            assert other.take(make_job())


def test_a_driver_elsewhere_is_dead_when_its_lock_does_not_change(store: Store) -> None:
    """Of another host nothing is known but the renewals of its lock; clocks are not compared."""
    now = [1000.0]
    holder = describe_this_process()._replace(host="elsewhere", token="t")
    lock = store.root / "locks" / "one" / "1"
    lock.mkdir(parents=True)

    def write(renewals: int) -> None:
        (lock / "lease.json").write_text(json.dumps(holder._replace(renewals=renewals)._asdict()))

    write(1)
    claims = store.root / "claims"
    claims.mkdir()
    (claims / "finetune-abc.1").write_text(json.dumps({"sweep": "one", "token": "t"}))
    second = UnitClaims(store, "two", print, lambda: now[0])
    assert not second.take(make_job())
    now[0] += STALE_SECONDS - 1
    assert not second.take(make_job())
    write(2)
    now[0] += STALE_SECONDS - 1
    assert not second.take(make_job())
    now[0] += STALE_SECONDS + 1
    assert second.take(make_job())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_claim_that_is_half_written_counts_for_a_while(store: Store, content: str) -> None:
    now = [0.0]
    (store.root / "claims").mkdir()
    (store.root / "claims" / "finetune-abc.1").write_text(content)
    claims = UnitClaims(store, "two", print, lambda: now[0])
    assert not claims.take(make_job())
    now[0] = STALE_SECONDS + 1
    assert claims.take(make_job())


def test_of_many_drivers_at_once_one_gets_each_unit(open_claims: Open) -> None:
    """Claims of a dead driver lie there, too, which all find at the same moment."""
    drivers = [open_claims(f"sweep-{number}") for number in range(4)]
    keys = [f"{number:03x}" for number in range(60)]
    dead = {"sweep": "gone", "token": "gone"}
    for claims in drivers[:1]:
        (claims._store.root / "claims").mkdir(exist_ok=True)
        for key in keys[::2]:
            claims._store.create_file(name_claim(make_job(key), 1), json.dumps(dead))
    winners: dict[str, list[int]] = {key: [] for key in keys}
    start = threading.Barrier(len(drivers))

    def race(number: int) -> None:
        start.wait()
        for key in keys:
            if drivers[number].take(make_job(key)):
                winners[key].append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(len(drivers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key: len(numbers) for key, numbers in winners.items()} == dict.fromkeys(keys, 1)


def test_where_no_claim_can_be_written_the_unit_is_computed(store: Store) -> None:
    (store.root / "claims").write_text("a file in the way")
    assert UnitClaims(store, "one", print).take(make_job())
