"""The rules that every merge method inherits: alignment, number types, shared tensors, protected
parameters, end points.

A merge is theta0 + alpha * scale * combined, where ``combined`` is what a method makes of the task
vectors theta_i - theta0 (Speech-FT, arXiv 2502.12672, Eq. 1, 3 and 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.merging.alignment import (
    StateDict,
    check_compatible,
    check_finite,
    check_tied,
    find_groups,
    find_tied,
    is_finite,
    join_first_five,
    refuse_non_finite,
)
from speechft_ray.merging.base import METHODS, MergeParams, validate_params
from speechft_ray.merging.param_reader import (
    BLOCK,
    GetTensor,
    ParamGroup,
    ParamReader,
    ParamSlice,
    make_reader,
    read_value,
    split_kernel,
)


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

    Keys and order of the result are the base's, and so are each tensor's type and device.
    Parameters whose name starts with one of ``protected_prefixes`` keep the base's value, and
    donors may lack them; so do tensors that are not floating point. A tensor that the base holds
    under several names is merged once and shared again in the result. Arithmetic is in float32 (in
    float64 for a float64 base, or where ``precision`` asks for it). No input is changed and the
    result shares no memory with one. ``statistics``: what the donors' fine-tuning gathered, one
    mapping per donor, with keys ``<kind>:<parameter>``.

    Exact end points: alpha = 0 is the base bit for bit. Where the method hands back the task vector
    of a lone donor untouched, the path goes from the base to the donor itself, not to base + (donor
    - base), which rounds: alpha = 1 is then the donor bit for bit.

    The weight-normalised positional convolution is merged in its g and v parts, as the published
    code does, unless ``pos_conv`` asks for its kernel.

    Raises ``UserError`` for parameters that do not fit, alpha outside [0, 1], names or shapes that
    differ between base and a donor, statistics that are needed and missing, values that are NaN or
    infinite, or a result that the base's number type cannot hold.
    """
    checked = validate_params(method, params, donors=len(donors))
    check_alpha(alpha)
    prefixes = tuple(protected_prefixes)
    tied = find_tied(base)
    groups = find_groups(base, tied, prefixes, checked.pos_conv)
    for index, donor in enumerate(donors):
        check_compatible(base, donor, f"donor {index + 1}", prefixes)
        check_tied(tied, groups, donor.__getitem__, f"donor {index + 1}")
    gathered = make_statistics_lookup(method, statistics, len(donors))
    merged: dict[str, torch.Tensor] = {}
    if alpha > 0.0:
        getters = [donor.__getitem__ for donor in donors]
        reader = make_reader(groups, base.__getitem__, getters, checked.dtype, gathered)
        with torch.no_grad():
            check_finite(reader, base.__getitem__, getters)
            for group, combined, untouched in combine_all(method, checked, reader):
                merged |= interpolate(
                    group, combined, checked.scale, untouched, base.__getitem__, getters, alpha
                )
            check_overflow(merged)
    return _fill_from_base(base, merged, tied)


def check_alpha(alpha: float) -> None:
    """Refuses an alpha that is no share."""
    if not 0.0 <= alpha <= 1.0:
        raise UserError(
            f"`alpha` must be within [0, 1], but is {alpha:g} instead: 0 is the pre-trained, 1 the tuned model."
        )


def combine_all(
    method: str,
    params: MergeParams,
    reader: ParamReader,
    spare: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[tuple[ParamGroup, torch.Tensor, bool]]:
    """Yields ``(part, combined, untouched)`` for every part of a source.

    ``combined`` is what the method makes of the task vectors, without ``scale``; ``untouched`` says
    whether it is the task vector of a lone donor, bit for bit. ``spare``: tensors by name of the
    part that may be overwritten, which saves the time that fresh memory costs; used where method
    and number type allow it.
    """
    merge_method = METHODS.get(method)
    precomputed = merge_method.precompute(params, reader) if merge_method.precompute else None
    for group in reader.groups:
        if merge_method.blockwise(params):
            out = (spare or {}).get(group.name)
            yield (
                group,
                *_combine_blocks(
                    reader.blocks_of(group),
                    lambda block: merge_method.combine(params, precomputed, block),
                    out,
                ),
            )
        else:
            part = reader.read(group)
            combined = merge_method.combine(params, precomputed, part)
            yield group, combined, _is_lone_vector(combined, part)


def _combine_blocks(
    blocks: Iterator[ParamSlice],
    combine: Callable[[ParamSlice], torch.Tensor],
    out: torch.Tensor | None,
) -> tuple[torch.Tensor, bool]:
    """Returns what ``combine`` makes of all blocks of one part, and whether each is the lone
    donor's own."""
    combined_vector, untouched = torch.empty(0), True
    for block in blocks:
        if block.start == 0:
            fits = out is not None and out.shape == block.shape and out.dtype == block.base.dtype
            shape = block.base.shape if block.shape is None else block.shape
            combined_vector = out if out is not None and fits else block.base.new_empty(shape)
        combined = combine(block)
        combined_vector.view(-1)[block.start : block.start + combined.numel()] = combined
        untouched = untouched and _is_lone_vector(combined, block)
    return combined_vector, untouched


def _is_lone_vector(combined: torch.Tensor, part: ParamSlice) -> bool:
    return len(part.vectors) == 1 and torch.equal(combined, part.vectors[0])


def interpolate(
    group: ParamGroup,
    combined: torch.Tensor,
    scale: float,
    untouched: bool,
    base: GetTensor,
    donors: Sequence[GetTensor],
    alpha: float,
) -> dict[str, torch.Tensor]:
    """Returns base + alpha * scale * combined by key, in the base's types.

    Where the combined task vector is ``untouched``, it is a step on the straight way to the donor
    itself.
    """
    if untouched and scale == 1.0 and alpha == 1.0:
        return {key: donors[0](key).detach().to(base(key), copy=True) for key in group.keys}
    start = read_value(group, base, combined.dtype)
    if untouched and scale == 1.0 and len(group.keys) == 1:
        value = torch.lerp(start, donors[0](group.name).detach().to(start), alpha)
    else:
        value = torch.add(start, combined if scale == 1.0 else combined * scale, alpha=alpha)
    if len(group.keys) == 1:
        return {group.name: value.to(base(group.name).dtype)}
    g, v = (base(key).detach() for key in group.keys)
    if not bool(combined.any()):
        return {group.keys[0]: g.clone(), group.keys[1]: v.clone()}
    return {
        key: tensor.to(base(key).dtype)
        for key, tensor in zip(group.keys, split_kernel(value, g, v), strict=True)
    }


def interpolate_into(
    out: Mapping[str, torch.Tensor],
    group: ParamGroup,
    combined: torch.Tensor,
    scale: float,
    untouched: bool,
    base: GetTensor,
    donors: Sequence[GetTensor],
    alpha: float,
) -> None:
    """Writes what ``moved`` returns into the tensors of ``room``, one of which may be ``combined``
    itself."""
    start = base(group.name).detach()
    exact_end = untouched and scale == 1.0
    if (
        len(group.keys) > 1
        or exact_end
        or not start.dtype == combined.dtype == out[group.name].dtype
    ):
        for key, value in interpolate(
            group, combined, scale, untouched, base, donors, alpha
        ).items():
            out[key].copy_(value)
        return
    ends = [
        torch.split(tensor, BLOCK)
        for tensor in (start.reshape(-1), combined.reshape(-1), out[group.name].view(-1))
    ]
    for first, step, target in zip(*ends, strict=True):
        torch.add(first, step if scale == 1.0 else step * scale, alpha=alpha, out=target)


def check_overflow(merged: StateDict) -> None:
    """Refuses a result that its number type cannot hold."""
    advice = "lower the method's scale or use a base of a wider number type"
    refuse_non_finite(
        (key for key, tensor in merged.items() if not is_finite(tensor)), "the merged model", advice
    )


def make_statistics_lookup(method: str, statistics: Sequence[StateDict] | None, donors: int) -> Any:
    """Returns the function that looks up what was gathered for a part. Raises ``UserError`` when a
    donor has nothing."""
    kind = METHODS.get(method).needs
    if kind is None:
        return lambda name: ()
    donor_statistics = list(statistics or [{}] * donors)
    missing = [
        f"donor {i + 1}"
        for i, item in enumerate(donor_statistics)
        if not any(key.startswith(f"{kind}:") for key in item)
    ]
    if missing:
        raise UserError(
            f"merge method `{method}` needs {kind} statistics of every donor's tuning set, but there are none of "
            f"{join_first_five(missing)}: fine-tune with `gather: [{kind}]`."
        )

    def look_up(name: str) -> tuple[torch.Tensor, ...]:
        key = f"{kind}:{name}"
        return (
            tuple(item[key] for item in donor_statistics)
            if all(key in item for item in donor_statistics)
            else ()
        )

    return look_up


def _fill_from_base(
    base: StateDict, merged: Mapping[str, torch.Tensor], tied: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    for key, tensor in base.items():
        if tied[key] != key:
            result[key] = result[tied[key]]
        else:
            result[key] = merged[key] if key in merged else tensor.detach().clone()
    return result
