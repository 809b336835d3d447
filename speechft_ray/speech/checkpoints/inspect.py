"""What a checkpoint is, in words, without building a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.checkpoints._parameters import check_fit, compute_shapes
from speechft_ray.speech.checkpoints.base import FORMATS, Checkpoint, list_formats
from speechft_ray.speech.checkpoints.load import load_checkpoint, weights_fingerprint
from speechft_ray.speech.encoders.base import FAMILIES, EncoderFamily, Shape


class Inspection(NamedTuple):
    """Lines for people, each a heading and a text, and why the encoder would be refused, if it
    would."""

    lines: list[tuple[str, str]]
    refusal: str | None


def inspect(path: Path, config_from: Path | None = None) -> Inspection:
    """Returns what is known of the encoder of a file or folder: format, family, size, shape,
    parents, where it can go.

    Raises ``UserError`` for what cannot be read at all; weights that can be read and do not fit are
    told as ``refusal``.
    """
    found = load_checkpoint(path, config_from)
    weights, family = found.weights, FAMILIES.get(found.weights.family)
    lines = [
        ("format", FORMATS.get(found.format).title),
        ("family", f"{family.title} (`{family.name}`)"),
    ]
    lines.append(
        ("size", f"{describe_size(found)}; on disk {format_megabytes(measure_disk_bytes(path))}")
    )
    try:
        lines += _shape_lines(family, family.describe(weights.config))
        lines.append(("pre-training", _pretraining(found, family)))
        check_fit(weights)
        refusal = None
    except UserError as error:
        refusal = str(error)
    lines += [
        ("fingerprint", weights_fingerprint(weights)),
        *_origin(found),
        *(("note", note) for note in found.notes),
    ]
    lines += [] if refusal else [("can become", _targets(family))]
    return Inspection(lines, refusal)


def describe_size(found: Checkpoint) -> str:
    """Returns the number of parameters and their bytes in float32, for people."""
    count = sum(tensor.numel() for tensor in found.weights.state.values())
    return f"{count:,} parameters in {len(found.weights.state)} tensors, {format_megabytes(4 * count)} in float32"


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
    lines = [
        (
            "layers",
            f"{shape.layers} of {shape.dim} dimensions, {shape.heads} heads, feed-forward {shape.feed_forward_dim}",
        ),
        ("hidden states", f"{shape.state_count}, one frame per {milliseconds:g} ms"),
        (
            "layer norm",
            norms[shape.layer_norm_first],
        ),
        (
            "waveform",
            "brought to zero mean and unit variance"
            if shape.normalizes_waveform
            else "taken as it is",
        ),
    ]
    if not family.front_end_prefixes:
        return [*lines, ("front end", "without parameters: freezing the front end matches nothing")]
    norm = "layer norm in each" if shape.extractor_mode == "layer_norm" else "one group norm"
    where = ", ".join(f"`{prefix}*`" for prefix in family.front_end_prefixes)
    return [
        *lines,
        (
            "front end",
            f"{len(shape.conv_layers)} convolutions of {shape.conv_layers[-1][0]} channels, {norm} ({where})",
        ),
    ]


def _pretraining(found: Checkpoint, family: EncoderFamily) -> str:
    prefixes = family.pretraining_only_prefixes
    there = [name for name in found.weights.state if prefixes and name.startswith(prefixes)]
    sizes = compute_shapes(family.name, found.weights.config) or {}
    gone = [
        name
        for name in sizes
        if prefixes and name.startswith(prefixes) and name not in found.weights.state
    ]
    lacks = f"; lacks {', '.join(gone[:5])}" if gone else ""
    return (
        f"{len(there)} tensors that only pre-training uses{lacks}"
        if there or gone
        else "nothing that only pre-training uses"
    )


def _origin(found: Checkpoint) -> list[tuple[str, str]]:
    made: dict[str, Any] = dict(found.made)
    parents = made.pop("parents", None)
    lines = (
        [("parents", ", ".join(map(_short, parents)))]
        if isinstance(parents, list) and parents
        else []
    )
    return [*lines, *((key, _short(value)) for key, value in sorted(made.items()))]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return printable if len(printable) <= 200 else printable[:197] + "..."


def _targets(family: EncoderFamily) -> str:
    able = list_formats(family.name)
    unable = [name for name in FORMATS.names() if name not in able]
    return ", ".join(able) + (
        f"; not {', '.join(unable)}: there is no {family.title} in these formats" if unable else ""
    )
