"""The report as one HTML file: figures inside, no script, no request to anywhere; every foreign
text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from speechft_ray.core.metrics import METRICS
from speechft_ray.core.records import Outcome
from speechft_ray.report.intervals import DRAWS
from speechft_ray.report.published import ALPHA_ABLATION, LINK, SOURCE
from speechft_ray.report.series import make_series
from speechft_ray.report.summary import (
    Role,
    TableLine,
    compare_with_control,
    find_winner,
    format_value,
    headline,
    metric_names,
    metric_title,
)
from speechft_ray.report.table import (
    LEAK,
    LEGEND,
    column_title,
    common_params,
    failure_lines,
    format_metric,
    incomplete_lines,
    leak_lines,
    one_line,
    table_cells,
)
from speechft_ray.sweep.protocols import SweepInfo

NOT_COMPARABLE = (
    "The paper's numbers were measured on the real SUPERB corpora (LibriSpeech, VoxCeleb1, IEMOCAP, Audio SNIPS) with full "
    "probe training. Unless this sweep used exactly these, absolute values cannot be compared; compare the shape: in "
    "the paper a small alpha gains and a large one loses."
)
PUBLISHED_LEGEND = (
    "Differences are to the pre-trained encoder of the same column; this sweep: the series with the best dev score. "
    "The metrics are the paper's."
)


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """Everything that the page shows; figures are PNG bytes, ``None`` where there is nothing to
    draw."""

    sweep: SweepInfo
    lines: Sequence[TableLine]
    failures: Sequence[Outcome]
    references: Mapping[str, tuple[float, float]]
    """Metric name to the values that count as 0 and as 1000 in the score."""
    how_to_open: str
    """The sentence that tells how to open the tracker."""
    versions: Mapping[str, str]
    alpha_curve: bytes | None
    tasks_by_alpha: bytes | None
    learning_curves: bytes | None
    published_comparison: bytes | None
    search: str = ""
    """The section about a search, as HTML; empty for a sweep without one."""


def render_page(content: PageContent) -> str:
    """Returns the whole HTML document."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    parts = [
        _results(content),
        content.search,
        _figure(
            "Score by alpha",
            content.alpha_curve,
            "The band is the spread (±), faint lines are single fine-tuning seeds.",
        ),
        _figure(
            "Tasks by alpha",
            content.tasks_by_alpha,
            "Test metrics in their own unit; dashed: the pre-trained encoder.",
        ),
        _figure("Learning curves", content.learning_curves, "One line per fine-tuning run."),
        _published(content),
        _failures(content.failures),
        _provenance(content),
    ]
    return template.substitute(
        name=_text(content.sweep.name),
        headline=_text(headline(content.lines)),
        tiles=_tiles(content.lines),
        sections="\n".join(part for part in parts if part),
    )


def _tiles(lines: Sequence[TableLine]) -> str:
    best = find_winner(lines)
    if best is None or best.score is None:
        return ""
    spread = (
        f"± {best.spread['score']:.2f} over {best.spread_over}"
        if "score" in best.spread
        else "one seed, no spread"
    )
    tiles = [
        ("best alpha, chosen on dev", format_value(best.params.get("alpha", "")), best.title),
        ("test score", f"{best.score:.2f}", spread),
    ]
    roles: tuple[Role, Role] = ("pre-trained", "stable fine-tuning")
    for role in roles:
        if (item := compare_with_control(lines, role)) is not None:
            tiles.append((f"against {role}", f"{item.difference:+.2f}", item.verdict))
    return _tag("div", "".join(map(_tile, tiles)), "tiles")


def _tile(parts: tuple[str, str, str]) -> str:
    above, number, below = map(_text, parts)
    return f'<div class="tile"><span>{above}</span><b>{number}</b><span>{below}</span></div>'


def _results(content: PageContent) -> str:
    names = metric_names(content.lines)
    header = ["", "encoder", "n", "score", "dev score", *(column_title(name) for name in names)]
    rows = [_row(_cells(group, names), _line_class(group)) for group in content.lines]
    notes = [
        LEGEND + f" All lines: {common}." if (common := common_params(content.lines)) else LEGEND
    ]
    notes.append(
        "More than the spread: the difference exceeds the root of the sum of both squared spreads over seeds. Different: it "
        "does, and the 95 % interval of the difference leaves out 0. Below a value: its 95 % interval. Intervals are "
        f"{DRAWS} draws of the test utterances with replacement, the same for every line."
    )
    notes += [f"{LEAK} {line}" for line in leak_lines(content.lines)]
    incomplete = "".join(f"<li>{_text(line)}</li>" for line in incomplete_lines(content.lines))
    return "\n".join(
        [
            "<h2>Results</h2>",
            _table("results", header, rows),
            *(f'<p class="note">{_text(note)}</p>' for note in notes),
            f'<p class="note">Incomplete:</p><ul class="note">{incomplete}</ul>'
            if incomplete
            else "",
            _scale(content.references),
        ]
    )


def _cells(group: TableLine, names: Sequence[str]) -> list[str]:
    """The cells of one line, each test number with its interval below."""
    cells = table_cells(group, names)
    for place, name in [(3, "score"), *enumerate(names, start=5)]:
        if (ends := group.interval(name)) is not None:
            cells[place] += f" | {format_metric(name, ends[0])} to {format_metric(name, ends[1])}"
    return cells


def _line_class(group: TableLine) -> str:
    return "chosen" if group.chosen else "control" if group.role != "merge" else ""


def _scale(references: Mapping[str, tuple[float, float]]) -> str:
    if not references:
        return ""
    rows = [
        _row(["", metric_title(name), format_metric(name, zero), format_metric(name, one)])
        for name, (zero, one) in references.items()
    ]
    text = "Each metric is put on the line from 0 to 1000; metrics are averaged per task, then tasks are averaged."
    table = _table("scale", ["", "metric", "0", "1000"], rows)
    return f'<details class="note"><summary>What the score counts as 0 and as 1000</summary><p>{text}</p>{table}</details>'


def _published(content: PageContent) -> str:
    zero = ALPHA_ABLATION[0].score
    best = next(iter(make_series(content.lines, "score")), None)
    ours = dict(best.points) if best else {}
    start = best.control.score if best and best.control else None
    names = list(ALPHA_ABLATION[0].metrics)
    differences = ["difference, paper", "difference, this sweep"]
    header = ["", "alpha", "paper score", *differences, *(METRICS[name].title for name in names)]
    rows = []
    for point in ALPHA_ABLATION:
        found = ours.get(point.alpha)
        here = (
            ""
            if found is None or found.score is None or start is None
            else f"{found.score - start:+.2f}"
        )
        values = [METRICS[name].format(point.metrics[name]) for name in names]
        rows.append(
            _row(
                [
                    "",
                    f"{point.alpha:.2f}",
                    f"{point.score:.2f}",
                    f"{point.score - zero:+.2f}",
                    here,
                    *values,
                ]
            )
        )
    return "\n".join(
        [
            "<h2>Beside the paper</h2>",
            f'<p>{_text(SOURCE)} (<a href="{LINK}">arXiv 2502.12672</a>). {_text(NOT_COMPARABLE)}</p>',
            _image(
                content.published_comparison,
                "Score minus pre-trained by alpha: this sweep and the paper",
            ),
            _table("published", header, rows),
            f'<p class="note">{_text(PUBLISHED_LEGEND)}</p>',
        ]
    )


def _failures(failures: Sequence[Outcome]) -> str:
    if not failures:
        return "<h2>Failures</h2><p>None.</p>"
    items, own = [], [outcome for outcome in failures if outcome.blocked_by is None]
    for outcome in own:
        trace = (
            f"<details><summary>traceback</summary><pre>{escape(outcome.traceback)}</pre></details>"
            if outcome.traceback
            else ""
        )
        items.append(
            f"<li><b>{_text(outcome.label)}</b>: {_text(outcome.error or 'no error text')}{trace}</li>"
        )
    items += [f"<li>{_text(line)}</li>" for line in failure_lines(failures)[len(own) :]]
    return f'<h2>Failures ({len(own)})</h2><ul class="failed">{"".join(items)}</ul>'


def _provenance(content: PageContent) -> str:
    facts = {"sweep fingerprint": content.sweep.key, **content.sweep.params, **content.versions}
    pairs = "".join(
        f"<dt>{_text(str(name))}</dt><dd>{_text(format_value(value))}</dd>"
        for name, value in facts.items()
    )
    where = f"<p>{_text(content.how_to_open)}</p>" if content.how_to_open else ""
    return f"<h2>Where it comes from</h2>{where}<dl>{pairs}</dl>"


def _figure(title: str, image: bytes | None, caption: str) -> str:
    return f"<h2>{title}</h2><p>{caption}</p>{_image(image, title)}" if image else ""


def _image(image: bytes | None, title: str) -> str:
    if image is None:
        return ""
    data = base64.b64encode(image).decode("ascii")
    return f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'


def _table(name: str, header: Sequence[str], rows: Sequence[str]) -> str:
    head, body = _row(header, "", "th"), "".join(rows)
    return f'<div class="scroll"><table id="{name}"><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str], kind: str = "", tag: str = "td") -> str:
    """One table row; the first cell is the star, the second the name, a spread and an interval are
    set smaller."""
    texts = []
    for place, cell in enumerate(cells):
        number, _, ends = _text(cell).partition(" | ") if place > 1 else (_text(cell), "", "")
        number, _, spread = number.partition(" ± ")
        inner = f"{number} <small>± {spread}</small>" if spread else number
        inner += f"<small>{ends}</small>" if ends else ""
        texts.append(_tag(tag, inner, {0: "star", 1: "name"}.get(place, "")))
    return _tag("tr", "".join(texts), kind)


def _tag(name: str, inner: str, kind: str = "") -> str:
    return f'<{name} class="{kind}">{inner}</{name}>' if kind else f"<{name}>{inner}</{name}>"


def _text(text: str) -> str:
    return escape(one_line(text))
