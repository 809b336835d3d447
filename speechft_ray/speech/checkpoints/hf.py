"""The format of Hugging Face transformers: a folder with ``config.json`` and weights, whole or
sharded, safetensors or ``.bin``.

We write the base model (``HubertModel``, ``Wav2Vec2Model``, ``WavLMModel``), so that
``from_pretrained`` finds exactly the parameters that it expects. A side file,
``speechft_ray.safetensors``, holds what the base model has no place for: parameters of
pre-training, our configuration, the sha256 of every tensor, and the provenance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.speech.checkpoints._embedded import KEY, Embedded, embed, read_embedded
from speechft_ray.speech.checkpoints._hf_config import (
    ARCHITECTURES,
    check_hf_config,
    family_of,
    from_hf_config,
    read_hf_config,
    to_hf_config,
)
from speechft_ray.speech.checkpoints._hf_names import (
    BASE_PARTS,
    from_hf,
    from_hf_pretraining,
    to_hf,
)
from speechft_ray.speech.checkpoints._hf_processor import read_normalization, write_settings
from speechft_ray.speech.checkpoints._hf_weights import read_weights
from speechft_ray.speech.checkpoints._safetensors import open_safetensors, tensor_sha256
from speechft_ray.speech.checkpoints._torch import make_printable, validate_state_dict
from speechft_ray.speech.checkpoints._wrappers import read_encoder_part
from speechft_ray.speech.checkpoints.base import (
    FORMATS,
    Checkpoint,
    CheckpointFormat,
    RawCheckpoint,
    atomic,
)
from speechft_ray.speech.checkpoints.hub import CONFIG, SETTINGS, WEIGHTS
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.encoders.compatibility import check_same_network

SIDE = "speechft_ray.safetensors"
FILES = (CONFIG, *SETTINGS, WEIGHTS[0], SIDE)
"""The files that ``write`` writes."""

_PROJECTION = ("post_extract_proj.weight", "post_extract_proj.bias")


def matches(source: RawCheckpoint) -> bool:
    """Whether it is a folder with a ``config.json``."""
    return source.path.is_dir() and (source.path / CONFIG).is_file()


def read(source: RawCheckpoint) -> Checkpoint:
    """Reads a base model, or the base of a model with a head (``ForCTC``, ``ForPreTraining``, ...);
    weights are float32.

    Heads are left out, except the parameters of ``Wav2Vec2ForPreTraining`` for pre-training. Raises
    ``UserError`` for another model, parameters that no encoder of the family has, weights outside
    the folder, and damaged files.
    """
    folder = source.path
    hf_config = read_hf_config(folder / CONFIG)
    family = family_of(str(folder / CONFIG), hf_config)
    normalize, note = read_normalization(folder, hf_config)
    config = from_hf_config(str(folder / CONFIG), hf_config, normalize)
    extractor = str(FAMILIES.get(family).describe(config).extractor_mode)
    part = read_encoder_part(folder, read_weights(folder), "weights", BASE_PARTS)
    state = _rename_parameters(folder, part.state, extractor)
    wrapper = part.prefix.removesuffix(f"{family}.")
    pretraining = {
        name: from_hf_pretraining(name.removeprefix(wrapper)) if family == "wav2vec2" else None
        for name in part.beside
    }
    ours = {our_name: part.beside[name] for name, our_name in pretraining.items() if our_name}
    state |= validate_state_dict(folder, ours, "weights") if ours else {}
    heads = sorted(name for name, our_name in pretraining.items() if our_name is None)
    if (folder / SIDE).is_file():
        return _read_with_side_file(folder, state, config)
    _drop_identity_projection(state)
    notes = [note, *part.notes]
    if heads:
        notes.append(f"the head was left out: {', '.join(map(make_printable, heads[:5]))}.")
    weights = EncoderWeights(family=family, config=config, state=state)
    return Checkpoint(weights=weights, format="hf", notes=tuple(notes))


def write(path: Path, weights: EncoderWeights, provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes a folder that ``from_pretrained`` loads, and our side file. Raises ``UserError`` for
    an encoder that transformers does not have."""
    shape = FAMILIES.get(weights.family).describe(weights.config)
    config = to_hf_config(weights.family, weights.config, masks="mask_emb" in weights.state)
    state, added = _add_projection(weights.state, shape.dim)
    model = {
        hf_name: tensor.contiguous()
        for name, tensor in state.items()
        if (hf_name := to_hf(name)) is not None
    }
    side = {
        name: tensor.contiguous() for name, tensor in weights.state.items() if to_hf(name) is None
    }
    manifest = {
        **embed(weights, provenance, added),
        "sha256": {name: tensor_sha256(tensor) for name, tensor in weights.state.items()},
    }
    path.mkdir()
    save_file(model, path / WEIGHTS[0], metadata={"format": "pt"})
    save_file(side, path / SIDE, metadata={KEY: canonical_json(manifest)})
    text = json.dumps(config, indent=2, sort_keys=True)
    (path / CONFIG).write_text(text + "\n", encoding="utf-8")
    write_settings(path, shape)
    for file in path.iterdir():
        file.chmod(0o644)
    if not side:
        return ()
    note = (
        f"{len(side)} parameters that transformers' base model has no place for are in {SIDE}: "
        "keep it with the folder."
    )
    return (note,)


def _rename_parameters(
    folder: Path, base: Mapping[str, torch.Tensor], extractor: str
) -> dict[str, torch.Tensor]:
    our_names = {name: from_hf(name, extractor) for name in base}
    unknown = sorted(name for name, our_name in our_names.items() if our_name is None)
    if unknown:
        raise UserError(
            f"{folder} has parameters that no encoder of its `model_type` has, first "
            f"{', '.join(unknown[:5])}. Allowed: {', '.join(ARCHITECTURES.values())} and models "
            "around them."
        )
    return {str(our_name): base[name] for name, our_name in our_names.items()}


def _add_projection(
    state: Mapping[str, torch.Tensor], dim: int
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the parameters with a feature projection, and the names that were added.

    transformers always projects; where fairseq does not, the identity changes no value.
    """
    if _PROJECTION[0] in state:
        return dict(state), []
    weight, bias = _PROJECTION
    return {**state, weight: torch.eye(dim), bias: torch.zeros(dim)}, [weight, bias]


def _drop_identity_projection(state: dict[str, torch.Tensor]) -> None:
    weight, bias = (state.get(name) for name in _PROJECTION)
    if weight is None or bias is None or weight.dim() != 2 or weight.shape[0] != weight.shape[1]:
        return
    if torch.equal(weight, torch.eye(weight.shape[0])) and not bool(bias.any()):
        for name in _PROJECTION:
            del state[name]


def _read_with_side_file(
    folder: Path, state: dict[str, torch.Tensor], config: Mapping[str, Any]
) -> Checkpoint:
    """Returns an encoder that we wrote: its own configuration and every parameter, after comparing
    each with its recorded sha256, and what changes features with ``config``, that of the other
    files."""
    tensors, metadata = open_safetensors(folder / SIDE)
    own, recorded = _read_side_manifest(folder, metadata)
    state = {name: tensor for name, tensor in state.items() if name not in own.zeros}
    state |= validate_state_dict(folder / SIDE, tensors, SIDE) if tensors else {}
    changed = sorted(set(state) ^ set(recorded)) or [
        name for name, tensor in state.items() if tensor_sha256(tensor) != recorded[name]
    ]
    if changed:
        raise UserError(
            f"{folder} is not as it was exported: {len(changed)} parameters differ from what "
            f"{SIDE} recorded, first {changed[0]}. Copy the folder again if it is damaged; if you "
            f"tuned it in transformers, take {SIDE} out."
        )
    weights = EncoderWeights(
        family=own.family, config=own.config, state={name: state[name] for name in recorded}
    )
    _check_unchanged(folder, weights, config)
    return Checkpoint(weights=weights, format="hf", provenance=own.provenance)


def _check_unchanged(folder: Path, weights: EncoderWeights, config: Mapping[str, Any]) -> None:
    stated = EncoderWeights(family=weights.family, config=config, state={})
    try:
        notes = check_same_network(weights, {"it": stated}, "what was exported")
    except UserError as error:
        notes = [str(error)]
    if notes:
        raise UserError(
            f"{CONFIG} or the settings of the feature extractor in {folder} were changed since "
            f"{SIDE} was written: {notes[0].rstrip('.')}. Undo that, or take {SIDE} out."
        )


def _read_side_manifest(
    folder: Path, metadata: Mapping[str, str]
) -> tuple[Embedded, dict[str, Any]]:
    try:
        data = json.loads(metadata.get(KEY, "null"))
    except (ValueError, RecursionError):
        data = None
    own = read_embedded(data, SIDE)
    recorded = data.get("sha256") if isinstance(data, dict) else None
    if own is None or not isinstance(recorded, dict):
        raise UserError(
            f"{folder / SIDE} has no manifest that this version reads. Take it out to read the "
            "folder without it."
        )
    return own, recorded


HF = FORMATS.register(
    "hf",
    CheckpointFormat(
        name="hf",
        title="Hugging Face transformers (folder)",
        families=tuple(ARCHITECTURES),
        is_folder=True,
        matches=matches,
        read=read,
        write=atomic(write),
        check=lambda weights: check_hf_config(weights.family, weights.config),
    ),
)
