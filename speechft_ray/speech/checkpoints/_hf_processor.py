"""Reads and writes what transformers does with a waveform before the encoder: the settings of its
``Wav2Vec2FeatureExtractor``.

A processor (tokenizer and feature extractor) of transformers 5 is saved as one file,
``processor_config.json``, with the feature extractor nested in it; a feature extractor alone, and
everything that transformers 4 saved, is ``preprocessor_config.json``. transformers 5 prefers what
is nested (``feature_extraction_utils.py``, ``get_feature_extractor_dict``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.checkpoints._plain import to_plain_data
from speechft_ray.speech.checkpoints._safetensors import read_json
from speechft_ray.speech.checkpoints.hub import PREPROCESSOR, PROCESSOR
from speechft_ray.speech.encoders.base import Shape

_NESTED = ("feature_extractor", "audio_processor")
"""Keys of the nested settings, in the order in which transformers looks for them."""

_TYPE = "Wav2Vec2FeatureExtractor"


def read_normalization(folder: Path, config: Mapping[str, Any]) -> tuple[bool, str]:
    """Returns whether waveforms are normalised to zero mean and unit variance, and a note.

    Without settings, it follows from the kind of model: published Large models were pre-trained on
    normalised waveforms. Raises ``UserError`` for a feature extractor of another kind or sampling
    rate, and for values of a wrong type.
    """
    settings = _read_settings(folder)
    if settings is None:
        normalize = config.get("feat_extract_norm") == "layer"
        return normalize, (
            f"waveforms are taken as {'' if normalize else 'not '}normalised: there is neither "
            f"{PROCESSOR} with a feature extractor nor {PREPROCESSOR}, and published models with "
            f"`feat_extract_norm` `{'layer' if normalize else 'group'}` are."
        )
    file, values = settings
    kind, rate = values.get("feature_extractor_type", _TYPE), values.get("sampling_rate")
    if kind != _TYPE:
        raise UserError(
            f"{file}: `feature_extractor_type` must be {_TYPE}, but is {str(kind)[:60]!r}: the "
            "encoder takes something else than waveforms, which is not supported."
        )
    if rate not in (None, SAMPLE_RATE_HZ):
        raise UserError(
            f"{file}: `sampling_rate` must be {SAMPLE_RATE_HZ}, but is {str(rate)[:60]}: all "
            f"recordings are read at {SAMPLE_RATE_HZ} Hz, and an encoder that was trained at "
            "another rate is not supported."
        )
    normalize = values.get("do_normalize", True)
    if not isinstance(normalize, bool):
        raise UserError(
            f"{file}: `do_normalize` must be true or false, but is {str(normalize)[:60]!r}."
        )
    return (
        normalize,
        f"waveforms are {'' if normalize else 'not '}normalised, as {file.name} says.",
    )


def write_settings(folder: Path, shape: Shape) -> None:
    """Writes both files: transformers 5 reads the first, transformers 4 the second."""
    settings = {
        "feature_extractor_type": _TYPE,
        "do_normalize": shape.normalizes_waveform,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": shape.extractor_mode == "layer_norm",
        "sampling_rate": SAMPLE_RATE_HZ,
    }
    for name, content in ((PROCESSOR, {_NESTED[0]: settings}), (PREPROCESSOR, settings)):
        text = json.dumps(content, indent=2, sort_keys=True)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def _read_settings(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """Returns the settings that transformers would use and the file that holds them; None where
    there are none."""
    for name in (PROCESSOR, PREPROCESSOR):
        file = folder / name
        if not file.is_file():
            continue
        content = read_json(file)
        if isinstance(content, Mapping) and name == PROCESSOR:
            content = next((content[key] for key in _NESTED if key in content), None)
            if content is None:  # a processor of transformers 4, whose settings are beside it
                continue
        if not isinstance(content, Mapping):
            raise UserError(
                f"{file} holds no settings of a feature extractor, but a "
                f"{type(content).__name__}. Copy it again from where it came."
            )
        fields = ("feature_extractor_type", "do_normalize", "sampling_rate")
        plain = to_plain_data({key: content[key] for key in fields if key in content}, str(file))
        return file, plain
    return None
