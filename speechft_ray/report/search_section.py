"""The part of a report that is about a search: ``trials.csv``, its figures and its section of the
page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from speechft_ray.core.objectives import higher_is_better, metric_name
from speechft_ray.report.search_figure import (
    draw_history,
    draw_importance,
    draw_layers,
    draw_pareto,
    draw_slices,
)
from speechft_ray.report.search_summary import (
    SearchResults,
    describe_trial,
    format_objective,
    objective_title,
    search_sentences,
    trials_csv,
)
from speechft_ray.report.table import one_line
from speechft_ray.search.trials import Trial

MOST_ROWS = 20
"""Trials that the page shows; the rest is in ``trials.csv``."""

FIGURES = {
    "search_history": ("How the search went", draw_history),
    "search_pareto": ("Pareto front", draw_pareto),
    "search_layers": ("Alpha over depth", draw_layers),
    "search_slice": ("Each axis", draw_slices),
    "search_importance": ("Which axes matter", draw_importance),
}


def make_search_files(findings: SearchResults | None) -> tuple[dict[str, bytes | None], str]:
    """Returns the files of the search by name, ``None`` for one that is not to be there, and the
    section of the page."""
    images = {name: draw(findings) if findings else None for name, (_, draw) in FIGURES.items()}
    files: dict[str, bytes | None] = {f"{name}.png": image for name, image in images.items()}
    files["trials.csv"] = trials_csv(findings).encode("utf-8", "replace") if findings else None
    return files, render_search_section(findings, images) if findings else ""


def render_search_section(findings: SearchResults, images: Mapping[str, bytes | None]) -> str:
    """Returns the section as HTML, in which every name is escaped."""
    parts = [
        "<h2>The search</h2>",
        *(f"<p>{_text(sentence)}</p>" for sentence in search_sentences(findings)),
    ]
    parts.append(_table(findings))
    for name, (title, _) in FIGURES.items():
        image = images.get(name)
        if image is not None:
            data = base64.b64encode(image).decode("ascii")
            parts.append(
                f'<h3>{_text(title)}</h3><figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'
            )
    return "\n".join(parts)


def _table(findings: SearchResults) -> str:
    names = list(map(metric_name, findings.plan.search.objectives))
    chosen = [trial.number for trial in findings.chosen]
    place = {number: index for index, number in enumerate(chosen)}
    ended = [
        trial
        for trial in findings.trials
        if trial.result is not None and trial.result.state == "complete"
    ]
    ranked = sorted(
        ended, key=lambda trial: (place.get(trial.number, len(place)), *_order(trial, names))
    )[:MOST_ROWS]
    header = ["", "trial", "merge", *(objective_title(name) for name in names)]
    rows = [_row(trial, names, "★" if trial.number in place else "") for trial in ranked]
    more = len(findings.trials) - len(ranked)
    note = (
        f'<p class="note">All numbers are dev. {more} more trials are in trials.csv.</p>'
        if more
        else ""
    )
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join(rows)
    return f'<div class="scroll"><table id="trials"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'


def _row(trial: Trial, names: Sequence[str], mark: str) -> str:
    values = trial.result.values if trial.result else ()
    cells = [
        mark,
        str(trial.number),
        describe_trial(trial) + ("" if trial.feasible else " (breaks a constraint)"),
    ]
    cells += [format_objective(name, value) for name, value in zip(names, values, strict=True)]
    return "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"


def _order(trial: Trial, names: Sequence[str]) -> tuple[float, int]:
    value = trial.result.values[0] if trial.result else 0.0
    return (-value if higher_is_better(names[0]) else value), trial.number


def _text(text: str) -> str:
    return escape(one_line(text))
