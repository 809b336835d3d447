"""Connects to a Ray cluster: a new local one, the one that runs here, or one by its address."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.services import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from speechft_ray.cluster.authentication import describe_open_cluster, is_loopback
from speechft_ray.cluster.environment import JOB, restrict_environment, select_variables
from speechft_ray.cluster.head import accepts_connections
from speechft_ray.cluster.ray_errors import explain_import_error, hush_losses, shorten
from speechft_ray.core.errors import UserError

DASHBOARD_PACKAGES = (
    "aiohttp",
    "aiohttp_cors",
    "grpc",
    "opencensus",
    "opentelemetry.exporter.prometheus",
    "prometheus_client",
)
"""What Ray's dashboard needs beyond ``ray[tune]`` (ray ``dashboard/optional_deps.py``, 2.60)."""

ANSWER_SECONDS = 5.0
"""How long the head of a cluster may take to accept a connection."""

START_ATTEMPTS = 3
"""How often a local cluster is started before it counts as impossible."""

PROBE_SECONDS = 20.0
"""How long a first actor may take before it is taken for granted."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The cluster that this process is connected to."""

    address: str
    """``HOST:PORT`` of its head."""
    dashboard: str | None
    """``http://`` address of the dashboard, or ``None`` without one."""
    cpus: float
    gpus: float
    nodes: int
    local: bool
    """Whether this process started it, so that it ends with it."""

    def close(self) -> None:
        """Leaves the cluster; one that this process started ends. May be called twice."""
        ray.shutdown()


def connect(
    address: str,
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    store_bytes: int | None = None,
    allow: re.Pattern[str] | None = None,
    note: Callable[[str], object] = lambda text: None,
) -> Cluster:
    """Connects to ``local`` (starts a cluster here), ``auto`` (the one that runs here or in
    ``RAY_ADDRESS``) or ``HOST:PORT``.

    ``cpus``, ``gpus`` and ``store_bytes`` (shared memory for objects) bound a local cluster; Ray
    takes all it finds by itself. ``allow``: more variables that the processes of a local cluster
    inherit. ``note`` gets a line where a cluster that other machines reach asks for no token.
    Raises ``UserError`` when there is no such cluster, or it refuses this process.
    """
    address = _select_address(address)
    hush_losses()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    common: dict[str, Any] = {
        "address": address,
        # the driver shows its own progress; outcomes carry errors; logs stay on the nodes
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    try:
        with _keep_signal_handlers():
            if address == "local":
                limits = {
                    "num_cpus": cpus or count_cpus(),
                    "num_gpus": gpus,
                    "object_store_memory": store_bytes,
                }
                with restrict_environment(allow), _stay_on_loopback():
                    context = _start_here(
                        **common, **limits, include_dashboard=missing_for_dashboard() == []
                    )
                _keep_token_private()
            else:
                outside = not _is_on_loopback_alone(address)
                with nullcontext() if outside else _stay_on_loopback():
                    context = ray.init(**common, runtime_env={"env_vars": select_variables()})
                _check_actors(context.address_info["gcs_address"])
    except UserError:
        raise
    except Exception as error:  # a start that takes too long raises Exception itself (ray 2.60)
        raise UserError(_explain_failure(address, error)) from error
    cluster = _describe(context, local=address == "local")
    # A cluster and a process with different modes have refused each other before.
    if not (cluster.local or is_token_auth_enabled() or _is_on_loopback()):
        note(describe_open_cluster(cluster.address))
    return cluster


def _is_on_loopback() -> bool:
    return all(is_loopback(node["NodeManagerAddress"]) for node in ray.nodes())


def _start_here(**options: Any) -> Any:
    """Starts Ray on this machine; again where it did not come up within its 30 s (ray 2.60,
    ``_private/node.py``), as happens on a busy machine. Ray's processes of a try that failed end
    with this one."""
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            return ray.init(**options)
        except Exception as error:
            if "timed out during startup" not in str(error) or attempt == START_ATTEMPTS:
                raise
            ray.shutdown()
    return None


def count_cpus() -> int | None:
    """Returns the CPUs that this process may use, as ``taskset`` and Slurm say, where Ray would
    count those of the machine; ``None`` where both are the same, which leaves the limits of
    containers to Ray."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = len(os.sched_getaffinity(0))
    return usable if usable < (os.cpu_count() or usable) else None


def missing_for_dashboard() -> list[str]:
    """Returns the packages that the dashboard of a local cluster lacks here; ``pip install
    "ray[default]"`` brings them."""
    return [name for name in DASHBOARD_PACKAGES if not _is_installed(name)]


def _select_address(address: str) -> str:
    """Checks an address. ``auto`` means ``local`` where the environment says so: Ray itself would
    start a cluster whose workers inherit every variable."""
    _check(address)
    return "local" if address == "auto" and _read_environment() == "local" else address


def _check(address: str, where: str = "") -> None:
    if address == "local" and JOB in os.environ:
        raise UserError(
            "this command is a job of a Ray cluster, and `--address local` would start another "
            "cluster inside it: give `--address auto`, as `speechft submit` does."
        )
    if address.startswith("ray://"):
        raise UserError(
            f"the address `{address}`{where} is one of Ray Client, which runs the sweep away from "
            "its driver: start this command on a node of the cluster with `--address auto`, or "
            "give the head's HOST:PORT (6379 unless changed)."
        )
    if address in ("local", "auto"):
        last = _read_last_address() if address == "auto" else None
        if last is not None:
            _check(last, " in RAY_ADDRESS" if _read_environment() else "")
        return
    match = re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})", address)
    if match is None or not 0 < int(match[2]) < 65536:
        allowed = "`local`, `auto` or HOST:PORT of a Ray head, for example 10.0.0.1:6379"
        raise UserError(f"the address `{address}`{where} must be {allowed}.")
    try:  # Ray itself would try a dead address for minutes
        socket.create_connection(
            (match[1].strip("[]"), int(match[2])), timeout=ANSWER_SECONDS
        ).close()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"no Ray head answers at `{address}`{where} ({error}): "
            "start one with `ray start --head`, or use `--address local`."
        ) from None


def _read_last_address() -> str | None:
    """Returns where Ray's ``auto`` will go: ``RAY_ADDRESS``, else what the last head on this
    machine wrote down, if any.

    A head that crashed leaves its file behind (ray ``_common/utils.py``, ``get_ray_address_file``).
    """
    if address := _read_environment():
        return address
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text(
            encoding="utf-8"
        ).strip() or None
    except OSError:
        return None


def _read_environment() -> str | None:
    """Returns ``RAY_ADDRESS``. Empty or ``auto``, it says no more than that none is set."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return address if address not in ("", "auto") else None


def _explain_failure(address: str, error: Exception) -> str:
    ray_error = f"Ray says: {shorten(str(error))}"
    if address == "local":
        return f"a local Ray cluster could not be started{_find_cause(error)}. {ray_error}"
    head = _read_last_address() if address == "auto" else address
    if head is None:
        return (
            "no running Ray cluster was found: start one with `ray start --head`, or use "
            f"`--address local` for a cluster that lasts as long as this command. {ray_error}"
        )
    return (
        f"the Ray head at `{head}` answers, but does not let this process in: if it wants its "
        "token, export RAY_AUTH_MODE=token and put the head's token (`ray get-auth-token`) into "
        "~/.ray/auth_token; otherwise see that both have the same versions of Ray and Python. "
        f"{ray_error}"
    )


def _find_cause(error: Exception) -> str:
    """Returns the cause of a failure to start and the way out, which Ray does not name."""
    if "AF_UNIX path" in str(error):
        return (
            ", because the path of its sockets is too long: export RAY_TMPDIR as a folder with a "
            "short path, such as /tmp"
        )
    if not isinstance(error, OSError) or error.filename is None:
        return ""
    path = Path(str(error.filename))
    if path.name in (".ray", "auth_token"):
        return (
            f", because `{path}` cannot be written, where Ray keeps its token: export HOME as a "
            "folder that this user can write"
        )
    return (
        f", because `{path}` cannot be written: export RAY_TMPDIR as a folder on this node that "
        "this user can write, such as /tmp"
    )


def _check_actors(address: str) -> None:
    # A head without token authentication lets a process with a token in and runs its tasks, but
    # cannot call it back, and so ends each of its actors at once, with an error without a reason.
    # Not on another node, which may be lost by now.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "enable_task_events": False, "scheduling_strategy": here}
    probe = ray.remote(ConnectionProbe).options(**options).remote()
    try:
        ray.get(probe.answer.remote(), timeout=PROBE_SECONDS)
    except ray.exceptions.GetTimeoutError:
        return  # a busy or starting cluster
    except ray.exceptions.RayError as error:
        ray.shutdown()
        if (sentence := explain_import_error(str(error))) is not None:
            raise UserError(f"on the Ray cluster at `{address}`, {sentence}") from error
        if not isinstance(error, ray.exceptions.RayActorError):
            raise
        raise UserError(
            f"the Ray cluster at `{address}` ends every actor of this process: mostly, it was "
            "started without a token while this process has one. Start its head again with "
            "RAY_AUTH_MODE=token, or export RAY_AUTH_MODE=disabled here if nobody else reaches it. "
            f"Ray says: {shorten(str(error))}"
        ) from error


class ConnectionProbe:
    """The dashboard shows this name."""

    def answer(self) -> bool:
        return True


def _describe(context: Any, *, local: bool) -> Cluster:
    alive = [node for node in ray.nodes() if node["Alive"]]
    return Cluster(
        address=str(context.address_info.get("gcs_address", "")),
        dashboard=f"http://{context.dashboard_url}" if context.dashboard_url else None,
        cpus=sum(node["Resources"].get("CPU", 0.0) for node in alive),
        gpus=sum(node["Resources"].get("GPU", 0.0) for node in alive),
        nodes=len(alive),
        local=local,
    )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # a parent package is missing
        return False


def _is_on_loopback_alone(address: str) -> bool:
    """Whether the head at an address is that of a local cluster, for which Ray would look at this
    machine's outer address."""
    head = _read_last_address() if address == "auto" else address
    host, _, port = (head or "").rpartition(":")
    return is_loopback(host) and not accepts_connections(f"{get_node_ip_address()}:{port}")


@contextmanager
def _stay_on_loopback() -> Iterator[None]:
    # A local cluster has one node, so nothing else needs to reach it. Ray does so by itself on
    # macOS and Windows only (ray 2.60, ``get_node_ip_address`` in ``_private/services.py``).
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Keeps the driver's own handler of SIGTERM: that of ``ray.init``, which is in force from its
    first moment, ends the process without a word (ray 2.60, ``_private/worker.py``)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Callable[..., Any] | int | None = signal.getsignal(signal.SIGTERM)
    install, ray_utils.set_sigterm_handler = ray_utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = install
        signal.signal(signal.SIGTERM, before)


def _keep_token_private() -> None:
    # Ray writes the token that opens the cluster with mode 0644.
    with suppress(OSError, RuntimeError):  # no home folder at all
        (Path.home() / ".ray" / "auth_token").chmod(0o600)
