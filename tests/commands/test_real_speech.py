"""Tables in shape on human speech: what is refused before anything runs, and what is planned."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from speechft_ray.commands import real_speech
from speechft_ray.commands.checks import check_names
from speechft_ray.commands.parts import SEARCH_SPACES
from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.speech.corpora.base import CORPORA, CorpusKind
from speechft_ray.sweep.inputs import Inputs
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.space_file import read_space

FOLDER = SEARCH_SPACES / "real_speech"


def test_tables_without_a_space_are_refused() -> None:
    assert real_speech.select_tables([1, 2, 9], asked=False) == [1, 9]
    with pytest.raises(UserError, match="table 2 has no search space on human speech"):
        real_speech.select_tables([1, 2], asked=True)


def test_missing_packages_are_named_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in real_speech.CORPORA_NEEDED:
        fields = {**CORPORA.get(name).__dict__, "package_folder": tmp_path / "missing"}
        monkeypatch.setitem(CORPORA._parts, name, CorpusKind(**fields))
    with pytest.raises(UserError) as caught:
        real_speech.check_corpora(None)
    line = "apt install fillets-ng-data fillets-ng-data-cs fillets-ng-data-nl gcin-voice"
    assert line in str(caught.value)
    for name in real_speech.CORPORA_NEEDED:
        (tmp_path / name).mkdir()
    real_speech.check_corpora(tmp_path)


def test_a_plan_pre_trains_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="speechft pretrain --start tiny_hubert"):
        real_speech.find_encoder(tmp_path, None, True, Console())
    assert not list(tmp_path.iterdir())


def test_tables_share_their_work() -> None:
    """Five seeds of each run; table 1 is part of table 9, and the start encoder is done once."""
    plans = {}
    for spaces in real_speech.SPACES.values():
        spec = read_space(FOLDER / f"{spaces[0]}.yaml")
        check_names(spec)
        inputs = Inputs(encoder="human", corpus=lambda item: (canonical_json(item), False))
        plans[spaces[0]] = make_plan(spec, inputs)
    jobs = {name: set(plan.jobs) for name, plan in plans.items()}
    assert jobs["real_table01"] < jobs["real_table09"]
    counts = {name: len(plan.of_stage("finetune")) for name, plan in plans.items()}
    assert counts == {"real_table01": 15, "real_table03": 5, "real_table09": 15}
    rows = {name: {row.key for row in plan.rows} for name, plan in plans.items()}
    assert {name: len(keys) for name, keys in rows.items()} == {
        "real_table01": 1 + 15 * 2,
        "real_table03": 1 + 5 * 2,
        "real_table09": 1 + 15 * 3,
    }
    assert len(rows["real_table03"] & rows["real_table09"]) == 1
