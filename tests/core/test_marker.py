"""A node that sees another folder under the storage path is told apart, by name."""

from __future__ import annotations

import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechft_ray.core.marker import MARKER, explain_other_storage, mark_storage
from speechft_ray.core.records import Place


def place(root: Path, identity: str | None) -> Place:
    return Place(storage=str(root), encoder="none", storage_id=identity)


def test_a_folder_keeps_its_marker(tmp_path: Path) -> None:
    identity = mark_storage(tmp_path)
    assert identity and mark_storage(tmp_path) == identity
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]
    assert explain_other_storage(place(tmp_path, identity)) is None
    assert explain_other_storage(place(tmp_path / "nowhere", None)) is None  # not checked


def test_drivers_that_mark_one_folder_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            root = tmp_path / str(number)
            root.mkdir()
            assert len(set(threads.map(mark_storage, [root] * 8))) == 1


def test_another_folder_is_told_with_the_node_and_not_made(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    identity = mark_storage(ours)
    sentence = explain_other_storage(place(theirs, identity)) or ""
    assert f"node {socket.gethostname()} sees no {MARKER}" in sentence and str(theirs) in sentence
    assert not theirs.exists()
    theirs.mkdir()
    mark_storage(theirs)
    assert "another folder" in (explain_other_storage(place(theirs, identity)) or "")
    shutil.copy(ours / MARKER, theirs / MARKER)
    assert explain_other_storage(place(theirs, identity)) is None
    (theirs / MARKER).write_text("{")
    assert explain_other_storage(place(theirs, identity)) is not None
