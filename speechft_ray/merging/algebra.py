"""The rules that every merge method inherits: alignment, number types, shared tensors, protected parameters, end points.

A merge is theta0 + alpha * combined, where ``combined`` is what a method makes of the task vectors theta_i - theta0
(Speech-FT, arXiv 2502.12672, Eq. 1, 3 and 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.merging.base import METHODS, check

State = Mapping[str, torch.Tensor]


def merge(
    method: str,
    params: Mapping[str, Any],
    base: State,
    donors: Sequence[State],
    alpha: float,
    protected_prefixes: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """Merges donors into a base: theta0 + alpha * combined(theta_i - theta0).

    Keys and order of the result are the base's, and so are each tensor's type and device. Parameters whose name starts with one
    of ``protected_prefixes`` keep the base's value, and donors may lack them; so do tensors that are not floating point. A
    tensor that the base holds under several names is merged once and shared again in the result. Arithmetic is in float32 (in
    float64 for a float64 base). No input is changed and the result shares no memory with one.

    Exact end points: alpha = 0 is the base bit for bit. Where the method hands back the task vector of a lone donor untouched,
    the path goes from the base to the donor itself, not to base + (donor - base), which rounds: alpha = 1 is then the donor
    bit for bit.

    The weight-normalised positional convolution is merged in its g and v parts, as the published code does.

    Raises ``UserError`` for parameters that do not fit, alpha outside [0, 1], names or shapes that differ between base and a
    donor, values that are NaN or infinite, or a result that the base's number type cannot hold.
    """
    checked = check(method, params, donors=len(donors))
    if not 0.0 <= alpha <= 1.0:
        raise UserError(f"`alpha` must be within [0, 1], but is {alpha:g} instead: 0 is the pre-trained, 1 the tuned model.")
    prefixes = tuple(protected_prefixes)
    twins = _twins(base)
    keys = _merged_keys(base, twins, prefixes)
    for index, donor in enumerate(donors):
        _align(base, donor, f"donor {index + 1}", prefixes)
        _align_twins(twins, keys, donor, f"donor {index + 1}")
    merged: dict[str, torch.Tensor] = {}
    if alpha > 0.0:
        with torch.no_grad():
            vectors = [_task_vector(base, donor, f"donor {index + 1}", keys) for index, donor in enumerate(donors)]
            combined = METHODS.get(method).combine(checked, vectors)
            for key in keys:
                untouched = len(donors) == 1 and torch.equal(combined[key], vectors[0][key])
                end = donors[0][key] if untouched else None
                merged[key] = _step(base[key], end, combined.pop(key), alpha)
        _require_finite(merged, "the merged model", "lower the method's scale or use a base of a wider number type")
    return _like_base(base, merged, twins)


def _twins(base: State) -> dict[str, str]:
    """Maps every key to the first key that names the very same tensor (same memory, shape, strides and type)."""
    first: dict[tuple[Any, ...], str] = {}
    twins: dict[str, str] = {}
    for key, tensor in base.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        twins[key] = first.setdefault(place, key) if tensor.numel() else key  # empty tensors have no memory to share
    return twins


def _merged_keys(base: State, twins: Mapping[str, str], prefixes: tuple[str, ...]) -> list[str]:
    """Keys that a merge moves, sorted; a tensor is protected when any of its names is."""
    protected = {twins[key] for key in base if key.startswith(prefixes)}
    keys = sorted({first for first in twins.values() if first not in protected and base[first].is_floating_point()})
    if not keys:
        raise UserError("the base has nothing to merge: all its parameters are protected, or none is a floating-point tensor.")
    return keys


def _align(base: State, donor: State, name: str, prefixes: tuple[str, ...]) -> None:
    ours, theirs = ({key for key in state if not key.startswith(prefixes)} for state in (base, donor))
    differ = [
        f"{key} {_form(donor[key])} instead of {_form(base[key])}"
        for key in ours & theirs
        if base[key].shape != donor[key].shape or base[key].is_floating_point() != donor[key].is_floating_point()
    ]
    complaints = [
        f"{what}: {_first_five(names)}"
        for what, names in (
            (f"it lacks {len(ours - theirs)} of {len(ours)} parameters", ours - theirs),
            (f"it has {len(theirs - ours)} that the base lacks", theirs - ours),
            (f"{len(differ)} differ in shape or kind", differ),
        )
        if names
    ]
    if complaints:
        raise UserError(f"{name} does not fit the base: {'; '.join(complaints)}. Merge only models tuned from this base.")


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _align_twins(twins: Mapping[str, str], keys: Iterable[str], donor: State, name: str) -> None:
    moved = set(keys)
    shared = [(first, key) for key, first in twins.items() if key != first and first in moved]
    split = [f"{first} and {key}" for first, key in shared if not _same(donor[first], donor[key])]
    if split:
        raise UserError(
            f"{name} does not fit the base: it holds two values for each of {len(split)} tensors that the base shares between "
            f"two names: {_first_five(split)}. Merge only models tuned from this base."
        )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _task_vector(base: State, donor: State, name: str, keys: Sequence[str]) -> dict[str, torch.Tensor]:
    vector: dict[str, torch.Tensor] = {}
    for key in keys:
        start = _wide(base[key])
        vector[key] = donor[key].to(start) - start
    if not all(bool(torch.isfinite(difference).all()) for difference in vector.values()):
        advice = "take a checkpoint from before the training diverged"
        _require_finite({key: base[key] for key in keys}, "the base", advice)
        _require_finite({key: donor[key] for key in keys}, name, advice)
        raise UserError(f"{name} differs from the base by more than {start.dtype} can hold: it was not tuned from this base.")
    return vector


def _step(start: torch.Tensor, end: torch.Tensor | None, combined: torch.Tensor, alpha: float) -> torch.Tensor:
    """Returns start + alpha * combined in the type of ``start``; on the way to ``end`` where that is given."""
    wide = _wide(start)
    if end is None:
        return torch.add(wide, combined, alpha=alpha).to(start.dtype)
    if alpha == 1.0:
        return end.to(start, copy=True)
    return torch.lerp(wide, end.to(wide), alpha).to(start.dtype)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _like_base(base: State, merged: Mapping[str, torch.Tensor], twins: Mapping[str, str]) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    for key, tensor in base.items():
        if twins[key] != key:
            result[key] = result[twins[key]]
        else:
            result[key] = merged[key] if key in merged else tensor.detach().clone()
    return result


def _require_finite(state: State, name: str, advice: str) -> None:
    broken = [key for key, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UserError(f"{name} has NaN or infinite values in {len(broken)} parameters: {_first_five(broken)}; {advice}.")


def _first_five(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
