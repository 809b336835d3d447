"""Every mistake of a space has its line and path, the nearest name, and is told once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechft_ray.cli import main
from speechft_ray.commands.checks import check_names
from speechft_ray.commands.parts import find_space
from speechft_ray.core.errors import SpecError, SweepError, UserError, printable
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.space_file import LARGEST_FILE, open_space, read_space
from tests.sweep.fakes import inputs

SPACE = """\
name: small
encoder: tiny_hubert
finetune:
  - &phones
    name: phones
    objectives:
      - head: frame
        corpus: {name: synthetic, options: {part: phones}}
        column: phones
    updates: 10
    seed: {grid: [0, 1]}
  - {<<: *phones, name: penalty, anchor_penalty: {grid: [1e-3, 1e-2]}}
merge:
  - method: ties
    params: {density: 0.2}
    alpha: {grid: [0.25, 0.5]}
  - {donors: [phones], alpha: 0.5}
evaluate:
  - task: pr
    corpus: {options: {part: pr}}
    updates: 5
    learning_rate: 1e-2
score: {zero: measured, topline: {pr.per: 0}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "space.yaml"


def mistakes(path: Path, *changes: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Line and column, path and sentence of every mistake of the space with some texts replaced."""
    text = SPACE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        file = open_space(path)
        with file.name_lines():
            check_names(file.spec)
            make_plan(file.spec, inputs())
    error = caught.value
    assert not isinstance(error, SweepError) and error.where == str(path)
    assert len(error.places) == len(error.mistakes)
    rows = str(error).splitlines()[1:]
    for row, place, (name, sentence) in zip(rows, error.places, error.mistakes, strict=True):
        assert row == f"  {place}: {printable(name)}: {sentence}"
    return [
        (place.removeprefix(f"{path}:"), *mistake)
        for place, mistake in zip(error.places, error.mistakes, strict=True)
    ]


def test_the_space_itself_is_valid(path: Path) -> None:
    path.write_text(SPACE)
    file = open_space(path)
    with file.name_lines():
        check_names(file.spec)
    assert len(file.spec.finetune) == 6 and len(make_plan(file.spec, inputs()).rows) > 1


@pytest.mark.parametrize(
    ("change", "place", "name", "sentence"),
    [
        # a field, a section and an axis that are misspelt: told once, with the nearest name
        (("updates: 10", "uptates: 10"), "10:5", "finetune[0].uptates", "Did you mean `updates`?"),
        (("evaluate:", "evalute:"), "18:1", "evalute", "Did you mean `evaluate`?"),
        (("merge:", "merges:"), "13:1", "merges", "Did you mean `merge`?"),
        (("grid: [0.25", "gird: [0.25"), "16:5", "merge[0].alpha", "Did you mean the axis `grid`?"),
        (("{grid: [0, 1]}", "{Grid: [0, 1]}"), "11:5", "finetune[0].seed", "the axis `grid`?"),
        (("1e-2\nscore", "{girds: [1e-2]}\nscore"), "22:5", "evaluate[0].learning_rate",
         "must be a number, 'grid' or a list, but is {'girds': [0.01]} instead. Did you mean"),
        (("density: 0.2", "density: {log_uniform: [0.1, 1]}"), "15:14", "merge[0].params.density",
         "Did you mean the axis `loguniform`?"),
        (("{name: synthetic, options: {part: phones}}", "{gird: [{name: synthetic}]}"), "8:18",
         "finetune[0].objectives[0].corpus.gird", "Did you mean the axis `grid`?"),
        (("{density: 0.2}", "{gird: [{density: 0.2}]}"), "15:14", "merge[0].params.gird",
         "Did you mean the axis `grid`?"),
        (("[0.25, 0.5]}", "[0.25, 0.5], samples: 2}"), "16:5", "merge[0].alpha",
         "An axis stands alone in its mapping: move `samples` out of that of `grid`"),
        (("[0.25, 0.5]", "{a: 1}"), "16:5", "merge[0].alpha", "`grid` must be a list that is not"),
        # values: wrong kinds, ranges, literals, unions; in an anchor, in a grid
        (("1e-2\nscore", "'gird'\nscore"), "22:5", "evaluate[0].learning_rate", "mean `grid`?"),
        (("1e-2\nscore", "-1\nscore"), "22:5", "evaluate[0].learning_rate",
         "must be greater than 0, but is -1 instead."),
        (("1e-2\nscore", "[1e-2, x]\nscore"), "22:27", "evaluate[0].learning_rate[1]",
         "must be a number, but is 'x' instead."),
        (("updates: 10", "updates: ten"), "10:5", "finetune[0].updates", "must be a whole number"),
        (("updates: 5", "updates: 5\n    folds: {fold: [1]}"), "22:13", "evaluate[0].folds.fold",
         "must have at least 2, but is [1] instead."),
        (("zero: measured", "zero: measurd"), "23:9", "score.zero", "Did you mean `measured`?"),
        (("topline: {pr.per", "topline: {pr.pre"), "23:35", "score.topline.pr.pre",
         "Did you mean `pr.per`?"),
        # names that the registries know, in entries with axes: the entry of the file, told once
        (("head: frame", "head: fram"), "7:9", "finetune[0].objectives[0].head", "mean `frame`?"),
        (("column: phones", "colum: phones"), "9:9", "finetune[0].objectives[0].colum",
         "`column`?"),
        (("method: ties", "method: tise"), "14:5", "merge[0].method", "Did you mean `ties`?"),
        (("task: pr", "task: prr"), "19:5", "evaluate[0].task", "Did you mean `pr`?"),
        (("part: pr}", "part: prr}"), "20:24", "evaluate[0].corpus.options.part", "'pr'"),
        (("donors: [phones]", "donors: [phonse]"), "17:6", "merge[1].donors", "mean `phones`?"),
        # what only the plan finds
        (("donors: [phones]", "donors: [phones, penalty], checkpoint: 0.2"), "17:33",
         "merge[1].checkpoint", "keeps no weights at 0.2"),
        (("name: penalty,", "name: penalty, seed: 7,"), "17:6", "merge[1].donors", "no seed was"),
    ],
)  # fmt: skip
def test_one_mistake_is_told_once_at_its_line(
    path: Path, change: tuple[str, str], place: str, name: str, sentence: str
) -> None:
    changes = [change]
    if "no seed" in sentence:
        changes.append(("donors: [phones]", "donors: [phones, penalty]"))
    ((where, field, text),) = mistakes(path, *changes)
    assert (where, field) == (place, name)
    assert sentence in text


def test_mistakes_come_in_the_order_of_the_file(path: Path) -> None:
    changes = [("task: pr", "tsk: pr"), ("alpha: 0.5", "alpha: 2"), ("head: frame", "hed: frame")]
    rows = mistakes(path, *changes)
    assert [(place, name) for place, name, _ in rows] == [
        ("7:9", "finetune[0].objectives[0].hed"),
        ("17:24", "merge[1].alpha"),
        ("19:5", "evaluate[0].tsk"),
    ]


def test_entries_below_a_missing_section_are_told_once(path: Path) -> None:
    ((place, name, text),) = mistakes(path, ("evaluate:\n", ""))
    assert (place, name) == ("18:5", "merge[2]")
    assert "which are fields of `evaluate`: its entries belong below a line `evaluate:`" in text


def test_letters_that_break_lines_are_escaped(path: Path) -> None:
    ((_, _, text),) = mistakes(path, ("updates: 10", 'updates: 10\n    "a\\n\\e[31mb": 1'))
    assert r"`a\n\x1b[31mb`" in text


def test_the_encoder_of_a_space_has_its_line(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(SPACE.replace("encoder: tiny_hubert", "encoder: tiny_hubrt"))
    arguments = ["plan", "--space", str(path), "--storage", str(path.parent / "runs")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"{path}:2:1: encoder: " in error and "tiny_hubert" in error
    # One that the command line gives is no mistake of the space.
    assert main([*arguments, "--encoder", "tiny_hubrd"]) == 2
    error = capsys.readouterr().err
    assert str(path) not in error and "tiny_hubrd" in error


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfen\x00a\x00", "cannot be read (it is UTF-16): save it as UTF-8."),
        (b"name: a\nb: \xe9\n", ":2` cannot be read (byte 0xe9 is not UTF-8): give a UTF-8"),
        (b"\x7fELF\x02\x01\x00", ":1:1` is not YAML: the character U+007F is not allowed"),
        (b"", "(file): must be a mapping with name, encoder, finetune, merge, evaluate, score."),
        (b"- a\n- b\n", ":1:1: (file): must be a mapping with name"),
        (b"a" * (LARGEST_FILE + 1), "has more than 4 MB and is no search space"),
    ],
    ids=["utf-16", "latin-1", "binary", "empty", "list", "large"],
)
def test_files_that_are_no_space(
    path: Path, capsys: pytest.CaptureFixture[str], content: bytes, sentence: str
) -> None:
    path.write_bytes(content)
    assert main(["plan", "--space", str(path), "--storage", str(path.parent / "runs")]) == 2
    error = capsys.readouterr().err
    assert sentence in error and str(path) in error and "Traceback" not in error
    assert not (path.parent / "runs").exists()


def test_folders_and_names_that_no_file_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alpha").mkdir()
    assert find_space("alpha").is_file(), "a folder of results does not hide a packaged space"
    for space in (".", str(tmp_path), "", "a" * 5000, "~nobody-has-this-name/space", "alpah"):
        assert main(["plan", "--space", space, "--storage", "runs"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("speechft: ") and "Traceback" not in error
        assert len(error.strip().splitlines()) == 1


def test_a_byte_order_mark_and_windows_lines_are_read(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + SPACE.replace("\n", "\r\n").encode())
    assert read_space(path).name == "small"


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """``--space <(sed ... FILE)``: mistakes that only a plan finds still have their lines."""
    reader, writer = os.pipe()
    os.write(writer, SPACE.replace("task: pr", "task: prr").encode())
    os.close(writer)
    with pytest.raises(SpecError, match=rf"/dev/fd/{reader}:19:5: evaluate\[0\]\.task: unknown"):
        file = open_space(Path(f"/dev/fd/{reader}"))
        with file.name_lines():
            check_names(file.spec)
    os.close(reader)


def test_help_loads_no_yaml() -> None:
    code = (
        "import sys; from speechft_ray.cli import main; main(['--help']); "
        "sys.exit('ruamel.yaml' in sys.modules or 'yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`.*/file/space.yaml` cannot be read \(Not a directory\)"):
        (tmp_path / "file").write_text("")
        open_space(tmp_path / "file" / "space.yaml")
