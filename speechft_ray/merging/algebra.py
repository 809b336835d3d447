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
    State,
    align,
    check_twins,
    find_parts,
    find_twins,
    first_five,
    is_finite,
    refuse_broken,
    require_finite,
)
from speechft_ray.merging.base import METHODS, MergeParams, check
from speechft_ray.merging.param_reader import (
    BLOCK,
    One,
    Part,
    Reader,
    Source,
    factors,
    source_of,
    whole,
)


def merge(
    method: str,
    params: Mapping[str, Any],
    base: State,
    donors: Sequence[State],
    alpha: float,
    protected_prefixes: Sequence[str] = (),
    statistics: Sequence[State] | None = None,
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
    checked = check(method, params, donors=len(donors))
    check_alpha(alpha)
    prefixes = tuple(protected_prefixes)
    twins = find_twins(base)
    parts = find_parts(base, twins, prefixes, checked.pos_conv)
    for index, donor in enumerate(donors):
        align(base, donor, f"donor {index + 1}", prefixes)
        check_twins(twins, parts, donor.__getitem__, f"donor {index + 1}")
    gathered = find_statistics(method, statistics, len(donors))
    merged: dict[str, torch.Tensor] = {}
    if alpha > 0.0:
        readers = [donor.__getitem__ for donor in donors]
        source = source_of(parts, base.__getitem__, readers, checked.number_type, gathered)
        with torch.no_grad():
            require_finite(source, base.__getitem__, readers)
            for part, combined, untouched in combine_all(method, checked, source):
                merged |= moved(
                    part, combined, checked.scale, untouched, base.__getitem__, readers, alpha
                )
            refuse_overflow(merged)
    return _like_base(base, merged, twins)


def check_alpha(alpha: float) -> None:
    """Refuses an alpha that is no share."""
    if not 0.0 <= alpha <= 1.0:
        raise UserError(
            f"`alpha` must be within [0, 1], but is {alpha:g} instead: 0 is the pre-trained, 1 the tuned model."
        )


def combine_all(
    method: str,
    params: MergeParams,
    source: Source,
    spare: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[tuple[Part, torch.Tensor, bool]]:
    """Yields ``(part, combined, untouched)`` for every part of a source.

    ``combined`` is what the method makes of the task vectors, without ``scale``; ``untouched`` says
    whether it is the task vector of a lone donor, bit for bit. ``spare``: tensors by name of the
    part that may be overwritten, which saves the time that fresh memory costs; used where method
    and number type allow it.
    """
    found = METHODS.get(method)
    surveyed = found.survey(params, source) if found.survey else None
    for part in source.parts:
        if found.blockwise(params):
            room = (spare or {}).get(part.name)
            yield (
                part,
                *_in_blocks(
                    source.blocks_of(part),
                    lambda block: found.combine(params, surveyed, block),
                    room,
                ),
            )
        else:
            one = source.read(part)
            combined = found.combine(params, surveyed, one)
            yield part, combined, _is_lone_vector(combined, one)


def _in_blocks(
    blocks: Iterator[One], combine: Callable[[One], torch.Tensor], room: torch.Tensor | None
) -> tuple[torch.Tensor, bool]:
    """Returns what ``combine`` makes of all blocks of one part, and whether each is the lone
    donor's own."""
    made, untouched = torch.empty(0), True
    for block in blocks:
        if block.start == 0:
            fits = room is not None and room.shape == block.shape and room.dtype == block.base.dtype
            shape = block.base.shape if block.shape is None else block.shape
            made = room if room is not None and fits else block.base.new_empty(shape)
        combined = combine(block)
        made.view(-1)[block.start : block.start + combined.numel()] = combined
        untouched = untouched and _is_lone_vector(combined, block)
    return made, untouched


def _is_lone_vector(combined: torch.Tensor, one: One) -> bool:
    return len(one.vectors) == 1 and torch.equal(combined, one.vectors[0])


def moved(
    part: Part,
    combined: torch.Tensor,
    scale: float,
    untouched: bool,
    base: Reader,
    donors: Sequence[Reader],
    alpha: float,
) -> dict[str, torch.Tensor]:
    """Returns base + alpha * scale * combined by key, in the base's types.

    Where the combined task vector is ``untouched``, it is a step on the straight way to the donor
    itself.
    """
    if untouched and scale == 1.0 and alpha == 1.0:
        return {key: donors[0](key).detach().to(base(key), copy=True) for key in part.keys}
    start = whole(part, base, combined.dtype)
    if untouched and scale == 1.0 and len(part.keys) == 1:
        value = torch.lerp(start, donors[0](part.name).detach().to(start), alpha)
    else:
        value = torch.add(start, combined if scale == 1.0 else combined * scale, alpha=alpha)
    if len(part.keys) == 1:
        return {part.name: value.to(base(part.name).dtype)}
    g, v = (base(key).detach() for key in part.keys)
    if not bool(combined.any()):
        return {part.keys[0]: g.clone(), part.keys[1]: v.clone()}
    return {
        key: tensor.to(base(key).dtype)
        for key, tensor in zip(part.keys, factors(value, g, v), strict=True)
    }


def move_into(
    room: Mapping[str, torch.Tensor],
    part: Part,
    combined: torch.Tensor,
    scale: float,
    untouched: bool,
    base: Reader,
    donors: Sequence[Reader],
    alpha: float,
) -> None:
    """Writes what ``moved`` returns into the tensors of ``room``, one of which may be ``combined``
    itself."""
    start = base(part.name).detach()
    exact_end = untouched and scale == 1.0
    if (
        len(part.keys) > 1
        or exact_end
        or not start.dtype == combined.dtype == room[part.name].dtype
    ):
        for key, value in moved(part, combined, scale, untouched, base, donors, alpha).items():
            room[key].copy_(value)
        return
    ends = [
        torch.split(tensor, BLOCK)
        for tensor in (start.reshape(-1), combined.reshape(-1), room[part.name].view(-1))
    ]
    for first, step, target in zip(*ends, strict=True):
        torch.add(first, step if scale == 1.0 else step * scale, alpha=alpha, out=target)


def refuse_overflow(merged: State) -> None:
    """Refuses a result that its number type cannot hold."""
    advice = "lower the method's scale or use a base of a wider number type"
    refuse_broken(
        (key for key, tensor in merged.items() if not is_finite(tensor)), "the merged model", advice
    )


def find_statistics(method: str, statistics: Sequence[State] | None, donors: int) -> Any:
    """Returns the function that looks up what was gathered for a part. Raises ``UserError`` when a
    donor has nothing."""
    kind = METHODS.get(method).needs
    if kind is None:
        return lambda name: ()
    given = list(statistics or [{}] * donors)
    lacking = [
        f"donor {i + 1}"
        for i, item in enumerate(given)
        if not any(key.startswith(f"{kind}:") for key in item)
    ]
    if lacking:
        raise UserError(
            f"merge method `{method}` needs {kind} statistics of every donor's tuning set, but there are none of "
            f"{first_five(lacking)}: fine-tune with `gather: [{kind}]`."
        )

    def look_up(name: str) -> tuple[torch.Tensor, ...]:
        key = f"{kind}:{name}"
        return tuple(item[key] for item in given) if all(key in item for item in given) else ()

    return look_up


def _like_base(
    base: State, merged: Mapping[str, torch.Tensor], twins: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    for key, tensor in base.items():
        if twins[key] != key:
            result[key] = result[twins[key]]
        else:
            result[key] = merged[key] if key in merged else tensor.detach().clone()
    return result
