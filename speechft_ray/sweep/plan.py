"""Turns a sweep spec into jobs with fingerprints, needs and labels. Runs nothing.

The fingerprint of a unit hashes its typed spec and the fingerprints of its inputs. Equal work is
therefore planned once: alpha 0 is the same encoder for every donor, and a second sweep is answered
from the store where a first one computed the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from speechft_ray.core.chains import Tuning, build_chains
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.records import Job, Stage
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.core.rung_spec import SCREEN_FACT
from speechft_ray.core.specs import CorpusSpec, EvalSpec, StopSpec, SweepSpec
from speechft_ray.sweep.donors import list_merges
from speechft_ray.sweep.inputs import Component, Inputs
from speechft_ray.sweep.predictions import Prediction, count_encoders, make_prediction
from speechft_ray.sweep.titles import (
    Params,
    Varying,
    precision_label,
    row_params,
    row_title,
    run_label,
    varying_fields,
)

VERSIONS: Mapping[Stage, int] = {"corpus": 1, "finetune": 2, "merge": 1, "evaluate": 2}
"""Raised when the code of a stage changes its results. Part of identity, so that old and new
results never mix. A change of one head, method or task raises its own version instead."""

SCREEN_VERSION = 1
"""The same for screens, which are units of the stage ``evaluate``."""

FBANK = "fbank"
"""Name of the parameter-free baseline encoder behind the zero of a measured score."""


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """One merged encoder of the table: its merge unit, and its evaluations in the order of the
    spec."""

    key: str
    title: str
    params: Params
    evaluations: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All jobs, each after those that it needs, and the rows of the table that they fill."""

    spec: SweepSpec
    fingerprint: str
    jobs: Mapping[str, Job]
    rows: tuple[PlannedRow, ...]
    baseline: tuple[str, ...]
    """FBank's evaluations, in the order of the spec; empty when the score's zero is the paper's."""
    winner: str | None = None
    """The merged encoder that a search selected; ``None``: the best dev score selects."""

    def of_stage(self, stage: Stage) -> list[Job]:
        """The jobs of one stage, in plan order."""
        return [job for job in self.jobs.values() if job.stage == stage]


def make_plan(spec: SweepSpec, inputs: Inputs) -> Plan:
    """Returns the plan of a sweep over a list of merges.

    Raises ``SweepError`` when donors of one merge do not share a seed and a start, and for faulty
    chains.
    """
    # Every fine-tuning run, with the earlier stages of its chain.
    runs = build_chains(spec.finetune)
    varying = varying_fields(runs)
    builder = PlanBuilder(inputs, spec.stop_tuning, varying)
    tuned = [(run, builder.add_finetune(run)) for run in runs]
    # One row for each merged encoder, however many entries of the spec lead to it.
    pretrained = builder.add_row(spec, *builder.add_pretrained())
    rows = {pretrained.key: pretrained}
    for merge, donors in list_merges(spec, tuned, builder.start):
        params = row_params(merge, [run for run, _ in donors], varying)
        keys = [key for _, key in donors]
        if merge.predicted_from:
            prediction = make_prediction(builder, merge, keys, params)
            row = builder.add_predicted_row(spec, prediction, params)
        else:
            title = row_title(params)
            row = builder.add_row(spec, builder.add_merge(merge, keys, title), title, params)
        rows.setdefault(row.key, row)
    # The zero of a measured score is an encoder of its own.
    measured = spec.score.zero == "measured"
    baseline = (
        tuple(builder.add_evaluation(item, None, FBANK) for item in spec.evaluate)
        if measured
        else ()
    )
    whole = fingerprint(
        {
            "sweep": sorted(rows),
            "units": sorted(builder.jobs),
            "score": spec.score.model_dump(mode="json"),
            **identify_names(spec),
        }
    )
    return Plan(
        spec=spec,
        fingerprint=whole,
        jobs=builder.jobs,
        rows=tuple(rows.values()),
        baseline=baseline,
    )


def identify_names(spec: SweepSpec) -> dict[str, Any]:
    """Returns what the names of evaluations, which of them are in the score, and how many predicted
    merges are verified add to the identity of a sweep: nothing where all is as by default."""
    changed = [
        [item.label, item.in_score] for item in spec.evaluate if item.name or not item.in_score
    ]
    verified = sorted(item.verify for item in spec.merge if item.predicted_from)
    parts = {"evaluations": changed, "verify": verified}
    return {name: values for name, values in parts.items() if values}


class PlanBuilder:
    """Collects jobs by fingerprint. A search adds jobs while it runs."""

    def __init__(
        self, inputs: Inputs, stop: StopSpec | None = None, varying: Varying | None = None
    ) -> None:
        self.inputs, self.stop, self._varying = inputs, stop, varying or {}
        self.jobs: dict[str, Job] = {}

    def add_corpus(self, spec: CorpusSpec) -> tuple[str, tuple[str, ...]]:
        """Returns the identity of a corpus, and the jobs that must be complete before."""
        identity, needs_job = self.inputs.corpus(spec)
        if not needs_job:
            return identity, ()
        part = spec.options.get("part", "")
        label = f"corpus {spec.name} {part}".strip()
        return identity, (
            self._add("corpus", identity, label, {"corpus": spec.model_dump(mode="json")}, ()),
        )

    def add_finetune(self, run: Tuning) -> str:
        """Adds a fine-tuning run after the earlier stages of its chain; returns its fingerprint."""
        # Inputs: the encoder that the run starts from, and a corpus for each objective.
        start = self._add_start(run)
        corpora = [self.add_corpus(objective.corpus) for objective in run.spec.objectives]
        heads = {objective.head for objective in run.spec.objectives}
        # Identity: the spec and the identities of the inputs.
        identity = {
            "stage": "finetune",
            "version": VERSIONS["finetune"],
            "spec": run.spec.identity(),
            "start": start,
            "corpora": [name for name, _ in corpora],
            **self._versions("head_versions", "head", heads),
        }
        needs = (
            *itertools.chain.from_iterable(needs for _, needs in corpora),
            *self._merge_job(start),
        )
        payload: dict[str, Any] = {
            "spec": run.spec.model_dump(mode="json"),
            "start": start,
            "title": run.title,
        }
        if self.stop:
            payload["stop"] = self.stop.model_dump(mode="json")
        label = run_label(run, self._varying)
        return self._add("finetune", fingerprint(identity), label, payload, needs, corpora)

    def _versions(self, key: str, component: Component, names: Iterable[str]) -> dict[str, Any]:
        """Returns what the versions of components add to an identity: nothing where all are 1."""
        versions = {name: self.inputs.version_of(component, name) for name in names}
        changed = {name: version for name, version in versions.items() if version != 1}
        return {key: changed} if changed else {}

    def _add_start(self, run: Tuning) -> str:
        """Returns the encoder that a run starts from: the pre-trained one, or the merge of its
        chain, which is added."""
        after = run.spec.after
        if run.earlier is None or after is None:
            return self.inputs.encoder
        if not after.alpha:
            return self._add_start(run.earlier)
        donor = self.add_finetune(run.earlier)
        merge = MergeSpec(method=after.method, params=after.params, alpha=after.alpha)
        earlier = run_label(run.earlier, self._varying).removeprefix("finetune ")
        return self.add_merge(merge, [donor], f"{after.method} alpha={after.alpha:g} {earlier}")

    def _merge_job(self, encoder: str) -> tuple[str, ...]:
        """Returns the job that merges an encoder; there is none for the pre-trained one."""
        return (encoder,) if encoder in self.jobs else ()

    def add_merge(self, spec: MergeSpec, donors: Sequence[str], title: str) -> str:
        """Adds the merge of fine-tuning runs, by fingerprint; returns the encoder's fingerprint."""
        return self.add_recipe(self.merge_recipe(spec, donors), title)

    def add_recipe(self, recipe: dict[str, Any], title: str) -> str:
        """Adds the merge of a recipe (``merge_recipe``); returns the encoder's fingerprint."""
        return self._add(
            "merge", merge_fingerprint(recipe), f"merge {title}", recipe, self._inputs_of(recipe)
        )

    def merge_recipe(self, spec: MergeSpec, donors: Sequence[str]) -> dict[str, Any]:
        """Returns all that determines a merged encoder. Its base is the common start of the donors.

        Alpha 0 is that start: the pre-trained encoder, or the earlier merge of the donors' chain.
        """
        (start,) = {self.start(key) for key in donors} or {self.inputs.encoder}
        if not spec.alpha:
            pretrained = {
                "method": "pretrained",
                "params": {},
                "alpha": 0.0,
                "donors": [],
                "base": start,
            }
            return dict(self.jobs[start].payload) if start in self.jobs else pretrained
        checkpoint = {"checkpoint": spec.checkpoint} if spec.checkpoint != "best" else {}
        version = self.inputs.version_of("method", spec.method)
        return {
            "method": spec.method,
            "params": spec.params,
            "alpha": spec.alpha,
            "donors": list(donors),
            **checkpoint,
            **({"method_version": version} if version != 1 else {}),
            **({"mask_embedding": "merged"} if any(map(self._trains_mask, donors)) else {}),
            "base": start,
        }

    def _trains_mask(self, tuned: str) -> bool:
        """Whether a run trains the mask embedding, which a merge then combines like all else.

        It is part of identity, since merges once kept the base's.
        """
        spec: Any = self.jobs[tuned].payload["spec"]
        heads = (objective["head"] for objective in spec["objectives"])
        return spec.get("adapter") is None and any(map(self.inputs.masks, heads))

    def start(self, tuned: str) -> str:
        """Returns the encoder that a run starts from."""
        return str(self.jobs[tuned].payload["start"])

    def _inputs_of(self, recipe: Mapping[str, Any]) -> tuple[str, ...]:
        return (*self._merge_job(recipe["base"]), *recipe["donors"])

    def add_pretrained(self) -> tuple[str, str, Params]:
        """Adds the control alpha 0, the pre-trained encoder; returns key, title and params."""
        return (
            self.add_merge(MergeSpec(alpha=0.0), (), "alpha=0"),
            "alpha=0",
            {"alpha": 0.0, "method": "none", "finetune": "none"},
        )

    def add_row(self, spec: SweepSpec, key: str, title: str, params: Params) -> PlannedRow:
        """Adds the evaluations of a merged encoder; returns its row."""
        evaluations = tuple(self.add_evaluation(item, key, title) for item in spec.evaluate)
        return PlannedRow(key=key, title=title, params=params, evaluations=evaluations)

    def add_predicted_row(self, spec: SweepSpec, item: Prediction, params: Params) -> PlannedRow:
        """Adds the evaluations of a predicted merge; returns its row."""
        title = row_title(params)
        evaluations = tuple(self._add_prediction(each, item, title) for each in spec.evaluate)
        return PlannedRow(key=item.key, title=title, params=params, evaluations=evaluations)

    def _add_prediction(self, spec: EvalSpec, prediction: Prediction, title: str) -> str:
        """Adds an evaluation on dev of a predicted merge, after those of its encodings."""
        needs = [key for _, key, _ in prediction.encodings]
        needs += [self.add_evaluation(spec, key, text) for _, key, text in prediction.encodings]
        spec = self.inputs.resolve_evaluation(spec, False)
        payload = {
            "spec": spec.identity(),
            "encoder": prediction.key,
            "splits": ["dev"],
            "predicted": prediction.payload(),
        }
        return self._evaluation(spec, prediction.key, title, payload, needs, {"splits": ["dev"]})

    def add_evaluation(
        self,
        spec: EvalSpec,
        encoder: str | None,
        title: str,
        predicted: Mapping[str, Any] | None = None,
    ) -> str:
        """Adds an evaluation on dev and test. ``encoder`` is a merge; ``None`` is FBank. Its
        features are compared with those that were ``predicted`` (``Prediction.payload``)."""
        spec = self.inputs.resolve_evaluation(spec, encoder is None)
        compared = {} if predicted is None else {"compared": dict(predicted)}
        payload: dict[str, Any] = {"spec": spec.identity(), "encoder": encoder, **compared}
        return self._evaluation(
            spec, encoder or FBANK, title, payload, [encoder] if encoder else []
        )

    def add_dev_evaluation(
        self, spec: EvalSpec, recipe: Mapping[str, Any], title: str, pause_at: int | None = None
    ) -> str:
        """Adds an evaluation on dev alone of a merge that is made in memory and not stored.

        ``pause_at``: adds the scores after so many updates instead. The job leaves the state of its
        probes in the work folder of the whole evaluation, which goes on from there. After no update
        there are no probes to score: 0 adds a screen, which trains nothing.
        """
        spec = self.inputs.resolve_evaluation(spec, False)
        encoder = merge_fingerprint(recipe)
        payload: dict[str, Any] = {
            "spec": spec.identity(),
            "encoder": encoder,
            "splits": ["dev"],
            "recipe": dict(recipe),
        }
        identity: dict[str, Any] = {"splits": ["dev"]}
        needs = self._inputs_of(recipe)
        if pause_at == 0:
            payload["kind"], title = SCREEN_FACT, f"{title} screen"
            identity["screen"] = SCREEN_VERSION
        elif pause_at is not None:
            whole = self.add_dev_evaluation(spec, recipe, title)
            payload["pause"] = {"update": pause_at, "evaluation": whole}
            identity["pause_at"] = pause_at
            title = f"{title} to update {pause_at}"
        return self._evaluation(spec, encoder, f"on dev {title}", payload, needs, identity)

    def _evaluation(
        self,
        spec: EvalSpec,
        encoder: str,
        title: str,
        payload: dict[str, Any],
        needs: Sequence[str],
        splits: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        corpora = [self.add_corpus(corpus) for corpus in spec.corpora()]
        identities = [identity for identity, _ in corpora]
        version = self.inputs.version_of("task", spec.task)
        identity = {
            "stage": "evaluate",
            "version": VERSIONS["evaluate"],
            "spec": payload["spec"],
            "encoder": encoder,
            "corpus": identities if spec.folds else identities[0],
            **splits,
            **({"task_version": version} if version != 1 else {}),
        }
        column = [spec.column] if spec.column else []
        label = " ".join(["evaluate", spec.label, *column, *precision_label(spec.precision), title])
        corpus_needs = itertools.chain.from_iterable(needs for _, needs in corpora)
        request = self._request_evaluation(spec, payload)
        needs = (*corpus_needs, *needs)
        return self._add("evaluate", fingerprint(identity), label, payload, needs, corpora, request)

    def _add(
        self,
        stage: Stage,
        key: str,
        label: str,
        payload: dict[str, Any],
        needs: tuple[str, ...],
        corpora: Sequence[tuple[str, tuple[str, ...]]] = (),
        resources: ResourceRequest | None = None,
    ) -> str:
        unique = tuple(dict.fromkeys(needs))
        if key not in self.jobs:
            self.jobs[key] = Job(
                stage=stage,
                fingerprint=key,
                label=label,
                payload=payload,
                needs=unique,
                corpora=tuple("" if job else identity for identity, job in corpora),
                resources=resources or self.inputs.resources.get(stage, ResourceRequest()),
            )
        return key

    def _request_evaluation(self, spec: EvalSpec, payload: Mapping[str, Any]) -> ResourceRequest:
        """Returns what an evaluation asks for: by its need, unless a user said how much."""
        request = self.inputs.resources.get("evaluate", ResourceRequest())
        if "gpus" in request.explicit:
            return request
        need = self.inputs.gpu_memory(spec, payload["encoder"])
        return request.model_copy(update={"gpu_memory_bytes": need * count_encoders(payload)})


def merge_fingerprint(recipe: Mapping[str, Any]) -> str:
    """Returns the identity of a merged encoder (``PlanBuilder.merge_recipe``)."""
    return fingerprint({"stage": "merge", "version": VERSIONS["merge"], **recipe})
