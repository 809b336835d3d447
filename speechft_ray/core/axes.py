"""The axes of a merge search, read from plain data with every mistake reported at once.

A value is fixed (``alpha: 1``) or replaced by an axis (``alpha: {uniform: [0, 1]}``). Parameters of
a method stand under its name and count only when that method is proposed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from speechft_ray.core.chains import Tuning
from speechft_ray.core.errors import unknown_name
from speechft_ray.core.specs import SearchSpec
from speechft_ray.core.validation import Mistakes, axis_hint, path_text

Kind = Literal["fixed", "uniform", "loguniform", "choice", "per_layer", "per_donor", "curve"]
RANGES: tuple[Kind, ...] = ("uniform", "loguniform", "per_layer", "per_donor", "curve")
KNOTS = 3
"""Knots of a curve over depth: bottom, middle and top can differ."""
PICK_RUN = "donors"
"""Value of an axis that selects one of the runs of a name: ``anchor_penalty: donors``."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One value of a proposal.

    ``fixed``: always ``options[0]``. ``choice``: one of ``options``. ``uniform``, ``loguniform``: a
    number from ``low`` to ``high``. Lists of such numbers: ``per_layer`` (one per encoder layer),
    ``per_donor`` (one per donor that takes part) and ``curve`` (one per layer, linear between
    ``knots`` evenly spaced over depth).
    """

    kind: Kind
    options: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    knots: int = KNOTS


@dataclass(frozen=True, kw_only=True)
class DonorAxis:
    """Which fine-tuned models are merged, by name.

    ``always``: all of one set. ``choice``: all of one of several sets. ``subset``: at least one of
    one set.
    """

    kind: Literal["always", "choice", "subset"]
    sets: tuple[tuple[str, ...], ...]

    def names(self) -> tuple[str, ...]:
        """Returns every name that may be merged."""
        return tuple(dict.fromkeys(name for names in self.sets for name in names))


@dataclass(frozen=True, kw_only=True)
class Axes:
    """All axes of one search."""

    alpha: Axis
    method: Axis
    donors: DonorAxis
    params: Mapping[str, Mapping[str, Axis]] = field(default_factory=dict)
    """Axis by method and parameter."""
    run_fields: tuple[str, ...] = ()
    """Fields of fine-tuning runs whose value selects one of several runs of a name."""

    def methods(self) -> tuple[str, ...]:
        """Returns every method that may be proposed."""
        return tuple(str(option) for option in self.method.options)

    def all(self) -> dict[str, Axis]:
        """Returns every axis but the donors' by its dotted name, fixed ones included."""
        nested = {
            f"{method}.{name}": axis
            for method, params in self.params.items()
            for name, axis in params.items()
        }
        return {"alpha": self.alpha, "method": self.method, **nested}


def read_axes(search: SearchSpec, runs: Sequence[Tuning]) -> tuple[Axes, Mistakes]:
    """Returns the axes and every mistake in them, by path below ``search.axes``.

    With a mistake the axes must not be used.
    """
    reader = _Reader(runs, one_run_each=search.sampler != "greedy_soup")
    axes = reader.read(dict(search.axes))
    return axes, [
        (f"search.axes.{path}" if path else "search.axes", text) for path, text in reader.mistakes
    ]


def field_values(run: Tuning, names: Sequence[str]) -> tuple[Any, ...]:
    """Returns the values of a run's fields; ``after_alpha`` is one of the stage before in its
    chain."""
    values = run.values()
    return tuple(values.get(name) for name in names)


class _Reader:
    """Reads the axes of a search and collects the mistakes in them."""

    def __init__(self, runs: Sequence[Tuning], one_run_each: bool) -> None:
        self.runs, self.one_run_each = runs, one_run_each
        self.mistakes: Mistakes = []

    def read(self, raw: dict[str, Any]) -> Axes:
        alpha = self.axis(
            raw.pop("alpha", 1.0), "alpha", ("fixed", "uniform", "loguniform", "choice")
        )
        self.check_alpha(alpha)
        method = self.axis(raw.pop("method", "linear"), "method", ("fixed", "choice"))
        donors = self.donors(raw.pop("donors", None))
        run_fields = tuple(name for name, value in raw.items() if value == PICK_RUN)
        methods = [str(option) for option in method.options]
        params: dict[str, dict[str, Axis]] = {}
        for name, value in raw.items():
            if name in run_fields:
                self.check_field(name)
            elif name not in methods and methods == ["None"]:
                continue  # the mistake in `method` itself was reported
            elif name not in methods:
                allowed = ["alpha", "method", "donors", *methods, *self.fields()]
                hint = (
                    f" A field of the fine-tuning runs is searched with `{name}: {PICK_RUN}`."
                    if name in self.fields()
                    else ""
                )
                self.wrong(name, unknown_name("axis or method", name, allowed) + hint)
            elif not isinstance(value, dict):
                self.wrong(
                    name, f"must be a mapping of the method's parameters, but is {value!r} instead."
                )
            else:
                every: tuple[Kind, ...] = ("fixed", "choice", *RANGES)
                params[name] = {
                    key: self.axis(item, f"{name}.{key}", every) for key, item in value.items()
                }
        axes = Axes(alpha=alpha, method=method, donors=donors, params=params, run_fields=run_fields)
        if not self.mistakes and self.one_run_each:
            self.check_runs(axes)
        return axes

    def axis(self, value: Any, path: str, kinds: Sequence[Kind]) -> Axis:
        if not isinstance(value, dict):
            return Axis(kind="fixed", options=(value,))
        content = dict(value)
        knots = content.pop("knots", KNOTS)
        kind = next(iter(content), "")
        if len(content) != 1 or not isinstance(kind, str) or kind not in kinds or kind == "fixed":
            names = ", ".join(f"`{name}`" for name in kinds if name != "fixed")
            hint = " In a search, `grid` is called `choice`." if kind == "grid" else ""
            self.wrong(
                path,
                f"must be a value or one of {names} with its range, but is {value!r} instead."
                f"{hint or axis_hint(value, [name for name in kinds if name != 'fixed'])}",
            )
        elif "knots" in value and (kind != "curve" or type(knots) is not int or knots < 2):
            self.wrong(
                path,
                "`knots` must be a whole number of at least 2 beside `curve`, but is "
                f"{knots!r} instead.",
            )
        elif kind == "choice":
            options = content[kind]
            if (
                isinstance(options, list)
                and len(options) > 1
                and all(isinstance(o, str | int | float | bool) for o in options)
            ):
                return Axis(kind="choice", options=tuple(options))
            self.wrong(
                path,
                "`choice` must be a list of at least two texts, numbers or booleans, but is "
                f"{options!r} instead.",
            )
        elif (ends := self.range(kind, content[kind], path)) is not None:
            return Axis(kind=_kind(kind), low=ends[0], high=ends[1], knots=knots)
        return Axis(kind="fixed", options=(None,))

    def check_alpha(self, axis: Axis) -> None:
        ends = axis.options if axis.kind in ("fixed", "choice") else (axis.low, axis.high)
        if ends != (None,) and not all(type(end) in (int, float) and 0 <= end <= 1 for end in ends):
            self.wrong(
                "alpha", f"must stay within [0, 1], but reaches {', '.join(map(repr, ends))}."
            )

    def range(self, kind: str, value: Any, path: str) -> tuple[float, float] | None:
        numbers = (
            [n for n in value if isinstance(n, int | float) and not isinstance(n, bool)]
            if isinstance(value, list)
            else []
        )
        if (
            len(numbers) != 2
            or len(value) != 2
            or not -sys.float_info.max <= numbers[0] < numbers[1] <= sys.float_info.max
        ):
            self.wrong(
                path,
                f"`{kind}` must be finite [low, high] with low < high, but is {value!r} instead.",
            )
        elif kind == "loguniform" and numbers[0] <= 0:
            self.wrong(
                path, f"`loguniform` needs a low end above 0, but it is {numbers[0]} instead."
            )
        else:
            return float(numbers[0]), float(numbers[1])
        return None

    def donors(self, value: Any) -> DonorAxis:
        run_names = list(dict.fromkeys(run.spec.name for run in self.runs))
        kind: Literal["always", "choice", "subset"] = "always"
        sets: Any = [run_names if value is None else value]
        if isinstance(value, dict):
            key = next(iter(value), "")
            if (
                len(value) != 1
                or key not in ("choice", "subset")
                or not isinstance(value[key], list)
                or not value[key]
            ):
                self.wrong(
                    "donors",
                    "must be a list of names, `choice` with a list of such, or `subset` with a "
                    "list of names.",
                )
                return DonorAxis(kind="always", sets=((),))
            kind, sets = ("choice", value[key]) if key == "choice" else ("subset", [value[key]])
        donor_sets = tuple(
            (item,) if isinstance(item, str) else tuple(item) if isinstance(item, list) else ()
            for item in sets
        )
        for names in donor_sets:
            if strangers := [name for name in names if not isinstance(name, str)]:
                self.wrong("donors", f"must have names alone, but has {strangers[0]!r} instead.")
                return DonorAxis(kind="always", sets=((),))
            if not names or len(set(names)) < len(names):
                self.wrong(
                    "donors",
                    f"must name each donor once and at least one, but has {list(names)} instead.",
                )
            for name in dict.fromkeys(names):
                if name not in run_names:
                    self.wrong("donors", unknown_name("fine-tuning run", str(name), run_names))
        return DonorAxis(kind=kind, sets=donor_sets)

    def fields(self) -> list[str]:
        """Returns the fields that differ between fine-tuning runs of one name."""
        varying: dict[str, None] = {}
        for name in dict.fromkeys(run.spec.name for run in self.runs):
            same = [run.values() for run in self.runs if run.spec.name == name]
            fields = dict.fromkeys(key for one in same for key in one)
            varying |= {
                key: None for key in fields if any(one.get(key) != same[0].get(key) for one in same)
            }
        return list(varying)

    def check_field(self, name: str) -> None:
        if name not in self.fields():
            varying = unknown_name(
                "field that varies between fine-tuning runs of one name", name, self.fields()
            )
            self.wrong(name, f"{varying} Give it an axis under `finetune`.")

    def check_runs(self, axes: Axes) -> None:
        """Every donor name must lead to one run, whatever is proposed."""
        for name in axes.donors.names():
            runs = [run for run in self.runs if run.spec.name == name]
            if len({field_values(run, axes.run_fields) for run in runs}) < len(runs):
                missing = [field for field in self.fields() if field not in axes.run_fields]
                advice = ", ".join(f"`{field}: {PICK_RUN}`" for field in missing)
                text = (
                    f"leaves {len(runs)} fine-tuning runs of `{name}` to merge; "
                    f"let the search pick one with {advice}."
                )
                self.wrong("", text)

    def wrong(self, path: str, text: str) -> None:
        self.mistakes.append((path_text((path,)) if path else "", text))


def _kind(name: str) -> Kind:
    return next(kind for kind in RANGES if kind == name)
