"""The model card beside an exported encoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from speechft_ray.commands import models
from speechft_ray.commands.encoders import export_encoder
from speechft_ray.commands.models import make_winner_card
from speechft_ray.commands.stored import open_store, read_sweep
from speechft_ray.core.store import Store
from speechft_ray.report.winner import read_record

FORMAT = "safetensors"


def export_card(storage: Path, run: str, out: Path) -> str:
    export_encoder(run, FORMAT, out, storage)
    return out.with_name(f"{out.name}.md").read_text(encoding="utf-8")


def find_best(storage: Path) -> str:
    winner = read_record(Store(storage), "small-sweep").winner
    assert winner is not None
    return winner.merge


def test_an_encoder_without_a_sweep_was_not_checked_for_leaks(
    storage_copy: Path, tmp_path: Path
) -> None:
    best = find_best(storage_copy)
    shutil.rmtree(storage_copy / "overlap")
    card = export_card(storage_copy, best, tmp_path / "one.safetensors")
    assert "Not checked: " in card and "No overlap" not in card
    shutil.rmtree(storage_copy / "plans")
    card = export_card(storage_copy, best, tmp_path / "two.safetensors")
    assert "Not checked: " in card and "No overlap" not in card


def test_the_leaks_of_an_encoder_by_fingerprint_are_those_of_its_sweeps(
    storage_copy: Path, tmp_path: Path
) -> None:
    best = find_best(storage_copy)
    none = export_card(storage_copy, best, tmp_path / "one.safetensors")
    assert "No overlap of its tuning data with a test set was detected." in none
    store = Store(storage_copy)
    for key in store.fingerprints("overlap"):
        facts = {
            name: store.manifest("overlap", key)[name]
            for name in ("corpora", "speakers", "of_speakers")
        }
        shutil.rmtree(store.folder("overlap", key))
        with store.publish("overlap", key, {**facts, "utterances": 3, "of_utterances": 9}):
            pass
    some = export_card(storage_copy, best, tmp_path / "two.safetensors")
    assert "No overlap" not in some
    assert "was tuned on 3 of the 9 test utterances of" in some


@pytest.mark.parametrize(
    ("form", "library", "line"),
    [
        ("hf", "transformers", "from transformers import AutoModel"),
        ("s3prl", "s3prl", "from s3prl.upstream.hubert.expert import UpstreamExpert"),
        ("fairseq", "fairseq", "from fairseq import checkpoint_utils"),
        ("safetensors", "speechft_ray", "import speechft_ray"),
        ("s3prl-downstream", "speechft_ray", "import speechft_ray"),
    ],
)
def test_a_card_says_how_to_load_its_format(
    finished_storage: Path, tmp_path: Path, form: str, library: str, line: str
) -> None:
    out = tmp_path / "out"
    export_encoder("small-sweep", form, out, finished_storage)
    (path,) = [*tmp_path.glob("out.md"), *out.glob("README.md")]
    card = path.read_text(encoding="utf-8")
    assert f'library_name: "{library}"\n' in card and f"```python\n{line}\n" in card
    assert ("transformers" in card) == (form == "hf")


def test_the_card_of_a_winner_that_transformers_lacks_is_for_the_file_of_the_store(
    storage_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, store = read_sweep(open_store(storage_copy), "small-sweep"), Store(storage_copy)
    assert "AutoModel" in make_winner_card(sweep.plan, store, sweep.data, sweep.data.rows[0])
    monkeypatch.setattr(models, "find_family", lambda *_: "decoar2")
    card = make_winner_card(sweep.plan, store, sweep.data, sweep.data.rows[0])
    assert 'library_name: "speechft_ray"' in card and "transformers" not in card
