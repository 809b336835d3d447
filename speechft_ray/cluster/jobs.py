"""Sweeps as jobs of a Ray cluster: their drivers run there, and people reach them over HTTP.

The Jobs API of Ray keeps state and log of a job as long as the cluster lives; the store keeps what
the sweep has computed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from speechft_ray.cluster.authentication import find_token, is_loopback, warn_without_token
from speechft_ray.cluster.ray_errors import shorten
from speechft_ray.core.errors import UserError
from speechft_ray.core.passwords import hide_passwords

SWEEP, STORAGE, USER = "speechft.sweep", "speechft.storage", "speechft.user"
"""Keys of the metadata of a job."""

ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
"""States that a job does not leave (ray ``dashboard/modules/job/common.py``, 2.60)."""

ANSWER_SECONDS = 10.0
"""How long a head may take to accept a connection."""

LOOK_AGAIN_SECONDS = 2.0
"""Between two looks at a job whose log has no more to read."""

START_TRIES = 9
"""How often a head that has just started is asked again to take a job: its agent comes up later
than its dashboard, and Ray waits some 10 s for it each time."""

_NO_AGENT = "No available agent"

STOP_SECONDS = 60
"""How long a driver that is stopped may take to end before Ray kills it: 3 by default (ray
``job_supervisor.py``), 20 is what a stop takes at most."""

FAILED, RESUMABLE = 1, 75
"""Exit codes of a driver that left none: it was killed, or stopped (``speechft run``)."""


class SweepJob(NamedTuple):
    """A sweep that was submitted to a cluster."""

    id: str
    sweep: str
    storage: str
    user: str
    state: str
    """``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``."""
    started: float | None = None
    """Seconds since 1970."""
    ended: float | None = None
    exit_code: int | None = None
    """That of the driver, once it has ended; 75 where it was stopped."""

    @property
    def is_over(self) -> bool:
        return self.state in ENDED


def open_client(cluster: str, note: Callable[[str], object]) -> Any:
    """Returns Ray's client of the Jobs API at ``http://HEAD:8265``.

    ``note`` gets a line where the cluster asks for no token. The token is that of
    ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``. Raises ``UserError``.
    """
    shown = hide_passwords(cluster)
    try:
        parts = urlsplit(cluster)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UserError(
            f"the cluster `{shown}` must be the address of Ray's dashboard, such as "
            "http://HEAD:8265 (`ray start` prints it)."
        )
    try:
        default = 443 if parts.scheme == "https" else 80
        address = (parts.hostname, port or default)
        socket.create_connection(address, timeout=ANSWER_SECONDS).close()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"no Ray dashboard answers at `{shown}` ({error}): it listens on its own machine "
            "alone unless started with `ray start --head --dashboard-host 0.0.0.0`; "
            "`ssh -L 8265:127.0.0.1:8265 HEAD` brings it to http://127.0.0.1:8265."
        ) from None
    from ray.job_submission import JobSubmissionClient

    for name in (
        *("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk"),
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # a line for each upload
    token = find_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with _hide_addresses(), explain_errors(cluster):
        client = JobSubmissionClient(cluster, headers=headers)
    if not is_loopback(parts.hostname):
        warn_without_token(cluster, note)
    return client


def submit(
    client: Any,
    name: str,
    entrypoint: str,
    runtime_env: Mapping[str, Any],
    metadata: Mapping[str, str],
    wait: Callable[[float], object] = time.sleep,
) -> str:
    """Submits a driver and returns the id of its job: the name, or with a number behind it where
    the cluster has had that job. Waits a while for a head that is still starting."""
    number, tries = 1, 0
    while True:
        ids = {job.submission_id for job in client.list_jobs()}
        while (key := name if number == 1 else f"{name}-{number}") in ids:
            number += 1
        try:
            return str(
                client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=key,
                    runtime_env=dict(runtime_env),
                    metadata=dict(metadata),
                )
            )
        except RuntimeError as error:
            tries += 1
            starting = _NO_AGENT in str(error)
            taken = "already" in str(error)  # somebody else was faster
            if tries > START_TRIES or not (starting or taken):
                raise
            if starting:
                wait(LOOK_AGAIN_SECONDS)


def list_sweeps(client: Any) -> list[SweepJob]:
    """Returns the sweeps that were submitted to a cluster, the latest last."""
    jobs = [_describe(job) for job in client.list_jobs() if SWEEP in (job.metadata or {})]
    return sorted(jobs, key=lambda job: (job.started or float("inf"), job.id))


def find_sweep(client: Any, name: str) -> SweepJob:
    """Returns the job with an id, or the latest of a sweep. Raises ``UserError`` where there is
    none, and where several of that name run."""
    jobs = list_sweeps(client)
    matches = [job for job in jobs if job.id == name] or [job for job in jobs if job.sweep == name]
    running = [job for job in matches if not job.is_over]
    if len(running) > 1:
        ids = ", ".join(f"`{job.id}` ({job.storage})" for job in running)
        raise UserError(f"several sweeps `{name}` run on this cluster: name one of the jobs {ids}.")
    if not matches:
        ids = ", ".join(job.id for job in jobs) or "none"
        raise UserError(
            f"there is no job and no sweep `{name}` on this cluster. It has: {ids} "
            "(`speechft list` shows them)."
        )
    return (running or matches)[-1]


def read_job(client: Any, key: str) -> SweepJob:
    """Returns a job as it is now."""
    return _describe(client.get_job_info(key))


def follow_log(
    client: Any,
    key: str,
    write: Callable[[str], object],
    wait: Callable[[float], object] = time.sleep,
) -> SweepJob:
    """Writes the log of a job until it has ended, and returns it. A connection that breaks is made
    again."""
    length = 0
    while True:
        length = asyncio.run(_write_tail(client, key, write, length))
        job = read_job(client, key)
        if job.is_over:
            text = client.get_job_logs(key)
            write(text[length:])
            return job
        wait(LOOK_AGAIN_SECONDS)


def stop_sweep(
    client: Any, job: SweepJob, wait: Callable[[float], object] = time.sleep
) -> SweepJob:
    """Stops a job as SIGTERM does, waits until it has ended, and returns it."""
    if not job.is_over:
        client.stop_job(job.id)
        ends = time.monotonic() + 2 * STOP_SECONDS
        while not (job := read_job(client, job.id)).is_over and time.monotonic() < ends:
            wait(LOOK_AGAIN_SECONDS / 2)
    return job


@contextmanager
def explain_errors(cluster: str) -> Iterator[None]:
    """Turns errors of the Jobs API into ``UserError``."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        cause = "does not know this token" if find_token() else "asks for a token"
        raise UserError(
            f"the cluster at `{cluster}` {cause}: put the head's (`ray get-auth-token` there) into "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from None
    except OSError as error:
        raise UserError(
            f"the cluster at `{cluster}` does not answer ({shorten(str(error))}): what its sweeps "
            "have finished is in their storage; submit again when a cluster runs."
        ) from None
    except RuntimeError as error:
        if _NO_AGENT in str(error):
            raise UserError(
                f"the head at `{cluster}` takes no jobs, since its dashboard agent does not run: "
                "where it was started just now, submit again in a minute; otherwise see "
                "dashboard_agent.log in the folder of its session: most often its port (52365, "
                "`ray start --dashboard-agent-listen-port`) belongs to another Ray."
            ) from None
        raise UserError(
            f"the cluster at `{cluster}` refused: {shorten(_strip_traceback(str(error)))}"
        ) from None


async def _write_tail(client: Any, key: str, write: Callable[[str], object], length: int) -> int:
    """Writes what a log has behind so many characters, as it comes; returns its length when the
    connection ends, for whatever reason."""
    import aiohttp

    seen = 0
    try:
        async for text in client.tail_job_logs(key):
            write(text[max(0, length - seen) :])
            seen += len(text)
            length = max(length, seen)
    except (RuntimeError, OSError, aiohttp.ClientError):
        pass
    return length


def _describe(job: Any) -> SweepJob:
    metadata = job.metadata or {}
    state = str(getattr(job.status, "value", job.status))
    codes = {"SUCCEEDED": 0, "FAILED": FAILED, "STOPPED": RESUMABLE}
    code = getattr(job, "driver_exit_code", None)
    return SweepJob(
        id=str(job.submission_id),
        sweep=metadata.get(SWEEP, ""),
        storage=metadata.get(STORAGE, ""),
        user=metadata.get(USER, ""),
        state=state,
        started=job.start_time / 1000 if job.start_time else None,
        ended=job.end_time / 1000 if job.end_time else None,
        exit_code=codes.get(state) if code is None or state != "FAILED" else int(code),
    )


@contextmanager
def _hide_addresses() -> Iterator[None]:
    # Ray's client takes the address of these variables in place of the one that it is given.
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _strip_traceback(text: str) -> str:
    """Returns the last line of the traceback that the Jobs API answers with."""
    if "Traceback" not in text:
        return text
    lines = [line for line in re.split(r"\\n|\n", text) if line.strip(" '\".}")]
    return lines[-1].strip()
