"""s3prl's own experts and ours on the same features, batches and weights: small versions of
``benchmarks/parity.py``."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from speechft_ray.speech.heads.pooled import PooledHead
from speechft_ray.superb.measures.der import Turn
from speechft_ray.superb.tasks.sd import label_frames
from tests.superb.textbook import textbook_edits

pytest.importorskip("s3prl")

from benchmarks import parity
from benchmarks.parity_cases import CASES
from benchmarks.s3prl_peer import expert_module

# s3prl leaves its slot file open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

COUNTS = {"train": 40, "dev": 8, "test": 10}


@pytest.fixture(autouse=True)
def textbook_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces s3prl's edit distance, which needs an optional package, by the textbook's."""
    distance = ModuleType("editdistance")
    distance.eval = textbook_edits  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "editdistance", distance)
    for name in ("ctc.metric", "asr.expert"):
        module = expert_module(name)
        monkeypatch.setattr(module, "ed" if name == "ctc.metric" else "editdistance", distance)


@pytest.mark.parametrize("task", sorted(CASES))
def test_losses_and_metrics_are_those_of_s3prl(task: str, tmp_path: Path) -> None:
    lines = parity.compare_task(task, tmp_path, updates=3, counts=COUNTS)
    assert [line for line in lines if not line.is_ok] == []
    assert len(lines) == 1 + len(CASES[task].metrics)


@pytest.mark.parametrize("seed", range(4))
def test_frames_of_speakers_are_labelled_as_s3prl_labels_them(seed: int) -> None:
    """Its ``_get_labeled_speech``, handed turns instead of a Kaldi folder; chunks of 60 frames, so
    that turns span them."""
    draw, frames, size = random.Random(seed), 250, 60
    starts = [draw.randrange(frames * 320) for _ in range(12)]
    turns = [
        Turn("ab"[index % 2], start, start + draw.randrange(1, 90 * 320))
        for index, start in enumerate(starts)
    ]
    segments = [
        {"utt": turn.speaker, "st": turn.start / 16_000, "et": turn.end / 16_000} for turn in turns
    ]
    kaldi = SimpleNamespace(
        segments={"r": segments}, utt2spk={"a": "a", "b": "b"}, load_wav=lambda *_: (None, 16_000)
    )
    module = expert_module("diarization.dataset")
    for start in range(0, frames, size):
        end = min(frames, start + size)
        shifted = SimpleNamespace(data=kaldi, frame_shift=320)
        _, labels = module.DiarizationDataset._get_labeled_speech(shifted, "r", start, end, 2)
        assert (label_frames(turns, start, end, clean=False) == labels).all()
    chunks = list(module._gen_frame_indices(frames, size, size, use_last_samples=True))
    assert chunks == [(start, min(frames, start + size)) for start in range(0, frames, size)]


def test_means_train_what_frames_train(tmp_path: Path) -> None:
    line = parity.compare_pooled(tmp_path, updates=40)
    assert line.is_ok, line


def test_a_time_warp_is_s3prls() -> None:
    line = parity.compare_specaug(rounds=3)
    assert line.is_ok, line


def test_a_difference_is_detected(tmp_path: Path) -> None:
    pair = parity.Pair("er", tmp_path, COUNTS)
    head = pair.probe.head
    assert isinstance(head, PooledHead)
    head.output.bias.data[0] += 0.01
    (ours, theirs), *_ = pair.losses(1)
    assert abs(ours - theirs) > parity.LOSS_TOLERANCE * theirs
