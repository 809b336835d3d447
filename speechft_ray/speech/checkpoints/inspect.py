"""Describes a checkpoint in words, without building a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.checkpoints._parameters import check_fit, compute_shapes
from speechft_ray.speech.checkpoints.base import FORMATS, Checkpoint
from speechft_ray.speech.checkpoints.load import load_checkpoint, weights_fingerprint
from speechft_ray.speech.encoders.base import FAMILIES, EncoderFamily, EncoderWeights, Shape


class Inspection(NamedTuple):
    """Lines for people, each a heading and a text; ``refusal`` says why the encoder cannot be used,
    if it cannot."""

    lines: list[tuple[str, str]]
    refusal: str | None


def inspect(path: Path, config_from: Path | None = None) -> Inspection:
    """Returns format, family, size, shape, provenance and possible target formats of a checkpoint.

    Raises ``UserError`` for a file that cannot be read at all; weights that can be read and do not
    fit their configuration are described as ``refusal``.
    """
    checkpoint = load_checkpoint(path, config_from)
    weights, family = checkpoint.weights, FAMILIES.get(checkpoint.weights.family)
    on_disk = format_megabytes(measure_disk_bytes(path))
    lines = [
        ("format", FORMATS.get(checkpoint.format).title),
        ("family", f"{family.title} (`{family.name}`)"),
        ("size", f"{describe_size(checkpoint)}; on disk {on_disk}"),
    ]
    try:
        lines += _shape_lines(family, family.describe(weights.config))
        lines.append(("pre-training", _describe_pretraining(weights, family)))
        check_fit(weights)
        refusal = None
    except UserError as error:
        refusal = str(error)
    lines += [
        ("fingerprint", weights_fingerprint(weights)),
        *_provenance_lines(checkpoint),
        *(("note", note) for note in checkpoint.notes),
    ]
    lines += [] if refusal else [("can become", _describe_targets(weights))]
    return Inspection(lines, refusal)


def describe_size(checkpoint: Checkpoint) -> str:
    """Returns the number of parameters and their bytes in float32, for people."""
    state = checkpoint.weights.state
    count = sum(tensor.numel() for tensor in state.values())
    size = format_megabytes(4 * count)
    return f"{count:,} parameters in {len(state)} tensors, {size} in float32"


def measure_disk_bytes(path: Path) -> int:
    """Returns the size of a file, or of all files of a folder."""
    return (
        sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


def format_megabytes(count: int) -> str:
    """Returns a number of bytes for people."""
    return f"{count / 1e6:,.1f} MB"


def _shape_lines(family: EncoderFamily, shape: Shape) -> list[tuple[str, str]]:
    milliseconds = 1000 * shape.frame_stride_samples / SAMPLE_RATE_HZ
    norms = {
        True: "before each block (as Large)",
        False: "after each block (as Base)",
        None: "none",
    }
    layers = f"{shape.layers} of {shape.dim} dimensions, {shape.heads} heads"
    normalized = "brought to zero mean and unit variance"
    lines = [
        ("layers", f"{layers}, feed-forward {shape.feed_forward_dim}"),
        ("hidden states", f"{shape.state_count}, one frame per {milliseconds:g} ms"),
        ("layer norm", norms[shape.layer_norm_first]),
        ("waveform", normalized if shape.normalizes_waveform else "taken as it is"),
    ]
    if not family.front_end_prefixes:
        return [*lines, ("front end", "without parameters: freezing the front end matches nothing")]
    norm = "layer norm in each" if shape.extractor_mode == "layer_norm" else "one group norm"
    where = ", ".join(f"`{prefix}*`" for prefix in family.front_end_prefixes)
    channels = f"{len(shape.conv_layers)} convolutions of {shape.conv_layers[-1][0]} channels"
    return [*lines, ("front end", f"{channels}, {norm} ({where})")]


def _describe_pretraining(weights: EncoderWeights, family: EncoderFamily) -> str:
    prefixes = family.pretraining_only_prefixes
    present = [name for name in weights.state if prefixes and name.startswith(prefixes)]
    missing = [
        name
        for name in compute_shapes(family.name, weights.config) or {}
        if prefixes and name.startswith(prefixes) and name not in weights.state
    ]
    lacks = f"; lacks {', '.join(missing[:5])}" if missing else ""
    return (
        f"{len(present)} tensors that only pre-training uses{lacks}"
        if present or missing
        else "nothing that only pre-training uses"
    )


def _provenance_lines(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    facts: dict[str, Any] = dict(checkpoint.provenance)
    parents = facts.pop("parents", None)
    lines = (
        [("parents", ", ".join(map(_shorten, parents)))]
        if isinstance(parents, list) and parents
        else []
    )
    return [*lines, *((key, _shorten(value)) for key, value in sorted(facts.items()))]


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable if len(printable) <= 200 else printable[:197] + "..."


def list_targets(weights: EncoderWeights) -> tuple[list[str], dict[str, str]]:
    """Returns the names of the formats that an encoder can be written in, and the reason for each
    of the others."""
    family = FAMILIES.get(weights.family)
    reasons = {}
    for name, form in FORMATS.items():
        if family.name not in form.families:
            reasons[name] = f"there is no {family.title} in that format"
            continue
        try:
            form.check(weights)
        except UserError as error:
            reasons[name] = str(error).split(". ")[0].rstrip(".")
    return [name for name in FORMATS.names() if name not in reasons], reasons


def _describe_targets(weights: EncoderWeights) -> str:
    targets, reasons = list_targets(weights)
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    others = [f"not {', '.join(names)}: {reason}" for reason, names in groups.items()]
    return "; ".join([", ".join(targets), *others])
