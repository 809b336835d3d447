"""Manifests as pandas, spreadsheets, the csv module and other systems write them."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.fingerprint import file_sha256, fingerprint
from speechft_ray.speech.corpora._rows import Row, read_rows
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.corpora.manifest import ManifestOptions, open_manifest

ROWS = [
    ["u0.wav", "train", "ann", "yes it is"],
    ["u1.wav", "train", "bob", "no"],
    ["u2.wav", "dev", "ann", "yes it is"],
    ["u3.wav", "test", "bob", "no"],
]
END = "tasks and heads that read this column refuse the corpus."
HEADER = ["path", "split", "speaker", "text"]


def write_recordings(folder: Path, samples: int = 1600) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(ROWS):
        soundfile.write(folder / row[0], np.full(samples, 0.1 * (index + 1)), 16_000)
    return folder


def write_table(file: Path, separator: str, rows: list[list[str]], end: str = "\n") -> Path:
    file.write_bytes(end.join(separator.join(row) for row in rows).encode())
    return file


def open_at(root: Path, **options: str) -> Corpus:
    return open_manifest(ManifestOptions.model_validate(options), root, root.parent / "cache")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_recordings(tmp_path / "home")


def labels_of(corpus: Corpus) -> list[dict[str, str]]:
    return [dict(utterance.labels) for utterance in corpus.utterances]


def test_separators_byte_order_marks_and_line_ends_make_no_difference(home: Path) -> None:
    first = open_at(write_table(home / "manifest.tsv", "\t", [HEADER, *ROWS]))
    assert first.utterances[0].labels == {"speaker": "ann", "text": "yes it is"}
    for number, (separator, end) in enumerate(
        (separator, end) for separator in "\t,;" for end in ("\n", "\r\n", "\r")
    ):
        file = write_table(home / f"{number}.txt", separator, [HEADER, *ROWS, [""]], end)
        assert open_at(file).fingerprint == first.fingerprint, (separator, end)
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        assert open_at(file).fingerprint == first.fingerprint, (separator, end)
    # A spreadsheet ends with empty rows, and puts blanks where a person did.
    rows = [[f" {cell} " for cell in row] for row in [HEADER, *ROWS]] + [[""] * 4] * 2
    blank = open_at(write_table(home / "blanks.csv", ",", rows))
    assert blank.utterances == first.utterances


def test_a_folder_may_hold_a_comma_separated_manifest(home: Path) -> None:
    write_table(home / "manifest.csv", ",", [HEADER, *ROWS])
    assert len(open_at(home).utterances) == 4
    write_table(home / "manifest.tsv", "\t", [HEADER, *ROWS[:3]])
    assert len(open_at(home).utterances) == 3, "manifest.tsv comes first"


def test_the_separator_follows_from_the_header_alone(home: Path) -> None:
    """Commas in labels and in the name of a column are text in a tab-separated file."""
    rows = [[*HEADER[:3], "text, as read"], *([*row[:3], "well, yes; no"] for row in ROWS)]
    corpus = open_at(write_table(home / "manifest.tsv", "\t", rows))
    assert corpus.columns == {"speaker", "text, as read"}
    assert corpus.utterances[0].labels["text, as read"] == "well, yes; no"


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ('"he said ""yes"""', 'he said "yes"'),
        ('"""yes"""', '"yes"'),
        ('""""', '"'),
        ('"yes"', '"yes"'),
        ('"yes', '"yes'),
        ('5" wide', '5" wide'),
        ('""yes', '""yes'),
        ('"a""', '"a""'),
        ('"tab\there"', "tab\there"),
        ('"two\nlines"', "two\nlines"),
    ],
)
def test_a_quoted_cell_is_unquoted_only_where_it_needs_quotes(
    home: Path, cell: str, label: str
) -> None:
    rows = [HEADER, *([*row[:3], cell] for row in ROWS)]
    corpus = open_at(write_table(home / "manifest.tsv", "\t", rows))
    assert {labels["text"] for labels in labels_of(corpus)} == {label}


def test_rows_that_begin_and_end_with_quotes_stay_rows(home: Path) -> None:
    """Each line has all its cells: the quotes are those of a transcript."""
    texts = ['"Yes, he said', 'and left."', '"', "no"]
    rows = [HEADER, *([*row[:3], text] for row, text in zip(ROWS, texts, strict=True))]
    corpus = open_at(write_table(home / "manifest.tsv", "\t", rows))
    assert [labels["text"] for labels in labels_of(corpus)] == texts


def test_a_file_with_quotes_everywhere_and_an_index_column(home: Path) -> None:
    """``DataFrame.to_csv(quoting=QUOTE_ALL)``, which writes a column without a name."""
    plain = open_at(write_table(home / "manifest.tsv", "\t", [HEADER, *ROWS]))
    rows = [["", *HEADER], *([str(index), *row] for index, row in enumerate(ROWS))]
    for separator in "\t,":
        quoted = [[f'"{cell}"' for cell in row] for row in rows]
        corpus = open_at(write_table(home / "quoted.txt", separator, quoted))
        assert corpus.utterances == plain.utterances and corpus.columns == plain.columns


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    labels=st.lists(
        st.one_of(st.text("ab,;\t\"' é", max_size=8), st.text("ab,;\n\"' é", max_size=8)),
        min_size=1,
        max_size=4,
    ),
    separator=st.sampled_from("\t,;"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_the_csv_module_writes_is_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    labels: list[str],
    separator: str,
    quoting: int,
    end: str,
) -> None:
    text = io.StringIO()
    options: Any = {"delimiter": separator, "quoting": quoting, "lineterminator": end}
    writer = csv.writer(text, **options)
    writer.writerow(HEADER)
    writer.writerows([f"{index}.wav", "train", "s", label] for index, label in enumerate(labels))
    file = tmp_path_factory.mktemp("table") / "manifest.tsv"
    file.write_bytes(text.getvalue().encode())
    assert [row.labels["text"] for row in read_rows(file)] == [label.strip() for label in labels]


def test_labels_lose_surrounding_blanks_and_identity_does_not_change(home: Path) -> None:
    """The fingerprint is that of the cells as they are written, as it always was."""
    rows = [HEADER, ["u0.wav", "train", " ann", "yes "], *ROWS[1:]]
    corpus = open_at(write_table(home / "manifest.tsv", "\t", rows))
    assert corpus.utterances[0].labels == {"speaker": "ann", "text": "yes"}
    content = [
        [row[0], row[1], {"speaker": row[2], "text": row[3]}, file_sha256(home / row[0])]
        for row in rows[1:]
    ]
    assert corpus.fingerprint == fingerprint(content)


def test_missing_and_alike_labels_are_told_when_the_corpus_is_opened(home: Path) -> None:
    rows = [HEADER, ["u0.wav", "train", "", "yes it is"], *ROWS[1:3], ["u3.wav", "test", "ANN", ""]]
    corpus = open_at(write_table(home / "manifest.tsv", "\t", rows))
    assert corpus.notes == (
        f"the utterance `u0.wav` has no label in the column `speaker` (1 of 2 in train); {END}",
        f"the utterance `u3.wav` has no label in the column `text` (1 of 1 in test); {END}",
    )
    names = ["ann", "Ann", "ann", "Ann"]
    rows = [HEADER, *([*row[:2], name, row[3]] for row, name in zip(ROWS, names, strict=True))]
    (note,) = open_at(write_table(home / "manifest.tsv", "\t", rows)).notes
    assert note == (
        "labels in the column `speaker` differ in case or Unicode form alone, and count as "
        "different: `Ann` and `ann`."
    )


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_names_of_files_in_another_unicode_form(tmp_path: Path, written: str, on_disk: str) -> None:
    """Folder and file have one form each, as after a copy from macOS into an older tree."""
    folder = unicodedata.normalize("NFC", "Übung")
    name = unicodedata.normalize(on_disk, "grün.wav")  # type: ignore[arg-type]
    write_recordings(tmp_path / folder)
    (tmp_path / folder / "u0.wav").rename(tmp_path / folder / name)
    path = unicodedata.normalize(written, f"{folder}/grün.wav")  # type: ignore[arg-type]
    rows = [HEADER, [path, *ROWS[0][1:]], [f"{folder}/u1.wav", *ROWS[1][1:]]]
    corpus = open_at(write_table(tmp_path / "manifest.tsv", "\t", rows))
    assert path in {utterance.key for utterance in corpus.utterances}
    for utterance in corpus.utterances:
        assert len(corpus.read(utterance)) == 1600
    rows.append([unicodedata.normalize("NFC" if written == "NFD" else "NFD", path), *ROWS[0][1:]])
    with pytest.raises(SpecError):
        open_at(write_table(tmp_path / "manifest.tsv", "\t", rows))


def test_paths_of_windows(home: Path) -> None:
    write_recordings(home / "wav")
    rows = [HEADER, *([f"wav\\{row[0]}", *row[1:]] for row in ROWS)]
    corpus = open_at(write_table(home / "manifest.tsv", "\t", rows))
    assert len(corpus.read(corpus.utterances[3])) == 1600


def test_a_clip_below_one_frame_is_found_and_counted(home: Path) -> None:
    for name, samples in (("u1.wav", 399), ("u3.wav", 400)):
        soundfile.write(home / name, np.full(samples, 0.1), 16_000)
    write_table(home / "manifest.tsv", "\t", [HEADER, *ROWS])
    with pytest.raises(SpecError) as error:
        open_at(home)
    ((where, sentence),) = error.value.mistakes
    assert where == "line 3" and sentence == (
        "`u1.wav` has 399 samples at 16 kHz, and the first frame of an encoder needs 400 (25 ms); "
        "`on_bad_audio: skip` goes without it"
    )
    corpus = open_at(home, on_bad_audio="skip")
    assert corpus.skipped == {"train": 1} and len(corpus.utterances) == 3
    write_recordings(home, samples=20)
    with pytest.raises(SpecError, match="4 mistakes"):
        open_at(home, on_bad_audio="skip")


def test_a_link_that_leaves_the_folder_is_named(home: Path, tmp_path: Path) -> None:
    write_recordings(tmp_path / "elsewhere")
    (home / "wav").symlink_to("../elsewhere")
    (home / "one.wav").symlink_to(tmp_path / "elsewhere/u0.wav")
    (home / "inner.wav").symlink_to("u0.wav")
    paths = ["wav/u0.wav", "one.wav", "../elsewhere/u0.wav", "inner.wav"]
    rows = [HEADER, *([path, "train", "ann", "yes"] for path in paths)]
    write_table(home / "manifest.tsv", "\t", rows)
    with pytest.raises(SpecError) as error:
        open_at(home)
    sentences = [sentence for _, sentence in error.value.mistakes]
    assert len(sentences) == 3
    assert "through the link wav -> ../elsewhere: rows of a manifest" in sentences[0]
    assert f"through the link one.wav -> {tmp_path}/elsewhere/u0.wav" in sentences[1]
    assert "through" not in sentences[2] and "paths must be relative" in sentences[2]


def test_why_a_file_is_not_there(home: Path) -> None:
    (home / "wav").write_text("../elsewhere/wav")
    (home / "gone").symlink_to("nowhere")
    (home / "gone.wav").symlink_to("nowhere.wav")
    (home / "._u0.wav").write_bytes(b"\x00\x05\x16\x07")
    paths = ["wav/u0.wav", "gone/u0.wav", "gone.wav", "._u0.wav"]
    rows = [HEADER, *([path, "train", "ann", "yes"] for path in paths)]
    write_table(home / "manifest.tsv", "\t", rows)
    with pytest.raises(SpecError) as error:
        open_at(home)
    for (_, sentence), words in zip(
        error.value.mistakes,
        (
            "a link that was copied as text?",
            "is a link to nowhere",
            "to nowhere.wav",
            "AppleDouble",
        ),
        strict=True,
    ):
        assert words in sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path\tsplit\n".encode("utf-16"), "is UTF-16 text"),
        (b'path,split\nu0.wav,"train\n', "line 2: is quoted wrongly"),
        (b"path,split\nu0.wav,train,ann\n", "has 3 cells where the header has 2 columns"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    ],
)
def test_tables_that_cannot_be_read(home: Path, content: bytes, words: str) -> None:
    (home / "manifest.tsv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        open_at(home)


def test_rows_have_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "manifest.csv"
    file.write_text('path,split,text\na.wav,train,"two\nlines"\n\nb.wav,dev,x\n')
    rows: list[Row] = read_rows(file)
    assert [(row.line, row.path) for row in rows] == [(2, "a.wav"), (5, "b.wav")]
