"""The lock of a sweep: one driver at a time, on one host and on several, also after deaths."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from speechft_ray.core import lease
from speechft_ray.core.errors import Interrupted, StorageDown, UserError
from speechft_ray.core.lease import FolderLease, Holder, LeaseTakenError, read_holder, take_lease
from speechft_ray.core.store import Store
from speechft_ray.sweep.lock import describe_driver, hold_lock
from tests.sweep.quick_leases import quick

__all__ = ["quick"]  # a fixture

HERE = lease.describe_this_process()
ELSEWHERE = HERE._replace(host="elsewhere", boot="another boot", token="theirs")


def nothing() -> None:
    """No other driver takes it over."""


def write_lease(folder: Path, holder: Holder, number: int = 1) -> Path:
    """Leaves the lease of another process, which renews nothing by itself."""
    path = folder / str(number) / "lease.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(holder._asdict()))
    return path


def hold(root: Path, notes: list[str], stop: threading.Event | None = None) -> None:
    with hold_lock(Store(root), "abc", stop or threading.Event(), notes.append):
        pass


def test_a_second_driver_is_refused_by_name(tmp_path: Path) -> None:
    with hold_lock(Store(tmp_path), "abc", threading.Event(), print):
        assert describe_driver(Store(tmp_path), "abc") == f"{HERE.host}, process {os.getpid()}"
        with pytest.raises(UserError, match=f"runs on {HERE.host}, process {os.getpid()}: wait"):
            hold(tmp_path, [])
        hold(tmp_path / "another storage", [])
    assert describe_driver(Store(tmp_path), "abc") is None
    hold(tmp_path, [])


@pytest.mark.parametrize("before", ["nobody", "dead", "released"])
def test_of_drivers_that_start_at_the_same_instant_one_runs(tmp_path: Path, before: str) -> None:
    def attempt(folder: Path, barrier: threading.Barrier) -> lease.Lease | None:
        barrier.wait()
        try:
            return take_lease(folder, nothing)
        except LeaseTakenError:
            return None

    with ThreadPoolExecutor(4) as threads:
        for number in range(60):
            folder = tmp_path / str(number)
            if before != "nobody":
                left = HERE._replace(token="left", released=before == "released")
                write_lease(folder, left._replace(started="1") if before == "dead" else left)
            barrier = threading.Barrier(4)
            held = threads.map(attempt, [folder] * 4, [barrier] * 4)
            leases = [one for one in held if one is not None]
            assert len(leases) == 1
            leases[0].release()


def test_a_killed_driver_is_followed_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, threading, time\nfrom pathlib import Path\n"
        "from speechft_ray.core.store import Store\nfrom speechft_ray.sweep.lock import hold_lock\n"
        "with hold_lock(Store(Path(sys.argv[1])), 'abc', threading.Event(), print):\n"
        "    print('held', flush=True)\n    time.sleep(900)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {driver.pid}"):
            hold(tmp_path, [])
        driver.kill()
        driver.wait()
        notes: list[str] = []
        hold(tmp_path, notes)
    assert notes == []


def test_a_restarted_container_is_not_locked_out_by_its_own_number(tmp_path: Path) -> None:
    """Its host name, its kernel and its process number are those of the driver that died."""
    write_lease(tmp_path / "locks" / "abc", HERE._replace(started="12345", token="before"))
    assert describe_driver(Store(tmp_path), "abc") is None
    notes: list[str] = []
    hold(tmp_path, notes)
    assert notes == []


def renew_in_background(path: Path, holder: Holder, stop: threading.Event) -> None:
    """Renews as another host would, whose clock is a day off."""
    for count in range(1, 100_000):
        temporary = path.with_name("next")
        temporary.write_text(json.dumps(holder._replace(renewals=count)._asdict()))
        os.utime(temporary, (time.time() - 86_400,) * 2)
        temporary.replace(path)
        if stop.wait(0.01):
            return


def test_a_living_driver_of_another_host_keeps_its_lock(tmp_path: Path, quick: None) -> None:
    path = write_lease(tmp_path / "locks" / "abc", ELSEWHERE)
    stop = threading.Event()
    renewing = threading.Thread(target=renew_in_background, args=(path, ELSEWHERE, stop))
    renewing.start()
    try:
        notes: list[str] = []
        assert str(describe_driver(Store(tmp_path), "abc")) == f"elsewhere, process {os.getpid()}"
        with pytest.raises(UserError, match="already runs on elsewhere, process"):
            hold(tmp_path, notes)
        assert len(notes) == 1 and "cannot be looked up from here" in notes[0]
    finally:
        stop.set()
        renewing.join()


def test_a_dead_driver_of_another_host_is_followed_whatever_its_clock_says(
    tmp_path: Path, quick: None
) -> None:
    path = write_lease(tmp_path / "locks" / "abc", ELSEWHERE)
    os.utime(path, (time.time() + 86_400,) * 2)
    assert "perhaps: elsewhere" in str(describe_driver(Store(tmp_path), "abc"))
    notes: list[str] = []
    hold(tmp_path, notes)
    assert len(notes) == 1
    assert describe_driver(Store(tmp_path), "abc") is None


def test_waiting_for_another_host_can_be_interrupted(tmp_path: Path) -> None:
    write_lease(tmp_path / "locks" / "abc", ELSEWHERE)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        hold(tmp_path, [], stop)


def test_a_driver_that_was_suspended_too_long_stops_and_releases_nothing(
    tmp_path: Path, quick: None
) -> None:
    notes: list[str] = []
    stop = threading.Event()
    folder = tmp_path / "locks" / "abc"
    with hold_lock(Store(tmp_path), "abc", stop, notes.append):
        write_lease(folder, ELSEWHERE, number=2)  # another has waited and taken it over
        assert stop.wait(60)
    assert len(notes) == 1 and "elsewhere" in notes[0] and "This one stops" in notes[0]
    assert read_holder(folder) == ELSEWHERE


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "stale"), StorageDown("away")])
def test_a_driver_that_lost_its_lock_stops_although_it_cannot_read_whose_it_is(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(place: FolderLease) -> Holder:
        raise error

    notes: list[str] = []
    stop = threading.Event()
    with hold_lock(Store(tmp_path), "abc", stop, notes.append):
        monkeypatch.setattr(FolderLease, "read", fail)
        write_lease(tmp_path / "locks" / "abc", ELSEWHERE, number=2)
        assert stop.wait(10)
    assert len(notes) == 1 and notes[0].startswith("another driver has taken over this sweep")


def test_a_lease_is_renewed_and_never_read_in_parts(tmp_path: Path, quick: None) -> None:
    held = take_lease(tmp_path, nothing)
    seen: set[int] = set()
    while len(seen) < 4:
        holder = read_holder(tmp_path)
        assert holder is not None
        seen.add(holder.renewals)
    held.release()
    assert read_holder(tmp_path) == held._holder._replace(released=True)


def test_a_damaged_lock_is_taken_and_an_unreadable_one_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "locks" / "abc"
    write_lease(folder, HERE).write_text("{")
    hold(tmp_path, [])
    (tmp_path / "locks" / "def").write_text("a file")
    with (
        pytest.raises(UserError, match=r"the lock of this sweep in .*def cannot be read"),
        hold_lock(Store(tmp_path), "def", threading.Event(), print),
    ):
        pass
