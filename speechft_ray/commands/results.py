"""Writes the results of a sweep: the winner's record, the report, the trackers, the terminal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from speechft_ray.commands.models import choose_format, find_family, make_model, make_winner_card
from speechft_ray.commands.parts import corpus_identity
from speechft_ray.commands.provenance import read_versions
from speechft_ray.core.records import Outcome, Place
from speechft_ray.core.store import Store
from speechft_ray.report.comparison import headline
from speechft_ray.report.curve_section import describe_predictions
from speechft_ray.report.intervals import read_counts
from speechft_ray.report.published import is_paper_recipe
from speechft_ray.report.search_summary import SearchResults, search_sentences
from speechft_ray.report.table import (
    LEAK,
    LEAK_SCOPE,
    failure_lines,
    leak_lines,
    list_unscored,
    terminal_table,
)
from speechft_ray.report.winner import label_plan, select_winner, write_record
from speechft_ray.report.write import ReportData, write_report
from speechft_ray.stages.dev_is_test import mark_dev_is_test
from speechft_ray.stages.leaks import Identity, find_leaks
from speechft_ray.stages.unlearnt import mark_unlearnt
from speechft_ray.stages.untuned import mark_untuned
from speechft_ray.sweep.invocations import Invocation, list_facts, read_invocations
from speechft_ray.sweep.layers import read_tuning_distances
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import EncoderRow, Model, SweepInfo
from speechft_ray.sweep.publishing import Publisher, make_sweep_info
from speechft_ray.sweep.rows import read_curves, read_references, read_rows

REPORT_COLUMNS = 110
"""Width of the table in a log file, which has no width of its own."""


def publish_results(
    plan: Plan,
    store: Store,
    publisher: Publisher,
    report: Path,
    failures: Sequence[Outcome],
    status: str,
    place: Place,
    search: SearchResults | None = None,
) -> tuple[ReportData, list[str]]:
    """Records the winner where the storage can be written, writes the report and completes the
    trackers.

    ``status`` is ``finished``, ``failed`` or ``stopped``. Returns what the report shows, and one
    sentence per tracker that says how to open it.
    """
    data = replace(
        read_report_data(plan, store, place, search, rows=publisher.read_rows(plan)),
        failures=failures,
        how_to_open=" ".join(publisher.how_to_open()),
    )
    if store.is_writable():
        write_record(plan, store, data.lines, status)
    write_report(report, data)
    selected = select_winner(data.lines)
    best = plan.winner or (selected.merge if selected else None)
    leaks = {key: [leak.sentence() for leak in items] for key, items in data.leaks.items()}

    made = list_facts(data.made[-1]) if data.made else {}

    def make(row: EncoderRow) -> Model:
        return make_model(store, row.key, make_winner_card(plan, store, data, row))

    return data, publisher.finish(data.rows, report, status, best, leaks, make, made)


def read_report_data(
    plan: Plan,
    store: Store,
    place: Place,
    search: SearchResults | None = None,
    identity: Identity | None = None,
    rows: Sequence[EncoderRow] | None = None,
) -> ReportData:
    """Returns what a report shows of the results that are in the store.

    ``identity`` identifies corpora; by default they are looked at where ``place`` says. ``rows``:
    those of the plan, where they were read already.
    """
    rows = mark_untuned(read_rows(plan, store) if rows is None else rows, plan, store)
    rows = mark_dev_is_test(mark_unlearnt(rows, plan, store), plan.spec)
    if search:
        search = replace(
            search,
            untuned={row.key: row.untuned for row in rows if row.untuned},
            test=next((row.test for row in rows if row.key == plan.winner), {}),
        )
    return ReportData(
        sweep=make_sweep_info(plan)._replace(label=label_plan(plan, store)),
        rows=rows,
        curves=read_curves(plan, store),
        references=read_references(plan, store),
        versions=read_versions(),
        made=read_invocations(store, plan.fingerprint),
        tests=read_counts(plan, store),
        leaks=find_leaks(
            plan, store, place, identity or (lambda item: corpus_identity(item, place))
        ),
        distances=read_tuning_distances(plan, store),
        is_paper_recipe=is_paper_recipe(plan.spec),
        winner=plan.winner,
        search=search,
    )


def describe_sweep(plan: Plan, store: Store, made: Invocation | None) -> SweepInfo:
    """Returns the facts of a sweep that trackers log; ``made`` is the record of its last run."""
    info = make_sweep_info(plan)._replace(label=label_plan(plan, store))
    if made is None:
        return info
    files = {"spec.json": json.dumps(made.spec, indent=1, sort_keys=True)}
    if made.space is not None:
        files["space.yaml"] = made.space
    return info._replace(tags=list_facts(made), files=files)


def print_results(data: ReportData, report: Path, trackers: Sequence[str], store: Store) -> None:
    """Prints the table of a sweep with its headline and its leaks, and where its report, its
    trackers and its best encoder are."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=REPORT_COLUMNS)
    console.print(terminal_table(data.lines))
    console.print(headline(data.lines), soft_wrap=True, highlight=False, markup=False)
    leaks = leak_lines(data.lines)
    for sentence in (*(f"{LEAK} {line}" for line in leaks), *([LEAK_SCOPE] if leaks else [])):
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    notes = [note for row in data.rows for note in (row.stopped, row.untuned, row.unlearnt) if note]
    for sentence in (*list_unscored(data.lines), *dict.fromkeys(notes)):
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"Report: {report / 'index.html'} (table.csv, table.md and the figures beside it)",
        soft_wrap=True,
        markup=False,
    )
    for sentence in trackers:
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    if (winner := select_winner(data.lines)) is not None:
        form = choose_format(find_family(store, winner.merge))
        name = shlex.quote(data.sweep.label or data.sweep.name)
        console.print(
            "Export the best encoder: "
            f"speechft export {name} {name} --to {form} "
            f"--storage {shlex.quote(store.address)}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    for sentence in describe_predictions(data.lines):
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    for sentence in search_sentences(data.search) if data.search else ():
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)


def print_failures(failures: Sequence[Outcome]) -> None:
    """Prints one line per failed job to standard error."""
    for line in failure_lines(failures):
        Console(stderr=True).print(f"failed: {line}", soft_wrap=True, highlight=False, markup=False)
