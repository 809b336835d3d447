"""Verification and diarisation: segments, training data, trials, decodings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import read_scores
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.heads.diarization import DiarizationHead, permutation_free_loss
from speechft_ray.speech.heads.xvector import XVectorHead, am_softmax
from speechft_ray.superb.evaluate import evaluate
from speechft_ray.superb.measures.der import Turn
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks import asv, sd
from speechft_ray.superb.tasks.base import TASKS, TaskData
from tests.superb.toy_models import ToyEncoder, toy_corpus

SMALL: dict[str, dict[str, Any]] = {"asv": {"width": 16, "pooled_width": 24}, "sd": {"hidden": 24}}


def build_data(task: str, corpus: Corpus, **options: Any) -> TaskData:
    spec = EvalSpec(task=task, corpus=CorpusSpec(), updates=1, options={**SMALL[task], **options})
    data = build_task_data(TASKS.get(task), spec, corpus)
    assert isinstance(data, TaskData)
    return data


def facts_of(task: str, corpus: Corpus, options: dict[str, Any], **fields: Any) -> dict[str, Any]:
    spec = EvalSpec(task=task, corpus=CorpusSpec(), options={**SMALL[task], **options}, **fields)
    return evaluate(spec, ToyEncoder(), corpus, torch.device("cpu"), lambda counts: None)


def recordings(samples: int, labels: dict[str, str], count: int = 3) -> Corpus:
    """Recordings whose samples count upwards, so that a segment shows its start."""
    utterances = [
        Utterance(
            key=f"{split}-{index}",
            split=split,
            samples=samples,
            labels={**labels, "speaker": f"s{index}"},
        )
        for split in ("train", "dev", "test")
        for index in range(count)
    ]
    wave = np.arange(samples, dtype=np.float32)
    return Corpus(
        name="made",
        fingerprint="1",
        utterances=utterances,
        read=lambda _: wave,
        columns=frozenset(["speaker", *labels]),
    )


def test_long_training_utterances_are_cropped_and_test_ones_are_whole() -> None:
    corpus = recordings(200_000, {})
    corpus = replace(corpus, trials=((True, "test-0", "test-1"), (False, "test-0", "test-2")))
    data = build_data("asv", corpus)
    assert {example.utterance.samples for example in data.examples["test"]} == {200_000}
    starts = set()
    for example in data.examples["train"]:
        wave = data.corpus.read(example.utterance)
        assert len(wave) == example.utterance.samples == 128_000
        assert (np.diff(wave) == 1).all()
        starts.add(int(wave[0]))
    assert len(starts) == 3 and max(starts) <= 72_000
    other = build_data("asv", replace(recordings(190_000, {}), trials=corpus.trials))
    assert len({"1", data.corpus.fingerprint, other.corpus.fingerprint}) == 3


def test_the_published_protocol_selects_on_test_and_the_clean_one_on_held_out_speakers() -> None:
    corpus = toy_corpus({"train": 40, "dev": 8, "test": 8})
    keys = {
        split: [example.utterance.key for example in items]
        for split, items in build_data("asv", corpus).examples.items()
    }
    assert keys["dev"] == keys["test"]
    clean = build_data("asv", corpus, protocol="clean").examples
    assert [example.utterance.key for example in clean["dev"]] == [
        utterance.key for utterance in corpus.split("dev")
    ]
    held_out = build_data("asv", toy_corpus({"train": 40, "test": 8}), protocol="clean").examples
    speakers = {
        split: {item.utterance.labels["speaker"] for item in items}
        for split, items in held_out.items()
    }
    assert speakers["dev"] == {"s0", "s2"} and speakers["train"] == {"s1", "s3"}


def test_generated_trials_are_balanced_repeatable_and_correct() -> None:
    utterances = toy_corpus({"test": 40}).utterances
    trials = asv.make_trials(utterances, "speaker")
    speaker = {utterance.key: utterance.labels["speaker"] for utterance in utterances}
    assert all(same == (speaker[one] == speaker[other]) for same, one, other in trials)
    assert sum(same for same, _, _ in trials) == len(trials) / 2 == 4 * 10 * 9 / 2
    assert len(set(trials)) == len(trials) and trials == asv.make_trials(utterances, "speaker")


def test_listed_trials_are_scored_by_cosine() -> None:
    corpus = replace(
        recordings(8000, {}),
        trials=(
            (True, "test-0", "test-1"),
            (False, "test-0", "test-2"),
            (False, "test-1", "test-2"),
        ),
    )
    data = build_data("asv", corpus)
    keys = [example.reference for example in data.examples["test"]]
    embeddings = [torch.tensor(each) for each in ([1.0, 0.0], [0.8, 0.6], [0.0, 1.0])]
    trials = list(corpus.trials)
    assert asv.score_trials(embeddings, keys, trials) == pytest.approx([0.8, 0.0, 0.6])
    assert data.measure(embeddings, keys) == {"asv.eer": 0.0}
    assert data.measure([embeddings[0], embeddings[2], embeddings[1]], keys) == {"asv.eer": 100.0}


def test_what_cannot_be_verified_is_told() -> None:
    with pytest.raises(UserError, match="`train-0` has 5000 samples; an x-vector needs 5200"):
        build_data("asv", recordings(5000, {}, 4))
    with pytest.raises(UserError, match="allows no trials in test"):
        build_data("asv", recordings(8000, {}))  # one utterance per speaker


@pytest.mark.parametrize("protocol", ["superb", "clean"])
def test_voices_are_told_apart(protocol: str) -> None:
    corpus = toy_corpus({"train": 48, "dev": 16, "test": 16})
    facts = facts_of(
        "asv", corpus, {"protocol": protocol}, updates=40, learning_rate=5e-3, batch_size=16
    )
    assert all(score.mean < 15.0 for score in read_scores(facts))


def test_an_x_vector_ignores_padding_except_for_one_frame_while_it_learns() -> None:
    torch.manual_seed(0)
    features, frames = torch.randn(3, 40, 6), torch.tensor([40, 25, 30])
    padded = features * (torch.arange(40)[None, :, None] < frames[:, None, None])
    for pools_padding in (True, False):
        head = XVectorHead(6, 5, 8, 12, pools_padding)
        together = head.eval()(padded, frames)
        for row, count in enumerate(frames.tolist()):
            alone = head(padded[row : row + 1, :count], frames[row : row + 1])
            torch.testing.assert_close(together[row], alone[0])
        learning = head.train()(padded, frames)
        torch.testing.assert_close(learning[0], together[0])
        assert torch.allclose(learning[1], together[1]) is not pools_padding
    torch.testing.assert_close(together[:, :8].norm(dim=1), torch.ones(3))


def test_the_margin_is_taken_off_the_right_cosine() -> None:
    cosines = torch.tensor([[0.5, 0.1], [-0.2, 0.9]], dtype=torch.double)
    expected = 0.0
    for row, label in zip(cosines.tolist(), (0, 1), strict=True):
        right = np.exp(30 * (row[label] - 0.4))
        expected -= np.log(right / (right + np.exp(30 * row[1 - label]))) / 2
    loss = am_softmax(cosines, torch.ones(2), [torch.tensor([0]), torch.tensor([1])])
    assert float(loss) == pytest.approx(expected)


TURNS = (
    Turn("a", 0, 200 * 320),
    Turn("b", 1990 * 320 + 161, 2500 * 320),
    Turn("a", 1900 * 320, 4100 * 320),
)


def test_frames_are_labelled_by_the_nearest_and_long_turns_are_lost_between_chunks() -> None:
    first = sd.label_frames(TURNS, 0, 2000, clean=False)
    assert first[:, 0].nonzero()[0].tolist() == [*range(200), *range(1900, 2000)]
    assert first[:, 1].nonzero()[0].tolist() == list(
        range(1991, 2000)
    )  # 161 samples after the frame: the next is nearer
    second = sd.label_frames(TURNS, 2000, 4000, clean=False)
    assert not second[:, 0].any() and second[:500, 1].all()
    # A turn that ends with the chunk is in it.
    ending = sd.label_frames((*TURNS[1:2], Turn("a", 1500 * 320, 4000 * 320)), 2000, 4000, False)
    assert ending[:, 0].all()
    whole = sd.label_frames(TURNS, 2000, 4000, clean=True)
    assert whole[:, 0].all() and (whole[:, 1] == second[:, 1]).all()


def test_recordings_become_chunks_of_forty_seconds() -> None:
    segments = " ".join(f"{turn.speaker}:{turn.start}:{turn.end}" for turn in TURNS)
    data = build_data("sd", recordings(4100 * 320 + 100, {"segments": segments}, 1))
    chunks = data.examples["train"]
    assert [example.utterance.samples // 320 for example in chunks] == [2000, 2000, 100]
    assert [example.reference.start for example in chunks] == [0, 2000, 4000]
    assert data.corpus.read(chunks[2].utterance)[0] == 4000 * 320
    assert chunks[0].reference.turns == TURNS


@pytest.mark.parametrize("segments", ["a:0", "a:5:5", "a:0:x", "a:9:3 b:1:2"])
def test_segments_that_cannot_be_read_are_told(segments: str) -> None:
    with pytest.raises(UserError, match=r"has the segment .* write `speaker:start:end`"):
        build_data("sd", recordings(8000, {"segments": segments}, 1))


def test_segments_at_the_rate_of_the_file_are_told() -> None:
    """Half a second at 16 kHz, written as of a file at 44.1 kHz; a little is an alignment's."""
    assert build_data("sd", recordings(32000, {"segments": "a:0:20000 b:9000:39999"}, 1))
    with pytest.raises(UserError, match=r"`b:24806:88200` .* 32000 samples at 16 kHz: segments"):
        build_data("sd", recordings(32000, {"segments": "a:0:24806 b:24806:88200"}, 1))


def test_a_recording_of_several_chunks_counts_once() -> None:
    """Its counts are one pair, of one speaker; the sum is the error rate."""
    corpus = recordings(2100 * 320, {"segments": "a:0:300000 b:250000:672000"}, 2)
    facts = facts_of("sd", corpus, {}, updates=1, batch_size=2)
    (counts,) = facts["counts"]
    assert len(counts["of"]["sd.der"]) == len(counts["speaker_of"]) == 2
    assert [len(seed) for seed in counts["amounts"]["sd.der"]] == [2]
    (test,) = (
        score.mean
        for score in read_scores(facts)
        if (score.metric, score.split) == ("sd.der", "test")
    )
    amounts, of = counts["amounts"]["sd.der"][0], counts["of"]["sd.der"]
    assert 100 * sum(amounts) / sum(of) == pytest.approx(test)


def test_other_than_two_speakers_are_told() -> None:
    with pytest.raises(UserError, match="has 1 speakers in `segments`, not 2"):
        build_data("sd", recordings(8000, {"segments": "a:0:3200 a:4000:5000"}, 1))


def test_a_recording_without_a_chunk_is_refused_when_the_task_is_built() -> None:
    segments = {"segments": "a:0:300 b:200:600"}
    assert build_data("sd", recordings(640, segments, 1)).examples["test"]
    with pytest.raises(UserError, match="has 639 samples; a chunk needs 640"):
        build_data("sd", recordings(639, segments, 1))


def test_decoding_takes_stretches_above_the_threshold_and_a_median_fills_gaps() -> None:
    share = np.full((40, 2), 0.05)
    share[5:30, 0] = 0.65
    share[17:19, 0] = 0.2
    logits = np.log(share / (1 - share))
    assert sd.decode(logits, (0.6, 1)) == [Turn("0", 1600, 5440), Turn("0", 6080, 9600)]
    assert sd.decode(logits, (0.6, 11)) == [Turn("0", 1600, 9600)]
    assert sd.decode(logits, (0.7, 1)) == []
    # Before the first frame nobody speaks: 6 of the 11 frames around it are needed, 5 are too few.
    for frames, turns in ((5, []), (6, [Turn("1", 0, 6 * 320)])):
        beginning = np.full((40, 2), -3.0)
        beginning[:frames, 1] = 3.0
        assert sd.decode(beginning, (0.5, 11)) == turns


def test_the_published_protocol_selects_the_decoding_on_test_and_the_clean_one_on_dev() -> None:
    corpus = recordings(100 * 320, {"segments": "a:0:16000 b:9600:32000"}, 1)
    dev, test = (np.full((100, 2), 0.05) for _ in range(2))
    dev[:50, 0], dev[30:, 1] = 0.65, 0.65  # right at 0.6
    test[:50, 0], test[30:, 1], test[60:, 0] = 0.65, 0.65, 0.62  # a false alarm up to 0.6
    test[:50, 0] = test[30:, 1] = 0.75  # right at 0.7
    logits = [np.log(share / (1 - share)) for share in (dev, test)]
    for protocol, rate, threshold in (("superb", 0.0, 0.7), ("clean", 100 * 40 / 120, 0.3)):
        data = build_data("sd", corpus, protocol=protocol)
        references = [[data.examples[split][0].reference] for split in ("dev", "test")]
        metrics = data.compute_test_metrics(logits[:1], references[0], logits[1:], references[1])
        assert metrics["sd.der"] == pytest.approx(rate)
        assert metrics["threshold"] == threshold


def test_frame_accuracy_uses_the_better_order_and_counts_a_silent_chunk_as_0() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], dtype=np.float32)
    chunk = sd.Chunk("r", 0, labels, ())
    logits = 4.0 * labels - 2.0
    assert sd.frame_accuracy([logits, logits[:, ::-1].copy()], [chunk, chunk]) == 1.0
    wrong = logits.copy()
    wrong[0, 0] = -1.0
    assert sd.frame_accuracy([wrong], [chunk]) == 7 / 8
    silent = chunk._replace(labels=np.zeros((4, 2), dtype=np.float32))
    assert sd.frame_accuracy([logits, logits], [chunk, silent]) == 0.5


def test_the_diarisation_loss_is_that_of_the_better_order_over_valid_frames() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 2, dtype=torch.double)
    targets = [torch.randint(0, 2, (6, 2)), torch.randint(0, 2, (4, 2))]
    expected = 0.0
    for row, target in zip(logits, targets, strict=True):
        share = torch.sigmoid(row[: len(target)])
        orders = [target.double(), target.double().flip(1)]
        losses = [
            -(order * share.log() + (1 - order) * (1 - share).log()).mean(1).sum()
            for order in orders
        ]
        expected += float(min(losses)) / 10
    assert float(permutation_free_loss(logits, torch.tensor([5, 3]), targets)) == pytest.approx(
        expected
    )


def test_the_last_frame_of_each_recording_is_repeated() -> None:
    torch.manual_seed(0)
    head, features = DiarizationHead(4, 2, 3), torch.randn(2, 5, 4)
    logits = head(features, torch.tensor([5, 3]))
    for row, count in enumerate((5, 3)):
        repeated = torch.cat([features[row, :count], features[row, count - 1 : count]])
        torch.testing.assert_close(
            logits[row, : count + 1], head.linear(head.rnn(repeated[None])[0])[0]
        )


def test_speakers_are_located_in_time() -> None:
    corpus = toy_corpus({"train": 40, "dev": 8, "test": 12})
    facts = facts_of("sd", corpus, {}, updates=80, learning_rate=2e-2, batch_size=16)
    scores = {score.split: score.mean for score in read_scores(facts)}
    assert scores["test"] < 25.0 and scores["dev"] < 25.0
    assert facts["details"]["test"].keys() == {"threshold", "median_frames", "frame_accuracy"}
    assert facts["details"]["test"]["frame_accuracy"][0] > 80.0
