"""How whole encoders come in and go out: brought by name, listed, made from nothing, handed out
after a sweep."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.fingerprint import LENGTH
from speechft_ray.core.store import Store
from speechft_ray.report.winner import SweepRecord, list_records, read_record
from speechft_ray.speech.checkpoints.cache import is_cached
from speechft_ray.speech.checkpoints.catalogue import BASELINE, PACKAGED, PUBLISHED, cache_folder
from speechft_ray.sweep.lineage import read_lineage

_FORMAT = "safetensors"
_WIDTH = 16
"""Positional convolutions come in 16 groups, in every published model."""


def describe_encoders(console: Console) -> None:
    """Prints every name of the catalogue: family, size, whether it is here, and where it comes
    from."""
    table = Table(
        "name", "family", "size", "here", "what, and where from", box=None, pad_edge=False
    )
    for name, folder in PACKAGED.items():
        family = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["family"]
        table.add_row(name, family, "", "yes", "comes with the package")
    for item in PUBLISHED.values():
        here = "yes" if is_cached(item.name) else "no"
        table.add_row(
            item.name, item.family, f"{item.bytes / 1e9:.1f} GB", here, f"{item.title}\n{item.url}"
        )
    table.add_row(
        "hf:OWNER/NAME",
        "",
        "",
        "",
        "any HubertModel, Wav2Vec2Model or WavLMModel of the Hugging Face hub",
    )
    console.print(table)
    text = (
        f"\n`{BASELINE}` is the parameter-free baseline. Cache: {cache_folder()} ($SPEECHFT_CACHE)."
    )
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def new_encoder(family: str, out: Path, *, layers: int, dim: int, large: bool, seed: int) -> None:
    """Writes an encoder that has learnt nothing in our own format, for trying things out: any
    registered family, any size.

    Raises ``UserError`` for a family without parameters, a width that no model has, and a place
    that is taken.
    """
    from speechft_ray.speech.checkpoints.base import FORMATS  # torch takes seconds to load
    from speechft_ray.speech.encoders.base import FAMILIES

    part = FAMILIES.get(family)
    if part.init_weights is None or part.example_config is None:
        raise UserError(
            f"the family `{family}` has no parameters, so there is nothing to write: use the name `{family}` itself."
        )
    if dim % _WIDTH:
        raise UserError(f"--dim must be a multiple of {_WIDTH}, but is {dim} instead.")
    require_absent(out)
    weights = part.init_weights(part.example_config(layers, dim, large), seed)
    FORMATS.get(_FORMAT).write(out, weights, {"by": "speechft new", "seed": seed, "parents": []})


def export_encoder(run: str, to: str, out: Path, storage: Path) -> tuple[str, ...]:
    """Writes a merged encoder in a format of other tools; returns sentences for people about what
    was written.

    ``run`` is as in ``find_merged_encoder``. Everything that can be refused is refused before anything is
    written.
    """
    from speechft_ray.speech.checkpoints.base import FORMATS
    from speechft_ray.speech.checkpoints.convert import check_family
    from speechft_ray.speech.checkpoints.load import load_checkpoint

    form = FORMATS.get(to)
    require_absent(out)
    if not storage.is_dir():
        raise UserError(
            f"there is no storage folder {storage}: say with --storage where the sweep was kept."
        )
    store = Store(storage)
    result = find_merged_encoder(store, run)
    file = store.folder("merge", result.merge) / "encoder.safetensors"
    if not file.is_file():
        raise UserError(
            f"the weights of {result.merge} are no longer in {storage}: run the sweep again, which makes them anew."
        )
    found = load_checkpoint(file)
    check_family(form, found.weights.family)
    notes = form.write(out, found.weights, {**found.made, **_origin(store, result)})
    return (f"{out}: a {found.weights.family}, {_describe(result)}.", *notes)


def require_absent(out: Path) -> None:
    """Raises ``UserError`` when something lies at ``out`` already: nothing is ever written over."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already: give another place, or move it away first.")


def _origin(store: Store, result: MergedEncoder) -> dict[str, Any]:
    """What the exported file says of its making, beside what the merged encoder's own file says."""
    *earlier, recipe = read_lineage(store, result.merge)
    origin: dict[str, Any] = {"merge": result.merge, "parents": [recipe["base"], *recipe["donors"]]}
    if earlier:
        origin["chain"] = earlier
    kept = result.sweep
    if kept and kept.winner:
        facts = {"name": kept.sweep, "plan": kept.plan, "status": kept.status}
        scores = {"dev_score": kept.winner.dev_score, "test_score": kept.winner.test_score}
        origin["sweep"] = {**facts, **scores, "line": kept.winner.line}
    return origin


def _describe(result: MergedEncoder) -> str:
    if result.sweep is None or result.sweep.winner is None:
        return f"merged encoder {result.merge}"
    chosen = result.sweep.winner
    of = f", the best on dev of {len(chosen.seeds)} seeds" if len(chosen.seeds) > 1 else ""
    so_far = (
        ""
        if result.sweep.status == "finished"
        else f" (so far: the sweep is {result.sweep.status})"
    )
    return f"winner of `{result.sweep.sweep}`{so_far}: {chosen.title}{of} ({chosen.merge})"


class MergedEncoder(NamedTuple):
    """A merged encoder of the store, and the sweep that chose it, if a sweep was asked for."""

    merge: str
    sweep: SweepRecord | None


def find_merged_encoder(store: Store, run: str) -> MergedEncoder:
    """Returns what a sweep's name (its winner) or the beginning of a merged encoder's fingerprint
    means.

    Raises ``UserError`` for what is neither, for an ambiguous beginning, and for a sweep without a
    winner.
    """
    names = list_records(store)
    if run in names:
        kept = read_record(store, run)
        if kept.winner is None:
            raise UserError(
                f"the sweep `{run}` ({kept.status}) has no merge with a dev score yet: run it to its end first."
            )
        return MergedEncoder(kept.winner.merge, kept)
    merged = store.fingerprints("merge")
    found = (
        [key for key in merged if key.startswith(run)]
        if re.fullmatch(rf"[0-9a-f]{{1,{LENGTH}}}", run)
        else []
    )
    if len(found) > 1:
        raise UserError(
            f"{len(found)} merged encoders begin with `{run}`: {', '.join(found[:5])}. Give more digits."
        )
    if not found:
        hint = (
            f" Or give the fingerprint of one of the {len(merged)} merged encoders in {store.root}."
        )
        raise UserError(unknown_name("sweep", run, names) + hint)
    return MergedEncoder(found[0], None)
