"""The environment variables of workers."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WORKER_ENVIRONMENT = {
    # One thread per worker: several processes with one thread each beat threads for small models,
    # and results do not depend on the number of cores.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # glibc keeps freed memory instead of giving it back and asking again for every batch
    # (mallopt(3)).
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    # cuBLAS sums in a fixed order (CUDA documentation, "cuBLAS, Results Reproducibility").
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""What every worker gets, on every node."""

ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""torch's allocator on GPUs, unless the environment of the driver names one: batches of many
lengths otherwise leave free memory in parts that are too small for the next one (torch, "CUDA
semantics")."""

_ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")

IDLE_WORKERS = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
"""How long a local cluster keeps a worker that has no job (ray ``common/ray_config_def.h``, 2.60).
Ray's own second ends workers between two jobs, and a new one imports torch for some seconds."""

ALLOWED_ENVIRONMENT = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|TERM|TZ|LANG|LANGUAGE|LC_.*|TMPDIR|VIRTUAL_ENV|CONDA_PREFIX"
    r"|PYTHON.*|LD_LIBRARY_PATH|LD_PRELOAD|CUDA_.*|NVIDIA_.*|NCCL_.*|ROCR_.*|HIP_.*|OMP_.*|MKL_.*"
    r"|OPENBLAS_.*|RAY_.*|TUNE_.*|TORCH_HOME|HF_HOME|HF_HUB_OFFLINE|XDG_CACHE_HOME|SSL_CERT_FILE"
    r"|REQUESTS_CA_BUNDLE|PYTORCH_.*|SPEECHFT_.*|GRPC_.*|no_proxy|NO_PROXY)"
)
"""What the processes of a local cluster inherit. Anything else stays in the driver: cloud keys,
tracking passwords."""

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in the driver of a job (ray ``_private/runtime_env/constants.py``, 2.60)."""


def select_variables() -> dict[str, str]:
    """Returns what workers get, less what the environment of a Ray job says: Ray refuses a variable
    that both set."""
    variables = _read_job_environment().get("env_vars") or {}
    return {name: value for name, value in _worker_environment().items() if name not in variables}


def _worker_environment() -> dict[str, str]:
    is_chosen = any(name in os.environ for name in _ALLOCATORS)
    return {**WORKER_ENVIRONMENT, **({} if is_chosen else ALLOCATOR)}


def _read_job_environment() -> dict[str, Any]:
    """Returns the runtime environment of the Ray job that this process drives; empty outside of
    one."""
    try:
        return dict(json.loads(os.environ.get(JOB, "{}")).get("runtime_env") or {})
    except (ValueError, AttributeError):
        return {}


@contextmanager
def restrict_environment(allow: re.Pattern[str] | None = None) -> Iterator[None]:
    """Gives the processes that start inside what workers need, and of this process's variables
    ``ALLOWED_ENVIRONMENT`` and those that ``allow`` matches. Workers inherit it from Ray's
    processes, and those from the moment of their start."""
    # They import from where the driver does, so that a checkout works like an installed package.
    hidden = {
        name: value
        for name, value in os.environ.items()
        if not (ALLOWED_ENVIRONMENT.fullmatch(name) or (allow and allow.fullmatch(name)))
    }
    search = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    # Workers get this so, and not as the runtime environment of a job, since Ray starts its first
    # workers without one.
    instead = {**IDLE_WORKERS, **_worker_environment(), "PYTHONPATH": search}
    before = {name: os.environ[name] for name in instead if name in os.environ}
    for name in hidden:
        del os.environ[name]
    os.environ |= instead
    try:
        yield
    finally:
        for name in instead:
            os.environ.pop(name, None)
        os.environ.update({**hidden, **before})
