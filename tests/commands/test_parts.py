"""Search spaces by name or by path."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from speechft_ray.commands import parts
from speechft_ray.commands.parts import (
    SEARCH_SPACES,
    find_space,
    plan_inputs,
)
from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.core.store import Store
from speechft_ray.speech.checkpoints.base import FORMATS
from speechft_ray.stages.perform import publish_start
from speechft_ray.sweep.space_file import read_space
from tests.speech.toy_models import toy_hubert


@pytest.mark.parametrize("name", ["alpha", "recipes/pr_librispeech"])
def test_packaged_spaces_have_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = find_space(name)
    assert path == SEARCH_SPACES / f"{name}.yaml"
    assert read_space(path).evaluate


def test_a_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alpha").write_text("name: mine")
    assert find_space("alpha") == Path("alpha")
    assert find_space("missing.yaml") == Path("missing.yaml")


def test_a_plan_prints_what_the_loader_of_its_encoder_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So do ``run`` and ``evaluate``, which plan first; the storage records it."""
    folder = tmp_path / "model"
    FORMATS.get("hf").write(folder, toy_hubert(), {})
    for file in ("speechft_ray.safetensors", "processor_config.json", "preprocessor_config.json"):
        (folder / file).unlink()
    place = Place(storage=str(tmp_path / "runs"), encoder=str(folder))
    inputs = plan_inputs(place)
    guess = "waveforms are taken as not normalised: there is neither processor_config.json"
    assert f"note: {folder}: {guess}" in capsys.readouterr().err
    publish_start(place)
    (note,) = Store(tmp_path / "runs").manifest("encoder", inputs.encoder)["notes"]
    assert note.startswith(guess)


def test_an_unknown_name_lists_the_packaged_ones() -> None:
    with pytest.raises(UserError, match=r"unknown search space `alpah`. Did you mean `alpha`\?"):
        find_space("alpah")


def test_a_plan_knows_that_the_means_of_a_large_corpus_take_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = SimpleNamespace(utterances=range(100_000))
    monkeypatch.setattr(parts, "open_corpus", lambda spec, place: corpus)
    estimate = plan_inputs(Place(storage=str(tmp_path), encoder="tiny_hubert")).gpu_memory
    on_disk, synthetic = (
        EvalSpec(task="sid", updates=5, corpus=CorpusSpec(name=name))
        for name in ("voxceleb1", "synthetic")
    )
    # 7 states of 192 float32 values for each utterance, and once more
    means = 2 * 100_000 * 7 * 192 * 4
    assert estimate(on_disk, "e") - estimate(synthetic, "e") == means
