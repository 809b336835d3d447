"""Lists encoders by name, writes new ones, and exports merged ones in formats of other tools."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from speechft_ray.commands.models import CARD, find_card, make_lineage_card
from speechft_ray.commands.push import check_push, push_folder
from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.fingerprint import LENGTH
from speechft_ray.core.store import Store
from speechft_ray.report.card import set_format
from speechft_ray.report.winner import SweepRecord, list_records, read_record
from speechft_ray.speech.checkpoints.cache import is_cached
from speechft_ray.speech.checkpoints.catalogue import BASELINE, PACKAGED, PUBLISHED, cache_folder
from speechft_ray.storage.address import resolve_storage
from speechft_ray.storage.open import open_existing
from speechft_ray.sweep.lineage import find_pretrained, read_lineage

_FORMAT = "safetensors"
_WIDTH = 16
"""Positional convolutions come in 16 groups, in every published model."""


def print_encoders(console: Console) -> None:
    """Prints every name of the catalogue with family, size, address, and whether it is cached."""
    table = Table("name", "family", "size", "cached", "title and address", box=None, pad_edge=False)
    for name, folder in PACKAGED.items():
        family = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["family"]
        table.add_row(name, family, "", "yes", "comes with the package")
    for item in PUBLISHED.values():
        size, cached = f"{item.bytes / 1e9:.1f} GB", "yes" if is_cached(item.name) else "no"
        table.add_row(item.name, item.family, size, cached, f"{item.title}\n{item.url}")
    classes = "any HubertModel, Wav2Vec2Model or WavLMModel of the Hugging Face hub"
    table.add_row("hf:OWNER/NAME", "", "", "", classes)
    console.print(table)
    text = (
        f"\n`{BASELINE}` is the parameter-free baseline. Cache: {cache_folder()} ($SPEECHFT_CACHE)."
    )
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def new_encoder(family: str, out: Path, *, layers: int, dim: int, large: bool, seed: int) -> None:
    """Writes an encoder with random weights in our own format, of any registered family and size.

    Raises ``UserError`` for a family without parameters, a width that is no multiple of 16, and
    where ``out`` exists.
    """
    from speechft_ray.speech.checkpoints.base import FORMATS  # torch takes seconds to load
    from speechft_ray.speech.encoders.base import FAMILIES

    part = FAMILIES.get(family)
    if part.init_weights is None or part.example_config is None:
        raise UserError(
            f"the family `{family}` has no parameters, so there is nothing to write: use the name "
            f"`{family}` itself."
        )
    if dim % _WIDTH:
        raise UserError(f"--dim must be a multiple of {_WIDTH}, but is {dim} instead.")
    require_absent(out)
    weights = part.init_weights(part.example_config(layers, dim, large), seed)
    FORMATS.get(_FORMAT).write(out, weights, {"by": "speechft new", "seed": seed, "parents": []})


def export_encoder(
    run: str, to: str, out: Path, storage: str | Path, push: str | None = None
) -> tuple[str, ...]:
    """Writes a merged encoder in the format ``to`` and its model card; returns sentences that
    describe it.

    ``run`` is as in ``find_merged_encoder``; ``push``: ``OWNER/NAME`` of the Hugging Face hub,
    where the folder is uploaded. Every ``UserError`` is raised before anything is written, except
    for a hub that refuses.
    """
    from speechft_ray.speech.checkpoints.base import FORMATS
    from speechft_ray.speech.checkpoints.convert import check_family
    from speechft_ray.speech.checkpoints.load import load_checkpoint

    form = FORMATS.get(to)
    card_file = out / CARD if form.is_folder else out.with_name(f"{out.name}.md")
    require_absent(out)
    require_absent(card_file)
    token = check_push(push, to) if push is not None else ""
    store = open_existing(resolve_storage(storage))
    merged = find_merged_encoder(store, run)
    file = store.folder("merge", merged.fingerprint) / "encoder.safetensors"
    if not file.is_file():
        raise UserError(
            f"the weights of {merged.fingerprint} are no longer in {store.address}: run the sweep "
            "again, which makes them anew."
        )
    checkpoint = load_checkpoint(file)
    weights = checkpoint.weights
    check_family(form, weights.family)
    origin = _find_origin(store, merged)
    card = set_format(_read_card(store, merged, origin["parents"]), to, weights.family)
    notes = form.write(out, weights, {**checkpoint.provenance, **origin})
    card_file.write_text(card, encoding="utf-8")
    sentences = [f"{out}: a {weights.family}, {_describe(merged)}. Its card: {card_file}.", *notes]
    if push is not None:
        sentences.append(f"Uploaded: {push_folder(out, push, token)}")
    return tuple(sentences)


def _read_card(store: Store, merged: MergedEncoder, parents: Sequence[str]) -> str:
    """Returns the card of the winner of a sweep, or for another encoder one without results."""
    if merged.sweep is not None and find_card(store, merged.sweep.sweep).is_file():
        return find_card(store, merged.sweep.sweep).read_text(encoding="utf-8")
    from speechft_ray.commands.stored import read_leaks  # loads matplotlib

    *_, recipe = read_lineage(store, merged.fingerprint)
    start = find_pretrained(store, str(recipe["base"]))
    stored = store.is_complete("encoder", start)
    encoder = str(store.manifest("encoder", start).get("from", start)) if stored else start
    leaks = read_leaks(store, merged.fingerprint)
    return make_lineage_card(merged.fingerprint, recipe, encoder, parents, leaks)


def require_absent(out: Path) -> None:
    """Raises ``UserError`` when ``out`` exists: nothing is overwritten."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already: give another place, or move it away first.")


class MergedEncoder(NamedTuple):
    """A merged encoder of the store, and the record of the sweep that selected it, if a sweep was
    named."""

    fingerprint: str
    sweep: SweepRecord | None


def _find_origin(store: Store, merged: MergedEncoder) -> dict[str, Any]:
    """Returns provenance from the store: parents, earlier merges, and the sweep with its scores."""
    *earlier, recipe = read_lineage(store, merged.fingerprint)
    parents = [recipe["base"], *recipe["donors"]]
    origin: dict[str, Any] = {"merge": merged.fingerprint, "parents": parents}
    if earlier:
        origin["chain"] = earlier
    record = merged.sweep
    if record and record.winner:
        facts = {"name": record.sweep, "plan": record.plan, "status": record.status}
        scores = {"dev_score": record.winner.dev_score, "test_score": record.winner.test_score}
        origin["sweep"] = {**facts, **scores, "line": record.winner.line}
    return origin


def _describe(merged: MergedEncoder) -> str:
    record = merged.sweep
    if record is None or record.winner is None:
        return f"merged encoder {merged.fingerprint}"
    winner = record.winner
    of = f", the best on dev of {len(winner.seeds)} seeds" if len(winner.seeds) > 1 else ""
    so_far = "" if record.status == "finished" else f" (so far: the sweep is {record.status})"
    return f"winner of `{record.sweep}`{so_far}: {winner.title}{of} ({winner.merge})"


def find_merged_encoder(store: Store, run: str) -> MergedEncoder:
    """Returns the winner of the sweep ``run``, or the merged encoder whose fingerprint begins so.

    Raises ``UserError`` where ``run`` is neither, for an ambiguous fingerprint, and for a sweep
    without a winner.
    """
    names = list_records(store)
    if run in names:
        record = read_record(store, run)
        if record.winner is None:
            raise UserError(
                f"the sweep `{run}` ({record.status}) has no merge with a dev score yet: run it to "
                "its end first."
            )
        return MergedEncoder(record.winner.merge, record)
    fingerprints = store.fingerprints("merge")
    is_prefix = re.fullmatch(rf"[0-9a-f]{{1,{LENGTH}}}", run) is not None
    matches = [key for key in fingerprints if is_prefix and key.startswith(run)]
    if len(matches) > 1:
        raise UserError(
            f"{len(matches)} merged encoders begin with `{run}`: {', '.join(matches[:5])}. Give "
            "more digits."
        )
    if not matches:
        raise UserError(
            f"{unknown_name('sweep', run, names)} Or give the fingerprint of one of the "
            f"{len(fingerprints)} merged encoders in {store.address}."
        )
    return MergedEncoder(matches[0], None)
