"""Opens the sweep of a search space with what a user changes of it: fields, paths, size."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechft_ray.commands.parts import ask_for, find_space, resolve_place
from speechft_ray.commands.provenance import SpaceSource
from speechft_ray.commands.smoke import rename_storage, shrink_sweep
from speechft_ray.commands.sweep import Sweep, open_sweep
from speechft_ray.core.errors import UserError
from speechft_ray.core.space import parse_space
from speechft_ray.core.specs import SweepSpec
from speechft_ray.storage.open import find_local_root
from speechft_ray.sweep.space_changes import Change, apply_changes
from speechft_ray.sweep.space_file import open_space


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What a user says about a sweep beside its search space."""

    storage: str | Path = "runs"
    encoder: str | None = None
    corpora: Path | None = None
    manifest: Path | None = None
    cpu: bool = False
    smoke: bool = False
    """Whether to run a small sweep of the same kind, in a storage folder of its own."""
    changes: Sequence[Change] = ()
    """Fields of the search space with other values."""
    place: Mapping[str, object] = field(default_factory=dict)
    """Other fields of ``Place``."""
    asked: Mapping[str, object] = field(default_factory=dict)
    """What each fine-tuning and evaluation asks of the cluster (``StageResources``)."""


def open_space_sweep(
    space: str | Path | Mapping[str, Any],
    options: SweepOptions,
    note: Callable[[str], None],
    *,
    is_to_run: bool = True,
) -> Sweep:
    """Reads, checks and plans a search space: a file, the name of a packaged one, or plain data.

    ``note`` gets what a user should know of it. Raises ``UserError``.
    """
    with _read_spec(space, options.changes, note) as (read, source):
        storage = options.storage
        spec = read
        if options.smoke:
            spec, storage = shrink_sweep(read), rename_storage(storage)
        place = resolve_place(
            spec,
            storage=storage,
            encoder=options.encoder,
            corpora=options.corpora,
            manifest=options.manifest,
            cpu=options.cpu,
        ).model_copy(update=dict(options.place))
        sweep = open_sweep(ask_for(spec, options.asked), place, is_to_run=is_to_run)
    sweep.source = source
    return sweep


@contextmanager
def _read_spec(
    space: str | Path | Mapping[str, Any], changes: Sequence[Change], note: Callable[[str], None]
) -> Iterator[tuple[SweepSpec, SpaceSource]]:
    """Yields the spec and where it was read from; mistakes that are found meanwhile get the lines
    of its file."""
    if isinstance(space, Mapping):
        data = dict(space)
        apply_changes(data, changes)
        spec = parse_space(data, where="the search space")
        yield spec, SpaceSource(None, json.dumps(data, indent=1, default=str))
        return
    file = open_space(find_space(str(space)), note, changes)
    with file.name_lines():
        yield file.spec, SpaceSource(str(file.path), file.content)


def make_cache_fields(cache: str | Path | None, cache_gb: float) -> dict[str, object]:
    """Returns the fields of ``Place`` that say where features are cached; ``cache_gb`` is in 10^9
    bytes. Raises ``UserError`` for a size that is none."""
    if not 0 <= cache_gb < math.inf:
        raise UserError(f"--cache-gb must be at least 0 GB, but is {cache_gb:g} instead.")
    folder = Path(cache).expanduser().absolute() if cache else None
    return {"cache": str(folder) if folder else None, "cache_gb": cache_gb}


def find_report_folder(sweep: Sweep) -> Path:
    """Returns where the report of a sweep is written, unless a user says otherwise."""
    return find_local_root(sweep.place.storage) / "report" / sweep.spec.name
