"""Which tensors of base and donors belong together, and what a merge refuses about them.

Everything but ``check_twins`` and ``require_finite`` looks at names, shapes and types alone, so
that tensors on the ``meta`` device do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.merging.param_reader import GetTensor, ParamGroup, ParamReader

StateDict = Mapping[str, torch.Tensor]

PosConv = Literal["factors", "kernel"]

_FACTORS = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
"""How torch names g and v: ``torch.nn.utils.weight_norm``, and its parametrization of 2023."""

_DIVERGED = "take a checkpoint from before the training diverged"


def find_tied(base: StateDict) -> dict[str, str]:
    """Maps every key to the first key that names the very same tensor (same memory, shape, strides
    and type)."""
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    for key, tensor in base.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        has_memory = tensor.numel() and tensor.device.type != "meta"
        tied[key] = first.setdefault(place, key) if has_memory else key
    return tied


def find_groups(
    base: StateDict, tied: Mapping[str, str], prefixes: tuple[str, ...], pos_conv: PosConv
) -> tuple[ParamGroup, ...]:
    """Returns what a merge moves, sorted; a tensor is protected when any of its names is.

    Raises ``UserError`` when nothing is left.
    """
    protected = {tied[key] for key in base if key.startswith(prefixes)}
    keys = {
        first
        for first in tied.values()
        if first not in protected and base[first].is_floating_point()
    }
    if not keys:
        raise UserError(
            "the base has nothing to merge: all its parameters are protected, or none is a floating-point tensor."
        )
    pairs = dict(_factor_pairs(keys)) if pos_conv == "kernel" else {}
    lone = keys - pairs.keys() - set(pairs.values())
    groups = [
        *(ParamGroup(name=key, keys=(key,)) for key in lone),
        *(ParamGroup(name=v, keys=(g, v)) for v, g in pairs.items()),
    ]
    return tuple(sorted(groups, key=lambda group: group.name))


def _factor_pairs(keys: set[str]) -> Iterable[tuple[str, str]]:
    """Yields the keys of v and g of every weight-normalised parameter."""
    for g_end, v_end in _FACTORS:
        for key in keys:
            if key.endswith(v_end) and key.removesuffix(v_end) + g_end in keys:
                yield key, key.removesuffix(v_end) + g_end


def check_compatible(
    base: StateDict, donor: StateDict, name: str, prefixes: tuple[str, ...]
) -> None:
    """Refuses a donor whose names, shapes or kinds of number are not the base's, but for protected
    parameters."""
    base_keys, donor_keys = (
        {key for key in state if not key.startswith(prefixes)} for state in (base, donor)
    )
    differ = [
        f"{key} {_describe(donor[key])} instead of {_describe(base[key])}"
        for key in base_keys & donor_keys
        if base[key].shape != donor[key].shape
        or base[key].is_floating_point() != donor[key].is_floating_point()
    ]
    problems = [
        f"{what}: {join_first_five(names)}"
        for what, names in (
            (
                f"it lacks {len(base_keys - donor_keys)} of {len(base_keys)} parameters",
                base_keys - donor_keys,
            ),
            (f"it has {len(donor_keys - base_keys)} that the base lacks", donor_keys - base_keys),
            (f"{len(differ)} differ in shape or kind", differ),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{name} does not fit the base: {'; '.join(problems)}. Merge only models tuned from this base."
        )


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def check_tied(
    tied: Mapping[str, str], groups: Iterable[ParamGroup], donor: GetTensor, name: str
) -> None:
    """Refuses a donor that holds two values for one tensor of the base."""
    merged_keys = {key for group in groups for key in group.keys}
    shared = [(first, key) for key, first in tied.items() if key != first and first in merged_keys]
    split = [
        f"{first} and {key}" for first, key in shared if not _is_same(donor(first), donor(key))
    ]
    if split:
        raise UserError(
            f"{name} does not fit the base: it holds two values for each of {len(split)} tensors that the base shares between "
            f"two names: {join_first_five(split)}. Merge only models tuned from this base."
        )


def _is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.data_ptr() == second.data_ptr() or torch.equal(first, second)


def check_finite(reader: ParamReader, base: GetTensor, donors: Sequence[GetTensor]) -> None:
    """Reads every task vector once and refuses values that are NaN or infinite, naming the model
    that has them."""
    if all(_is_surely_finite(group, base, donors) for group in reader.groups):
        return
    beyond: dict[int, torch.dtype] = {}
    for first in reader.blocks():
        beyond |= {
            index: vector.dtype
            for index, vector in enumerate(first.vectors)
            if not is_finite(vector)
        }
    if not beyond:
        return
    keys = [key for group in reader.groups for key in group.keys]
    refuse_non_finite((key for key in keys if not is_finite(base(key))), "the base", _DIVERGED)
    for index, donor in enumerate(donors):
        refuse_non_finite(
            (key for key in keys if not is_finite(donor(key))), f"donor {index + 1}", _DIVERGED
        )
    index, dtype = min(beyond.items())
    raise UserError(
        f"donor {index + 1} differs from the base by more than {dtype} can hold: it was not tuned from this base."
    )


def _is_surely_finite(group: ParamGroup, base: GetTensor, donors: Sequence[GetTensor]) -> bool:
    """Whether the ends of the values alone show that no difference is NaN or infinite; a kernel is
    no such case."""
    if len(group.keys) > 1:
        return False
    tensors = [state(group.name).detach() for state in (base, *donors)]
    ends = [
        torch.stack(torch.aminmax(tensor)).double().abs().max()
        for tensor in tensors
        if tensor.numel()
    ]
    return all(float(end) < torch.finfo(torch.float32).max / 4 for end in ends)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. Both ends of the values tell: they are NaN when one
    value is."""
    if tensor.numel() == 0 or tensor.dtype is torch.bool or tensor.is_complex():
        return bool(torch.isfinite(tensor).all())
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor.detach()))


def refuse_non_finite(keys: Iterable[str], name: str, advice: str) -> None:
    """Raises ``UserError`` when there is a key of a tensor with NaN or infinite values."""
    broken = list(keys)
    if broken:
        raise UserError(
            f"{name} has NaN or infinite values in {len(broken)} parameters: {join_first_five(broken)}; {advice}."
        )


def join_first_five(names: Iterable[str]) -> str:
    """Returns the first five names in order, and how many more there are."""
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
