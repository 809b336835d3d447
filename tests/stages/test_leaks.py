"""Leaks of a plan: the merges that have some, the stored overlaps, and the marks in tables."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

import speechft_ray.stages.leaks
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.core.store import Store
from speechft_ray.report.lines import add_leaks, group_rows
from speechft_ray.report.table import csv_table, leak_lines, markdown_table, table_cells
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.stages.leaks import find_leaks
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.protocols import EncoderRow, Leak
from tests.report.report_data import FAILURE, REFERENCES, ROWS
from tests.speech.corpora.in_memory import make_corpus
from tests.sweep.fakes import inputs, space, sweep

PARTS = {
    "phones": make_corpus(
        [("a", "train", "ann"), ("b", "train", "bob")],
        "synthetic/phones",
        speaker_namespace="synthetic",
    ),
    "pr": make_corpus([("a", "test", "cid")], "synthetic/pr", speaker_namespace="synthetic"),
    "sid": make_corpus(
        [("x", "test", "ann"), ("y", "test", "dan")], "synthetic/sid", speaker_namespace="synthetic"
    ),
}
LEAK = Leak("narrow", "sid", 0, 2, 1, 2)


def test_every_merge_of_a_run_has_its_leaks_and_they_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_corpus(spec: CorpusSpec, place: Place) -> Corpus:
        opened.append(str(spec.options["part"]))
        return PARTS[opened[-1]]

    monkeypatch.setattr(speechft_ray.stages.leaks, "open_corpus", open_corpus)
    plan, store, resolved = make_plan(sweep(), inputs()), Store(tmp_path), inputs()
    place = Place(storage=str(tmp_path), encoder="e")
    # No corpus is made only for a report.
    assert find_leaks(plan, store, place, resolved.corpus) == {} and not opened
    for job in plan.of_stage("corpus"):
        with store.publish("corpus", job.fingerprint, {}):
            pass
    leaks = find_leaks(plan, store, place, resolved.corpus)
    tuned = {row.key for row in plan.rows if row.params["alpha"]}
    assert leaks == dict.fromkeys(tuned, (LEAK,)) and 0 < len(tuned) < len(plan.rows)
    assert sorted(opened) == ["phones", "phones", "pr", "sid"]
    assert find_leaks(plan, store, place, resolved.corpus) == leaks and len(opened) == 4


def test_a_chain_has_the_leaks_of_its_earlier_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        speechft_ray.stages.leaks,
        "open_corpus",
        lambda spec, place: PARTS[str(spec.options["part"])],
    )
    first = {**space()["finetune"][0], "seed": 0}
    other = {**first["objectives"][0], "corpus": {"name": "synthetic", "options": {"part": "pr"}}}
    runs = [
        first,
        {**first, "name": "wide", "objectives": [other], "after": {"finetune": "narrow"}},
    ]
    plan, store, resolved = make_plan(sweep(finetune=runs), inputs()), Store(tmp_path), inputs()
    for job in plan.of_stage("corpus"):
        with store.publish("corpus", job.fingerprint, {}):
            pass
    leaks = find_leaks(plan, store, Place(storage=str(tmp_path), encoder="e"), resolved.corpus)
    chained = {row.key for row in plan.rows if row.params["finetune"] == "narrow>wide"}
    assert chained and all(LEAK in leaks[key] for key in chained)


def test_leaks_are_marked_and_explained() -> None:
    leak = Leak("phones <b>", "er", 3, 400, 5, 10)
    marked: dict[str, list[Leak]] = {row.key: [leak] for row in ROWS if row.params["alpha"] == 0.25}
    lines = add_leaks(group_rows(ROWS), marked)
    (line,) = [group for group in lines if group.alpha == 0.25]
    score, per, accuracy = (
        table_cells(line, ["pr.per", "er.accuracy"])[place] for place in (3, 5, 6)
    )
    assert score.endswith(" †") and accuracy.endswith(" †") and "†" not in per
    assert not any(
        "†" in cell
        for group in lines
        if group is not line
        for cell in table_cells(group, ["er.accuracy"])
    )
    sentence = (
        "phones <b> was tuned on 3 of the 400 test utterances of er and 5 of its 10 speakers."
    )
    assert leak_lines(lines) == [sentence]
    assert "phones &lt;b&gt; was tuned on 3 of the 400" in markdown_table(
        "m", lines, [FAILURE], REFERENCES
    )
    table = {item["title"]: item["leaks"] for item in csv.DictReader(io.StringIO(csv_table(lines)))}
    assert [title for title, text in table.items() if text] == [line.title] and table[
        line.title
    ] == sentence.rstrip(".")


def test_without_leaks_there_are_no_marks() -> None:
    rows: list[EncoderRow] = ROWS
    assert leak_lines(group_rows(rows)) == [] and "†" not in markdown_table(
        "m", group_rows(rows), [], REFERENCES
    )
