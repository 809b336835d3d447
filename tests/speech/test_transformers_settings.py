"""Folders of transformers: last hidden states equal those of its own feature extractor and model,
for every combination of their settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints.base import FORMATS
from speechft_ray.speech.checkpoints.hf import SIDE
from speechft_ray.speech.checkpoints.hub import PREPROCESSOR, PROCESSOR
from speechft_ray.speech.checkpoints.load import load_checkpoint
from speechft_ray.speech.encoders.base import FAMILIES
from tests.speech.toy_models import make_wave, toy_encoder

WAVE = 100 * make_wave(2_000) + 0.2
"""Large, so that it does not matter that s3prl and fairseq add 1e-5 to the variance of a waveform,
and transformers 1e-7."""

MODELS = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}
NORMS = {"group", "layer"}
ON, OFF = {"do_normalize": True}, {"do_normalize": False, "sampling_rate": 16_000}
ALONE = {"feature_extractor": ON}
OLD = {"processor_class": "Wav2Vec2Processor"}
SETTINGS: tuple[dict[str, Any], ...] = (
    {PREPROCESSOR: ON},
    {PREPROCESSOR: OFF},
    {PREPROCESSOR: {}},
    {PROCESSOR: {**OLD, "feature_extractor": ON}},
    {PROCESSOR: {**OLD, "feature_extractor": OFF}},
    {PROCESSOR: {"audio_processor": OFF}},
    {PROCESSOR: {"feature_extractor": OFF, "audio_processor": ON}},
    {PROCESSOR: {"feature_extractor": OFF}, PREPROCESSOR: ON},
    {PROCESSOR: {"feature_extractor": ON}, PREPROCESSOR: OFF},
    {PROCESSOR: OLD, PREPROCESSOR: OFF},
    {PROCESSOR: OLD, PREPROCESSOR: ON},
)

pytestmark = [
    # torch.nn.utils.weight_norm, in s3prl and transformers
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch.jit in s3prl
    pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning"),  # s3prl's WavLM
]


def import_transformers() -> Any:
    return pytest.importorskip("transformers")


def write_model(folder: Path, family: str, **options: Any) -> Any:
    """Saves a small model with random weights in ``folder``; returns it."""
    library = import_transformers()
    config = getattr(library, f"{MODELS[family]}Config")(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        **options,
    )
    torch.manual_seed(1)
    model = getattr(library, f"{MODELS[family]}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def write_settings(folder: Path, files: Mapping[str, Any]) -> None:
    for name in (PROCESSOR, PREPROCESSOR):
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def compute_their_state(folder: Path, model: Any) -> torch.Tensor:
    extractor = import_transformers().Wav2Vec2FeatureExtractor.from_pretrained(folder)
    inputs = extractor(WAVE.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        state: torch.Tensor = model(inputs.input_values).last_hidden_state[0]
    return state


def compute_our_state(folder: Path) -> torch.Tensor:
    weights = load_checkpoint(folder).weights
    with torch.inference_mode():
        return FAMILIES.get(weights.family).build(weights).hidden_states([WAVE]).states[-1][0]


@pytest.mark.parametrize(
    ("family", "norm", "stable", "bias"),
    [*product(MODELS, sorted(NORMS), (False, True), (False, True))],
)
def test_the_last_hidden_state_is_that_of_transformers(
    tmp_path: Path, family: str, norm: str, stable: bool, bias: bool
) -> None:
    model = write_model(
        tmp_path,
        family,
        feat_extract_norm=norm,
        do_stable_layer_norm=stable,
        conv_bias=bias,
        hidden_act="relu" if bias else "gelu",
    )
    for files in ({PROCESSOR: {"feature_extractor": OFF}, PREPROCESSOR: ON}, {PROCESSOR: ALONE}):
        write_settings(tmp_path, files)
        torch.testing.assert_close(
            compute_our_state(tmp_path), compute_their_state(tmp_path, model), atol=1e-5, rtol=0.0
        )


@pytest.mark.parametrize("family", MODELS)
def test_waveforms_are_normalised_where_transformers_does_it(tmp_path: Path, family: str) -> None:
    write_model(tmp_path, family)
    section = "cfg" if family == "wavlm" else "task_cfg"
    for files in SETTINGS:
        write_settings(tmp_path, files)
        extractor = import_transformers().Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
        ours = load_checkpoint(tmp_path).weights.config[section]["normalize"]
        assert ours is extractor.do_normalize, files


def test_a_processor_of_transformers_is_read_as_it_saves_it(tmp_path: Path) -> None:
    """``Wav2Vec2Processor.save_pretrained`` of transformers 5 writes no
    ``preprocessor_config.json``."""
    library = import_transformers()
    model = write_model(tmp_path, "wav2vec2")
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "<unk>": 1, "|": 2, "a": 3}')
    for normalize in (True, False):
        library.Wav2Vec2Processor(
            feature_extractor=library.Wav2Vec2FeatureExtractor(do_normalize=normalize),
            tokenizer=library.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
        ).save_pretrained(tmp_path)
        assert not (tmp_path / PREPROCESSOR).exists()
        checkpoint = load_checkpoint(tmp_path)
        assert checkpoint.weights.config["task_cfg"]["normalize"] is normalize
        assert PROCESSOR in checkpoint.notes[0]
        torch.testing.assert_close(
            compute_our_state(tmp_path), compute_their_state(tmp_path, model), atol=1e-5, rtol=0.0
        )


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_what_is_guessed_without_both_files_is_noted(tmp_path: Path, norm: str) -> None:
    write_model(tmp_path, "hubert", feat_extract_norm=norm)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.weights.config["task_cfg"]["normalize"] is (norm == "layer")
    assert "there is neither processor_config.json" in checkpoint.notes[0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sampling_rate": 8_000}, "`sampling_rate` must be 16000, but is 8000"),
        ({"sampling_rate": "16k"}, "`sampling_rate` must be 16000, but is 16k"),
        ({"do_normalize": "yes"}, "`do_normalize` must be true or false"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "`feature_extractor_type` must be"),
        (["do_normalize"], "holds no settings of a feature extractor, but a list"),
    ],
)
def test_settings_that_are_not_supported_are_refused(
    tmp_path: Path, settings: Any, sentence: str
) -> None:
    write_model(tmp_path, "hubert")
    for name, content in ((PREPROCESSOR, settings), (PROCESSOR, {"feature_extractor": settings})):
        write_settings(tmp_path, {name: content})
        with pytest.raises(UserError, match=sentence) as caught:
            load_checkpoint(tmp_path)
        assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("config.json", {"do_stable_layer_norm": True}, "`layer_norm_first` is true, not false"),
        (PROCESSOR, {"feature_extractor": ON}, "it brings waveforms to zero mean"),
    ],
)
def test_settings_that_were_changed_after_an_export_are_not_passed_over(
    tmp_path: Path, file: str, change: dict[str, Any], sentence: str
) -> None:
    folder = tmp_path / "model"
    weights = toy_encoder("hubert")
    FORMATS.get("hf").write(folder, weights, {})
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=sentence):
        load_checkpoint(folder)
    (folder / SIDE).unlink()
    assert load_checkpoint(folder).weights.config != weights.config
