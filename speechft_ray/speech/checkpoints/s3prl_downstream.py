"""Checkpoints of s3prl's downstream training with a trainable upstream: ``Upstream``, ``Args``,
``Config``, and a head.

They are written by ``downstream/runner.py``. The parameters of the encoder have the prefix
``model.``; which encoder it is stands nowhere in the file. So its configuration comes, in this
order, from a checkpoint that the user names, from what we left in the file, from
``Args.upstream_ckpt`` where that file still exists, or from the sizes of the weights where only one
published encoder has them; the notes say which.
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
from speechft_ray.speech.checkpoints._plain import to_plain_data
from speechft_ray.speech.checkpoints._safetensors import is_safetensors
from speechft_ray.speech.checkpoints._torch import open_torch_file, validate_state_dict
from speechft_ray.speech.checkpoints.base import (
    FORMATS,
    Checkpoint,
    CheckpointFormat,
    RawCheckpoint,
    atomic,
)
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights

_PREFIX = "model."
_HOW_TO_GO_ON = "Name the checkpoint that the training began from: --config-from FILE."
_PUBLISHED = ((12, 768, False), (24, 1024, True))
"""Base and Large of wav2vec 2.0, HuBERT and WavLM; DeCoAR 2.0 has the first alone."""


def recognises(source: RawCheckpoint) -> bool:
    """Whether a ``.pt`` or ``.ckpt`` has the keys of s3prl's runner."""
    content = source.content
    return isinstance(content, Mapping) and (
        "Upstream" in content or {"Downstream", "Featurizer"} <= content.keys()
    )


def read(source: RawCheckpoint) -> Checkpoint:
    """Reads the encoder of a downstream checkpoint; head, featurizer and optimizer stay behind.

    Raises ``UserError`` for a file whose encoder was frozen and so is not in it, and where nothing
    says what encoder it is.
    """
    content, path = source.content, source.path
    if "Upstream" not in content:
        raise UserError(
            f"{path} holds a head and no encoder: its upstream was frozen. Give the upstream's own checkpoint."
        )
    state = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in validate_state_dict(path, content["Upstream"], "Upstream").items()
    }
    left = [key for key in ("Downstream", "Featurizer", "Optimizer") if content.get(key)]
    notes = (f"left out: {', '.join(f'`{key}`' for key in left)}.",) if left else ()
    own = read_embedded(content.get(KEY), f"`{KEY}` in {path}")
    if own is not None and source.config_from is None:
        weights = EncoderWeights(family=own.family, config=own.config, state=state)
        return Checkpoint(weights=weights, format="s3prl-downstream", made=own.made, notes=notes)
    family, config, whence = _configuration(source, state)
    weights = EncoderWeights(family=family, config=config, state=state)
    return Checkpoint(
        weights=weights,
        format="s3prl-downstream",
        notes=(*notes, f"the configuration is {whence}."),
    )


def write(path: Path, weights: EncoderWeights, made: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes ``Upstream``, ``Args`` and ``Config`` under the names that s3prl's runner and the
    tools around it read."""
    content = {
        "Upstream": {_PREFIX + name: tensor.contiguous() for name, tensor in weights.state.items()},
        "Args": Namespace(upstream=weights.family, upstream_ckpt=None, upstream_trainable=True),
        "Config": {},
        "Step": 0,
        "Epoch": 0,
        KEY: embed(weights, made),
    }
    torch.save(content, path)
    return (
        "the file has no head: it is for tools that read `Upstream`, and s3prl cannot go on training from it.",
    )


def _configuration(
    source: RawCheckpoint, state: Mapping[str, torch.Tensor]
) -> tuple[str, Mapping[str, Any], str]:
    if source.config_from is not None:
        base = _load_base_encoder(source.config_from)
        return base.family, base.config, f"that of {source.config_from}, as you said"
    named = _find_base_checkpoint(source)
    if named is not None:
        base = _load_base_encoder(named)
        return (
            base.family,
            base.config,
            f"that of {named}, which the training began from (`Args.upstream_ckpt`)",
        )
    found = match_published(state)
    if len(found) != 1:
        raise UserError(
            f"{source.path} does not say what encoder it holds, and its weights have the sizes of "
            f"{'several published encoders' if found else 'no published encoder'}. {_HOW_TO_GO_ON}"
        )
    family, config = found[0]
    shape = FAMILIES.get(family).describe(config)
    title = f"{FAMILIES.get(family).title} of {shape.layers} x {shape.dim}"
    return (
        family,
        config,
        f"that of the published {title}, the only one with weights of these sizes",
    )


def _load_base_encoder(path: Path) -> EncoderWeights:
    """The encoder that a training began from. Another downstream checkpoint is refused: two could
    name each other forever."""
    from speechft_ray.speech.checkpoints.load import (
        load_checkpoint,
    )  # the loader knows every format, so also this one

    if not path.exists():
        raise UserError(f"there is no checkpoint at {path}, which --config-from names.")
    if (
        path.is_file()
        and not is_safetensors(path)
        and recognises(RawCheckpoint(path=path, content=open_torch_file(path)))
    ):
        raise UserError(f"{path} is a downstream checkpoint as well. {_HOW_TO_GO_ON}")
    return load_checkpoint(path).weights


def _find_base_checkpoint(source: RawCheckpoint) -> Path | None:
    """``Args.upstream_ckpt`` where it is a plain file; a folder or an address is nothing that s3prl
    would have loaded there."""
    found = to_plain_data(source.content.get("Args"), f"`Args` in {source.path}")
    name = found.get("upstream_ckpt") if isinstance(found, dict) else None
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    path = Path(name)
    same = path.is_file() and path.resolve() == source.path.resolve()
    return path if path.is_file() and not same else None


def match_published(state: Mapping[str, torch.Tensor]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the published encoders, family and configuration, whose parameters have exactly these
    names and sizes.

    Labels of a HuBERT are counted, not known: its dictionary is numbered.
    """
    found = []
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
                found.append((name, config))
    return found


DOWNSTREAM = FORMATS.register(
    "s3prl-downstream",
    CheckpointFormat(
        name="s3prl-downstream",
        title="s3prl downstream checkpoint (.ckpt)",
        families=("hubert", "wav2vec2", "wavlm", "decoar2"),
        is_folder=False,
        recognises=recognises,
        read=read,
        write=atomic(write),
    ),
)
