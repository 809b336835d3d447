"""The registered model: hidden states of a waveform, computed by transformers.

MLflow copies this file into each model and runs it where the model is loaded, so it imports nothing
of this package, and no pickle is read.
"""

from __future__ import annotations

from typing import Any, cast

import mlflow
import numpy as np


class HiddenStates(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow has no types
    """Maps waveforms at 16 kHz to the hidden states of an encoder."""

    def load_context(self, context: Any) -> None:
        """Loads the encoder, on the CPU, and what scales its input."""
        from transformers import AutoFeatureExtractor, AutoModel

        folder, extractors = context.artifacts["encoder"], cast(Any, AutoFeatureExtractor)
        self._extractor = extractors.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    # MLflow would take hints for a schema of tables.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Returns an array ``[layers + 1, frames, width]`` for a waveform, an array of samples;
        for a list of waveforms, a list of such arrays."""
        if isinstance(model_input, list):
            return [self._compute(waveform) for waveform in model_input]
        return self._compute(model_input)

    def _compute(self, samples: Any) -> Any:
        import torch

        waveform = np.asarray(samples, dtype=np.float32).reshape(-1)
        scaled = self._extractor(waveform, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            states = self._model(scaled.input_values, output_hidden_states=True).hidden_states
        return torch.cat(states).numpy()


mlflow.models.set_model(HiddenStates())
