"""``speechft corpora``: output and exit codes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from speechft_ray.cli import main
from speechft_ray.commands.parts import corpus_identity, resolve_place
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.speech.corpora.base import CORPORA, Corpus, ExpectedCounts, Utterance
from speechft_ray.speech.corpora.corpus_stats import compare_stats, compute_stats
from speechft_ray.sweep.space_file import read_space
from tests.speech.layouts import librispeech, quesst14, voxceleb1

SWEEP = read_space(Path(__file__).parents[2] / "search_spaces/alpha.yaml")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return librispeech.lay_out(tmp_path_factory.mktemp("librispeech") / "root", lexicon=False)


def check(*arguments: object) -> int:
    return main(["corpora", "check", *map(str, arguments)])


def test_list_has_the_layout_of_every_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpora", "list"]) == 0
    printed = capsys.readouterr().out
    for name, kind in CORPORA.items():
        assert name in printed and kind.layout.split()[0] in printed


def test_check_prints_numbers_differences_and_missing_resources(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("librispeech", tree, "--storage", tmp_path) == 0
    printed = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in printed.splitlines()
        if line.startswith("│")
    ]
    assert [row[:2] + row[3:4] for row in rows] == [
        ["train", "8", "2"],
        ["dev", "4", "2"],
        ["test", "4", "2"],
    ]
    assert "note: utterances in train: 8, expected 28,539" in printed
    assert "Usable, but not what Panayotov et al. 2015" in printed
    assert "lexicon/librispeech-lexicon-200k-g2p.txt" in printed and "https://" in printed
    assert list((tmp_path / "corpora").glob("librispeech-*.json")), (
        "measured once, for sweeps as well"
    )


def test_check_takes_options_and_has_no_numbers_for_some(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--option", "train=[train-clean-100, test-clean]", "--option", "test=[]")
    assert check("librispeech", tree, "--storage", tmp_path, *options) == 0
    assert "No source is known" in capsys.readouterr().out


def test_check_counts_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = voxceleb1.lay_out(tmp_path / "root")
    options = ("--option", "task=verification", "--option", "protocol=clean")
    assert check("voxceleb1", root, "--storage", tmp_path, *options) == 0
    assert "trials of test: 3, expected 37,720" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["librispeeech", "."], "Did you mean `librispeech`?"),
        (["synthetic", "."], "is synthesised: there is no folder"),
        (["librispeech", "{root}", "--option", "train"], "NAME=VALUE"),
        (["librispeech", "{root}", "--option", "train=["], "not YAML"),
        (["librispeech", "{root}", "--option", "trian=[]"], "Did you mean `train`?"),
        (["librispeech", "{root}/dev-clean"], "one level too low"),
        (["librispeech", "{root}/.."], "one level too high"),
        (["librispeech", "{root}/nowhere"], "does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    paths = (argument.format(root=tree) for argument in arguments)
    assert check(*paths, "--storage", tmp_path / "runs") == 2
    output = capsys.readouterr()
    assert words in output.err and "Traceback" not in output.err and not output.out.strip()
    assert not (tmp_path / "runs").exists(), "nothing half written"


def test_a_folder_of_another_case_is_suggested(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenSLR's archive unpacks to LibriSpeech."""
    root = tmp_path / "librispeech"
    shutil.copytree(tree, tmp_path / "LibriSpeech")
    assert check("librispeech", root, "--storage", tmp_path) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"`ln -s LibriSpeech {root}`" in error
    root.symlink_to("LibriSpeech")
    assert check("librispeech", root, "--storage", tmp_path) == 0


def test_a_corpus_that_cannot_be_used_ends_with_2(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tree, tmp_path / "root"))
    shutil.rmtree(root / "dev-clean")
    assert check("librispeech", root, "--storage", tmp_path) == 2
    assert "its split dev" in capsys.readouterr().err


def test_a_sweep_prints_the_notes_of_a_corpus_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = quesst14.lay_out(tmp_path / "corpora/quesst14")
    (root / "Audio/quesst14_00002.wav").write_bytes(b"x")
    spec = CorpusSpec(name="quesst14", options={"on_bad_audio": "skip"})
    place = resolve_place(SWEEP, storage=tmp_path / "runs", corpora=tmp_path / "corpora")
    assert corpus_identity(spec, place) == corpus_identity(spec, place)
    errors = capsys.readouterr().err
    assert errors.count("6 of 6 files are not at 16 kHz (8000 Hz) and are resampled.") == 1
    assert errors.count("1 bad files are left out") == 1 and "quesst14_00002.wav" in errors


def make_small_corpus() -> Corpus:
    def make_utterance(index: int, split: str, speaker: str, emotion: str) -> Utterance:
        labels = {"speaker": speaker, "emotion": emotion, "text": f"line {index}"}
        return Utterance(key=f"u{index}", split=split, samples=16_000 * 1800, labels=labels)

    utterances = [
        make_utterance(
            index, ("train", "train", "test")[index % 3], f"s{index} s9", "ab"[index % 2]
        )
        for index in range(6)
    ]
    return Corpus(
        name="small",
        fingerprint="f",
        utterances=utterances,
        read=lambda _: None,  # type: ignore[arg-type,return-value]
        columns=frozenset({"speaker", "emotion", "text"}),
        trials=[(True, "u2", "u5"), (False, "u0", "u1")],
    )


def test_counting() -> None:
    train, dev, test = compute_stats(make_small_corpus())
    assert (train.utterances, train.hours, train.speakers, train.classes) == (
        4,
        2.0,
        5,
        {"emotion": 2},
    )
    assert (dev.utterances, dev.hours, dev.speakers, dev.classes) == (0, 0.0, 0, {"emotion": 0})
    assert (test.utterances, test.speakers) == (2, 3)


def test_every_difference_is_one_sentence() -> None:
    corpus = make_small_corpus()
    expected = ExpectedCounts(
        source="a test",
        utterances={"train": 4, "test": 2},
        hours={"train": 2.03},
        speakers={"train": 5},
        classes={"emotion": 2},
        trials=1,
    )
    assert compare_stats(corpus, compute_stats(corpus), expected) == []
    wrong = replace(
        expected,
        utterances={"train": 5},
        hours={"test": 3.0},
        classes={"emotion": 4, "x": 1},
        trials=2,
    )
    assert compare_stats(corpus, compute_stats(corpus), wrong) == [
        "utterances in train: 4, expected 5",
        "hours in test: 1.0, expected 3",
        "labels in the column emotion: 2, expected 4",
        "labels in the column x: 0, expected 1",
        "trials of test: 1, expected 2",
    ]
