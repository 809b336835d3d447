"""Fingerprints: literal hashes, so that no change of code changes identity unnoticed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from speechft_ray.core.fingerprint import canonical_json, file_sha256, fingerprint
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.specs import (
    LATER_FIELDS,
    AdapterSpec,
    AfterSpec,
    CorpusSpec,
    EvalSpec,
    FinetuneSpec,
    Objective,
)

FINETUNE = FinetuneSpec(
    name="phones",
    objectives=(Objective(head="ctc", corpus=CorpusSpec(), column="phones"),),
    updates=100,
    seed=1,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (1.0, "1"),
        (1e-4, "0.0001"),
        ("é", '"\\u00e9"'),
        ({"b": 1, "a": [1, (2.5, None)]}, '{"a":[1,[2.5,null]],"b":1}'),
        (MergeSpec(), '{"alpha":0.25,"donors":"each","method":"linear","params":{}}'),
    ],
)
def test_canonical_text(value: object, text: str) -> None:
    assert canonical_json(value) == text
    assert fingerprint(value) == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("value", "pinned"),
    [
        ({}, "44136fa355b3678a"),  # sha256 of the two bytes {}
        (MergeSpec(), "bf0ff33e4dc557a2"),
        (MergeSpec(method="ties", params={"density": 0.2}, alpha=1.0), "199e709b60e104e4"),
        (FINETUNE.identity(), "fa8b09e003da597f"),
        (EvalSpec(task="pr", corpus=CorpusSpec(), updates=100), "5f0724530d7b0db7"),
    ],
)
def test_pinned_fingerprints(value: object, pinned: str) -> None:
    """A change here means that complete units of every store are computed again: change it only on
    purpose."""
    assert fingerprint(value) == pinned


def test_the_order_of_keys_and_the_process_do_not_matter() -> None:
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )
    code = (
        "from speechft_ray.core.fingerprint import fingerprint; "
        "print(fingerprint({'a': 1, 'b': ['x', 0.1]}))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert other.stdout.strip() == fingerprint({"b": ["x", 0.1], "a": 1})


def test_whole_numbers_written_either_way_are_one_identity_in_a_spec() -> None:
    assert fingerprint(MergeSpec(alpha=1)) == fingerprint(MergeSpec(alpha=1.0))


def test_every_field_of_a_spec_counts() -> None:
    changed = [
        FINETUNE.model_copy(update={field: value})
        for field, value in {
            "objectives": FINETUNE.objectives * 2,
            "updates": 101,
            "peak_learning_rate": 2e-4,
            "schedule": (0.2, 0.3, 0.5),
            "head_only_fraction": 0.2,
            "freeze_front_end": False,
            "anchor_penalty": 0.1,
            "clip_norm": 2.0,
            "validate_every_updates": 5,
            "crop_seconds": 8.0,
            "seed": 2,
            "gather": ("fisher",),
            "after": AfterSpec(finetune="first"),
            "adapter": AdapterSpec(),
            "keep_at": (0.2,),
            "head_phase_dropout": False,
            "non_finite_limit": 3,
            "precision": "bfloat16",
            "name": "other",
        }.items()
    ]
    assert len(changed) == len(FinetuneSpec.model_fields)
    assert len({fingerprint(spec) for spec in [FINETUNE, *changed]}) == len(changed) + 1


def test_later_fields_count_only_where_they_are_set() -> None:
    assert not set(LATER_FIELDS) & set(FINETUNE.identity())
    assert FINETUNE.model_copy(update={"keep_at": (0.2,)}).identity() == {
        **FINETUNE.identity(),
        "keep_at": [0.2],
    }
    assert (
        FINETUNE.model_copy(update={"after": AfterSpec(finetune="first")}).identity()
        == FINETUNE.identity()
    )
    assert FINETUNE.model_copy(update={"gather": ("fisher",)}).identity() == {
        **FINETUNE.identity(),
        "gather": ["fisher"],
    }


def test_a_run_is_not_known_by_its_name() -> None:
    assert FINETUNE.identity() == FINETUNE.model_copy(update={"name": "other"}).identity()


class _Holder(BaseModel):
    value: float


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), [1.0, float("-inf")], _Holder(value=float("nan"))]
)
def test_numbers_that_are_not_finite_have_no_identity(value: object) -> None:
    with pytest.raises(ValueError, match="only finite numbers"):
        canonical_json(value)


@pytest.mark.parametrize(
    "value", [Path("a"), {1, 2}, b"x", object(), {"a": [{"b": Path("c")}]}, {1: "a"}]
)
def test_what_json_cannot_say_has_no_identity(value: object) -> None:
    with pytest.raises(TypeError, match="value"):
        canonical_json(value)


def test_the_place_of_a_bad_value_is_named() -> None:
    with pytest.raises(TypeError, match=r"^value\.a\[1\]\.b is a PosixPath"):
        canonical_json({"a": [0, {"b": Path("c")}]})


def test_file_digest(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
