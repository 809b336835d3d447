"""The Ray tasks that perform jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from speechft_ray.cluster.progress import perform_on_worker
from speechft_ray.core.records import Job, Place
from speechft_ray.sweep.protocols import Perform


def prefer_node(node: str | None) -> dict[str, Any]:
    """Returns the options of a Ray task that runs best on a node; none where there is no such
    node."""
    if node is None:
        return {}
    # `soft` alone would wait for a busy node while others are idle; it goes elsewhere only from one
    # that is gone.
    return {
        "scheduling_strategy": NodeAffinitySchedulingStrategy(
            node, soft=True, _spill_on_unavailable=True
        )
    }


def _perform_task(perform: Perform, job: Job, place: Place, progress_actor: Any) -> dict[str, Any]:
    return perform_on_worker(perform, job, place, progress_actor).model_dump(mode="json")


# Ray starts tasks of one function in the order of their submission, and those of several in turn,
# unless they take less than half a second (ray 2.60, `scheduling_class` in
# `src/ray/common/task/task_spec.h`, `worker_lease_timeout_milliseconds`). So what is wanted
# first has functions of its own: a task that was lost, and merges, on which evaluations wait.
def _perform_merge(*arguments: Any) -> dict[str, Any]:
    return _perform_task(*arguments)


def _perform_again(*arguments: Any) -> dict[str, Any]:
    return _perform_task(*arguments)


def _make_tasks(**options: Any) -> Mapping[str, Any]:
    # Retried here, since Ray retries without limit after memory ran out, and writes a page about
    # each.
    make = ray.remote(max_retries=0, retry_exceptions=False, **options)
    first, evaluation, again = map(make, (_perform_merge, _perform_task, _perform_again))
    return {"corpus": first, "merge": first, "evaluate": evaluation, "again": again}


# A process that has used a GPU stays on it and keeps memory there, whichever GPU Ray counts its
# next job on: it ends with its job. Ray sees to that for `ray.remote(num_gpus=...)`, not for
# `.options`, which takes no `max_calls` (ray 2.60, `remote_function.py`).
TASKS, GPU_TASKS = _make_tasks(), _make_tasks(max_calls=1)
