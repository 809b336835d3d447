"""``run --smoke``: a small sweep with every part of the large one, which never mixes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_ray.cli import main
from speechft_ray.commands.checks import check_names
from speechft_ray.commands.parts import SEARCH_SPACES
from speechft_ray.commands.smoke import FEWEST_UTTERANCES, shrink_sweep
from speechft_ray.core.objectives import search_mistakes
from speechft_ray.core.specs import CorpusSpec, SweepSpec
from speechft_ray.sweep.space_file import read_space

SPACES = sorted(SEARCH_SPACES.rglob("*.yaml"))


def list_corpora(spec: SweepSpec) -> list[CorpusSpec]:
    tuned = [objective.corpus for run in spec.finetune for objective in run.objectives]
    return [*tuned, *(item.corpus for item in spec.evaluate)]


def list_parts(spec: SweepSpec) -> set[object]:
    """Returns what takes another road through the code."""
    heads = {objective.head for run in spec.finetune for objective in run.objectives}
    kinds = {
        (run.name, run.adapter, run.after is not None, run.gather, run.keep_at)
        for run in spec.finetune
    }
    merges = {(item.method, item.donors, item.checkpoint) for item in spec.merge}
    tasks = {(item.label, item.column, tuple(item.options)) for item in spec.evaluate}
    corpora = {(corpus.name, corpus.options.get("part")) for corpus in list_corpora(spec)}
    search = {(spec.search.sampler, tuple(spec.search.axes))} if spec.search else set()
    return heads | kinds | merges | tasks | corpora | search


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_keeps_its_parts_and_a_hundredth_of_the_rest(path: Path) -> None:
    whole = read_space(path)
    small = shrink_sweep(whole)
    # It is a sweep of its own, and a valid one.
    assert small.name == f"{whole.name}-smoke"
    again = SweepSpec.model_validate(small.model_dump(mode="json"))
    assert again == small
    check_names(small)
    if small.search is not None and whole.search is not None:
        assert search_mistakes(small, small.search) == []
        assert 3 <= small.search.trials <= max(3, whole.search.trials // 100)
    assert list_parts(small) == list_parts(whole)
    # Little is computed, and no unit is one of the large sweep.
    assert all(run.updates <= 20 for run in small.finetune)
    assert all(item.updates <= 20 and item.seeds == 1 for item in small.evaluate)
    evaluations = [item.identity() for item in whole.evaluate]
    assert not any(item.identity() in evaluations for item in small.evaluate)
    for corpus in list_corpora(small):
        if corpus.name == "synthetic":
            sizes = {name: int(str(corpus.options[name])) for name in FEWEST_UTTERANCES}
            assert all(size <= 24 for size in sizes.values())
    assert len(small.merge) <= len(whole.merge) and len(small.finetune) <= len(whole.finetune)


def test_a_smoke_run_has_a_storage_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = ["--storage", str(tmp_path / "runs")]
    assert main(["plan", "--smoke", *storage, "--set", "evaluate[*].learning_rate=0.5"]) == 0
    text = capsys.readouterr().out
    assert "sweep alpha-smoke (" in text and "evaluate: 16," in text
    assert not (tmp_path / "runs").exists()
