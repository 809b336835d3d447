"""Titles of merges and fine-tuning runs in tables and progress lines, and their parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from speechft_ray.core.chains import Tuning, name_columns
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.specs import Precision

Params = Mapping[str, str | float | int]

Varying = Mapping[str, set[str]]
"""The dotted fields whose values differ between runs of a title, by title."""

PENALTY = "anchor_penalty"
"""Field of a spec that the paper calls lambda; every title, table, figure and tracker does, too."""

PREDICTED_FROM = "predicted_from"
"""Parameter of rows whose numbers are predicted: the alphas that were encoded, ``0,0.5,1``."""


def row_params(merge: MergeSpec, donors: Sequence[Tuning], varying: Varying) -> Params:
    """Returns the parameters of one row of the table: those that can vary, under short names."""
    params: dict[str, str | float | int] = {"method": merge.method, "alpha": merge.alpha}
    values = _list_donor_values(donors, varying)
    for name, value in merge.params.items():
        if (cell := _table_value(value)) is not None:
            # `seed` is that of the donors; dare draws its masks with one of its own.
            params[f"merge_{name}" if name == "seed" or name in values else name] = cell
    params["finetune"] = "+".join(dict.fromkeys(run.title for run in donors))
    if merge.checkpoint != "best":
        params["at"] = merge.checkpoint
    # Values that differ between donors are joined in their order, as trackers do.
    params |= {
        name: of_donors[0] if len(set(of_donors)) == 1 else "+".join(map(format_value, of_donors))
        for name, of_donors in values.items()
    }
    params["seed"] = donors[0].spec.seed
    if merge.predicted_from:
        params[PREDICTED_FROM] = ",".join(map(format_value, merge.predicted_from))
    return params


def _list_donor_values(
    donors: Sequence[Tuning], varying: Varying
) -> dict[str, list[str | float | int]]:
    """Returns the varying fields of donors by column, with the value of each donor that has it."""
    values: dict[str, list[str | float | int]] = {}
    for run in donors:
        leaves = run.leaves()
        for path, name in name_columns(sorted(varying[run.title])).items():
            if path in leaves:
                values.setdefault(name, []).append(leaves[path])
    return values


def varying_fields(runs: Sequence[Tuning]) -> dict[str, set[str]]:
    """Returns, by title of the run, the dotted fields whose values differ between runs of that
    title; the seed is left out."""
    varying: dict[str, set[str]] = {}
    for title in {run.title for run in runs}:
        leaves = [run.leaves() for run in runs if run.title == title]
        paths = set().union(*leaves) - {"seed"}
        varying[title] = {path for path in paths if len({run.get(path) for run in leaves}) > 1}
    return varying


def row_title(params: Params) -> str:
    """Returns the title of a row: its parameters as text."""
    return " ".join(_title_part(name, value) for name, value in params.items())


def name_param(name: str) -> str:
    """Returns the name of a parameter as titles, tables and trackers show it: ``lambda`` for
    ``anchor_penalty``, ``after_lambda`` for that of an earlier stage."""
    is_penalty = re.search(rf"(^|[._]){PENALTY}$", name)
    return name.removesuffix(PENALTY) + "lambda" if is_penalty else name


_LABELLED = frozenset({"after.alpha", PENALTY, "precision"})
"""Fields that labels of runs have whether they vary or not."""


def run_label(run: Tuning, varying: Varying) -> str:
    """Returns the label of a run in progress lines: ``finetune pr>sid after_alpha=0.25 seed=0``,
    with the fields that vary between runs of its title."""
    leaves = run.leaves()
    columns = name_columns(sorted(varying.get(run.title, frozenset()) - _LABELLED))
    others = [
        f"{name_param(name)}={format_value(leaves[path])}"
        for path, name in columns.items()
        if path in leaves
    ]
    start = [f"after_alpha={format_value(run.spec.after.alpha)}"] if run.spec.after else []
    penalty = [f"lambda={format_value(run.spec.anchor_penalty)}"] if run.spec.anchor_penalty else []
    return " ".join(
        [
            *("finetune", run.title, *start, *penalty, *precision_label(run.spec.precision)),
            *others,
            f"seed={run.spec.seed}",
        ]
    )


def precision_label(precision: Precision) -> list[str]:
    """Returns the part of a label that names a precision; nothing for float32."""
    return [] if precision == "float32" else [f"precision={precision}"]


def format_value(value: str | float | int) -> str:
    """Returns a value as titles show it: ``0.25``, ``1e-05``."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table_value(value: JsonValue) -> str | float | int | None:
    """Returns a parameter of a merge for a table: a list as one text, ``None`` for a mapping."""
    if isinstance(value, list):
        return ",".join(
            format_value(item) if isinstance(item, str | float | int) else str(item)
            for item in value
        )
    return value if isinstance(value, str | float | int) else None


def _title_part(name: str, value: str | float | int) -> str:
    text = format_value(value)
    return text if name in ("method", "finetune") else f"{name_param(name)}={text}"
