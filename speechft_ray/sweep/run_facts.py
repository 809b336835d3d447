"""Adds to what is logged of a run its resolved spec, when it ran, and how long its jobs took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from speechft_ray.core.records import Job
from speechft_ray.core.store import Store
from speechft_ray.sweep.fields import (
    Fields,
    list_merge_fields,
    list_tuning_fields,
    list_varying_params,
)
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import Curve, EncoderRow, Span


class _RowFacts(NamedTuple):
    """Fields of ``EncoderRow`` that come from jobs and manifests."""

    fields: Mapping[str, str]
    seconds: Mapping[str, float]
    datasets: Mapping[str, str]
    span: Span | None


class RunFacts:
    """Looks up jobs and their manifests for the runs of one plan."""

    def __init__(self, plan: Plan, tunings: Sequence[Job], store: Store) -> None:
        """``tunings``: fine-tuning runs that are not in the plan, as those of a search."""
        self._jobs: dict[str, Job] = {job.fingerprint: job for job in tunings} | dict(plan.jobs)
        self._evaluations = {row.key: row.evaluations for row in plan.rows}
        self._labels = [item.label for item in plan.spec.evaluate]
        self._varying = list_varying_params(self._jobs)
        self._store = store
        self._tunings: dict[str, Fields] = {}
        """Specs of fine-tuning runs by fingerprint."""
        self._completed: dict[str, _RowFacts] = {}
        """Of complete rows, by key: they change no more, and are asked for again at the end."""

    def complete_curve(self, curve: Curve) -> Curve:
        """Returns a learning curve with the spec of its run; that of a fine-tuning run has what
        varies among its params."""
        job = self._jobs.get(curve.key)
        if job is None:
            return curve
        if job.stage == "merge":
            return curve._replace(fields=list_merge_fields(job.payload, self._jobs))
        seed = {name: value for name, value in curve.params.items() if name == "seed"}
        names = {name: value for name, value in curve.params.items() if name != "seed"}
        return curve._replace(
            params={**names, **self._varying.get(curve.key, {}), **seed},
            fields=list_tuning_fields(job, self._jobs),
            span=join_spans([read_span(self._store, "finetune", curve.key)]),
        )

    def complete_row(self, row: EncoderRow) -> EncoderRow:
        """Returns a row with its spec, with the seconds of its evaluations by their label, and with
        the time from its merge to its last evaluation."""
        keys = self._evaluations.get(row.key)
        if keys is None:  # of a trial, which is in no plan
            return row
        facts = self._completed.get(row.key) or self._read_facts(row, keys)
        if row.complete:
            self._completed[row.key] = facts
        return replace(row, **facts._asdict())

    def _read_facts(self, row: EncoderRow, keys: Sequence[str]) -> _RowFacts:
        recipe = self._find_recipe(row.key, keys)
        fields = list_merge_fields(recipe, self._jobs, self._tunings) if recipe is not None else {}
        seconds = {
            label: read_seconds(self._store.manifest("evaluate", key))
            for label, key in zip(self._labels, keys, strict=True)
            if self._store.is_complete("evaluate", key)
        }
        datasets = {
            label: self._identify_corpora(key)
            for label, key in zip(self._labels, keys, strict=True)
        }
        spans = [read_span(self._store, "evaluate", key) for key in keys]
        span = join_spans([read_span(self._store, "merge", row.key), *spans])
        return _RowFacts(fields, seconds, datasets, span if row.complete else None)

    def _find_recipe(self, key: str, evaluations: Sequence[str]) -> Mapping[str, Any] | None:
        """Returns the recipe of a merge, also of one that was only predicted."""
        if key in self._jobs:
            return self._jobs[key].payload
        predicted: Any = self._jobs[evaluations[0]].payload.get("predicted")
        return predicted["recipe"] if predicted is not None else None

    def _identify_corpora(self, evaluation: str) -> str:
        """Returns the fingerprints of the corpora of an evaluation, one for each fold."""
        job = self._jobs[evaluation]
        made = [
            need for need in job.needs if need in self._jobs and self._jobs[need].stage == "corpus"
        ]
        return "+".join([*filter(None, job.corpora), *made])


def read_seconds(manifest: Mapping[str, Any]) -> float:
    """Returns how long a job took, 0 where its manifest does not say. Work that was cached by an
    earlier job is not in it."""
    seconds = manifest.get("seconds", 0.0)
    return float(sum(seconds.values()) if isinstance(seconds, Mapping) else seconds)


def read_span(store: Store, stage: str, key: str) -> Span | None:
    """Returns when a job of the store ran: it ended when its manifest was written, and had begun
    its recorded seconds before."""
    end = store.find_time(stage, key)
    if end is None:
        return None
    return Span(end - read_seconds(store.manifest(stage, key)), end)


def join_spans(spans: Sequence[Span | None]) -> Span | None:
    """Returns the time from the first start to the last end."""
    stored = [span for span in spans if span is not None]
    if not stored:
        return None
    return Span(min(span.start for span in stored), max(span.end for span in stored))
