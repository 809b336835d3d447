"""Every recipe in search_spaces/recipes on corpora in their real layouts: planned in full, and run
for a few updates."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from ray import tune

from speechft_ray.cli import main
from speechft_ray.cluster.connect import connect
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.commands.parts import resolve_place
from speechft_ray.commands.sweep import open_sweep
from speechft_ray.core.records import Outcome, Place
from speechft_ray.core.specs import FinetuneSpec, SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder, write_encoder
from speechft_ray.stages.perform import ENCODER_FILE, perform, publish_start
from speechft_ray.sweep.space_file import read_space
from tests.cluster.ray_clusters import STORE_BYTES, collect, ray_folder
from tests.e2e.small_world import REPOSITORY
from tests.speech.toy_models import toy_hubert

__all__ = ["ray_folder"]  # a fixture

RECIPES = {
    path.stem: path for path in sorted((REPOSITORY / "search_spaces/recipes").glob("*.yaml"))
}
UPDATES = 10
"""Updates of each run; the first is head-only."""
WIDTH = 64
"""Width of the toy encoder: SpecAugment masks up to 49 channels, all of a narrower one."""
TASKS = {"pr": (1, 100_000), "sid": (1, 200_000), "er": (5, 30_000), "sf": (1, 200_000)}
"""Folds and updates of the paper's tasks, by name."""


def shorten(run: FinetuneSpec) -> FinetuneSpec:
    """Returns the recipe with few updates, small batches and narrow LSTM layers."""
    objectives = []
    for item in run.objectives:
        options = (
            {**item.options, "lstm_hidden": 16} if "lstm_hidden" in item.options else item.options
        )
        objectives.append(item.model_copy(update={"batch_size": 2, "options": options}))
    return run.model_copy(
        update={
            "objectives": tuple(objectives),
            "updates": UPDATES,
            "validate_every_updates": UPDATES,
        }
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a toy encoder and every corpus of the recipes, in its real layout."""
    folder = tmp_path_factory.mktemp("recipes")
    write_encoder(folder / "toy.safetensors", toy_hubert(encoder_embed_dim=WIDTH), {})
    specs = [read_space(path) for path in RECIPES.values()]
    names = {
        *(item.corpus.name for spec in specs for run in spec.finetune for item in run.objectives),
        *(entry.corpus.name for spec in specs for entry in spec.evaluate),
    }
    for name in sorted(names):
        importlib.import_module(f"tests.speech.layouts.{name}").lay_out(folder / "corpora" / name)
    return folder


def test_every_fine_tuning_task_of_the_paper_has_a_recipe() -> None:
    tasks = {
        "pc_timit",
        "asr_tedlium3",
        "er_crema_d",
        "sid_librispeech",
        "asr_librispeech",
        "pr_librispeech",
    }
    assert tasks | {"sid_voxceleb1", "er_iemocap", "cpt_aishell3", "mtf_pr_sid"} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_plan_prints_a_recipe_in_full(
    name: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A batch of the paper has more utterances than these corpora; the rest is as shipped.
    space, batches = re.subn(r"batch_size: \d+", "batch_size: 2", RECIPES[name].read_text("utf-8"))
    assert batches
    (home / f"{name}.yaml").write_text(space, "utf-8")
    arguments = [
        "--space",
        home / f"{name}.yaml",
        "--encoder",
        home / "toy.safetensors",
        "--corpora",
        home / "corpora",
    ]
    assert main(["run", *map(str, arguments), "--storage", str(home / "plans"), "--plan"]) == 0
    printed = capsys.readouterr().out
    # One fine-tuning; the paper's alpha between its two controls; the paper's four tasks for each
    # of the three.
    for line in (
        "finetune: 1, of which 0",
        "merge: 3, of which 0",
        "evaluate: 12, of which 0",
        "16 of 16 jobs to do",
    ):
        assert line in printed, printed
    assert "alpha=0.25" in printed and f"sweep {name.replace('_', '-')} (" in printed
    spec = read_space(RECIPES[name])
    assert {entry.task: (len(entry.corpora()), entry.updates) for entry in spec.evaluate} == TASKS
    assert spec.encoder == "hubert_base" and spec.score.zero == "paper"


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_of_a_recipe_names_its_source(name: str) -> None:
    for line in RECIPES[name].read_text(encoding="utf-8").splitlines():
        value, _, source = line.partition("#")
        if any(
            sign.isdigit()
            for sign in value.split(":", 1)[-1].replace("voxceleb1", "").replace("tedlium3", "")
        ):
            assert source.strip() or "name:" in value, f"{name}: {line}"


@pytest.fixture(scope="module")
def ran(home: Path, ray_folder: Path) -> tuple[Mapping[str, Outcome], Place]:
    """Runs all recipes, shortened, as one sweep on Ray Tune."""
    recipes = [read_space(path) for path in RECIPES.values()]
    runs = tuple(shorten(run) for spec in recipes for run in spec.finetune)
    spec = SweepSpec(
        name="recipes", finetune=runs, merge=recipes[0].merge, evaluate=recipes[0].evaluate
    )
    place = resolve_place(
        spec,
        storage=home / "runs",
        cpu=True,
        encoder=str(home / "toy.safetensors"),
        corpora=home / "corpora",
    )
    plan = open_sweep(spec, place, is_to_run=False).plan
    publish_start(place)
    cluster = connect("local", cpus=1, store_bytes=STORE_BYTES)
    with pytest.MonkeyPatch.context() as patch:
        # One trial after the other in one process: importing torch in ten processes takes longer
        # than the training.
        patch.setattr(tune, "TuneConfig", partial(tune.TuneConfig, reuse_actors=True))
        executor = RayExecutor(perform, place, cluster=cluster)
        for job in plan.of_stage("finetune"):
            executor.submit(job)
        outcomes = collect(executor, len(runs))
        executor.stop()
    return {outcome.label.split()[1]: outcome for outcome in outcomes.values()}, place


@pytest.mark.slow
@pytest.mark.parametrize("name", [name.replace("_", "-") for name in RECIPES])
def test_a_recipe_runs_on_ray_tune(name: str, ran: tuple[Mapping[str, Outcome], Place]) -> None:
    outcomes, place = ran
    outcome = outcomes[name]
    assert outcome.ok, (outcome.error, outcome.traceback)
    best_dev = outcome.facts["best_dev"]
    assert isinstance(best_dev, float) and math.isfinite(best_dev)
    assert outcome.facts["best_update"] == UPDATES
    tuned = read_encoder(
        Store(Path(place.storage)).folder("finetune", outcome.fingerprint) / ENCODER_FILE
    ).state
    start = read_encoder(Path(place.encoder)).state
    changed = {key for key, value in start.items() if not torch.equal(value, tuned[key])}
    assert not any(key.startswith("feature_extractor") for key in changed)
    assert {f"encoder.layers.{layer}.fc1.weight" for layer in (0, 1)} <= changed
