"""wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477) as s3prl's expert runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.encoders._examples import (
    PUBLISHED_DIM,
    example_convolutions,
    example_final_dim,
    example_transformer,
)
from speechft_ray.speech.encoders._layouts import Layout, Settings, register
from speechft_ray.speech.encoders._options import (
    CONVOLUTIONS,
    FINAL_DIM,
    LOGIT_TEMPERATURE,
    SEQUENCE_MULTIPLE,
    TRANSFORMER,
    TRANSFORMER_LAYERS,
    boolean,
    integer,
)
from speechft_ray.speech.encoders._waveform import Network


def is_wav2vec2_config(config: Mapping[str, Any]) -> bool:
    """Whether the configuration is a wav2vec 2.0's: the layout of HuBERT without labels."""
    model = config.get("model_cfg")
    return (
        isinstance(model, Mapping)
        and "label_rate" not in model
        and "dictionaries_symbols" not in config
    )


def example_config(layers: int, dim: int, large: bool) -> dict[str, Any]:
    """Returns a configuration in the s3prl-converted layout (fairseq
    ``config/pretraining/wav2vec2_{base,large}_*.yaml``)."""
    model = {
        "_name": "wav2vec2",
        **example_transformer(layers, dim, large),
        **example_convolutions(dim, large),
        "conv_bias": large,
        "final_dim": example_final_dim(dim, large),
        "quantize_targets": True,
        "latent_vars": 320 if dim >= PUBLISHED_DIM else 8,
        "latent_groups": 2,
        "logit_temp": 0.1,
    }
    return {
        "model_cfg": model,
        "task_cfg": {
            "_name": "audio_pretraining",
            "sample_rate": SAMPLE_RATE_HZ,
            "normalize": large,
        },
    }


def _check(settings: Settings) -> None:
    options = settings.options
    final_dim = options["final_dim"] if options["final_dim"] > 0 else settings.shape.dim
    code_dim = options["latent_dim"] if options["latent_dim"] > 0 else final_dim
    if options["quantize_targets"] and code_dim % options["latent_groups"]:
        raise UserError(
            f"the width of the codes, {code_dim} (`latent_dim`, else `final_dim`, else "
            "`encoder_embed_dim`), must be a multiple of `model_cfg.latent_groups`, "
            f"{options['latent_groups']}."
        )
    if settings.config["model_cfg"].get("quantize_input", False) is not False:
        raise UserError(
            "`model_cfg.quantize_input` must be false: "
            "encoders with quantised input are not supported."
        )


def _build_network(settings: Settings, device: str) -> Network:
    from speechft_ray.speech.encoders import _s3prl  # slow, and not needed for configurations

    return _s3prl.wav2vec2(settings.options, settings.shape.normalizes_waveform, device)


register(
    Layout(
        name="wav2vec2",
        title="wav2vec 2.0",
        model_section="model_cfg",
        task_section="task_cfg",
        options={
            **TRANSFORMER,
            **CONVOLUTIONS,
            "final_dim": FINAL_DIM,
            "quantize_targets": boolean(False),
            "quantizer_depth": integer(1, 1, 8),
            "quantizer_factor": integer(3, 1, 16),
            "latent_vars": integer(320, 1, 8192),
            "latent_groups": integer(2, 1, 64),
            "latent_dim": FINAL_DIM,
            "target_glu": boolean(False),
            "logit_temp": LOGIT_TEMPERATURE,
            "pos_conv_depth": integer(1, 1, 32),
            "required_seq_len_multiple": SEQUENCE_MULTIPLE,
            "crop_seq_to_multiple": integer(1, 1, 1),  # more would cut frames off
            "layer_type": TRANSFORMER_LAYERS,
        },
        front_end_prefixes=("feature_extractor.",),
        # The contrastive task of pre-training: the quantizer, and the projections of codes and of
        # hidden states.
        pretraining_only_prefixes=(
            "mask_emb",
            "quantizer.",
            "project_q.",
            "final_proj.",
            "target_glu.",
        ),
        matches=is_wav2vec2_config,
        build_network=_build_network,
        example_config=example_config,
        check=_check,
    )
)
