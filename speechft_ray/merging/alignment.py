"""Aligns the tensors of base and donors, and checks that they can be merged.

Everything but ``check_tied`` and the checks of values reads names, shapes and dtypes alone, so
tensors on the ``meta`` device suffice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.merging.param_reader import GetTensor, ParamGroup, ParamReader, ParamSlice

StateDict = Mapping[str, torch.Tensor]

PosConv = Literal["factors", "kernel"]

_FACTORS = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
"""Suffixes of g and v: of ``torch.nn.utils.weight_norm``, and of its parametrization of 2023."""

_DIVERGED = "take a checkpoint from before the training diverged"


def find_tied(base: StateDict) -> dict[str, str]:
    """Maps every key to the first key of the very same tensor (same memory, shape, strides and
    dtype)."""
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    for key, tensor in base.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        has_memory = tensor.numel() and tensor.device.type != "meta"
        tied[key] = first.setdefault(memory, key) if has_memory else key
    return tied


def find_groups(
    base: StateDict, tied: Mapping[str, str], prefixes: tuple[str, ...], pos_conv: PosConv
) -> tuple[ParamGroup, ...]:
    """Returns the groups that a merge changes, sorted by name.

    A tensor is protected when any of its names starts with one of ``prefixes``. Raises
    ``UserError`` when nothing is left to merge.
    """
    # Tied tensors count once, under their first name.
    protected = {tied[key] for key in base if key.startswith(prefixes)}
    keys = {
        first
        for first in tied.values()
        if first not in protected and base[first].is_floating_point()
    }
    if not keys:
        raise UserError(
            "the base has nothing to merge: all its parameters are protected, "
            "or none is a floating-point tensor."
        )
    # With ``pos_conv: kernel``, g and v of a weight-normalised parameter form one group.
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
    base: StateDict,
    donor: StateDict,
    name: str,
    prefixes: tuple[str, ...],
    *,
    title: str = "the base",
    advice: str = "Merge only models tuned from this base.",
) -> None:
    """Raises ``UserError`` for a donor whose names, shapes or kinds of number are not the base's.

    Protected parameters, whose names start with one of ``prefixes``, are not compared. ``title``
    and ``advice``: what the error calls the base, and its last sentence.
    """
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
            (f"it has {len(donor_keys - base_keys)} that {title} lacks", donor_keys - base_keys),
            (f"{len(differ)} differ in shape or kind", differ),
        )
        if names
    ]
    if problems:
        raise UserError(f"{name} does not fit {title}: {'; '.join(problems)}. {advice}")


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def check_tied(
    tied: Mapping[str, str], groups: Iterable[ParamGroup], donor: GetTensor, name: str
) -> None:
    """Raises ``UserError`` for a donor that holds two values for one tensor of the base."""
    merged_keys = {key for group in groups for key in group.keys}
    shared = [(first, key) for key, first in tied.items() if key != first and first in merged_keys]
    split = [
        f"{first} and {key}" for first, key in shared if not _is_same(donor(first), donor(key))
    ]
    if split:
        raise UserError(
            f"{name} does not fit the base: it holds two values for each of {len(split)} tensors "
            f"that the base shares between two names: {join_first_five(split)}. "
            "Merge only models tuned from this base."
        )


def _is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.data_ptr() == second.data_ptr() or torch.equal(first, second)


def check_while_reading(
    reader: ParamReader, base: GetTensor, donors: Sequence[GetTensor]
) -> ParamReader:
    """Returns the reader with a check of values: reading a group for the first time raises
    ``UserError`` for values that are NaN or infinite, naming the model that has them.

    A check of its own would read all models once more.
    """
    checked: set[str] = set()

    def check(part: ParamSlice) -> ParamSlice:
        if part.name not in checked and not all(is_finite(vector) for vector in part.vectors):
            _refuse_vectors(reader, base, donors)
        return part

    def read(group: ParamGroup) -> ParamSlice:
        part = check(reader.read(group))
        checked.add(group.name)
        return part

    def read_blocks(group: ParamGroup) -> Iterator[ParamSlice]:
        for block in reader.blocks_of(group):
            yield check(block)
        checked.add(group.name)

    return replace(reader, read=read, read_blocks=read_blocks)


def check_finite(reader: ParamReader, base: GetTensor, donors: Sequence[GetTensor]) -> None:
    """Raises ``UserError`` for values that are NaN or infinite, naming the model that has them.
    Reads all groups."""
    for part in check_while_reading(reader, base, donors):
        del part


def _refuse_vectors(reader: ParamReader, base: GetTensor, donors: Sequence[GetTensor]) -> None:
    """Raises ``UserError`` that names the model at fault, or, where there is none, the donor whose
    difference is beyond the dtype."""
    keys = [key for group in reader.groups for key in group.keys]
    refuse_non_finite((key for key in keys if not is_finite(base(key))), "the base", _DIVERGED)
    for index, donor in enumerate(donors):
        refuse_non_finite(
            (key for key in keys if not is_finite(donor(key))), f"donor {index + 1}", _DIVERGED
        )
    index, dtype = min(
        (index, vector.dtype)
        for block in reader.blocks()
        for index, vector in enumerate(block.vectors)
        if not is_finite(vector)
    )
    raise UserError(
        f"donor {index + 1} differs from the base by more than {dtype} can hold: "
        "it was not tuned from this base."
    )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. Minimum and maximum suffice: they are NaN when any value
    is."""
    if tensor.numel() == 0 or tensor.dtype is torch.bool or tensor.is_complex():
        return bool(torch.isfinite(tensor).all())
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor.detach()))


def refuse_non_finite(keys: Iterable[str], name: str, advice: str) -> None:
    """Raises ``UserError`` when there is any key.

    ``keys``: the keys of tensors with NaN or infinite values in the model ``name``.
    """
    broken = list(keys)
    if broken:
        raise UserError(
            f"{name} has NaN or infinite values in {len(broken)} parameters: "
            f"{join_first_five(broken)}; {advice}."
        )


def join_first_five(names: Iterable[str]) -> str:
    """Returns the first five names in alphabetical order, and the number of the others."""
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
