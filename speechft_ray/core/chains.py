"""Sequential chains: a fine-tuning run that starts from a merge of an earlier one.

phi_t = (1 - alpha) phi_(t-1) + alpha theta'_t, where theta'_t is fine-tuned from phi_(t-1) and
phi_0 is pre-trained (``FinetuneSpec.after``). Where several runs have the name and seed of the
earlier one, because another axis varies, a stage follows each of them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speechft_ray.core.errors import SweepError, unknown_name
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.core.validation import Mistakes

Leaf = str | float | int


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A fine-tuning run, and the one before it in its chain."""

    spec: FinetuneSpec
    earlier: Tuning | None = None
    """The run whose merge (``spec.after``) this one starts from; ``None``: it starts from the
    pre-trained encoder."""

    @property
    def title(self) -> str:
        """The names of the chain, ``pr>sid``; without a chain the name of the run."""
        return f"{self.earlier.title}>{self.spec.name}" if self.earlier else self.spec.name

    def content(self) -> dict[str, Any]:
        """Returns all that determines the result but the pre-trained encoder; ``after`` has the
        earlier merge and its run."""
        fields = self.spec.identity()
        if self.earlier is not None and self.spec.after is not None:
            earlier = self.earlier.content()
            del earlier["seed"]  # it is that of this run
            merge = self.spec.after.model_dump(mode="json", exclude={"finetune"})
            fields["after"] = {**earlier, **merge}
        return fields

    def leaves(self) -> dict[str, Leaf]:
        """Returns ``content`` flat, by dotted path: ``after.alpha``, ``objectives.0.weight``."""
        return _flat(self.content())

    def values(self) -> dict[str, Any]:
        """Returns the fields of the run by name; those of earlier stages as ``after_alpha``."""
        after = {
            short_name(path): value
            for path, value in self.leaves().items()
            if path.startswith("after.")
        }
        return {**self.spec.identity(), **after}


def short_name(path: str) -> str:
    """Returns the column of a dotted path: its last part after one ``after_`` per earlier stage."""
    parts = path.split(".")
    stages = list(itertools.takewhile(lambda part: part == "after", parts[:-1]))
    return "_".join([*stages, parts[-1]])


def name_columns(paths: Iterable[str]) -> dict[str, str]:
    """Returns the columns of dotted paths: ``short_name``, and the number of the objective behind
    it where several have the same (``weight_0``, ``weight_1``)."""
    columns = {path: short_name(path) for path in paths}
    times = Counter(columns.values())
    for path, short in columns.items():
        if times[short] > 1:
            columns[path] = "_".join([short, *filter(str.isdigit, path.split("."))])
    return columns


def build_chains(runs: Sequence[FinetuneSpec]) -> list[Tuning]:
    """Returns every run with its chain, in the given order.

    Raises ``SpecError`` with every faulty ``after``.
    """
    mistakes = chain_mistakes(list(enumerate(runs)))
    if mistakes:
        raise SweepError("the fine-tuning runs", mistakes)
    by_name_and_seed: dict[tuple[str, int], list[FinetuneSpec]] = {}
    for run in runs:
        by_name_and_seed.setdefault((run.name, run.seed), []).append(run)

    def iter_chains(run: FinetuneSpec) -> Iterator[Tuning]:
        if run.after is None:
            yield Tuning(spec=run)
            return
        for earlier in by_name_and_seed[run.after.finetune, run.seed]:
            yield from (Tuning(spec=run, earlier=before) for before in iter_chains(earlier))

    return [tuning for run in runs for tuning in iter_chains(run)]


def chain_mistakes(runs: Sequence[tuple[int, FinetuneSpec]]) -> Mistakes:
    """Returns the mistakes in every ``after``. Each run comes with the index of its entry."""
    names = {run.name for _, run in runs}
    # Which names each name may follow.
    before: dict[str, set[str]] = {name: set() for name in names}
    for _, run in runs:
        if run.after is not None:
            before[run.name].add(run.after.finetune)
    seeds = {(run.name, run.seed) for _, run in runs}
    # An entry with axes has one mistake in many versions; the first is reported.
    mistakes: dict[str, str] = {}
    for index, run in runs:
        if run.after is None:
            continue
        earlier = run.after.finetune
        text = ""
        if earlier not in names:
            text = unknown_name("fine-tuning run", earlier, names)
        elif circle := _circle(run.name, before):
            text = (
                f"leads back to `{run.name}` ({circle}): a chain begins with a run without "
                "`after`, and every stage has a name."
            )
        elif (earlier, run.seed) not in seeds:
            text = (
                f"no run `{earlier}` has the seed {run.seed} of this one: "
                "give both the same `seed` axis."
            )
        if text:
            mistakes.setdefault(f"finetune[{index}].after.finetune", text)
    return list(mistakes.items())


def _circle(name: str, before: Mapping[str, set[str]]) -> str | None:
    """Returns a path along ``after`` from a name to itself, ``sid > pr > sid``, or ``None``."""
    stack, seen = [(name, name)], set()
    while stack:
        node, path = stack.pop()
        for earlier in sorted(before.get(node, ())):
            if earlier == name:
                return f"{earlier} > {path}"
            if earlier not in seen:
                seen.add(earlier)
                stack.append((earlier, f"{earlier} > {path}"))
    return None


def _flat(value: Any, path: str = "") -> dict[str, Leaf]:
    if isinstance(value, dict):
        items = [_flat(item, f"{path}.{key}" if path else key) for key, item in value.items()]
    elif isinstance(value, list):
        items = [_flat(item, f"{path}.{index}") for index, item in enumerate(value)]
    else:
        return {} if value is None else {path: value}
    return {key: leaf for item in items for key, leaf in item.items()}
