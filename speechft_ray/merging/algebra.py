"""Merges state dicts by the rules of every method: alignment, dtypes, tied tensors, end points.

A merge is theta0 + alpha * scale * combined. A method computes ``combined`` from the task vectors
theta_i - theta0 (Speech-FT, arXiv 2502.12672, Eq. 1, 3 and 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.merging.alignment import (
    StateDict,
    check_compatible,
    check_tied,
    check_while_reading,
    find_groups,
    find_tied,
    is_finite,
    join_first_five,
    refuse_non_finite,
)
from speechft_ray.merging.base import METHODS, MergeParams, validate_params
from speechft_ray.merging.param_reader import (
    BLOCK,
    GetStatistics,
    GetTensor,
    ParamGroup,
    ParamReader,
    ParamSlice,
    make_reader,
    read_value,
    split_kernel,
)


class CombinedGroup(NamedTuple):
    """The combined task vector of one group, without ``scale``."""

    group: ParamGroup
    vector: torch.Tensor
    is_donor: bool
    """Whether it is the task vector of a lone donor, bit for bit."""


def merge(
    method: str,
    params: Mapping[str, Any],
    base: StateDict,
    donors: Sequence[StateDict],
    alpha: float,
    protected_prefixes: Sequence[str] = (),
    statistics: Sequence[StateDict] | None = None,
) -> dict[str, torch.Tensor]:
    """Merges donors into a base: theta0 + alpha * scale * combined(theta_i - theta0).

    Keys and order of the result are the base's, and so are each tensor's dtype and device.
    Parameters whose name starts with one of ``protected_prefixes`` keep the base's value, and
    donors may lack them. Tensors that are not floating point keep the base's value as well. A
    tensor that the base holds under several names is merged once and shared again in the result.
    Arithmetic is in float32, or in float64 for a float64 base and where ``precision`` asks for it.
    No input is changed and the result shares no memory with one. ``statistics``: what the donors'
    fine-tuning gathered, one mapping per donor, with keys ``<kind>:<parameter>``.

    The end points are exact. alpha = 0 is the base bit for bit. Where a method returns the task
    vector of a lone donor unchanged, the result is interpolated between the base and the donor
    itself, since base + (donor - base) rounds: alpha = 1 is then the donor bit for bit.

    The weight-normalised positional convolution is merged in its g and v parts, as the published
    code does, unless ``pos_conv`` asks for its kernel.

    Raises ``UserError`` for parameters that do not fit, alpha outside [0, 1], names or shapes that
    differ between base and a donor, statistics that are needed and missing, values that are NaN or
    infinite, or a result that the base's dtype cannot hold.
    """
    # Check parameters, alpha, and the alignment of base and donors.
    checked = validate_params(method, params, donors=len(donors))
    check_alpha(alpha)
    prefixes = tuple(protected_prefixes)
    tied = find_tied(base)
    groups = find_groups(base, tied, prefixes, checked.pos_conv)
    for index, donor in enumerate(donors):
        check_compatible(base, donor, f"donor {index + 1}", prefixes)
        check_tied(tied, groups, donor.__getitem__, f"donor {index + 1}")
    lookup = make_statistics_lookup(method, statistics, len(donors))
    # Combine the task vectors and add them to the base, group by group.
    merged: dict[str, torch.Tensor] = {}
    if alpha > 0.0:
        getters = [donor.__getitem__ for donor in donors]
        reader = make_reader(groups, base.__getitem__, getters, checked.dtype, lookup)
        reader = check_while_reading(reader, base.__getitem__, getters)
        with torch.no_grad():
            for combined in combine_all(method, checked, reader):
                merged |= interpolate(combined, checked.scale, base.__getitem__, getters, alpha)
            check_overflow(merged)
    # Copy the rest from the base and tie again what the base ties.
    return _fill_from_base(base, merged, tied)


def check_alpha(alpha: float) -> None:
    """Raises ``UserError`` for an alpha outside [0, 1]."""
    if not 0.0 <= alpha <= 1.0:
        raise UserError(
            f"`alpha` must be within [0, 1], but is {alpha:g} instead: 0 is the pre-trained, "
            "1 the tuned model."
        )


def combine_all(
    method: str,
    params: MergeParams,
    reader: ParamReader,
    spare: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[CombinedGroup]:
    """Yields the combined task vector of every group of a reader.

    ``spare``: tensors by name of the group that may be overwritten, which saves the time to
    allocate memory. They are used where the method is blockwise and shape and dtype fit.
    """
    merge_method = METHODS.get(method)
    precomputed = merge_method.precompute(params, reader) if merge_method.precompute else None

    def combine(part: ParamSlice) -> torch.Tensor:
        return merge_method.combine(params, precomputed, part)

    for group in reader.groups:
        if merge_method.blockwise:
            out = (spare or {}).get(group.name)
            yield CombinedGroup(group, *_combine_blocks(reader.blocks_of(group), combine, out))
        else:
            part = reader.read(group)
            vector = combine(part)
            yield CombinedGroup(group, vector, _is_lone_vector(vector, part))


def _combine_blocks(
    blocks: Iterator[ParamSlice],
    combine: Callable[[ParamSlice], torch.Tensor],
    out: torch.Tensor | None,
) -> tuple[torch.Tensor, bool]:
    """Returns the combined task vector of all blocks of one group, and whether each block is the
    lone donor's own."""
    vector, is_donor = torch.empty(0), True
    for block in blocks:
        if block.start == 0:
            fits = out is not None and out.shape == block.shape and out.dtype == block.base.dtype
            shape = block.base.shape if block.shape is None else block.shape
            vector = out if out is not None and fits else block.base.new_empty(shape)
        combined = combine(block)
        vector.view(-1)[block.start : block.start + combined.numel()] = combined
        is_donor = is_donor and _is_lone_vector(combined, block)
    return vector, is_donor


def _is_lone_vector(combined: torch.Tensor, part: ParamSlice) -> bool:
    return len(part.vectors) == 1 and torch.equal(combined, part.vectors[0])


def interpolate(
    combined: CombinedGroup,
    scale: float,
    base: GetTensor,
    donors: Sequence[GetTensor],
    alpha: float,
) -> dict[str, torch.Tensor]:
    """Returns base + alpha * scale * combined by key, in the base's dtypes.

    Where the combined task vector is a lone donor's (``is_donor``), the result is interpolated
    between the base and the donor itself.
    """
    group, vector, is_donor = combined
    # The end point of a lone donor is the donor.
    if is_donor and scale == 1.0 and alpha == 1.0:
        return {key: donors[0](key).detach().to(base(key), copy=True) for key in group.keys}
    # Compute the value of the parameter, or of the kernel.
    start = read_value(group, base, vector.dtype)
    if is_donor and scale == 1.0 and len(group.keys) == 1:
        value = torch.lerp(start, donors[0](group.name).detach().to(start), alpha)
    else:
        value = torch.add(start, vector if scale == 1.0 else vector * scale, alpha=alpha)
    if len(group.keys) == 1:
        return {group.name: value.to(base(group.name).dtype)}
    # Write a kernel back as g and v; one that did not change keeps both as they are.
    g, v = (base(key).detach() for key in group.keys)
    if not bool(vector.any()):
        return {group.keys[0]: g.clone(), group.keys[1]: v.clone()}
    return {
        key: tensor.to(base(key).dtype)
        for key, tensor in zip(group.keys, split_kernel(value, g, v), strict=True)
    }


def interpolate_into(
    out: Mapping[str, torch.Tensor],
    combined: CombinedGroup,
    scale: float,
    base: GetTensor,
    donors: Sequence[GetTensor],
    alpha: float,
) -> None:
    """Writes the result of ``interpolate`` into the tensors of ``out``, one of which may be the
    combined task vector itself."""
    group, vector, is_donor = combined
    start, target = base(group.name).detach(), out[group.name]
    same_dtype = start.dtype == vector.dtype == target.dtype
    if len(group.keys) > 1 or (is_donor and scale == 1.0) or not same_dtype:
        for key, value in interpolate(combined, scale, base, donors, alpha).items():
            out[key].copy_(value)
        return
    # Blocks that stay in a core's cache, without a temporary tensor of full size.
    flat = (start.reshape(-1), vector.reshape(-1), target.view(-1))
    blocks = (torch.split(tensor, BLOCK) for tensor in flat)
    for first, step, result in zip(*blocks, strict=True):
        torch.add(first, step if scale == 1.0 else step * scale, alpha=alpha, out=result)


def check_overflow(merged: StateDict) -> None:
    """Raises ``UserError`` for a result that its dtype cannot hold."""
    advice = "lower the method's scale or use a base of a wider number type"
    refuse_non_finite(
        (key for key, tensor in merged.items() if not is_finite(tensor)), "the merged model", advice
    )


def make_statistics_lookup(
    method: str, statistics: Sequence[StateDict] | None, donors: int
) -> GetStatistics:
    """Returns the function that looks up the statistics of a parameter by name.

    Raises ``UserError`` when a donor has none of the kind that the method needs.
    """
    kind = METHODS.get(method).needs
    if kind is None:
        return lambda name: ()
    by_donor = list(statistics or [{}] * donors)
    require_statistics(method, kind, by_donor)

    def look_up(name: str) -> tuple[torch.Tensor, ...]:
        key = f"{kind}:{name}"
        return (
            tuple(item[key] for item in by_donor) if all(key in item for item in by_donor) else ()
        )

    return look_up


def require_statistics(method: str, kind: str, statistics: Sequence[StateDict]) -> None:
    """Raises ``UserError`` where a donor has no statistics of a kind."""
    missing = [
        f"donor {index + 1}"
        for index, item in enumerate(statistics)
        if not any(key.startswith(f"{kind}:") for key in item)
    ]
    if missing:
        gather = METHODS.get(method).gather
        raise UserError(
            f"merge method `{method}` needs {gather} statistics of every donor's tuning set, but "
            f"there are none of {join_first_five(missing)}: fine-tune with `gather: [{gather}]`."
        )


def _fill_from_base(
    base: StateDict, merged: Mapping[str, torch.Tensor], tied: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Returns all keys in the base's order, tied as in the base; what was not merged is a copy."""
    result: dict[str, torch.Tensor] = {}
    for key, tensor in base.items():
        if tied[key] != key:
            result[key] = result[tied[key]]
        else:
            result[key] = merged[key] if key in merged else tensor.detach().clone()
    return result
