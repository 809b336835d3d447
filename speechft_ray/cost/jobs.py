"""Counts the work of the jobs of a sweep, as they are or with one setting changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from speechft_ray.core.records import Job, Stage
from speechft_ray.core.rung_spec import SCREEN_FACT
from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec
from speechft_ray.cost.sizes import EncoderSize, EvaluationSize, ObjectiveSize
from speechft_ray.cost.work import Work, WorkCounter, count_corpus, count_merge


class PlannedJob(NamedTuple):
    """One job to be done, as far as its cost depends on it."""

    stage: Stage
    key: str
    """Fingerprint, or a name of a job that a search has not proposed yet."""
    label: str
    payload: dict[str, Any]

    @classmethod
    def of(cls, job: Job) -> PlannedJob:
        """Returns what a cost depends on of a job."""
        return cls(job.stage, job.fingerprint, job.label, dict(job.payload))


def plan_merge(
    name: str, recipe: Mapping[str, Any], evaluations: Sequence[EvalSpec]
) -> list[PlannedJob]:
    """Returns the jobs of a merge that has no fingerprint yet, and of its evaluations in full."""
    jobs = [PlannedJob("merge", name, name, dict(recipe))]
    for item in evaluations:
        payload = {"spec": item.model_dump(mode="json"), "encoder": name}
        jobs.append(PlannedJob("evaluate", f"{name} {item.label}", name, payload))
    return jobs


class Sizes(Protocol):
    """Says how large everything is that the jobs of a sweep read."""

    encoder: EncoderSize
    fbank: EncoderSize

    def corpus(self, spec: CorpusSpec) -> tuple[str, int]:
        """Returns the name of a corpus in units of work, and its utterances."""
        ...

    def evaluation(self, spec: EvalSpec) -> EvaluationSize:
        """Returns the utterances of an evaluation."""
        ...

    def finetuning(self, spec: FinetuneSpec) -> list[ObjectiveSize]:
        """Returns the utterances of each objective."""
        ...


def count_jobs(
    jobs: Sequence[PlannedJob], sizes: Sizes, cache_bytes: float
) -> list[tuple[Stage, Work]]:
    """Returns the work of each job."""
    counter = WorkCounter(cache_bytes)
    return [(job.stage, _count_job(job, sizes, counter)) for job in jobs]


def _count_job(job: PlannedJob, sizes: Sizes, counter: WorkCounter) -> Work:
    if job.stage == "corpus":
        return count_corpus(*sizes.corpus(CorpusSpec.model_validate(job.payload["corpus"])))
    if job.stage == "finetune":
        spec = FinetuneSpec.model_validate(job.payload["spec"])
        return counter.count_finetuning(spec, sizes.finetuning(spec), sizes.encoder)
    if job.stage == "merge":
        return count_merge(job.payload["method"], len(job.payload["donors"]), sizes.encoder)
    evaluation = EvalSpec.model_validate(job.payload["spec"])
    key = job.payload["encoder"]
    work = counter.count_evaluation(
        evaluation,
        sizes.evaluation(evaluation),
        sizes.encoder if key else sizes.fbank,
        str(key),
        dev_only=job.payload.get("splits") == ["dev"],
        predicted_from=[key for _, key in job.payload.get("predicted", {}).get("encodings", [])],
        screens=job.payload.get("kind") == SCREEN_FACT,
    )
    recipe = job.payload.get("recipe")
    if recipe is None or not recipe["donors"]:
        return work
    # A proposal of a search is merged in memory, for each of its evaluations.
    merge = count_merge(recipe["method"], len(recipe["donors"]), sizes.encoder)
    return work + Work(units={unit: merge.units[unit] for unit in merge.units if unit[:3] != "job"})


def halve_updates(jobs: Sequence[PlannedJob], stage: Stage, name: str) -> list[PlannedJob]:
    """Returns the jobs with half the updates for one task, or for the fine-tuning runs of one
    name."""
    field = "task" if stage == "evaluate" else "name"

    def change(spec: dict[str, Any]) -> dict[str, Any]:
        return {**spec, "updates": max(1, spec["updates"] // 2)}

    return _change_specs(jobs, stage, lambda spec: spec[field] == name, change)


def use_one_seed(jobs: Sequence[PlannedJob], task: str) -> list[PlannedJob]:
    """Returns the jobs with one probe seed for a task."""
    return _change_specs(
        jobs, "evaluate", lambda spec: spec["task"] == task, lambda spec: {**spec, "seeds": 1}
    )


def drop_task(jobs: Sequence[PlannedJob], task: str) -> list[PlannedJob]:
    """Returns the jobs without the evaluations of a task."""
    return [job for job in jobs if job.stage != "evaluate" or job.payload["spec"]["task"] != task]


def halve_merges(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Returns the jobs without every second merge of donors and its evaluations."""
    encoders = [
        job.payload["encoder"] if job.stage == "evaluate" else job.key
        for job in jobs
        if _is_of_donors(job)
    ]
    unique = list(dict.fromkeys(encoders))
    dropped = set(unique[1::2])
    return [
        job
        for job in jobs
        if not (
            (job.stage == "merge" and job.key in dropped)
            or (job.stage == "evaluate" and job.payload["encoder"] in dropped)
        )
    ]


def _is_of_donors(job: PlannedJob) -> bool:
    if job.stage == "merge":
        return bool(job.payload["donors"])
    return job.stage == "evaluate" and bool((job.payload.get("recipe") or {}).get("donors"))


def _change_specs(
    jobs: Sequence[PlannedJob],
    stage: Stage,
    matches: Callable[[dict[str, Any]], bool],
    change: Callable[[dict[str, Any]], dict[str, Any]],
) -> list[PlannedJob]:
    return [
        job._replace(payload={**job.payload, "spec": change(job.payload["spec"])})
        if job.stage == stage and matches(job.payload["spec"])
        else job
        for job in jobs
    ]
