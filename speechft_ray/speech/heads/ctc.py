"""Head ``ctc``: predicts a label sequence without an alignment, for phone recognition, speech
recognition and slot filling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.corpora.labels import MissingLabelError
from speechft_ray.speech.heads.base import (
    HEADS,
    HeadKind,
    HeadOptions,
    Tally,
    count_one,
    get_label,
)
from speechft_ray.speech.heads.specaug import spec_augment
from speechft_ray.speech.text import BLANK, Unit, Vocabulary, edit_distance, tokenize


def ctc_loss(
    logits: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """CTC of ``(batch, frames, classes)``: each utterance divided by its target's length, then the
    mean over the batch.

    Blank is 0 and an impossible alignment counts as 0 (s3prl ``downstream/ctc/model.py``:
    ``zero_infinity``).
    """
    lengths = torch.tensor([len(target) for target in targets])
    return functional.ctc_loss(
        functional.log_softmax(logits, dim=-1).transpose(0, 1),  # -> (frames, batch, classes)
        torch.cat(list(targets)).to(logits.device),
        frames.cpu(),
        lengths,
        blank=BLANK,
        reduction="mean",
        zero_infinity=True,
    )


def greedy_decode(
    logits: torch.Tensor, frames: torch.Tensor, blank: int = BLANK
) -> list[list[int]]:
    """Returns the ids on the best path of each utterance of ``(batch, frames, classes)``: repeats
    are merged, then blanks removed."""
    decoded = []
    for path, length in zip(logits.argmax(dim=-1).cpu(), frames.tolist(), strict=True):
        decoded.append(
            [index for index in path[:length].unique_consecutive().tolist() if index != blank]
        )
    return decoded


def count_token_errors(
    logits: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
) -> Tally:
    """Counts the edits of the greedy decoding, of all target tokens."""
    decoded = greedy_decode(logits, frames)
    errors = sum(
        edit_distance(target.tolist(), path) for target, path in zip(targets, decoded, strict=True)
    )
    return Tally(errors, sum(len(target) for target in targets))


def min_frames(target: torch.Tensor) -> int:
    """Returns the length of the shortest CTC path: one frame per token, and a blank between equal
    neighbours."""
    return len(target) + int((target[1:] == target[:-1]).sum())


def run_bidirectional(layer: nn.LSTM, features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Runs a bidirectional layer over ``(batch, frames, dim)``. The backward direction starts at
    each utterance's last valid frame.

    On a GPU the sequences are packed, in float32 also under autocast: cuDNN's recurrent layers
    would run in float16, whatever type autocast has (torch 2.13, ``_cudnn_rnn_cast_reflatten``),
    and gradients would be lost without a scaled loss. On a CPU torch's backward pass of packed
    sequences takes time quadratic in their length (130 frames: ten times as long as here), so each
    direction runs over the padded batch, the second on reversed utterances.
    """
    length = features.shape[1]
    if features.is_cuda:
        with torch.autocast("cuda", enabled=False):
            packed = pack_padded_sequence(
                features.float(), frames.cpu(), batch_first=True, enforce_sorted=False
            )
            return pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=length)[0]
    # Reverses the valid frames of each utterance: (batch, frames), its own inverse.
    positions = torch.arange(length)
    reversal = torch.where(positions < frames[:, None], frames[:, None] - 1 - positions, positions)
    inputs = (features, _gather_frames(features, reversal))
    forward, backward = (
        _run_lstm(part, weights) for part, weights in zip(inputs, layer.all_weights, strict=True)
    )
    return torch.cat([forward, _gather_frames(backward, reversal)], dim=-1)


def _run_lstm(features: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    zeros = features.new_zeros(1, len(features), weights[1].shape[1])
    output: torch.Tensor = torch.lstm(
        features, (zeros, zeros), list(weights), True, 1, 0.0, True, False, True
    )[0]
    return output


def _gather_frames(features: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return features.gather(1, positions.unsqueeze(-1).expand_as(features))


class CtcHead(nn.Module):
    """Optional projection, any number of bidirectional LSTM layers, linear to the classes.

    Without LSTM layers it is the head of s3prl's ``ctc/libriphone.yaml`` (projection 256). With two
    of 1024 after a projection to 1024 it is that of ``asr`` and ``ctc/snips.yaml``. ``tanh`` adds
    the square linear map and tanh after each layer, as in ``ctc/cv_config``. As in s3prl's
    ``asr/model.py``, dropout follows every LSTM layer, the last one too. ``specaug`` applies
    SpecAugment to the features while training, with draws from torch's global generator.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        projection: int | None = 256,
        lstm_layers: int = 0,
        lstm_hidden: int = 1024,
        dropout: float = 0.2,
        tanh: bool = False,
        specaug: bool = False,
    ) -> None:
        super().__init__()
        self.specaug = specaug
        self.projector = nn.Identity() if projection is None else nn.Linear(dim, projection)
        width = dim if projection is None else projection
        widths = [width, *[2 * lstm_hidden] * lstm_layers]
        self.layers = nn.ModuleList(
            nn.LSTM(inputs, lstm_hidden, batch_first=True, bidirectional=True)
            for inputs in widths[:lstm_layers]
        )
        self.dropout = nn.Dropout(dropout)
        self.squares = nn.ModuleList(nn.Linear(size, size) for size in (widths[1:] if tanh else []))
        self.output = nn.Linear(widths[-1], classes)

    def forward(self, features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Maps ``(batch, frames, dim)`` to logits ``(batch, frames, classes)``. Padding does not
        affect valid frames."""
        if self.specaug and self.training:
            features = spec_augment(features, frames)
        features = self.projector(features)
        for index, layer in enumerate(self.layers):
            features = self.dropout(run_bidirectional(cast(nn.LSTM, layer), features, frames))
            if self.squares:
                features = torch.tanh(self.squares[index](features))
        logits: torch.Tensor = self.output(features)
        return logits


class CtcOptions(HeadOptions):
    """Options of the head ``ctc``; the defaults are s3prl's ``ctc/libriphone.yaml``."""

    unit: Unit = "words"
    """Whether a token is a blank-separated word of the column or a character."""
    projection: int | None = Field(default=256, ge=1)
    """Width of the first linear map; ``None`` for none."""
    lstm_layers: int = Field(default=0, ge=0)
    lstm_hidden: int = Field(default=1024, ge=1)
    """Width of one direction (s3prl ``asr/config.yaml``)."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """After each LSTM layer (s3prl ``asr/config.yaml``)."""
    specaug: bool = False
    """Whether SpecAugment is applied to training features (official configuration of ASR on
    TED-LIUM; numbers: ``specaug.py``)."""


def build(options: CtcOptions, dim: int, classes: int) -> CtcHead:
    """Returns a fresh head."""
    return CtcHead(dim, classes, **options.model_dump(exclude={"unit"}))


def read_tokens(options: CtcOptions, utterance: Utterance, column: str) -> list[str]:
    """Returns the label in the unit of the options. Raises ``UserError`` when it is empty."""
    tokens = tokenize(get_label(utterance, column), options.unit)
    if not tokens:
        raise MissingLabelError(utterance, column)
    return tokens


def make_targets(
    options: CtcOptions, utterance: Utterance, column: str, vocabulary: Vocabulary
) -> torch.Tensor:
    """Returns the token ids, shape ``(tokens,)``."""
    return torch.tensor(vocabulary.encode(read_tokens(options, utterance, column)))


HEADS.register(
    "ctc",
    HeadKind(
        options=CtcOptions,
        metric="finetune.token_error_rate",
        reserved=1,
        croppable=False,
        read_tokens=read_tokens,
        make_targets=make_targets,
        build=build,
        loss=ctc_loss,
        tally=count_token_errors,
        min_frames=min_frames,
        has_unknown=True,
        loss_weight=count_one,
    ),
)
