"""What tables and progress lines call a merge and a fine-tuning run: what can vary, under short
names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from speechft_ray.core.chains import Tuning, short_name
from speechft_ray.core.specs import MergeSpec

Params = Mapping[str, str | float | int]


def row_params(
    merge: MergeSpec, donors: Sequence[Tuning], varying: Mapping[str, set[str]]
) -> Params:
    """Returns what a row of the table says of its merge: what can vary, under short names."""
    params: dict[str, str | float | int] = {"method": merge.method, "alpha": merge.alpha}
    params |= {
        name: shown
        for name, shown in ((name, _shown(value)) for name, value in merge.params.items())
        if shown is not None
    }
    params["finetune"] = "+".join(dict.fromkeys(run.title for run in donors))
    if merge.checkpoint != "best":
        params["at"] = merge.checkpoint
    for run in donors:
        leaves = run.leaves()
        params |= {
            short_name(path): leaves[path] for path in sorted(varying[run.title]) if path in leaves
        }
    params["seed"] = donors[0].spec.seed
    return params


def varying_fields(runs: Sequence[Tuning]) -> dict[str, set[str]]:
    """By title of the run: the dotted fields, other than the seed, whose values differ between runs
    of that title."""
    varying: dict[str, set[str]] = {}
    for title in {run.title for run in runs}:
        same = [run.leaves() for run in runs if run.title == title]
        paths = set().union(*same) - {"seed"}
        varying[title] = {path for path in paths if len({leaves.get(path) for leaves in same}) > 1}
    return varying


def row_title(params: Params) -> str:
    """Returns the parameters of a row as its title."""
    return " ".join(_title_part(name, value) for name, value in params.items())


def run_label(run: Tuning) -> str:
    """Returns what progress lines call a run: ``finetune pr>sid after_alpha=0.25 seed=0``."""
    start = [f"after_alpha={number_text(run.spec.after.alpha)}"] if run.spec.after else []
    penalty = [f"lambda={number_text(run.spec.anchor_penalty)}"] if run.spec.anchor_penalty else []
    return " ".join(["finetune", run.title, *start, *penalty, f"seed={run.spec.seed}"])


def number_text(value: str | float | int) -> str:
    """Returns a value as titles show it: ``0.25``, ``1e-05``."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(value: JsonValue) -> str | float | int | None:
    """A parameter of a merge as a row shows it: a list, of weights or of factors per layer, as one
    text; no mapping."""
    if isinstance(value, list):
        return ",".join(
            number_text(item) if isinstance(item, str | float | int) else str(item)
            for item in value
        )
    return value if isinstance(value, str | float | int) else None


def _title_part(name: str, value: str | float | int) -> str:
    return str(value) if name in ("method", "finetune") else f"{name}={number_text(value)}"
