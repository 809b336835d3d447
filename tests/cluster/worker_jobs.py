"""What test jobs do. In a module of its own, since workers import it by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import GpuMemoryError, UserError
from speechft_ray.core.preemption import must_leave
from speechft_ray.core.records import Job, Place, Stage
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.sweep.protocols import ReportProgress


def job(do: str, name: str = "a", stage: Stage = "evaluate", **more: Any) -> Job:
    """A job of which ``perform`` below does ``do``."""
    resources = more.pop("resources", ResourceRequest())
    payload = {"do": do, "spec": {"task": "pr"}, **more}
    return Job(
        stage=stage,
        fingerprint=f"{stage}-{name}",
        label=f"{stage} {name}",
        payload=payload,
        resources=resources,
    )


def perform(job: Job, place: Place, report: ReportProgress) -> Mapping[str, Any]:
    """Does what the payload says."""
    action = _ACTIONS[str(job.payload["do"])]
    return action(job, Path(place.storage), report, place)


def _succeed(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    report({"done": 1, "total": 1})
    return {
        "pid": os.getpid(),
        "given": job.payload,
        "device": place.device,
        "cwd": str(Path.cwd()),
    }


def _score(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    report({"done": 1, "total": 2})
    time.sleep(0.6)  # longer than reports are held back
    report({"done": 2, "total": 2})
    scores = [{"metric": "pr.per", "split": "test", "values": [10.0]}]
    return {"scores": scores, "encoded_seconds": 30.0}


def _divide(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    raise ZeroDivisionError("nothing to\ndivide by")


def _blame_user(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    raise UserError("`alpha` must be within [0, 1], but is 3 instead: change it.")


def _return_object(
    job: Job, storage: Path, report: ReportProgress, place: Place
) -> Mapping[str, Any]:
    return {"path": storage}


def _wait(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    """Reports and beats its heart in a file until a file called ``go`` is there, or one for it
    alone."""
    for beat in range(1, 10_000):
        report({"done": beat, "total": 10_000, "update": beat, "loss": 1.0 / beat})
        (storage / f"beat-{job.fingerprint}").write_text(f"{os.getpid()} {beat}")
        if any((storage / name).exists() for name in ("go", f"go-{job.fingerprint}")):
            return {"beats": beat}
        time.sleep(0.1)
    raise TimeoutError("nobody said go")


def _die(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    """Kills its own process as often as the payload says, as the kernel does when memory runs
    out."""
    log = storage / f"lives-{job.fingerprint}"
    lives = len(log.read_text()) if log.exists() else 0
    log.write_text("x" * (lives + 1))
    if lives < int(str(job.payload["times"])):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"lives": lives + 1}


def _climb(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    """Gets as far in each life as the payload says, and dies when a file says so; the last life
    ends well."""
    log = storage / f"lives-{job.fingerprint}"
    life = len(log.read_text()) + 1 if log.exists() else 1
    log.write_text("x" * life)
    steps: Any = job.payload["steps"]
    if life == len(steps):
        return {"lives": life}
    while not (storage / f"die-{life}").exists():
        report({"done": steps[life - 1], "total": 100})
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _hang(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    """Stops its own process in its first life."""
    log = storage / f"lives-{job.fingerprint}"
    lives = len(log.read_text()) + 1 if log.exists() else 1
    log.write_text("x" * lives)
    if lives == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return {"lives": lives}


def _stamp(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    """Writes its name behind those that came before; may die first, and waits for ``go``. Takes
    longer than the 0.5 s for which Ray leaves a worker to tasks of one function."""
    if "times" in job.payload:
        _die(job, storage, report, place)
    with (storage / "order").open("a") as file:
        file.write(f"{job.fingerprint}\n")
    time.sleep(1.0)
    return _wait(job, storage, report, place)


def _save(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    """Counts until a file called ``go`` is there, and saves the count only when it must."""
    import ray

    from speechft_ray.superb.saved_work import SavedWork  # not above: it imports torch

    work, log = SavedWork(storage, "count"), storage / "lives"
    saved = work.load("count")
    done = saved["done"] if saved else 0
    with log.open("a") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()} {done}\n")
    while not (storage / "go").exists():
        done += 1
        report({"done": done, "total": 10_000})
        if must_leave():
            (storage / "last").write_text(str(done))
            work.save("count", done, {"done": done})
        time.sleep(0.1)
    return {"done": done}


def _environment(
    job: Job, storage: Path, report: ReportProgress, place: Place
) -> Mapping[str, Any]:
    return dict(os.environ)


def _meet(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    """Waits until so many jobs run at the same time, then says on which node and GPU this one
    does."""
    import ray

    (storage / f"here-{job.payload['at']}-{job.fingerprint}").touch()
    until = time.monotonic() + 900
    while len(list(storage.glob(f"here-{job.payload['at']}-*"))) < int(str(job.payload["count"])):
        if time.monotonic() > until:
            raise TimeoutError("the others did not come")
        time.sleep(0.05)
    return {
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": ray.get_gpu_ids(),
        "share": place.gpu_share,
        "pid": os.getpid(),
        "device": place.device,
    }


def _need_gpu(job: Job, storage: Path, report: ReportProgress, place: Place) -> Mapping[str, Any]:
    """Needs more of a GPU than was estimated."""
    if place.gpu_share < 1:
        raise GpuMemoryError(f"the GPU's memory ran out with a share of {place.gpu_share:g}.")
    return {"share": place.gpu_share}


_ACTIONS = {
    "need-gpu": _need_gpu,
    "succeed": _succeed,
    "divide": _divide,
    "score": _score,
    "blame-user": _blame_user,
    "return-object": _return_object,
    "wait": _wait,
    "die": _die,
    "climb": _climb,
    "hang": _hang,
    "stamp": _stamp,
    "save": _save,
    "environment": _environment,
    "meet": _meet,
}
