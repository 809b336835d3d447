"""The formats of s3prl's upstream experts, one file of ``torch.save`` each.

HuBERT and wav2vec 2.0 (s3prl ``upstream/{hubert,wav2vec2}/convert.py``): ``task_cfg``,
``model_cfg``, ``model_weight``, for HuBERT also ``dictionaries_symbols``. WavLM (as Microsoft
published it): ``cfg``, ``model``. DeCoAR 2.0 (as published): ``model`` alone, since s3prl builds
one size only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints._embedded import (
    KEY,
    Embedded,
    embed,
    keep_if_unchanged,
    read_embedded,
)
from speechft_ray.speech.checkpoints._parameters import compute_shapes, make_zero_parameters
from speechft_ray.speech.checkpoints._plain import to_plain_data
from speechft_ray.speech.checkpoints._torch import make_printable
from speechft_ray.speech.checkpoints._wrappers import EncoderPart, read_encoder_part
from speechft_ray.speech.checkpoints.base import (
    FORMATS,
    Checkpoint,
    CheckpointFormat,
    RawCheckpoint,
    atomic,
)
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights

_CONVERTED = ("task_cfg", "model_cfg", "model_weight")
_DICTIONARIES = "dictionaries_symbols"
_DECOAR2_SIZE = (12, 768)
"""Layers and width of the only DeCoAR 2.0 that s3prl builds, whatever the file holds
(``upstream/decoar2/decoar2.py``)."""


def matches(source: RawCheckpoint) -> bool:
    """Whether a ``.pt`` has one of the three layouts."""
    content = source.content
    if not isinstance(content, Mapping):
        return False
    if "model_weight" in content or "model_cfg" in content:
        return True
    state, config = content.get("model"), content.get("cfg")
    if not isinstance(state, Mapping) or content.get("args") is not None:
        return False
    if config is not None:
        return isinstance(config, Mapping) and "model" not in config
    return KEY in content or _is_decoar2(state)


def read(source: RawCheckpoint) -> Checkpoint:
    """Reads any of the three layouts; weights are float32.

    Raises ``UserError`` for a missing part, weights that are no state dict, and a configuration
    that is not plain data.
    """
    content, path = source.content, source.path
    own = read_embedded(content.get(KEY), f"`{KEY}` in {path}")
    notes: tuple[str, ...] = ()
    is_converted = "model_weight" in content or "model_cfg" in content
    if is_converted:
        _check_whole(path, content)
    where = "model_weight" if is_converted else "model"
    part = read_encoder_part(path, content[where], where)
    state = part.state
    if is_converted:
        family, config = _read_converted(path, content)
    elif content.get("cfg") is not None:
        family, config = "wavlm", {"cfg": to_plain_data(content["cfg"], f"`cfg` in {path}")}
    else:
        family, config, notes = _read_decoar2(path, state, own)
    unchanged = keep_if_unchanged(own, family, config, dict)
    zeros = unchanged.zeros if unchanged else ()
    for name in zeros:
        state.pop(name, None)
    weights = EncoderWeights(family=family, config=config, state=state)
    return Checkpoint(
        weights=weights,
        format="s3prl",
        provenance=unchanged.provenance if unchanged else {},
        notes=(*notes, *describe_part(part), *describe_zeros_removed(zeros)),
    )


def write(path: Path, weights: EncoderWeights, provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes the file that s3prl's expert of the family loads. Missing parameters of pre-training
    become zeros, with a note."""
    zeros = make_zero_parameters(weights)
    state = {name: tensor.contiguous() for name, tensor in {**weights.state, **zeros}.items()}
    own = {KEY: embed(weights, provenance, sorted(zeros))}
    if weights.family == "decoar2":
        torch.save({"model": state, **own}, path)
        return _describe_other_size(weights)
    where = "model_weight" if "model_cfg" in weights.config else "model"
    torch.save({**weights.config, where: state, **own}, path)
    return describe_zeros_added(zeros)


def describe_zeros_added(zeros: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the note on parameters that were written as zeros, if any."""
    if not zeros:
        return ()
    note = (
        f"{len(zeros)} parameters that only pre-training uses are not in the source and are zeros "
        f"here ({', '.join(sorted(zeros)[:5])}): loaders of this format demand them, features do "
        "not depend on them. Do not continue pre-training from this file."
    )
    return (note,)


def describe_zeros_removed(zeros: Sequence[str]) -> tuple[str, ...]:
    """Returns the note on zeros that we had written and that are left out again, if any."""
    if not zeros:
        return ()
    return (f"{len(zeros)} parameters are zeros that were filled in for strict loaders: left out.",)


def describe_part(part: EncoderPart) -> tuple[str, ...]:
    """Returns the notes on an encoder that has other modules around or beside it."""
    if not part.beside:
        return part.notes
    names = ", ".join(map(make_printable, sorted(part.beside)[:5]))
    return (*part.notes, f"the head was left out: {names}.")


def _check_whole(path: Path, content: Mapping[str, Any]) -> None:
    missing = [key for key in _CONVERTED if key not in content]
    if missing:
        raise UserError(
            f"{path} is not a whole s3prl-converted checkpoint: it lacks "
            f"{', '.join(f'`{key}`' for key in missing)}. Convert the original once more, with "
            "`speechft convert` or s3prl's `convert.py`."
        )


def _read_converted(path: Path, content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    keys = [key for key in (*_CONVERTED[:2], _DICTIONARIES) if key in content]
    config = {key: to_plain_data(content[key], f"`{key}` in {path}") for key in keys}
    family = "hubert" if FAMILIES.get("hubert").matches(config) else "wav2vec2"
    return family, config


def _is_decoar2(state: Mapping[Any, Any]) -> bool:
    """Whether the names of parameters are those of a DeCoAR 2.0: a transformer on a filter bank,
    without convolutions."""
    names = [str(name) for name in state]
    return any(name.endswith("post_extract_proj.weight") for name in names) and not any(
        "feature_extractor." in name for name in names
    )


def _read_decoar2(
    path: Path, state: dict[str, torch.Tensor], own: Embedded | None
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Returns family, configuration and notes of a file that, unless we wrote it, has weights only;
    removes parameters of pre-training from ``state``."""
    if own is not None and own.family == "decoar2":
        return "decoar2", dict(own.config), ()
    if not _is_decoar2(state):
        raise UserError(
            f"{path} holds weights and no configuration, and they are not those of a DeCoAR 2.0, "
            "the only encoder that is published so. Give the checkpoint as it was published."
        )
    config: dict[str, Any] = {"cfg": {}}
    expected = compute_shapes("decoar2", config) or {}
    extra = [
        name for name in state if name not in expected and not name.startswith("encoder.layers.")
    ]
    for name in extra:
        del state[name]
    note = f"{len(extra)} parameters of pre-training were left out, as s3prl does: "
    return "decoar2", config, (f"{note}{', '.join(extra[:5])}.",) if extra else ()


def _describe_other_size(weights: EncoderWeights) -> tuple[str, ...]:
    shape = FAMILIES.get(weights.family).describe(weights.config)
    if (shape.layers, shape.dim) == _DECOAR2_SIZE:
        return ()
    size = f"{_DECOAR2_SIZE[0]} x {_DECOAR2_SIZE[1]}"
    return (f"s3prl itself builds a DeCoAR 2.0 of {size} only, and will not load this size.",)


S3PRL = FORMATS.register(
    "s3prl",
    CheckpointFormat(
        name="s3prl",
        title="s3prl upstream checkpoint (.pt)",
        families=("hubert", "wav2vec2", "wavlm", "decoar2"),
        is_folder=False,
        matches=matches,
        read=read,
        write=atomic(write),
    ),
)
