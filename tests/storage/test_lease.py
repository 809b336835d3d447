"""The lock of a sweep in a bucket: conditional writes give it to one driver."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from speechft_ray.core import lease
from speechft_ray.core.errors import UserError
from speechft_ray.core.lease import HeldLease, Holder, LeaseTakenError, describe_this_process
from speechft_ray.core.records import Job
from speechft_ray.storage.lease import BucketLease
from speechft_ray.storage.object_store import ObjectStore
from speechft_ray.storage.open import open_store
from speechft_ray.sweep.claims import UnitClaims
from speechft_ray.sweep.lock import describe_driver, hold_lock
from tests.storage.s3_server import S3Server
from tests.sweep.quick_leases import quick

__all__ = ["quick"]  # a fixture

HERE = describe_this_process()
ELSEWHERE = HERE._replace(host="elsewhere", boot="another boot", token="theirs")


@pytest.fixture
def store(url: str) -> ObjectStore:
    opened = open_store(url)
    assert isinstance(opened, ObjectStore)
    return opened


def hold(store: ObjectStore, notes: list[str], stop: threading.Event | None = None) -> None:
    with hold_lock(store, "abc", stop or threading.Event(), notes.append):
        pass


def place_of(store: ObjectStore, sweep: str = "abc") -> BucketLease:
    place = store.lease(sweep)
    assert isinstance(place, BucketLease)
    return place


def leave_lease(store: ObjectStore, holder: Holder, sweep: str = "abc") -> None:
    """Leaves the lease of another process, which renews nothing by itself."""
    place = place_of(store, sweep)
    assert place.write(holder, place.read_version()[1]) is not None


def test_a_second_driver_is_refused_by_name(store: ObjectStore) -> None:
    with hold_lock(store, "abc", threading.Event(), print):
        assert describe_driver(store, "abc") == f"{HERE.host}, process {os.getpid()}"
        with pytest.raises(UserError, match=r"process \d+: wait .*\(Lock s3://.*lease.json\.\)"):
            hold(store, [])
        assert store.list_leases() == ["abc"]
    assert describe_driver(store, "abc") is None
    hold(store, [])


@pytest.mark.parametrize("faults", [0.0, 0.2])
@pytest.mark.parametrize("before", ["nobody", "dead", "released"])
def test_of_drivers_that_start_at_the_same_instant_one_runs(
    s3: S3Server, store: ObjectStore, before: str, faults: float
) -> None:
    def attempt(sweep: str, barrier: threading.Barrier) -> HeldLease | None:
        barrier.wait()
        try:
            return store.lease(sweep).take(lambda: None, lambda holder: None, lambda seconds: None)
        except LeaseTakenError:
            return None

    s3.set_faults(faults)
    with ThreadPoolExecutor(4) as threads:
        for number in range(3):
            sweep = str(number)
            left = HERE._replace(token="left", released=before == "released")
            if before != "nobody":
                leave_lease(store, left._replace(started="1") if before == "dead" else left, sweep)
            barrier = threading.Barrier(4)
            attempts = threads.map(attempt, [sweep] * 4, [barrier] * 4)
            leases = [one for one in attempts if one is not None]
            assert len(leases) == 1
            leases[0].release()
            after = store.lease(sweep).read()
            assert after is not None and after.released


def test_a_dead_driver_of_another_host_is_followed(store: ObjectStore, quick: None) -> None:
    leave_lease(store, ELSEWHERE)
    assert "perhaps: elsewhere" in str(describe_driver(store, "abc"))
    notes: list[str] = []
    hold(store, notes)
    assert len(notes) == 1 and "cannot be looked up from here" in notes[0]


def test_a_living_driver_of_another_host_keeps_its_lock(store: ObjectStore, quick: None) -> None:
    ended = threading.Event()

    def renew() -> None:
        renewals = 0
        while not ended.wait(0.02):
            renewals += 1
            leave_lease(store, ELSEWHERE._replace(renewals=renewals))

    leave_lease(store, ELSEWHERE)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(UserError, match="already runs on elsewhere, process"):
            hold(store, [])
    finally:
        ended.set()
        thread.join()


def test_a_driver_that_was_suspended_too_long_stops_and_releases_nothing(
    store: ObjectStore, quick: None
) -> None:
    notes: list[str] = []
    stop = threading.Event()
    with hold_lock(store, "abc", stop, notes.append):
        while True:  # another has waited and taken it over, between two renewals
            place = place_of(store)
            if place.write(ELSEWHERE, place.read_version()[1]) is not None:
                break
        assert stop.wait(60)
    assert len(notes) == 1 and "elsewhere" in notes[0] and "This one stops" in notes[0]
    assert place_of(store).read() == ELSEWHERE


def test_a_lease_is_renewed_while_requests_fail(
    s3: S3Server, store: ObjectStore, quick: None
) -> None:
    s3.set_faults(0.3)
    lost: list[str] = []
    place = place_of(store)
    held = place.take(lambda: lost.append("lost"), lambda holder: None, lambda seconds: None)
    seen: set[int] = set()
    while len(seen) < 4:
        holder = place.read()
        assert holder is not None
        seen.add(holder.renewals)
    held.release()
    assert lost == []
    after = place.read()
    assert after is not None and after.released


def test_two_sweeps_claim_a_unit_once(store: ObjectStore) -> None:
    job = Job(stage="finetune", fingerprint="abc", label="finetune abc", payload={})
    stop = threading.Event()
    with hold_lock(store, "one", stop, print), hold_lock(store, "two", stop, print):
        notes: list[str] = []
        first, second = UnitClaims(store, "one", print), UnitClaims(store, "two", notes.append)
        assert first.take(job) and not second.take(job)
        assert len(notes) == 1 and "computed by another sweep" in notes[0]
        first.release("abc")
        assert second.take(job)
        second.release_all()
    assert store.bucket.list("claims/") == []


def test_a_damaged_lock_is_taken(store: ObjectStore) -> None:
    store.bucket.write("locks/abc/lease.json", b"{")
    hold(store, [])


def test_a_lease_costs_one_request_every_few_seconds() -> None:
    assert lease.RENEW_SECONDS >= 5
