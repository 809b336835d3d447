"""Verbs of ``speechft corpora``: list, check, prepare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from speechft_ray.cli.app import app
from speechft_ray.cli.options import parse_options
from speechft_ray.core.errors import UserError

if TYPE_CHECKING:
    from speechft_ray.speech.corpora.base import Corpus
    from speechft_ray.speech.corpora.corpus_stats import SplitStats

corpora = typer.Typer(
    help="List the corpora, check a copy of one, download lists that it lacks.",
    no_args_is_help=True,
)
app.add_typer(corpora, name="corpora")


@corpora.command("list")
def show_list() -> None:
    """Print every corpus with the layout of its files."""
    from speechft_ray.speech.corpora.base import CORPORA

    table = Table.grid(padding=(0, 2, 0, 0))
    for name, kind in CORPORA.items():
        table.add_row(f"[bold]{name}[/bold]", kind.layout)
    _console().print(table)


@corpora.command()
def check(
    name: Annotated[
        str, typer.Argument(help="Name of the corpus; `speechft corpora list` prints them.")
    ],
    folder: Annotated[Path, typer.Argument(help="The folder with its files, or a manifest.")],
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the corpus as NAME=VALUE; may be repeated."),
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Storage that caches the facts of audio files, for sweeps as well.")
    ] = "runs",
) -> None:
    """Open a corpus, print its numbers by split and what is missing. Exits with code 2 when the
    corpus cannot be used."""
    from speechft_ray.core.validation import validate
    from speechft_ray.speech.corpora.base import CORPORA
    from speechft_ray.speech.corpora.corpus_stats import compare_stats, compute_stats
    from speechft_ray.storage.open import find_local_root

    kind, console = CORPORA.get(name), _console()
    if not kind.needs_root:
        raise UserError(f"the corpus `{name}` is synthesised: there is no folder to check.")
    options = validate(
        kind.options, parse_options(option or [], "--option"), where=f"corpus `{name}`"
    )
    corpus = _open_with_progress(
        name,
        options,
        folder.expanduser().absolute(),
        find_local_root(storage) / "corpora",
    )
    stats, expected = compute_stats(corpus), kind.expected(options)
    console.print(_make_table(corpus, stats))
    for sentence in (*corpus.notes, *corpus.missing_columns.values()):
        console.print(f"note: {sentence}", markup=False)
    for resource in kind.resources:
        if not (folder.expanduser() / resource.path).is_file():
            console.print(
                f"missing: {resource.path} ({resource.what}), from {resource.url}", markup=False
            )
    if expected is None:
        console.print("No source is known for the numbers of a complete copy.")
        return
    differences = compare_stats(corpus, stats, expected)
    for sentence in differences:
        console.print(f"note: {sentence}", markup=False)
    console.print(
        f"{'Usable, but not' if differences else 'Complete:'} what {expected.source} counts.",
        markup=False,
    )


@corpora.command()
def prepare(
    name: Annotated[
        str, typer.Argument(help="Name of the corpus; `speechft corpora list` prints them.")
    ],
    folder: Annotated[Path, typer.Argument(help="The folder with its files.")],
) -> None:
    """Download the lists and lexicons that do not come with the recordings; existing files stay."""
    from speechft_ray.commands.corpora import fetch_resources
    from speechft_ray.speech.corpora.base import CORPORA

    kind, console = CORPORA.get(name), _console()
    if not kind.resources:
        console.print(f"The corpus `{name}` needs nothing but its recordings.")
        return
    if not folder.expanduser().is_dir():
        raise UserError(
            f"there is no folder {folder}: give the one that holds the recordings of `{name}`."
        )
    for sentence in fetch_resources(kind.resources, folder.expanduser()):
        console.print(sentence, markup=False)


def _open_with_progress(name: str, options: Any, root: Path, cache: Path) -> Corpus:
    from rich.progress import MofNCompleteColumn, Progress

    from speechft_ray.speech.corpora.index import index_corpus

    console, columns = _console(), (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        files = bars.add_task("measuring audio", total=None)
        return index_corpus(
            name,
            options,
            root,
            cache,
            lambda done, total: bars.update(files, completed=done, total=total),
        )


def _make_table(corpus: Corpus, stats: list[SplitStats]) -> Table:
    columns = sorted(stats[0].classes)
    table = Table(
        "split",
        "utterances",
        "hours",
        "speakers",
        *columns,
        title=f"{corpus.name} ({corpus.fingerprint})",
    )
    for each in stats:
        classes = [f"{each.classes[column]:,}" for column in columns]
        table.add_row(
            each.split, f"{each.utterances:,}", f"{each.hours:.2f}", f"{each.speakers:,}", *classes
        )
    return table


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)
