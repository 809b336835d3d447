"""Reads LoRA adapters of peft from folders, as donors of a merge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file

from speechft_ray.core.errors import UserError
from speechft_ray.core.validation import validate
from speechft_ray.merging.adapters import Adapter, apply_adapter, combine_adapters, parse_adapter
from speechft_ray.merging.alignment import StateDict

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADD_WEIGHTED_ADAPTER = "add_weighted_adapter"
"""peft's name for the combination of adapters, as METHOD of ``speechft merge``."""


class CombinationParams(BaseModel):
    """Parameters of peft's ``add_weighted_adapter``, with its names and defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    combination_type: str = "svd"
    weights: tuple[float, ...] | None = None
    """One per adapter; ``None``: 1 each."""
    density: float = 1.0
    majority_sign_method: Literal["total", "frequency"] = "total"
    svd_rank: int | None = None
    seed: int = 0


def is_adapter(name: str) -> bool:
    """Whether this is the folder of an adapter."""
    return (Path(name).expanduser() / CONFIG).is_file()


def read_adapter(name: str, base: StateDict) -> Adapter:
    """Reads an adapter and aligns it with a base.

    Raises ``UserError`` for a folder that is not whole, and where ``parse_adapter`` does.
    """
    from speechft_ray.speech.checkpoints._hf_names import to_hf

    folder = Path(name).expanduser()
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} has no {WEIGHTS}: save the adapter with `safe_serialization=True`; "
            "pickled adapters are not read."
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} is not a whole adapter ({error}): copy it again.") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} must hold a mapping.")
    aliases = {alias: key for key in base if (alias := to_hf(key)) is not None}
    return parse_adapter(str(folder), config, tensors, base, aliases)


def check_combination(params: Mapping[str, Any], donors: Sequence[str]) -> CombinationParams:
    """Returns the checked parameters of a combination. Raises ``UserError`` for donors that are no
    adapters."""
    checked = validate(CombinationParams, dict(params), ADD_WEIGHTED_ADAPTER)
    others = [donor for donor in donors if not is_adapter(donor)]
    if others:
        raise UserError(
            f"`{ADD_WEIGHTED_ADAPTER}` combines adapters, but {others[0]} is no folder with "
            f"{CONFIG}: take a merge method, which takes adapters and whole models alike."
        )
    return checked


def make_combined_donor(
    params: CombinationParams, donors: Sequence[str], base: StateDict
) -> StateDict:
    """Returns the donor that peft's combination of the adapters makes of the base."""
    adapters = [read_adapter(donor, base) for donor in donors]
    combined = combine_adapters(
        params.combination_type,
        adapters,
        params.weights or (1.0,) * len(adapters),
        density=params.density,
        majority_sign_method=params.majority_sign_method,
        svd_rank=params.svd_rank,
        seed=params.seed,
    )
    return apply_adapter(combined, base)
