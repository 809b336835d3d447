"""What is kept of the merge that a sweep selected: its card, and its weights for transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write
from speechft_ray.core.store import Store
from speechft_ray.report.card import Card, render_card, set_format
from speechft_ray.report.table import markdown_table
from speechft_ray.report.winner import label_plan
from speechft_ray.speech.checkpoints.catalogue import PACKAGED, PUBLISHED
from speechft_ray.sweep.fields import list_merge_fields
from speechft_ray.sweep.invocations import list_facts
from speechft_ray.sweep.lineage import find_pretrained
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import EncoderRow, Leak, Model

if TYPE_CHECKING:
    from speechft_ray.report.write import ReportData  # loads matplotlib

CARD = "README.md"
"""File of a card in a folder of the Hugging Face hub."""

TRANSFORMERS, RAW_FORMAT = "hf", "safetensors"
"""Formats: of transformers, and of the files in a store."""

PRIVATE_FACTS = ("command", "search space", "host", "cluster", "encoder")
"""Facts that a card leaves out, since it is shared: names of machines and folders."""

OWN_LICENCE = "apache-2.0"
"""Licence of the encoders that come with this package: its own."""

FAIRSEQ_LICENCE = "mit"
"""Licence of the checkpoints that fairseq published: its own, which its README extends to
pre-trained models."""

FAIRSEQ_FAMILIES = ("hubert", "wav2vec2")


def make_winner_card(plan: Plan, store: Store, data: ReportData, row: EncoderRow) -> str:
    """Returns the card of a row of a sweep and keeps it beside the record of that sweep, where the
    storage can be written."""
    label = label_plan(plan, store)
    made = list_facts(data.made[-1]) if data.made else {}
    encoder = data.made[-1].encoder["name"] if data.made else plan.spec.encoder
    table = markdown_table(label, data.lines, data.failures, data.references)
    text = render_card(
        Card(
            title=f"{label}: {row.title}",
            encoder=show_name(encoder),
            licence=find_licence(encoder),
            fields=list_merge_fields(plan.jobs[row.key].payload, plan.jobs),
            facts={name: text for name, text in made.items() if name not in PRIVATE_FACTS},
            table=table.partition("\n\n")[2],  # without its title
            leaks=[leak.sentence() for leak in data.leaks.get(row.key, ())],
        )
    )
    family = find_family(store, row.key)
    if family is not None and choose_format(family) != TRANSFORMERS:
        text = set_format(text, RAW_FORMAT, family)
    if store.is_writable():
        path = find_card(store, label)
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return text


def find_card(store: Store, label: str) -> Path:
    """Returns the file with the card of the winner of a sweep, whether it is there or not."""
    return store.root / "sweeps" / f"{label}.card.md"


def make_lineage_card(
    fingerprint: str,
    recipe: Mapping[str, object],
    encoder: str,
    parents: Sequence[str],
    leaks: Sequence[Leak] | None,
) -> str:
    """Returns the card of a merged encoder that no sweep selected: how it was made. ``leaks``:
    ``None`` where they were not looked for."""
    fields = {"merge": fingerprint, **{name: str(value) for name, value in recipe.items()}}
    return render_card(
        Card(
            title=f"Merged encoder {fingerprint}",
            encoder=show_name(encoder),
            licence=find_licence(encoder),
            fields={**fields, "parents": ", ".join(parents)},
            facts={},
            leaks=None if leaks is None else [leak.sentence() for leak in leaks],
        )
    )


def find_family(store: Store, merge: str) -> str | None:
    """Returns the family of a merged encoder, that of its pre-trained encoder; ``None`` where the
    store does not say it."""
    with suppress(UserError, KeyError):  # a damaged manifest
        start = find_pretrained(store, merge)
        if store.is_complete("encoder", start):
            return str(store.manifest("encoder", start)["family"])
    return None


def choose_format(family: str | None) -> str:
    """Returns the format in which an encoder is exported unless somebody wants another one: that of
    transformers, or the first one that can hold its family."""
    from speechft_ray.speech.checkpoints.base import list_formats  # torch takes seconds to load

    formats = [TRANSFORMERS] if family is None else list_formats(family)
    return TRANSFORMERS if TRANSFORMERS in formats else formats[0]


def make_model(store: Store, key: str, card: str) -> Model:
    """Returns the weights of a merged encoder of the store, to be registered."""
    folder = store.folder("merge", key)
    return Model(folder, card, lambda out: write_for_transformers(folder, out, card))


def write_for_transformers(folder: Path, out: Path, card: str) -> None:
    """Writes a unit of the store with its card in the layout of transformers into a new folder.
    Raises ``UserError`` for an encoder that transformers does not have."""
    from speechft_ray.speech.checkpoints.base import FORMATS
    from speechft_ray.speech.checkpoints.convert import check_family
    from speechft_ray.speech.checkpoints.load import load_checkpoint

    form = FORMATS.get(TRANSFORMERS)
    checkpoint = load_checkpoint(folder / "encoder.safetensors")
    check_family(form, checkpoint.weights.family)
    form.check(checkpoint.weights)
    form.write(out, checkpoint.weights, checkpoint.provenance)
    (out / CARD).write_text(card, encoding="utf-8")


def show_name(encoder: str) -> str:
    """Returns the name of an encoder for a card: of one that is given by a path, its last part."""
    return Path(encoder).name if Path(encoder).is_absolute() else encoder


def find_licence(encoder: str) -> str | None:
    """Returns the licence of an encoder by its name or folder, as the hub spells it; ``None`` where
    it is not known: that of WavLM was not stated where it is published."""
    if encoder in PACKAGED:
        return OWN_LICENCE
    if encoder in PUBLISHED:
        published = PUBLISHED[encoder]
        return FAIRSEQ_LICENCE if published.family in FAIRSEQ_FAMILIES else None
    with suppress(OSError, ValueError):
        text = (Path(encoder) / CARD).read_text(encoding="utf-8")
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        stated = (
            re.search(r"^license:\s*[\"']?([\w.+-]+)", front[1], re.MULTILINE) if front else None
        )
        return stated[1] if stated else None
    return None
