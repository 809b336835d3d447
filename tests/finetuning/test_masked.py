"""Masked prediction: targets and masks against plain arithmetic and s3prl, trainable parameters,
and runs that are killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import FinetuneSpec, Objective
from speechft_ray.core.units import frame_count
from speechft_ray.finetuning import loop, pseudo_labels
from speechft_ray.finetuning.batches import MICRO_BATCH_SECONDS, AudioCache
from speechft_ray.finetuning.data import ObjectiveData, load_objective
from speechft_ray.finetuning.features import FeatureLoader
from speechft_ray.finetuning.pseudo_labels import with_pseudo_labels
from speechft_ray.finetuning.run import FinetuneResult, finetune
from speechft_ray.finetuning.seeding import Stream, make_generator
from speechft_ray.finetuning.train_state import TrainState, build_train_state
from speechft_ray.finetuning.trainer import Trainer
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.heads.base import IGNORED
from speechft_ray.speech.heads.masked import MaskedOptions, compute_labels, draw_mask
from tests.finetuning.toy_models import Killed, corpus, objective, silent, spec
from tests.speech.toy_models import add_noise, make_wave, tone_corpus, toy_encoder, toy_hubert

CPU = torch.device("cpu")
CODES = 5
"""Rows of the toy's code book."""


def hubert(seed: int = 0) -> EncoderWeights:
    family = FAMILIES.get("hubert")
    assert family.example_config is not None and family.init_weights is not None
    config = family.example_config(2, 16, False) | {"dictionaries_symbols": [[*"abcde"]]}
    return add_noise(family.init_weights(config, seed), seed)


def make_labelling_encoder(content: Corpus) -> EncoderWeights:
    """Returns an encoder whose pseudo-labels vary: its codes are its own projected states of some
    frames of a corpus."""
    plain = hubert()
    encoder = FAMILIES.get("hubert").build(plain)
    with torch.no_grad():
        states = [
            encoder.hidden_states([torch.tensor(content.read(item))]).states[-1][0]
            for item in content.utterances
        ]
        projected = torch.cat(states) @ plain.state["final_proj.weight"].T
    middle = projected.mean(dim=0)
    codes = (projected - middle)[:: len(projected) // CODES][:CODES] * torch.linspace(
        0.5, 2.0, CODES
    )[:, None]
    state = {**plain.state, "final_proj.bias": -middle, "label_embs_concat": codes}
    return EncoderWeights(family="hubert", config=plain.config, state=state)


@pytest.fixture(scope="module")
def start() -> EncoderWeights:
    return make_labelling_encoder(tones())


def tones(train: int = 8, dev: int = 4) -> Corpus:
    return corpus({"train": train, "dev": dev})


def make_masked_objective(**changes: Any) -> Objective:
    """Returns a masked objective with short spans, for the short utterances of the toy corpus."""
    return objective(
        "masked", **{"column": None, "options": {"mask_length": 2, "mask_prob": 0.5}, **changes}
    )


def output_of(state: TrainState) -> Any:
    """Returns the output layer of the first head."""
    return state.heads[0].output


def options_of(data: ObjectiveData) -> MaskedOptions:
    assert isinstance(data.options, MaskedOptions)
    return data.options


def build_trainer(
    start: EncoderWeights, work: Path, plan: FinetuneSpec, content: Corpus | None = None
) -> tuple[TrainState, list[ObjectiveData], Trainer]:
    content = content or tones()
    objectives = [load_objective(item, content, start) for item in plan.objectives]
    state = build_train_state(plan, start, objectives, CPU)
    audio_caches = [AudioCache(content, 2**20) for _ in objectives]
    loader = FeatureLoader(
        encoder=state.encoder, device=CPU, freeze_front_end=True, audio_caches=audio_caches
    )
    objectives = with_pseudo_labels(objectives, loader, work, "this", silent)
    state.train(True)
    return state, objectives, Trainer(plan, objectives, loader, MICRO_BATCH_SECONDS)


def run(
    start: EncoderWeights,
    work: Path,
    plan: FinetuneSpec,
    report: Callable[[Mapping[str, float]], None] = silent,
    content: Corpus | None = None,
) -> FinetuneResult:
    work.mkdir(exist_ok=True)
    return finetune(plan, start, [content or tones()] * len(plan.objectives), work, CPU, report)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_targets_are_the_most_similar_rows_of_the_code_book(
    similarity: str, start: EncoderWeights, tmp_path: Path
) -> None:
    """Against numpy, from states of s3prl's forward pass of each whole utterance."""
    content = tones()
    data = build_trainer(
        start, tmp_path, spec(make_masked_objective(options={"similarity": similarity})), content
    )[1][0]
    assert data.vocabulary.size == CODES
    encoder = FAMILIES.get("hubert").build(start)
    state = {name: value.double().numpy() for name, value in start.state.items()}
    different = 0
    for example in data.train:
        with torch.no_grad():
            last = (
                encoder.hidden_states([torch.tensor(content.read(example.utterance))])
                .states[-1][0]
                .double()
                .numpy()
            )
        projected, codes = (
            last @ state["final_proj.weight"].T + state["final_proj.bias"],
            state["label_embs_concat"],
        )
        dots = np.array([[frame @ code for code in codes] for frame in projected])
        cosines = (
            dots / np.linalg.norm(projected, axis=1)[:, None] / np.linalg.norm(codes, axis=1)[None]
        )
        assert example.target.dtype == torch.int32
        assert (
            example.target.tolist()
            == (cosines if similarity == "cosine" else dots).argmax(axis=1).tolist()
        )
        different += int((cosines.argmax(axis=1) != dots.argmax(axis=1)).sum())
    assert different, "the code book cannot tell the two similarities apart"


def test_codes_go_through_the_gate_that_pretraining_put_them_through() -> None:
    weights = toy_hubert(target_glu=True)
    model: Any = FAMILIES.get("hubert").build(weights).module()
    states = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    labels = compute_labels(MaskedOptions(), model, states)
    expected = torch.cosine_similarity(
        model.final_proj(states)[:, None], model.target_glu(model.label_embs_concat)[None], dim=-1
    )
    assert torch.equal(labels, expected.argmax(dim=1)) and len(set(labels.tolist())) > 1


@pytest.mark.parametrize("frames", [780, 100, 30, 12, 5])
def test_as_many_frames_are_masked_as_in_fairseq(frames: int) -> None:
    """Against fairseq's function in s3prl, by utterance. 780 frames are a crop of 15.6 s."""
    from s3prl.upstream.wav2vec2.wav2vec2_model import compute_mask_indices

    before = np.random.get_state()
    try:
        np.random.seed(0)
        theirs = np.concatenate(
            [compute_mask_indices((1, frames), None, 0.8, 10, min_masks=2) for _ in range(1_500)]
        )
    finally:
        np.random.set_state(before)
    rng = np.random.default_rng(0)
    ours = np.stack([draw_mask(MaskedOptions(), frames, rng) for _ in range(1_500)])
    assert ours.shape == theirs.shape and ours.dtype == bool
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.005)
    assert ours.sum(axis=1).std() == pytest.approx(theirs.sum(axis=1).std(), rel=0.1, abs=0.1)
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=0.08)
    if frames == 780:
        assert 0.54 < ours.mean() < 0.57, "HuBERT masks about 55 % of the frames"


def test_masks_have_the_spans_that_were_asked_for() -> None:
    options = MaskedOptions(mask_prob=0.1, mask_length=4, least_spans=1)
    for seed in range(50):
        spans = draw_mask(options, 120, np.random.default_rng(seed))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], spans, [0]])))
        lengths = edges[1::2] - edges[::2]
        assert (lengths >= 4).all() and spans.sum() <= 4 * 4 and len(lengths) <= 4


@pytest.mark.parametrize(
    "changes",
    [{"head_only_fraction": 0.0}, {"head_phase_dropout": False}],
    ids=["all", "head alone"],
)
def test_the_loss_asks_about_masked_frames_alone(
    changes: dict[str, Any], start: EncoderWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recomputes the first update: the same masks, the loss from s3prl's own states, and a gradient
    at masked frames alone."""
    plan, content = spec(make_masked_objective(weight=0.5), updates=20, seed=3, **changes), tones()
    state, (data,), trainer = build_trainer(start, tmp_path, plan, content)
    state.train(False)
    monkeypatch.setattr(state.encoder.module(), "train", lambda mode: None)
    logits: list[torch.Tensor] = []

    def keep_logits(module: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        logits.append(output)

    state.heads[0].register_forward_hook(keep_logits)
    order = trainer._samplers[0].batch(0)
    weight = output_of(state).weight.detach().clone()
    step = trainer.train_step(state, 0)
    rng = make_generator(3, Stream.MASK, 0, 0)
    model: Any = FAMILIES.get("hubert").build(start).module()
    costs, at = [], []
    for place in order:
        example = data.train[place]
        count = frame_count(example.utterance.samples)
        hidden = draw_mask(options_of(data), count, rng)
        at.append(hidden.tolist())
        model.apply_mask = lambda x, padding, targets, hidden=hidden: (
            torch.where(torch.tensor(hidden)[None, :, None], model.mask_emb, x),
            hidden,
        )
        with torch.no_grad():
            states = model(
                torch.tensor(content.read(example.utterance))[None], mask=True, features_only=True
            )["x"][0]
            cost = torch.log_softmax(states @ weight.T + output_of(state).bias, dim=1)
        costs += [-float(cost[frame, example.target[frame]]) for frame in np.flatnonzero(hidden)]
    assert step.loss == pytest.approx(0.5 * np.mean(costs), rel=1e-5)
    (seen,) = logits
    assert seen.grad is not None
    has_gradient = seen.grad.abs().sum(dim=2) > 0
    assert 0 < has_gradient.sum() < has_gradient.numel() / 2
    assert sorted(map(str, has_gradient.tolist())) == sorted(
        str([*hidden, *[False] * (seen.shape[1] - len(hidden))]) for hidden in at
    )
    trainer.close()


def test_who_learns_at_every_update(start: EncoderWeights, tmp_path: Path) -> None:
    state, _, trainer = build_trainer(
        start, tmp_path, spec(make_masked_objective(), updates=10, head_only_fraction=0.3)
    )
    fixed = ("feature_extractor.", "final_proj.", "label_embs_concat")
    for update in range(10):
        before = {
            name: value.clone() for name, value in state.encoder.module().state_dict().items()
        }
        head = output_of(state).weight.clone()
        trainer.train_step(state, update)
        after = state.encoder.module().state_dict()
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        learns = set() if update < 3 else {name for name in before if not name.startswith(fixed)}
        assert changed == learns and ("mask_emb" in changed) == (update >= 3), update
        assert torch.equal(head, output_of(state).weight) == (
            update == 0
        )  # which has learning rate 0
    trainer.close()


def test_the_mask_embedding_keeps_still_where_nothing_is_masked(
    start: EncoderWeights, tmp_path: Path
) -> None:
    state, _, trainer = build_trainer(start, tmp_path, spec(objective("ctc")))
    trainer.close()
    assert "mask_emb" not in state.parameters


def test_crops_keep_the_names_of_their_own_frames(start: EncoderWeights, tmp_path: Path) -> None:
    """A crop starts at a frame, and its targets are those of its own frames."""
    content = tones()
    _, (data,), trainer = build_trainer(
        start, tmp_path, spec(make_masked_objective(), crop_seconds=0.1), content
    )
    moved = 0
    for update in range(6):
        (batch,) = trainer._next_batches(update)
        rng = make_generator(0, Stream.MASK, 0, update)
        assert batch.masks is not None
        for clip, target, hidden in zip(batch.clips, batch.targets, batch.masks, strict=True):
            (example,) = (item for item in data.train if item.utterance.key == clip.key)
            audio, first = content.read(example.utterance), clip.start // 320
            assert (
                clip.wave is not None
                and clip.start % 320 == 0
                and clip.samples == len(clip.wave) == min(1_600, len(audio))
            )
            np.testing.assert_array_equal(
                clip.wave.numpy(), audio[clip.start : clip.start + clip.samples]
            )
            assert (
                hidden.tolist()
                == draw_mask(options_of(data), frame_count(clip.samples), rng).tolist()
            )
            own = example.target[first : first + len(hidden)].long()
            assert (
                torch.equal(target, torch.where(hidden, own, IGNORED))
                and len(own) == len(hidden) == 4
            )
            moved += first > 0
    assert moved > 5
    trainer.close()


def test_validations_always_mask_the_same_frames(start: EncoderWeights, tmp_path: Path) -> None:
    dev_sets = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        plan = spec(make_masked_objective(batch_size=4 - seed), seed=seed)
        _, (data,), trainer = build_trainer(start, tmp_path / str(seed), plan)
        trainer.close()
        assert all(item.mask is None for item in data.train)
        dev_sets.append(data.dev)
    for first, second in zip(*dev_sets, strict=True):
        assert torch.equal(first.mask, second.mask) and torch.equal(first.target, second.target)
        assert torch.equal(first.target != IGNORED, first.mask) and first.mask.any()


def test_a_run_learns_to_name_what_it_does_not_hear(tmp_path: Path) -> None:
    """The accuracy is higher than that of predicting the commonest label."""
    content = tone_corpus((0.6,), 36)
    start = make_labelling_encoder(content)
    plan = spec(
        make_masked_objective(batch_size=8),
        updates=100,
        validate_every_updates=20,
        peak_learning_rate=5e-3,
    )
    tuned = run(start, tmp_path, plan, content=content)
    dev = [values["dev"] for _, values in tuned.facts["curve"] if "dev" in values]
    losses = [values["loss"] for _, values in tuned.facts["curve"]]
    assert tuned.facts["metric"] == "finetune.masked_accuracy"
    (tmp_path / "dev").mkdir()
    _, (data,), trainer = build_trainer(start, tmp_path / "dev", plan, content)
    trainer.close()
    counts = np.bincount(torch.cat([item.target[item.mask] for item in data.dev]).numpy())
    commonest = 100 * counts.max() / counts.sum()
    assert tuned.facts["objectives"] == [
        {
            "metric": "finetune.masked_accuracy",
            "best_dev": max(dev),
            "constant_dev": commonest,
            "vocabulary": CODES,
        }
    ]
    assert max(dev) > commonest + 5 and losses[-1] < 0.8 * losses[0]
    changed = {
        name
        for name, value in tuned.weights.state.items()
        if not torch.equal(value, start.state[name])
    }
    assert "mask_emb" in changed and not any(
        name.startswith(("final_proj", "label_embs")) for name in changed
    )
    assert list(tuned.weights.state) == list(start.state)


@pytest.mark.parametrize("cache_head_phase", [False, True])
def test_a_killed_run_goes_on_to_the_same_bits(
    cache_head_phase: bool, start: EncoderWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has a labelled objective, too."""
    plan = spec(
        make_masked_objective(),
        objective("pooled"),
        updates=12,
        validate_every_updates=5,
        crop_seconds=0.15,
        seed=2,
    )
    plan = plan.model_copy(
        update={"head_only_fraction": 0.5, "head_phase_dropout": not cache_head_phase}
    )
    expected = run(start, tmp_path / "whole", plan)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))
    calls: list[int] = []
    predict_labels = pseudo_labels._predict_labels

    def count_calls(*args: Any) -> list[torch.Tensor]:
        calls.append(1)
        return predict_labels(*args)

    monkeypatch.setattr(pseudo_labels, "_predict_labels", count_calls)
    for last in (0, 4, 9):

        def die(values: Mapping[str, float], last: int = last) -> None:
            if values["done"] > last:
                raise Killed

        with pytest.raises(Killed):
            run(start, tmp_path / "broken", plan, die)
    broken = run(start, tmp_path / "broken", plan)
    assert calls == [1], "the start encoder names the frames once"
    assert all(
        torch.equal(value, broken.weights.state[name])
        for name, value in expected.weights.state.items()
    )
    assert [values for _, values in expected.facts["curve"]] == [
        values for _, values in broken.facts["curve"]
    ]


def test_names_of_another_run_are_not_taken_up(start: EncoderWeights, tmp_path: Path) -> None:
    run(start, tmp_path, spec(make_masked_objective(), updates=2))
    with pytest.raises(UserError, match="saved state of another run"):
        run(hubert(seed=5), tmp_path, spec(make_masked_objective(), updates=2))


def test_damaged_names_are_asked_for_again(start: EncoderWeights, tmp_path: Path) -> None:
    expected = run(start, tmp_path, spec(make_masked_objective(), updates=2))
    (labels_file,) = tmp_path.glob("names0-*")
    labels_file.write_bytes(labels_file.read_bytes()[:-9])
    again = run(start, tmp_path, spec(make_masked_objective(), updates=2))
    assert all(
        torch.equal(value, again.weights.state[name])
        for name, value in expected.weights.state.items()
    )


def test_progress_is_told_while_frames_are_named(
    start: EncoderWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_labels, "REPORT_EVERY_SECONDS", 0.0)
    reports: list[Mapping[str, float]] = []
    run(start, tmp_path, spec(make_masked_objective(), updates=2), reports.append)
    first = [values for values in reports if "named" in values]
    assert first == reports[: len(first)] and len(first) == 12
    assert first[-1] == {"done": 0, "total": 2, "named": 12, "to_name": 12}


def test_statistics_are_gathered_at_masked_frames(start: EncoderWeights, tmp_path: Path) -> None:
    statistics = run(
        start, tmp_path, spec(make_masked_objective(), updates=4, gather=("fisher", "gram"))
    ).statistics
    assert (
        statistics["fisher:mask_emb"] > 0
    ).all() and "fisher:final_proj.weight" not in statistics


def drop_weights(weights: EncoderWeights, prefixes: Sequence[str]) -> EncoderWeights:
    state = {
        name: value for name, value in weights.state.items() if not name.startswith(tuple(prefixes))
    }
    return EncoderWeights(family=weights.family, config=weights.config, state=state)


@pytest.mark.parametrize(
    ("family", "missing"),
    [
        ("wav2vec2", []),
        ("wavlm", []),
        ("decoar2", []),
        ("hubert", ["final_proj."]),
        ("hubert", ["label_embs_concat"]),
    ],
)
def test_an_encoder_without_code_book_is_told(
    family: str, missing: list[str], tmp_path: Path
) -> None:
    bare = drop_weights(toy_encoder(family), missing)
    with pytest.raises(
        UserError, match=r"code book .*which this .* lacks: start from a HuBERT checkpoint"
    ):
        run(bare, tmp_path, spec(make_masked_objective()))
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_mask_embedding_is_told(start: EncoderWeights, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this HuBERT has no mask embedding \(`mask_emb`\)"):
        run(drop_weights(start, ["mask_emb"]), tmp_path, spec(make_masked_objective()))
    assert not list(tmp_path.iterdir())


def test_several_code_books_are_told(tmp_path: Path) -> None:
    weights = toy_hubert()
    state = {**weights.state, "final_proj.weight": torch.zeros(16, 16)}
    with pytest.raises(
        UserError,
        match=r"needs one code book, but this HuBERT projects to 16 values and its codes have 8",
    ):
        run(
            EncoderWeights(family="hubert", config=weights.config, state=state),
            tmp_path,
            spec(make_masked_objective()),
        )


def test_a_column_is_told(start: EncoderWeights, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`masked` learns from audio alone: leave `column` out"):
        run(start, tmp_path, spec(make_masked_objective(column="tone")))


def test_a_start_that_names_all_frames_alike_is_told(start: EncoderWeights, tmp_path: Path) -> None:
    same = {**start.state, "label_embs_concat": torch.ones_like(start.state["label_embs_concat"])}
    with pytest.raises(UserError, match="names all training frames alike"):
        run(
            EncoderWeights(family="hubert", config=start.config, state=same),
            tmp_path,
            spec(make_masked_objective()),
        )


def test_masked_speech_is_not_heard(start: EncoderWeights) -> None:
    """With all frames masked, speech and silence of the same length have the same states."""
    encoder = FAMILIES.get("hubert").build(start)
    fronts = encoder.conv_features([make_wave(8_000), torch.zeros(8_000)])
    states = encoder.hidden_states_from(fronts, [torch.ones(24, dtype=torch.bool)] * 2).states
    assert all(torch.equal(state[0], state[1]) for state in states)
