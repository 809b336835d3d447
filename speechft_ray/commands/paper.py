"""The verb ``paper``: runs the search spaces behind the paper's tables and puts both side by side.

Tables share work: equal fine-tunings, merges and evaluations have one fingerprint and are done once
in a store, whichever table asks first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table as ConsoleTable

from speechft_ray.commands import real_speech
from speechft_ray.commands.parts import SEARCH_SPACES, resolve_place
from speechft_ray.commands.provenance import SpaceSource
from speechft_ray.commands.results import read_report_data
from speechft_ray.commands.sweep import MergeList, run
from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write
from speechft_ray.core.records import STAGES, Job, Limits, Outcome, Place
from speechft_ray.core.specs import EvalSpec, FinetuneSpec, Objective, ScoreSpec, SweepSpec
from speechft_ray.report.lines import TableLine
from speechft_ray.report.own_table import make_own_table
from speechft_ray.report.paper_page import (
    Table,
    make_table,
    render_paper_markdown,
    render_paper_page,
)
from speechft_ray.report.paper_tables import SPACES, find_table, name_table
from speechft_ray.sweep.space_file import open_space
from speechft_ray.sweep.yaml_text import read_yaml

Scale = Literal["full", "embedded", "real-speech"]

_EMBEDDED = Path(__file__).parents[1] / "assets" / "paper" / "embedded.yaml"
_MODELS = {"wav2vec2_base": "wav2vec 2.0 Base", "decoar2_base": "DeCoAR 2.0"}
"""Encoder of a space: model of the paper, where a table has several."""

SCOPES: Mapping[Scale, str] = {
    "full": "Ours: the paper's corpora, encoders and numbers of updates.",
    "embedded": (
        "Ours: synthetic speech, an encoder of 2.4 million parameters and 300 updates. The "
        "numbers cannot be compared with the published ones; the signs of differences can."
    ),
    "real-speech": (
        "Ours: human speech from Debian's packages and an encoder of 2.4 million parameters that "
        "was pre-trained on two hours of it. Other tasks than the paper's, so the shape of a table "
        "can be compared, no number."
    ),
}


@dataclass(frozen=True, kw_only=True)
class PaperSweep:
    """One search space of the paper, planned."""

    space: str
    encoder: str
    """Encoder that the space names, whatever it was replaced with."""
    sweep: MergeList
    notes: tuple[str, ...]
    """What is left out at this scale."""


def parse_tables(texts: Sequence[str]) -> list[int]:
    """Returns the numbers of tables; ``all`` is every table. Raises ``UserError`` for others."""
    if not texts or "all" in texts:
        return list(SPACES)
    numbers = []
    for text in texts:
        number = find_table(text)
        if number is None:
            raise UserError(
                f"the paper has no table `{text}`: name tables from 1 to 16, VIII (of its later "
                "version), or `all`."
            )
        numbers.append(number)
    return sorted(set(numbers))


def parse_scale(text: str) -> Scale:
    """Returns a scale. Raises ``UserError`` for another word."""
    for scale in SCOPES:
        if text == scale:
            return scale
    raise UserError(f"`--scale` must be full, embedded or real-speech, but is {text!r} instead.")


def list_spaces(table: int, scale: Scale) -> tuple[str, ...]:
    """Returns the search spaces of a table."""
    return real_speech.SPACES[table] if scale == "real-speech" else SPACES[table]


def open_paper(
    tables: Sequence[int],
    scale: Scale,
    *,
    storage: str | Path,
    encoders: Mapping[str, str],
    corpora: Path | None,
    changes: Mapping[str, object],
    cpu: bool = False,
) -> list[PaperSweep]:
    """Plans the search spaces behind these tables, each once.

    ``encoders`` replaces an encoder that a space names by a file or another name; ``changes`` are
    fields of ``Place``. Raises ``UserError`` before anything is computed.
    """
    spaces = list(dict.fromkeys(space for number in tables for space in list_spaces(number, scale)))
    sweeps = []
    folder = "real_speech" if scale == "real-speech" else "paper"
    for space in spaces:
        file = open_space(SEARCH_SPACES / folder / f"{space}.yaml")
        spec = file.spec
        encoder = spec.encoder
        notes: tuple[str, ...] = ()
        if scale == "embedded":
            spec, notes = embed(spec)
        place = resolve_place(
            spec,
            storage=storage,
            encoder=encoders.get(encoder),
            corpora=corpora,
            cpu=cpu,
        ).model_copy(update=dict(changes))
        sweep = MergeList(spec, place)
        sweep.source = SpaceSource(str(file.path), file.content)
        sweeps.append(PaperSweep(space=space, encoder=encoder, sweep=sweep, notes=notes))
    if unknown := set(encoders) - {item.encoder for item in sweeps}:
        named = ", ".join(sorted({item.encoder for item in sweeps}))
        raise UserError(
            f"`--encoder {min(unknown)}=...` replaces nothing: these tables start from {named}."
        )
    return sweeps


def embed(spec: SweepSpec) -> tuple[SweepSpec, tuple[str, ...]]:
    """Returns a space with synthetic corpora and short runs, and what else is not the paper's."""
    table: Any = read_yaml(_EMBEDDED.read_text(encoding="utf-8")).data
    tasks = {item.task for item in spec.evaluate if item.in_score}
    topline = {
        name: value for name, value in table["topline"].items() if name.split(".")[0] in tasks
    }
    embedded = spec.model_copy(
        update={
            "name": f"{spec.name}-embedded",
            "encoder": "tiny_hubert",
            "finetune": tuple(_embed_run(run, table) for run in spec.finetune),
            "evaluate": tuple(_embed_evaluation(item, table) for item in spec.evaluate),
            "score": ScoreSpec(zero="measured", topline=topline),
        }
    )
    note = "The encoder is tiny_hubert for both models, so their numbers are the same."
    return embedded, (note,) if spec.encoder in _MODELS else ()


def _embed_run(run: FinetuneSpec, table: Any) -> FinetuneSpec:
    objectives, rates = [], []
    for item in run.objectives:
        names = [item.corpus.name, *([item.column] if item.column else [])]
        own = table["finetune"][".".join(names)]
        rates.append(own["peak_learning_rate"])
        fields = {
            **item.model_dump(),
            "corpus": own["corpus"],
            "column": own.get("column", item.column),
            "options": own["options"],
            "batch_size": max(1, table["batch_size"] // len(run.objectives)),
        }
        objectives.append(Objective.model_validate(fields))
    changes = {
        "objectives": tuple(objectives),
        "updates": table["updates"],
        "validate_every_updates": table["validate_every_updates"],
        "peak_learning_rate": min(rates),
        "crop_seconds": None,
    }
    return run.model_copy(update=changes)


def _embed_evaluation(item: EvalSpec, table: Any) -> EvalSpec:
    own = table["evaluate"][item.task]
    return EvalSpec.model_validate(
        {"task": item.task, "name": item.name, "in_score": item.in_score, **own}
    )


def print_paper_plan(
    tables: Sequence[int], sweeps: Sequence[PaperSweep], scale: Scale, console: Console
) -> None:
    """Prints the work of each search space, and of all together, in which equal work counts
    once."""
    grid = ConsoleTable(box=None, pad_edge=False)
    for title in ("tables", "search space", "fine-tunings", "encoders", "evaluations", "done"):
        grid.add_column(title, justify="left" if title in ("tables", "search space") else "right")
    jobs: dict[str, Job] = {}
    rows: set[str] = set()
    for item in sweeps:
        plan, store = item.sweep.plan, item.sweep.store
        own = [number for number in tables if item.space in list_spaces(number, scale)]
        done = sum(store.is_complete(job.stage, job.fingerprint) for job in plan.jobs.values())
        grid.add_row(
            ", ".join(map(name_table, own)),
            item.space,
            str(len(plan.of_stage("finetune"))),
            str(len(plan.rows)),
            str(len(plan.of_stage("evaluate"))),
            f"{done} of {len(plan.jobs)}",
        )
        jobs |= plan.jobs
        rows |= {row.key for row in plan.rows}
    count = {stage: sum(job.stage == stage for job in jobs.values()) for stage in STAGES}
    console.print(grid)
    console.print(
        f"Together {count['finetune']} fine-tunings, {len(rows)} encoders, {count['evaluate']} "
        "evaluations; equal work is done once. Nothing was run.",
        highlight=False,
    )


def run_paper(
    sweeps: Sequence[PaperSweep],
    address: str | None,
    report: Path,
    mlflow_uri: str | None,
    stop: threading.Event,
    write: Callable[[], None],
    limits: Limits,
) -> list[Outcome]:
    """Runs the search spaces one after the other and returns the failed jobs. ``write`` is called
    after each of them, and also when the run is stopped."""
    failures: list[Outcome] = []
    for item in sweeps:
        try:
            failures += run(item.sweep, address, report / item.space, mlflow_uri, stop, limits)
        finally:
            write()
    return failures


def write_paper_page(
    tables: Sequence[int], sweeps: Sequence[PaperSweep], scale: Scale, report: Path
) -> Path:
    """Writes ``paper.html`` and ``paper.md`` from what the store has, and returns the page."""
    lines = {item.space: _read_lines(item.sweep) for item in sweeps}
    by_space = {item.space: item for item in sweeps}
    pages: list[Table] = []
    for number in tables:
        items = [by_space[space] for space in list_spaces(number, scale)]
        by_model = {
            _MODELS.get(item.encoder, "") if len(items) > 1 else "": lines[item.space]
            for item in items
        }
        notes = list(dict.fromkeys(note for item in items for note in item.notes))
        if scale == "real-speech":
            title = real_speech.TITLES[number]
            pages.append(make_own_table(number, title, by_model[""], notes))
        else:
            pages.append(make_table(number, by_model, notes))
    report.mkdir(parents=True, exist_ok=True)
    scope = SCOPES[scale]
    for name, text in (
        ("paper.md", render_paper_markdown(pages, scope)),
        ("paper.html", render_paper_page(pages, scope)),
    ):
        with atomic_write(report / name) as path:
            path.write_text(text, encoding="utf-8")
    return report / "paper.html"


def _read_lines(sweep: MergeList) -> Sequence[TableLine]:
    place: Place = sweep.place
    return read_report_data(sweep.plan, sweep.store, place).lines
