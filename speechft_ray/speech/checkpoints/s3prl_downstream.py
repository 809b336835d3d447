"""The format of s3prl's downstream training with a trainable upstream: ``Upstream``, ``Args``,
``Config``, and a head.

``downstream/runner.py`` writes it. The parameters of the encoder have the prefix ``model.``, and
the file does not say which encoder it is. Its configuration comes from, in this order, a checkpoint
that the user names, our own data in the file, ``Args.upstream_ckpt`` where that file still exists,
or the shapes of the weights where only one published encoder has them; the notes say which.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints._embedded import KEY, embed, read_embedded
from speechft_ray.speech.checkpoints._parameters import compute_shapes
from speechft_ray.speech.checkpoints._safetensors import is_safetensors
from speechft_ray.speech.checkpoints._standins import StandIn
from speechft_ray.speech.checkpoints._torch import open_torch_file
from speechft_ray.speech.checkpoints._wrappers import read_encoder_part
from speechft_ray.speech.checkpoints.base import (
    FORMATS,
    Checkpoint,
    CheckpointFormat,
    RawCheckpoint,
    atomic,
)
from speechft_ray.speech.checkpoints.s3prl import describe_part
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights

_PREFIX = "model."
_REMEDY = "Name the checkpoint that the training began from: --config-from FILE."
_PUBLISHED = ((12, 768, False), (24, 1024, True))
"""Layers, width and Large or not, of the published wav2vec 2.0, HuBERT and WavLM; DeCoAR 2.0 has
the first only."""


def matches(source: RawCheckpoint) -> bool:
    """Whether a ``.pt`` or ``.ckpt`` has the keys of s3prl's runner."""
    content = source.content
    return isinstance(content, Mapping) and (
        "Upstream" in content or {"Downstream", "Featurizer"} <= content.keys()
    )


def read(source: RawCheckpoint) -> Checkpoint:
    """Reads the encoder of a downstream checkpoint; head, featurizer and optimizer are left out.

    Raises ``UserError`` for a file without an encoder, because it was frozen, and where nothing
    tells which encoder it is.
    """
    content, path = source.content, source.path
    if "Upstream" not in content:
        raise UserError(
            f"{path} holds a head and no encoder: its upstream was frozen. Give the upstream's own "
            "checkpoint."
        )
    part = read_encoder_part(path, content["Upstream"], "Upstream")
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in part.state.items()}
    omitted = [key for key in ("Downstream", "Featurizer", "Optimizer") if content.get(key)]
    notes = (f"left out: {', '.join(f'`{key}`' for key in omitted)}.",) if omitted else ()
    if part.prefix not in ("", _PREFIX):
        notes = (*notes, *describe_part(part))
    own = read_embedded(content.get(KEY), f"`{KEY}` in {path}")
    if own is not None and source.config_from is None:
        weights = EncoderWeights(family=own.family, config=own.config, state=state)
        return Checkpoint(
            weights=weights, format="s3prl-downstream", provenance=own.provenance, notes=notes
        )
    family, config, origin = _find_config(source, state)
    weights = EncoderWeights(family=family, config=config, state=state)
    return Checkpoint(
        weights=weights,
        format="s3prl-downstream",
        notes=(*notes, f"the configuration is {origin}."),
    )


def write(path: Path, weights: EncoderWeights, provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes ``Upstream``, ``Args`` and ``Config`` under the names that s3prl's runner and related
    tools read."""
    content = {
        "Upstream": {_PREFIX + name: tensor.contiguous() for name, tensor in weights.state.items()},
        "Args": Namespace(upstream=weights.family, upstream_ckpt=None, upstream_trainable=True),
        "Config": {},
        "Step": 0,
        "Epoch": 0,
        KEY: embed(weights, provenance),
    }
    torch.save(content, path)
    note = (
        "the file has no head: it is for tools that read `Upstream`, and s3prl cannot go on "
        "training from it."
    )
    return (note,)


def _find_config(
    source: RawCheckpoint, state: Mapping[str, torch.Tensor]
) -> tuple[str, Mapping[str, Any], str]:
    """Returns family, configuration, and a phrase that says where they are from."""
    if source.config_from is not None:
        base = _load_base_encoder(source.config_from)
        return base.family, base.config, f"that of {source.config_from}, as you said"
    path = _find_base_checkpoint(source)
    if path is not None:
        base = _load_base_encoder(path)
        return (
            base.family,
            base.config,
            f"that of {path}, which the training began from (`Args.upstream_ckpt`)",
        )
    candidates = match_published(state)
    if len(candidates) != 1:
        raise UserError(
            f"{source.path} does not say what encoder it holds, and its weights have the sizes of "
            f"{'several published encoders' if candidates else 'no published encoder'}. {_REMEDY}"
        )
    family, config = candidates[0]
    shape = FAMILIES.get(family).describe(config)
    title = f"{FAMILIES.get(family).title} of {shape.layers} x {shape.dim}"
    return (
        family,
        config,
        f"that of the published {title}, the only one with weights of these sizes",
    )


def _load_base_encoder(path: Path) -> EncoderWeights:
    """Returns the encoder that a training started from. Another downstream checkpoint is refused:
    two could name each other."""
    # The loader imports all formats, this one included.
    from speechft_ray.speech.checkpoints.load import load_checkpoint

    if not path.exists():
        raise UserError(f"there is no checkpoint at {path}, which --config-from names.")
    if (
        path.is_file()
        and not is_safetensors(path)
        and matches(RawCheckpoint(path=path, content=open_torch_file(path)))
    ):
        raise UserError(f"{path} is a downstream checkpoint as well. {_REMEDY}")
    return load_checkpoint(path).weights


def _find_base_checkpoint(source: RawCheckpoint) -> Path | None:
    """Returns ``Args.upstream_ckpt`` where it is a plain file: s3prl loads neither folders nor URLs
    there."""
    options = source.content.get("Args")
    options = options.state if isinstance(options, StandIn) else options
    name = options.get("upstream_ckpt") if isinstance(options, Mapping) else None
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    path = Path(name)
    same = path.is_file() and path.resolve() == source.path.resolve()
    return path if path.is_file() and not same else None


def match_published(state: Mapping[str, torch.Tensor]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the published encoders, family and configuration, whose parameters have exactly these
    names and shapes. The words in the dictionary of a HuBERT are unknown: numbers stand for them.
    """
    matches = []
    for name, family in FAMILIES.items():
        for size in _PUBLISHED if family.example_config is not None else ():
            config = family.example_config(*size)  # type: ignore[misc]
            if "dictionaries_symbols" in config and "label_embs_concat" in state:
                config["dictionaries_symbols"] = [
                    [str(index) for index in range(len(state["label_embs_concat"]))]
                ]
            sizes = compute_shapes(name, config)
            if (
                sizes is not None
                and {key: tuple(tensor.shape) for key, tensor in state.items()} == sizes
            ):
                matches.append((name, config))
    return matches


DOWNSTREAM = FORMATS.register(
    "s3prl-downstream",
    CheckpointFormat(
        name="s3prl-downstream",
        title="s3prl downstream checkpoint (.ckpt)",
        families=("hubert", "wav2vec2", "wavlm", "decoar2"),
        is_folder=False,
        matches=matches,
        read=read,
        write=atomic(write),
    ),
)
