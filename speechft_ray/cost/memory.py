"""Estimates the GPU memory of an evaluation, an upper bound by which jobs share a GPU."""

from __future__ import annotations

from speechft_ray.core.specs import EvalSpec
from speechft_ray.core.units import FRAME_STRIDE_SAMPLES, SAMPLE_RATE_HZ
from speechft_ray.cost.sizes import EncoderSize
from speechft_ray.speech.batching import PADDED
from speechft_ray.superb.feature_store import MEMORY_BYTES
from speechft_ray.superb.setup import make_schedule, select_learning_rates
from speechft_ray.superb.tasks.base import TASKS

CONTEXT_BYTES = 800 << 20
"""A process on a GPU before it computes: the CUDA context, cuBLAS and cuDNN with their kernels
(0.5 to 0.8 GiB by the version of CUDA and the card)."""

ENCODING_BYTES = 25_000_000
"""Of a second of audio in a frozen Base encoder, 12 x 768 (``speech.batching.PADDED``: 4 GB for
160 s). With gradients it is 57 to 75 MiB (``finetuning.batches``)."""

FRONT_END_SHARE = 2 / 3
"""Share of it in the first convolution, which all sizes of encoder have."""

BASE_VALUES = 13 * 768
"""Values of all hidden states of a frame in a Base encoder."""

LONG_SECONDS = 20.0
"""A long utterance of a training batch (the longest of LibriSpeech-100 have 24 s)."""

HEAD_BYTES = 700 << 20
"""Of one probe on frames: the largest head, two bidirectional LSTM layers of 1024 (ASR), has 43
million parameters, each with a gradient and Adam's two moments in float32."""

BASIS_MATRICES = 6
"""Matrices of float64 over all values of a frame while the basis of ``compact`` is fitted: the
covariance, its directions, and the workspace of their decomposition."""

MEANS_COPIES = 2
"""Float32 means of all utterances at once: their own, and those of a fold, or of a layer in float64
while encoders are screened."""

FRAMES_PER_SECOND = SAMPLE_RATE_HZ // FRAME_STRIDE_SAMPLES


def estimate_gpu_memory(spec: EvalSpec, encoder: EncoderSize, utterances: int = 0) -> int:
    """Returns the bytes that an evaluation needs at most on a GPU.

    Context and weights; activations of one batch that is encoded; features that are held in memory,
    of a pooled task the means of ``utterances``; and, for heads on frames, a batch of states and of
    its gradient, the heads of all seeds and learning rates, and before them the fit of a basis.
    """
    task = TASKS.get(spec.task)
    values = encoder.state_count * encoder.dim
    layers = (1 - FRONT_END_SHARE) * values / BASE_VALUES
    front_end = FRONT_END_SHARE if encoder.front_end_channels else 0.0
    activations = ENCODING_BYTES * PADDED.max_seconds * (layers + front_end)
    need = CONTEXT_BYTES + encoder.weight_bytes + activations
    if task.pooled:
        need += MEANS_COPIES * utterances * values * 4
    else:
        probes = spec.seeds * len(select_learning_rates(task, spec))
        seconds = make_schedule(task, spec).batch_size * LONG_SECONDS
        states = 2 * seconds * FRAMES_PER_SECOND * values * 4
        need += MEMORY_BYTES + states + probes * HEAD_BYTES
    if spec.features == "compact":
        fit = BASIS_MATRICES * values**2 * 8
        need = max(need, CONTEXT_BYTES + encoder.weight_bytes + fit)
    return int(need)
