"""The s3prl-converted layout: ``task_cfg``, ``model_cfg``, ``model_weight`` and ``dictionaries_symbols`` in one ``torch.save``
(s3prl ``upstream/hubert/convert.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import canonical
from speechft_ray.speech.checkpoints._pickle import read_tensors
from speechft_ray.speech.encoders.base import EncoderWeights

CONFIG_KEYS = ("task_cfg", "model_cfg", "dictionaries_symbols")


def read_s3prl(path: Path) -> EncoderWeights:
    """Reads a HuBERT in the s3prl-converted layout; weights come back in float32.

    Raises ``UserError`` for a damaged file, one that would run code, another layout, or another architecture.
    """
    content = read_tensors(path)
    missing = [key for key in (*CONFIG_KEYS, "model_weight") if not isinstance(content, Mapping) or key not in content]
    if missing:
        raise UserError(
            f"{path} is not an s3prl-converted checkpoint: it lacks {', '.join(missing)}. "
            "Convert it with `s3prl/upstream/hubert/convert.py` first."
        )
    if not (isinstance(content["model_cfg"], Mapping) and "label_rate" in content["model_cfg"]):
        raise UserError(f"{path} holds another architecture than HuBERT: its `model_cfg` has no `label_rate`.")
    return EncoderWeights(family="hubert", config=_config(path, content), state=_state(path, content["model_weight"]))


def _state(path: Path, state: Any) -> dict[str, torch.Tensor]:
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(
            f"{path} has a `model_weight` that is not a table of tensors, so it is not an s3prl-converted checkpoint."
        )
    return {str(name): tensor.detach().to(torch.float32) for name, tensor in state.items()}


def _config(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: _plain(content[key]) for key in CONFIG_KEYS}
    try:
        canonical(config)
    except (TypeError, ValueError) as error:
        raise UserError(f"the configuration in {path} is not plain data: {error}.") from error
    return config


def _plain(value: Any) -> Any:
    """Tuples become lists, as they would on the way through JSON, so that one encoder has one fingerprint in every format."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
