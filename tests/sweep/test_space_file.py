"""Search space files: YAML in, nothing evaluated, one sentence when it cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.sweep.space_file import read_space

TEXT = """
name: alpha
finetune:
  - name: phones
    objectives: [{head: ctc, corpus: {}, column: phones}]
    updates: 10
    peak_learning_rate: 1e-4
    clip_norm: 1E+0
merge:
  - alpha: {grid: [0, .25, 1]}
evaluate:
  - {task: pr, corpus: {}, updates: 5, learning_rate: [5.e-4, 1.0e-3]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "space.yaml"


def test_a_file_is_read(path: Path) -> None:
    path.write_text(TEXT)
    spec = read_space(path)
    assert spec.finetune[0].peak_learning_rate == 1e-4  # YAML 1.1 takes 1e-4 for text
    assert spec.finetune[0].clip_norm == 1.0
    assert [entry.alpha for entry in spec.merge] == [0.0, 0.25, 1.0]
    assert spec.evaluate[0].learning_rate == (5e-4, 1e-3)


@pytest.mark.parametrize("text", ["1.2.3", "e5", "1e", "12e4x", "2024-01-01e"])
def test_text_that_only_looks_like_a_number_stays_text(path: Path, text: str) -> None:
    path.write_text(TEXT.replace("task: pr", f"task: {text}"))
    assert read_space(path).evaluate[0].task == text


def test_mistakes_name_the_file(path: Path) -> None:
    path.write_text(TEXT.replace("updates: 10", "updates: -1"))
    with pytest.raises(SpecError) as caught:
        read_space(path)
    assert caught.value.where == str(path)
    assert caught.value.mistakes == (
        ("finetune[0].updates", "must be at least 1, but is -1 instead."),
    )


def test_a_missing_file(path: Path) -> None:
    with pytest.raises(
        UserError, match=r"there is no search space `.*space.yaml`: give a YAML file"
    ):
        read_space(path)


@pytest.mark.parametrize("content", [b"name: [1, 2", b"a: b: c", b"\t- x"])
def test_what_is_no_yaml_is_told_in_one_line(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not YAML: ") as caught:
        read_space(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_told(path: Path) -> None:
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match=r"cannot be read .* UTF-8"):
        read_space(path)


def test_an_empty_file(path: Path) -> None:
    path.write_text("")
    with pytest.raises(SpecError, match="must be a mapping"):
        read_space(path)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "!!python/name:os.system",
        "!include other.yaml",
    ],
)
def test_nothing_in_a_file_is_evaluated(
    path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.chdir(path.parent)
    path.write_text(f"name: {value}\n")
    with pytest.raises(UserError, match="is not YAML"):
        read_space(path)
    assert not (path.parent / "ran").exists()
