"""Files are replaced as a whole: no reader sees a part, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from speechft_ray.core.files import atomic_write, describe_lfs_pointer, name_new_file, write_json


def path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_body_that_raises_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_is_hidden_and_has_the_same_suffix(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.npy") as temporary:
        assert temporary.suffix == ".npy" and temporary.name.startswith(".")
        assert temporary.parent == tmp_path and temporary.read_bytes() == b""


def test_a_writer_may_replace_the_temporary_file(tmp_path: Path) -> None:
    """Some writers rename a private file of their own to the name they were called with."""
    with atomic_write(tmp_path / "a") as temporary:
        (tmp_path / "own").write_text("new")
        (tmp_path / "own").chmod(0o600)
        (tmp_path / "own").replace(temporary)
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_the_name_may_depend_on_the_content(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x", lambda file: file.read_text() + ".txt") as temporary:
        temporary.write_text("content")
    assert [path.name for path in tmp_path.iterdir()] == ["content.txt"]


def test_content_and_rename_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(path_of(fd)))
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert synced == [temporary, tmp_path]


def test_a_folder_that_cannot_be_synced_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_for_folders(descriptor: int) -> None:
        if path_of(descriptor).is_dir():
            raise OSError("not supported")

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").read_text() == "1"


def test_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "a"):
        raise AssertionError("the body must not run")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"b": 1, "a": [2]})
    assert path.read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}'
    for value, error in ((object(), TypeError), (float("nan"), ValueError)):
        with pytest.raises(error):
            write_json(path, {"a": value})
    assert json.loads(path.read_text()) == {"b": 1, "a": [2]}
    assert list(tmp_path.iterdir()) == [path]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_git_lfs_pointer_is_told_from_a_file_that_quotes_one(tmp_path: Path) -> None:
    lines = ("oid sha256:" + "0" * 64, "size 72862", "")
    pointer = "\n".join(("version https://git-lfs.github.com/spec/v1", *lines))
    for name, content, is_pointer in (
        ("clip.wav", pointer, True),
        ("old.wav", pointer.replace("git-lfs.github", "hawser.github"), True),
        ("notes.txt", f"# {pointer}", False),
        ("long.txt", pointer + "x" * 1024, False),
        ("empty", "", False),
    ):
        (tmp_path / name).write_text(content)
        sentence = describe_lfs_pointer(tmp_path / name)
        assert (sentence is not None) == is_pointer, name
        assert sentence is None or ("LFS pointer" in sentence and "git lfs pull" in sentence)
    assert describe_lfs_pointer(tmp_path / "absent") is None
    assert describe_lfs_pointer(tmp_path) is None


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_gets_its_name_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    path = tmp_path / "file"
    assert name_new_file(tmp_path / "first", path)
    assert not name_new_file(tmp_path / "second", path)
    assert path.read_text() == "first"
