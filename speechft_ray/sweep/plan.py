"""From a sweep spec to jobs: every unit of work with its fingerprint, its needs and its label. Pure; runs nothing.

Identity of a unit is the hash of its typed spec and of its inputs' identities, so equal work appears once, whoever asks for it:
alpha 0 is the same encoder for every donor, and a second sweep finds what a first one left in the store.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import JsonValue

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import canonical, fingerprint
from speechft_ray.core.records import Job, Stage
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec, MergeSpec, SweepSpec

VERSIONS: Mapping[Stage, int] = {"corpus": 1, "finetune": 2, "merge": 1, "evaluate": 2}
"""Raised when the code of a stage changes its results; part of identity, so that old and new results never mix."""

FBANK = "fbank"
"""Name of the parameter-free baseline encoder behind the zero of a measured score."""

Params = Mapping[str, str | float | int]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the spec alone cannot know.

    ``encoder``: fingerprint of the pre-trained weights. ``corpus(spec)``: identity of a corpus' content, and whether a job
    must make it first. ``resources``: request per stage.
    """

    encoder: str
    corpus: Callable[[CorpusSpec], tuple[str, bool]]
    resources: Mapping[Stage, ResourceRequest] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """One merged encoder of the table: its merge unit and its evaluations, in the order of the spec."""

    key: str
    title: str
    params: Params
    evaluations: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All jobs in an order in which needs come first, the rows that they fill, and the baseline's evaluations."""

    spec: SweepSpec
    fingerprint: str
    jobs: Mapping[str, Job]
    rows: tuple[PlannedRow, ...]
    baseline: tuple[str, ...]
    """FBank's evaluations, in the order of the spec; empty when the score's zero is the paper's."""
    chosen: str | None = None
    """The merged encoder that a search chose; ``None``: the best dev score chooses."""

    def of_stage(self, stage: Stage) -> list[Job]:
        """The jobs of one stage, in plan order."""
        return [job for job in self.jobs.values() if job.stage == stage]


def make_plan(spec: SweepSpec, inputs: Inputs) -> Plan:
    """Returns the plan of a sweep. Raises ``UserError`` when donors of one merge do not share a seed."""
    build = Builder(inputs)
    tuned = [(run, build.finetune(run)) for run in spec.finetune]
    varying = varying_fields(spec.finetune)
    rows: dict[str, PlannedRow] = {}
    for key, title, params in itertools.chain([build.pretrained()], _merges(spec, tuned, varying, build)):
        if key not in rows:
            evaluations = tuple(build.evaluate(item, key, title) for item in spec.evaluate)
            rows[key] = PlannedRow(key=key, title=title, params=params, evaluations=evaluations)
    measured = spec.score.zero == "measured"
    baseline = tuple(build.evaluate(item, None, FBANK) for item in spec.evaluate) if measured else ()
    whole = fingerprint({"sweep": sorted(rows), "units": sorted(build.jobs), "score": spec.score.model_dump(mode="json")})
    return Plan(spec=spec, fingerprint=whole, jobs=build.jobs, rows=tuple(rows.values()), baseline=baseline)


class Builder:
    """Collects jobs by fingerprint while a plan is walked, or a search goes on."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.jobs: dict[str, Job] = {}

    def corpus(self, spec: CorpusSpec) -> tuple[str, tuple[str, ...]]:
        """Returns the identity of a corpus and what must be complete before it can be read."""
        identity, made = self.inputs.corpus(spec)
        if not made:
            return identity, ()
        part = spec.options.get("part", "")
        label = f"corpus {spec.name} {part}".strip()
        return identity, (self._add("corpus", identity, label, {"corpus": spec.model_dump(mode="json")}, ()),)

    def finetune(self, spec: FinetuneSpec) -> str:
        corpora = [self.corpus(objective.corpus) for objective in spec.objectives]
        identity = {
            "stage": "finetune",
            "version": VERSIONS["finetune"],
            "spec": spec.identity(),
            "start": self.inputs.encoder,
            "corpora": [name for name, _ in corpora],
        }
        needs = tuple(itertools.chain.from_iterable(needs for _, needs in corpora))
        payload = {"spec": spec.model_dump(mode="json"), "start": self.inputs.encoder}
        label = " ".join(["finetune", spec.name, *_penalty_label(spec), f"seed={spec.seed}"])
        return self._add("finetune", fingerprint(identity), label, payload, needs)

    def merge(self, spec: MergeSpec, donors: Sequence[str], title: str) -> str:
        recipe = self.recipe(spec, donors)
        needs = tuple(donors) if spec.alpha else ()
        return self._add("merge", merged_fingerprint(recipe), f"merge {title}", recipe, needs)

    def recipe(self, spec: MergeSpec, donors: Sequence[str]) -> dict[str, Any]:
        """Returns all that decides a merged encoder. Alpha 0 is the pre-trained one, whoever the donors are."""
        chosen: dict[str, Any] = {"method": "pretrained", "params": {}, "alpha": 0.0, "donors": []}
        if spec.alpha:
            chosen = {"method": spec.method, "params": spec.params, "alpha": spec.alpha, "donors": list(donors)}
        return {**chosen, "base": self.inputs.encoder}

    def pretrained(self) -> tuple[str, str, Params]:
        """The control alpha 0: the pre-trained encoder itself, whoever the donors are."""
        return self.merge(MergeSpec(alpha=0.0), (), "alpha=0"), "alpha=0", {"alpha": 0.0, "method": "none", "finetune": "none"}

    def evaluate(self, spec: EvalSpec, encoder: str | None, title: str) -> str:
        payload = {"spec": spec.model_dump(mode="json"), "encoder": encoder}
        return self._evaluation(spec, encoder or FBANK, title, payload, [encoder] if encoder else [])

    def evaluate_on_dev(self, spec: EvalSpec, recipe: Mapping[str, Any], title: str) -> str:
        """Adds an evaluation that never touches test, of an encoder that is merged where it is evaluated and kept nowhere."""
        encoder = merged_fingerprint(recipe)
        payload = {"spec": spec.model_dump(mode="json"), "encoder": encoder, "splits": ["dev"], "recipe": dict(recipe)}
        return self._evaluation(spec, encoder, f"on dev {title}", payload, recipe["donors"], {"splits": ["dev"]})

    def _evaluation(
        self,
        spec: EvalSpec,
        encoder: str,
        title: str,
        payload: dict[str, Any],
        needs: Sequence[str],
        only: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        corpora = [self.corpus(corpus) for corpus in spec.corpora()]
        identities = [identity for identity, _ in corpora]
        identity = {
            "stage": "evaluate",
            "version": VERSIONS["evaluate"],
            "spec": spec.model_dump(mode="json"),
            "encoder": encoder,
            "corpus": identities if spec.folds else identities[0],
            **only,
        }
        label = " ".join(["evaluate", spec.task, *([spec.column] if spec.column else []), title])
        of_corpora = itertools.chain.from_iterable(needs for _, needs in corpora)
        return self._add("evaluate", fingerprint(identity), label, payload, (*of_corpora, *needs))

    def _add(self, stage: Stage, key: str, label: str, payload: dict[str, Any], needs: tuple[str, ...]) -> str:
        resources = self.inputs.resources.get(stage, ResourceRequest())
        unique = tuple(dict.fromkeys(needs))
        if key not in self.jobs:
            self.jobs[key] = Job(stage=stage, fingerprint=key, label=label, payload=payload, needs=unique, resources=resources)
        return key


def merged_fingerprint(recipe: Mapping[str, Any]) -> str:
    """Returns the identity of a merged encoder (``Builder.recipe``)."""
    return fingerprint({"stage": "merge", "version": VERSIONS["merge"], **recipe})


def _merges(
    spec: SweepSpec, tuned: Sequence[tuple[FinetuneSpec, str]], varying: Mapping[str, set[str]], build: Builder
) -> Iterator[tuple[str, str, Params]]:
    """Yields ``(key, title, params)`` of every merge, with alpha 1 as a control beside every set of donors."""
    asked = [item for item in spec.merge if item.alpha > 0]
    controls = [item.model_copy(update={"alpha": 1.0}) for item in spec.merge]
    unique = {canonical(item): item for item in [*asked, *controls]}
    for item in unique.values():
        for donors in _donor_sets(item, tuned):
            params = row_params(item, [run for run, _ in donors], varying)
            title = row_title(params)
            yield build.merge(item, [key for _, key in donors], title), title, params


def _donor_sets(merge: MergeSpec, tuned: Sequence[tuple[FinetuneSpec, str]]) -> Iterator[tuple[tuple[FinetuneSpec, str], ...]]:
    if merge.donors == "each":
        yield from ((donor,) for donor in tuned)
        return
    found = False
    for seed in sorted({run.seed for run, _ in tuned}):
        choices = [[pair for pair in tuned if pair[0].name == name and pair[0].seed == seed] for name in merge.donors]
        for donors in itertools.product(*choices):
            found = True
            yield donors
    if not found:
        names = ", ".join(merge.donors)
        raise UserError(f"no seed was tuned by all of the donors {names}: give those fine-tuning runs the same `seed` axis.")


def row_params(merge: MergeSpec, donors: Sequence[FinetuneSpec], varying: Mapping[str, set[str]]) -> Params:
    """Returns what a row of the table says of its merge: what can vary, under short names."""
    params: dict[str, str | float | int] = {"method": merge.method, "alpha": merge.alpha}
    params |= {
        name: shown for name, shown in ((name, _shown(value)) for name, value in merge.params.items()) if shown is not None
    }
    params["finetune"] = "+".join(dict.fromkeys(run.name for run in donors))
    for run in donors:
        flat = _flat(run.identity())
        params |= {name.rsplit(".", 1)[-1]: flat[name] for name in sorted(varying[run.name]) if name in flat}
    params["seed"] = donors[0].seed
    return params


def _shown(value: JsonValue) -> str | float | int | None:
    """A parameter of a merge as a row shows it: a list, of weights or of factors per layer, as one text; no mapping."""
    if isinstance(value, list):
        return ",".join(_number(item) if isinstance(item, str | float | int) else str(item) for item in value)
    return value if isinstance(value, str | float | int) else None


def varying_fields(runs: Sequence[FinetuneSpec]) -> dict[str, set[str]]:
    """By name of the run: the dotted fields, other than the seed, whose values differ between runs of that name."""
    varying: dict[str, set[str]] = {}
    for name in {run.name for run in runs}:
        flats = [_flat(run.identity()) for run in runs if run.name == name]
        keys = set().union(*flats) - {"seed"}
        varying[name] = {key for key in keys if len({flat.get(key) for flat in flats}) > 1}
    return varying


def _flat(value: Any, path: str = "") -> dict[str, str | float | int]:
    if isinstance(value, dict):
        items = [_flat(item, f"{path}.{key}" if path else key) for key, item in value.items()]
    elif isinstance(value, list):
        items = [_flat(item, f"{path}.{index}") for index, item in enumerate(value)]
    else:
        return {} if value is None else {path: value}
    return {key: leaf for item in items for key, leaf in item.items()}


def _penalty_label(spec: FinetuneSpec) -> list[str]:
    return [f"lambda={_number(spec.anchor_penalty)}"] if spec.anchor_penalty else []


def row_title(params: Params) -> str:
    """Returns the parameters of a row as its title."""
    return " ".join(_title_part(name, value) for name, value in params.items())


def _title_part(name: str, value: str | float | int) -> str:
    return str(value) if name in ("method", "finetune") else f"{name}={_number(value)}"


def _number(value: str | float | int) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
