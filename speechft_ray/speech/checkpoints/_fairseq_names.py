"""Names of fairseq 0.12.2: keys of its configurations, and the one class that its files pickle."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

from speechft_ray.speech.checkpoints._dictionary import FairseqDictionary

_MODEL_COMMON = [
    "extractor_mode",
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "activation_fn",
    "layer_type",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "encoder_layerdrop",
    "dropout_input",
    "dropout_features",
    "final_dim",
    "layer_norm_first",
    "conv_feature_layers",
    "conv_bias",
    "logit_temp",
    "target_glu",
    "feature_grad_mult",
    "mask_length",
    "mask_prob",
    "mask_selection",
    "mask_other",
    "no_mask_overlap",
    "mask_min_space",
    "mask_channel_length",
    "mask_channel_prob",
    "mask_channel_selection",
    "mask_channel_other",
    "no_mask_channel_overlap",
    "mask_channel_min_space",
    "conv_pos",
    "conv_pos_groups",
    "latent_temp",
    "checkpoint_activations",
    "required_seq_len_multiple",
    "depthwise_conv_kernel_size",
    "attn_type",
    "pos_enc_type",
    "fp16",
]
_MODEL_OWN = {
    "hubert": ["label_rate", "untie_final_proj", "skip_masked", "skip_nomask"],
    "wav2vec2": [
        "quantize_targets",
        "quantize_input",
        "same_quantizer",
        "quantizer_depth",
        "quantizer_factor",
        "latent_vars",
        "latent_groups",
        "latent_dim",
        "require_same_masks",
        "mask_dropout",
        "mask_channel_before",
        "num_negatives",
        "negatives_from_everywhere",
        "cross_sample_negatives",
        "codebook_negatives",
        "pos_conv_depth",
        "max_positions",
        "crop_seq_to_multiple",
    ],
}
_TASK_COMMON = [
    "data",
    "labels",
    "sample_rate",
    "normalize",
    "enable_padding",
    "max_sample_size",
    "min_sample_size",
]
_TASK_OWN = {
    "hubert": [
        "fine_tuning",
        "label_dir",
        "label_rate",
        "max_keep_size",
        "single_target",
        "random_crop",
        "pad_audio",
    ],
    "wav2vec2": [
        "binarized_dataset",
        "num_batch_buckets",
        "precompute_mask_indices",
        "tpu",
        "text_compression_level",
    ],
}
# The fields of HubertConfig, Wav2Vec2Config, HubertPretrainingConfig and AudioPretrainingConfig;
# fairseq rejects others.

MODEL_KEYS = (*_MODEL_COMMON, *_MODEL_OWN["wav2vec2"], *_MODEL_OWN["hubert"])
TASK_KEYS = tuple(_TASK_COMMON)
"""Keys of the model and of the task in an ``args`` Namespace, which holds both in one level."""

TASK = {"hubert": "hubert_pretraining", "wav2vec2": "audio_pretraining"}
CRITERION = {"hubert": "hubert", "wav2vec2": "wav2vec"}
MODEL_DEFAULTS: dict[str, dict[str, Any]] = {"hubert": {"label_rate": 50.0}, "wav2vec2": {}}
TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "hubert": {"data": "", "labels": ["km"], "label_rate": 50.0},
    "wav2vec2": {"data": ""},
}
"""Keys that fairseq demands. ``km``: k-means labels, on which HuBERT was trained."""


def list_model_keys(family: str) -> list[str]:
    """Returns the keys of ``cfg.model`` that fairseq accepts, beside ``_name``."""
    return [*_MODEL_COMMON, *_MODEL_OWN[family]]


def list_task_keys(family: str) -> list[str]:
    """Returns the keys of ``cfg.task`` that fairseq accepts, beside ``_name``."""
    return [*_TASK_COMMON, *_TASK_OWN[family]]


class _Pickler(pickle._Pickler):
    """Writes our stand-in under fairseq's name of the class. The accelerated pickler would import
    that name."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is FairseqDictionary:
            name_on_disk = b"fairseq.data.dictionary\nDictionary\n"
            self.write(pickle.GLOBAL + name_on_disk)  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]


PICKLE = SimpleNamespace(Pickler=_Pickler, __name__="pickle")
"""The ``pickle_module`` for ``torch.save``."""
