"""The resolved spec of each run and of the whole sweep, flat, as trackers log it: every field, also
those at their default, by a dotted name such as ``finetune.updates``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from pydantic import BaseModel

from speechft_ray.core.chains import name_columns, short_name
from speechft_ray.core.records import Job
from speechft_ray.core.specs import EvalSpec, FinetuneSpec
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.titles import Params

Fields = Mapping[str, str]
"""Value by dotted name: a text as it is, anything else as JSON."""


def list_sweep_fields(plan: Plan) -> Fields:
    """Returns what all runs of a sweep share: encoder, evaluations, score, search, early stopping.

    Resources are left out: they may differ from one invocation to the next.
    """
    spec = plan.spec
    fields: dict[str, str] = {"encoder": spec.encoder}
    for item in _resolve_evaluations(plan):
        fields |= flatten(dump_fully(item), f"evaluate.{item.label}")
    for name in ("score", "search", "stop_tuning"):
        value = getattr(spec, name)
        if value is not None:
            fields |= flatten(dump_fully(value), name)
    return fields


def list_tuning_fields(job: Job, jobs: Mapping[str, Job]) -> Fields:
    """Returns the spec of a fine-tuning job; that of an earlier stage of its chain is below
    ``finetune.after``."""
    return flatten(_dump_tuning(job, jobs), "finetune")


def list_merge_fields(
    recipe: Mapping[str, Any],
    jobs: Mapping[str, Job],
    tunings: MutableMapping[str, Fields] | None = None,
) -> Fields:
    """Returns the spec of a merge (``PlanBuilder.merge_recipe``) and of the fine-tuning runs that
    it combines. Values that differ between the runs are joined by ``+``, in the order of the
    donors. ``tunings``: specs of fine-tuning runs by fingerprint; new ones are added."""
    donors = [jobs[key] for key in recipe["donors"] if key in jobs]
    merge = {
        "method": recipe["method"],
        "params": recipe["params"],
        "alpha": recipe["alpha"],
        "checkpoint": recipe.get("checkpoint", "best"),
        "donors": "+".join(str(job.payload["title"]) for job in donors),
    }
    tunings = {} if tunings is None else tunings
    for job in donors:
        if job.fingerprint not in tunings:
            tunings[job.fingerprint] = list_tuning_fields(job, jobs)
    runs = [tunings[job.fingerprint] for job in donors]
    fields = dict(flatten(merge, "merge"))
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [run.get(name, "null") for run in runs]
        fields[name] = values[0] if len(set(values)) == 1 else "+".join(values)
    return fields


def list_merge_params(recipe: Mapping[str, Any], jobs: Mapping[str, Job]) -> Params:
    """Returns the spec of a merge and of the fine-tuning runs that it combines under the names of
    table columns, also what does not vary; names that several fields have are left out."""
    fields = list_merge_fields(recipe, jobs)
    own = [name for name in fields if name.startswith("finetune.")]
    paths = {name: name.removeprefix("finetune.") for name in own}
    columns = name_columns(paths.values())
    times = Counter(map(short_name, paths.values()))
    tuning = {
        columns[path]: _read_number(fields[name])
        for name, path in paths.items()
        if times[columns[path]] <= 1
    }
    merge = {
        "merge_seed" if name == "merge.params.seed" else short_name(name): _read_number(value)
        for name, value in fields.items()
        if name.startswith(("merge.params.", "merge.method", "merge.alpha"))
    }
    others = {"at": fields["merge.checkpoint"], "finetune": fields["merge.donors"]}
    return {**tuning, **merge, **others}


def list_varying_params(jobs: Mapping[str, Job]) -> dict[str, Params]:
    """Returns the fields of each fine-tuning job that differ from others of its title, under the
    short names of table columns, by fingerprint; names and seeds are left out. ``jobs``: all of a
    plan."""
    by_title: dict[str, dict[str, Fields]] = {}
    for key, job in jobs.items():
        if job.stage == "finetune":
            runs = by_title.setdefault(str(job.payload["title"]), {})
            runs[key] = list_tuning_fields(job, jobs)
    params: dict[str, Params] = {}
    for runs in by_title.values():
        names = dict.fromkeys(name for run in runs.values() for name in run)
        differ = [
            name
            for name in names
            if name.rsplit(".", 1)[-1] not in ("name", "seed", "finetune")
            and len({run.get(name) for run in runs.values()}) > 1
        ]
        columns = name_columns(name.removeprefix("finetune.") for name in differ)
        for key, run in runs.items():
            params[key] = {
                column: _read_number(run[name])
                for name, column in zip(differ, columns.values(), strict=True)
                if name in run
            }
    return params


def dump_fully(value: Any) -> Any:
    """Returns a spec as plain data with every field, under the present name of each: what is hashed
    (``model_dump``) leaves some defaults out."""
    if isinstance(value, BaseModel):
        return {name: dump_fully(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(name): dump_fully(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [dump_fully(item) for item in value]
    return value


def flatten(value: Any, path: str) -> dict[str, str]:
    """Returns the leaves of plain data by dotted path. A list of plain values is one leaf."""
    if isinstance(value, Mapping) and value:
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = list(enumerate(value))
    else:
        return {path: value if isinstance(value, str) else json.dumps(value)}
    return {
        name: leaf for key, item in items for name, leaf in flatten(item, f"{path}.{key}").items()
    }


def _dump_tuning(job: Job, jobs: Mapping[str, Job]) -> dict[str, Any]:
    fields: dict[str, Any] = dump_fully(FinetuneSpec.model_validate(job.payload["spec"]))
    start = jobs.get(str(job.payload["start"]))
    if fields["after"] is not None and start is not None:
        donors: Any = start.payload["donors"]
        earlier = _dump_tuning(jobs[donors[0]], jobs) if donors and donors[0] in jobs else {}
        fields["after"] = {**earlier, **fields["after"]}
    return fields


def _read_number(text: str) -> str | float | int:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if type(value) in (int, float) else text


def _resolve_evaluations(plan: Plan) -> Sequence[EvalSpec]:
    """Returns the evaluations with the form of features that the plan chose."""
    if not plan.rows:
        return plan.spec.evaluate
    resolved = []
    for item, key in zip(plan.spec.evaluate, plan.rows[0].evaluations, strict=True):
        planned = EvalSpec.model_validate(plan.jobs[key].payload["spec"])
        unhashed = {"name": item.name, "in_score": item.in_score}
        resolved.append(planned.model_copy(update=unhashed))
    return resolved
