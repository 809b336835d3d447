"""The plan of a search: what is known before the first proposal, how a proposal becomes jobs, and
the plan of what it chose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speechft_ray.core.axes import DonorAxis, read_axes
from speechft_ray.core.chains import build_chains
from speechft_ray.core.errors import SweepError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.objectives import list_compared, select_tasks
from speechft_ray.core.records import Job
from speechft_ray.core.specs import EvalSpec, SearchSpec, SweepSpec
from speechft_ray.search.proposals import Proposal, Runs, SearchSpace
from speechft_ray.search.rungs import find_pause
from speechft_ray.sweep.inputs import Inputs
from speechft_ray.sweep.plan import (
    FBANK,
    Plan,
    PlanBuilder,
    PlannedRow,
    identify_names,
    merge_fingerprint,
)
from speechft_ray.sweep.titles import Params, Varying, row_params, row_title, varying_fields


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A search before it runs."""

    spec: SweepSpec
    search: SearchSpec
    space: SearchSpace
    fingerprint: str
    tasks: tuple[EvalSpec, ...]
    """The evaluations that the search needs of each merge, in the order in which they are made."""
    controls: Plan
    """The pre-trained encoder, evaluated in full, and FBank where the score's zero is measured."""
    builder: PlanBuilder
    varying: Varying

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Every job that was added by now."""
        return self.builder.jobs

    def merge_key(self, proposal: Proposal) -> str:
        """Returns the fingerprint of the merged encoder of a proposal."""
        return merge_fingerprint(self.recipe(proposal))

    def recipe(self, proposal: Proposal) -> dict[str, Any]:
        """Returns all that determines the merged encoder of a proposal."""
        return self.builder.merge_recipe(proposal.merge, [key for _, key in proposal.donors])

    def evaluation(self, proposal: Proposal, number: int, task: EvalSpec) -> str:
        """Adds one evaluation of a proposal on dev and returns its fingerprint."""
        return self.builder.add_dev_evaluation(task, self.recipe(proposal), f"trial {number}")

    def rung_evaluations(self, proposal: Proposal, number: int, rung: int) -> list[str]:
        """Adds the evaluations of a proposal up to a rung and returns their fingerprints: those of
        its tasks; at the last rung, and without rungs, the whole evaluations of all tasks."""
        rungs = self.search.list_rungs()
        if rung >= len(rungs) - 1:
            return [self.evaluation(proposal, number, task) for task in self.tasks]
        recipe, title = self.recipe(proposal), f"trial {number}"
        return [
            self.builder.add_dev_evaluation(task, recipe, title, find_pause(task, rungs[rung]))
            for task in self.rung_tasks(rung)
        ]

    def rung_tasks(self, rung: int) -> list[EvalSpec]:
        """Returns the tasks that are compared at a rung: those that train probes; at a screen,
        those that it is made on."""
        if rung == 0 and self.search.screen is not None:
            names = select_screened(self.spec, self.search, self.builder.inputs)
            return [task for task in self.tasks if task.label in names]
        return self.probe_tasks()

    def probe_tasks(self) -> list[EvalSpec]:
        """Returns the tasks that train probes."""
        return [task for task in self.tasks if self.builder.inputs.trains(task.task)]

    def count_updates(self, rung: int) -> int:
        """Returns the updates of all tasks up to a rung, with all probes of a task at once."""
        fraction = self.search.list_rungs()[rung]
        return sum(find_pause(task, fraction) for task in self.probe_tasks())

    def params(self, proposal: Proposal) -> Params:
        """What tables say of the merge of a proposal."""
        return row_params(proposal.merge, [run for run, _ in proposal.donors], self.varying)


def make_search_plan(spec: SweepSpec, inputs: Inputs, depth: int) -> SearchPlan:
    """Returns the plan of a search. ``depth`` is the number of encoder layers. Raises ``SpecError``
    for faulty axes."""
    search = spec.search
    if search is None:
        raise ValueError(f"the sweep `{spec.name}` is no search")
    tunings = build_chains(spec.finetune)
    axes, mistakes = read_axes(search, tunings)
    varying = varying_fields(tunings)
    builder = PlanBuilder(inputs, varying=varying)
    runs = tuple((run, builder.add_finetune(run)) for run in tunings)
    mistakes = mistakes or _start_mistakes(
        axes.donors, runs, builder, search.sampler == "greedy_soup"
    )
    mistakes += _rung_mistakes(spec, search, inputs)
    if mistakes:
        raise SweepError(f"the search `{spec.name}`", mistakes)
    key, title, params = builder.add_pretrained()
    row = PlannedRow(
        key=key, title=title, params=params, evaluations=_evaluations(spec, builder, key, title)
    )
    measured = spec.score.zero == "measured"
    baseline = (
        tuple(builder.add_evaluation(item, None, FBANK) for item in spec.evaluate)
        if measured
        else ()
    )
    identity = {
        "search": search.model_dump(mode="json") | {"window": search.concurrency()},
        "runs": [run_key for _, run_key in runs],
        "units": [*row.evaluations, *baseline],
        "depth": depth,
        "score": spec.score.model_dump(mode="json"),
        **identify_names(spec),
    }
    whole = fingerprint(identity)
    jobs = _with_dependencies([*row.evaluations, *baseline], builder.jobs)
    controls = Plan(spec=spec, fingerprint=whole, jobs=jobs, rows=(row,), baseline=baseline)
    return SearchPlan(
        spec=spec,
        search=search,
        space=SearchSpace(axes=axes, runs=runs, depth=depth),
        fingerprint=whole,
        tasks=select_tasks(spec, search),
        controls=controls,
        builder=builder,
        varying=varying,
    )


def _start_mistakes(
    donors: DonorAxis, runs: Runs, builder: PlanBuilder, all_together: bool
) -> list[tuple[str, str]]:
    """Whether donors may be proposed together that start from different encoders, stages of chains,
    which no merge can have.

    Which run of a name is drawn is not looked at: whatever is drawn must have the same start.
    """
    for names in donors.sets:
        starts = {builder.start(key) for run, key in runs if run.spec.name in names}
        if len(starts) > 1 and (len(names) > 1 or all_together):
            text = (
                f"{', '.join(names)} start from different encoders, so no merge can have them "
                "together: name runs of one stage."
            )
            return [("search.axes.donors", text)]
    return []


def _rung_mistakes(spec: SweepSpec, search: SearchSpec, inputs: Inputs) -> list[tuple[str, str]]:
    """Whether rungs and a screen have a task to compare trials by: one of the objective that trains
    probes, or has one label per utterance."""
    if not search.list_rungs():
        return []
    compared = list_compared(spec, search)
    names = ", ".join(sorted(f"`{item.label}`" for item in compared))
    mistakes = []
    if search.rungs and not any(inputs.trains(item.task) for item in compared):
        text = (
            f"compares trials after fractions of the updates of {names}, which trains no probe: "
            "leave `rungs` out, or name an objective of a task that does."
        )
        mistakes.append(("search.rungs", text))
    if search.screen is None:
        return mistakes
    by = search.screen.by
    labels = [item.label for item in compared if inputs.can_screen(item, by)]
    wrong = ", ".join(f"`{name}`" for name in search.screen.tasks if name not in labels)
    if wrong or not labels:
        allowed = f"name {' or '.join(f'`{name}`' for name in labels)} there, or " if labels else ""
        needs = (
            "phone recognition on a corpus with alignments"
            if by == "abx"
            else "tasks with one label per utterance"
        )
        text = (
            f"compares trials by `{by}`, which takes {needs}, unlike {wrong or names}: {allowed}"
            "leave `screen` out."
        )
        mistakes.append(("search.screen.tasks" if wrong else "search.screen", text))
    return mistakes


def select_screened(spec: SweepSpec, search: SearchSpec, inputs: Inputs) -> list[str]:
    """Returns the labels of the tasks that a search screens trials on."""
    if search.screen is None:
        return []
    by, chosen = search.screen.by, search.screen.tasks
    compared = list_compared(spec, search)
    labels = [item.label for item in compared if inputs.can_screen(item, by)]
    return [label for label in labels if not chosen or label in chosen]


def make_selection_plan(plan: SearchPlan, chosen: Sequence[tuple[int, Proposal]]) -> Plan:
    """Returns the plan of what a search chose, best first: each merge and the two controls, on dev
    and test.

    Control alpha 1 is the plain mean of the same donors, whatever the method: the stably fine-tuned
    model where there is one.
    """
    rows = {row.key: row for row in plan.controls.rows}

    def add(merge: MergeSpec, donors: Proposal, params: Params, title: str) -> str:
        key = plan.builder.add_merge(merge, [run_key for _, run_key in donors.donors], title)
        if key not in rows:
            evaluations = _evaluations(plan.spec, plan.builder, key, title)
            rows[key] = PlannedRow(key=key, title=title, params=params, evaluations=evaluations)
        return key

    keys = []
    for _, proposal in chosen:
        tuned = MergeSpec(alpha=1.0)
        params = row_params(tuned, [run for run, _ in proposal.donors], plan.varying)
        add(tuned, proposal, params, row_title(params))
    for number, proposal in chosen:
        short = {
            name: value
            for name, value in plan.params(proposal).items()
            if not isinstance(value, str) or "," not in value
        }
        params = {
            **short,
            "trial": number,
        }  # lists, of factors per layer for example, are in the table of all trials
        keys.append(
            add(proposal.merge, proposal, params, f"trial {number} {proposal.merge.method}")
        )
    goals = [key for row in rows.values() for key in (row.key, *row.evaluations)]
    return Plan(
        spec=plan.spec,
        fingerprint=plan.fingerprint,
        jobs=_with_dependencies([*goals, *plan.controls.baseline], plan.jobs),
        rows=tuple(rows.values()),
        baseline=plan.controls.baseline,
        winner=keys[0] if keys else None,
    )


def _evaluations(spec: SweepSpec, builder: PlanBuilder, key: str, title: str) -> tuple[str, ...]:
    return tuple(builder.add_evaluation(item, key, title) for item in spec.evaluate)


def _with_dependencies(goals: Iterable[str], jobs: Mapping[str, Job]) -> dict[str, Job]:
    """Returns the goals and everything that they need, in the order in which the jobs were made."""
    needed: set[str] = set()
    waiting = list(goals)
    while waiting:
        key = waiting.pop()
        if key not in needed:
            needed.add(key)
            waiting += jobs[key].needs
    return {key: job for key, job in jobs.items() if key in needed}
