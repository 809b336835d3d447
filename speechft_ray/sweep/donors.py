"""Which merges a sweep has, and which fine-tuning runs each combines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from speechft_ray.core.chains import Tuning
from speechft_ray.core.errors import SweepError
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.specs import SweepSpec
from speechft_ray.sweep.predictions import make_real


def list_merges(
    spec: SweepSpec,
    tuned: Sequence[tuple[Tuning, str]],
    find_start: Callable[[str], str],
) -> Iterator[tuple[MergeSpec, tuple[tuple[Tuning, str], ...]]]:
    """Yields every merge of a sweep with its donors (``list_donor_sets``), with alpha 1 as a
    control for every set of donors. Alpha 0, the pre-trained encoder, is left out."""
    merges = [item for item in spec.merge if item.alpha > 0]
    controls = [make_real(item, 1.0) for item in spec.merge if item.control]
    unique = {canonical_json(item): item for item in [*merges, *controls]}
    for item in unique.values():
        for donors in list_donor_sets(spec, item, tuned, find_start):
            yield item, donors


def list_donor_sets(
    spec: SweepSpec,
    merge: MergeSpec,
    tuned: Sequence[tuple[Tuning, str]],
    find_start: Callable[[str], str],
) -> Iterator[tuple[tuple[Tuning, str], ...]]:
    """Yields every set of donors of one seed and one start.

    ``tuned``: fine-tuning runs with their fingerprints; ``find_start`` returns the encoder that one
    starts from. Raises ``SweepError`` where named donors have no seed or start in common.
    """
    if merge.donors == "each":
        yield from ((donor,) for donor in tuned)
        return
    has_common_seed = has_common_start = False
    for seed in sorted({run.spec.seed for run, _ in tuned}):
        choices = [
            [pair for pair in tuned if pair[0].spec.name == name and pair[0].spec.seed == seed]
            for name in merge.donors
        ]
        for donors in itertools.product(*choices):
            has_common_seed = True
            if len({find_start(key) for _, key in donors}) == 1:
                has_common_start = True
                yield donors
    names = ", ".join(merge.donors)
    wrong = ""
    if not has_common_seed:
        wrong = (
            f"no seed was tuned by all of the donors {names}: give those fine-tuning runs the same "
            "`seed` axis."
        )
    elif not has_common_start:
        wrong = (
            f"the donors {names} start from different encoders: merge runs that have the same "
            "`after`, or none."
        )
    if wrong:
        index = [item.donors for item in spec.merge].index(merge.donors)
        raise SweepError(f"the sweep `{spec.name}`", [(f"merge[{index}].donors", wrong)])
