"""Units in a bucket: published whole, read through a folder of the node, checked, resumed."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.storage import local_copies, mirror
from speechft_ray.storage import open as opening
from speechft_ray.storage.address import parse_url
from speechft_ray.storage.bucket import Bucket
from speechft_ray.storage.object_store import ObjectStore
from speechft_ray.storage.open import open_store
from tests.storage.s3_server import S3Server


def open_on(name: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Opens a storage as the process of another node, whose disk is its own."""
    monkeypatch.setenv("SPEECHFT_CACHE", str(tmp_path / name))
    opening._open_bucket.cache_clear()
    store = open_store(url)
    assert isinstance(store, ObjectStore)
    return store


def publish(store: ObjectStore, stage: str, key: str, content: bytes, **facts: object) -> None:
    with store.publish(stage, key, facts) as folder:
        (folder / "encoder.safetensors").write_bytes(content)


def test_a_unit_is_read_on_another_node(
    s3: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_on("first", url, tmp_path, monkeypatch)
    assert not first.is_complete("merge", "abc")
    content = os.urandom(20_000_000)  # sent in parts
    publish(first, "merge", "abc", content, alpha=0.5)
    assert first.is_complete("merge", "abc")
    writes = [line for line in s3.take_requests() if line.startswith("PUT") and "/merge/" in line]
    assert writes[-1].endswith("/merge/abc/manifest.json")
    second = open_on("second", url, tmp_path, monkeypatch)
    assert second.root != first.root and second.is_complete("merge", "abc")
    assert second.manifest("merge", "abc") == first.manifest("merge", "abc")
    assert (second.folder("merge", "abc") / "encoder.safetensors").read_bytes() == content
    s3.take_requests()
    second.folder("merge", "abc")
    assert s3.take_requests() == []  # it is here
    assert not [line for line in s3.take_requests() if line.startswith("LIST")]


def test_a_unit_without_a_manifest_is_not_complete_and_is_published_over(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker died between the files and the manifest."""
    store = open_on("first", url, tmp_path, monkeypatch)
    (tmp_path / "half").write_bytes(b"half")
    store.bucket.upload("merge/abc/encoder.safetensors", tmp_path / "half")
    assert not store.look_again("merge", "abc") and store.fingerprints("merge") == []
    publish(store, "merge", "abc", b"whole")
    other = open_on("second", url, tmp_path, monkeypatch)
    assert (other.folder("merge", "abc") / "encoder.safetensors").read_bytes() == b"whole"


def test_of_two_workers_with_one_unit_the_first_counts(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_on("first", url, tmp_path, monkeypatch)
    second = open_on("second", url, tmp_path, monkeypatch)
    with first.publish("evaluate", "abc", {"by": "first"}):
        publish(second, "evaluate", "abc", b"", by="second")
    assert first.manifest("evaluate", "abc")["by"] == "second"
    assert second.manifest("evaluate", "abc")["by"] == "second"


def test_two_workers_of_one_node_make_one_unit_and_neither_takes_the_files_of_the_other(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two sweeps do that need the same merge."""
    first, second = (open_on("node", url, tmp_path, monkeypatch) for _ in range(2))
    assert first is not second and first.root == second.root
    upload, name = first.bucket.upload, "encoder.safetensors"
    with ExitStack() as stack:
        begun: list[Path] = []

        def upload_late(key: str, path: Path) -> None:
            if not begun:
                begun.append(stack.enter_context(second.publish("merge", "abc", {})))
            upload(key, path)

        monkeypatch.setattr(first.bucket, "upload", upload_late)
        publish(first, "merge", "abc", b"weights", by="first")
        copy = (first.folder("merge", "abc") / name).stat()
        (begun[0] / name).write_bytes(b"weights")
    for store in (first, second, open_on("other", url, tmp_path, monkeypatch)):
        assert store.manifest("merge", "abc")["by"] == "first"
        assert (store.folder("merge", "abc") / name).read_bytes() == b"weights"
    # Somebody may be reading it.
    assert (first.folder("merge", "abc") / name).stat().st_ino == copy.st_ino
    assert [path.name for path in (first.root / "merge").iterdir()] == ["abc"]


def test_a_unit_that_was_removed_from_the_bucket_is_not_sent_from_an_old_copy(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = open_on("node", url, tmp_path, monkeypatch)
    publish(node, "merge", "abc", b"older", version=1)
    node.bucket.remove([item.key for item in node.bucket.list("merge/")])  # by a person
    again = open_on("node", url, tmp_path, monkeypatch)
    publish(again, "merge", "abc", b"newer", version=2)
    for store in (again, open_on("other", url, tmp_path, monkeypatch)):
        assert store.manifest("merge", "abc")["version"] == 2
        content = (store.folder("merge", "abc") / "encoder.safetensors").read_bytes()
        assert content == b"newer"


def test_damage_is_found_when_a_unit_is_read_and_it_is_set_aside(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_on("first", url, tmp_path, monkeypatch)
    publish(first, "merge", "abc", b"whole")
    first.bucket.write("merge/abc/encoder.safetensors", b"wholf")
    assert first.explain_damage("merge", "abc", contents=False) is None
    assert "differs from its sha256" in (first.explain_damage("merge", "abc", True) or "")
    second = open_on("second", url, tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"differs from its sha256; its unit is kept as s3://.*dam"):
        second.folder("merge", "abc")
    assert not second.is_complete("merge", "abc") and not first.look_again("merge", "abc")
    kept = [item.key for item in second.bucket.list("damaged/")]
    assert sorted(key.rsplit("/", 1)[1] for key in kept) == ["encoder.safetensors", "manifest.json"]
    publish(first, "merge", "abc", b"whole")
    third = open_on("third", url, tmp_path, monkeypatch)
    assert (third.folder("merge", "abc") / "encoder.safetensors").read_bytes() == b"whole"
    assert third.list_units() == [("merge", "abc")]


def test_a_copy_of_a_unit_that_was_computed_again_is_replaced(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_on("first", url, tmp_path, monkeypatch)
    publish(first, "merge", "abc", b"older")
    second = open_on("second", url, tmp_path, monkeypatch)
    second.folder("merge", "abc")
    first.discard("merge", "abc")
    publish(first, "merge", "abc", b"newer")
    again = open_on("second", url, tmp_path, monkeypatch)
    assert (again.folder("merge", "abc") / "encoder.safetensors").read_bytes() == b"newer"


def test_many_units_take_one_listing_and_an_old_listing_does_no_harm(
    s3: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_on("first", url, tmp_path, monkeypatch)
    for number in range(20):
        publish(first, "evaluate", f"e{number}", b"counts", score=number)
    second = open_on("second", url, tmp_path, monkeypatch)
    s3.take_requests()
    units = [("evaluate", f"e{number}") for number in range(500)]
    second.prefetch(units)
    assert sum(second.is_complete(*unit) for unit in units) == 20
    assert [second.manifest("evaluate", f"e{number}")["score"] for number in range(20)] == [
        *range(20)
    ]
    requests = s3.take_requests()
    assert sum(line.startswith("LIST") for line in requests) == 1
    assert len(requests) == 1 + 20 + 20  # manifests and counts
    # What the listing did not have is asked for where it matters: before a job, and after it.
    publish(first, "evaluate", "e20", b"counts", score=20)
    assert not second.is_complete("evaluate", "e20") and second.look_again("evaluate", "e20")
    third = open_on("second", url, tmp_path, monkeypatch)
    s3.take_requests()
    third.prefetch(units)  # as the next run on this node does
    assert len(s3.take_requests()) == 1 + 2


def test_the_copies_of_a_node_have_a_budget(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_on("first", url, tmp_path, monkeypatch)
    for name in "abcd":
        publish(first, "merge", name, name.encode() * 1000)
    monkeypatch.setenv("SPEECHFT_STORAGE_CACHE_GB", "2.5e-6")
    monkeypatch.setattr(local_copies, "RECENT_SECONDS", 0.0)
    second = open_on("second", url, tmp_path, monkeypatch)

    def list_copies() -> list[str]:
        files = second.root.glob("merge/*/encoder.safetensors")
        return sorted(path.parent.name for path in files)

    for name in "ab":
        second.folder("merge", name)
        time.sleep(0.02)
    second.folder("merge", "a")  # b is now the one that was not used for longest
    time.sleep(0.02)
    second.folder("merge", "c")
    assert list_copies() == ["a", "c"]
    assert (second.folder("merge", "b") / "encoder.safetensors").read_bytes() == b"b" * 1000
    assert second.is_complete("merge", "a")
    monkeypatch.setattr(local_copies, "RECENT_SECONDS", 600.0)
    second.folder("merge", "a")
    second.folder("merge", "d")
    assert set("bd") < set(list_copies())  # what is used now stays, whatever the budget says


def test_unfinished_work_goes_on_on_another_node(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PUSH_SECONDS", 0.01)
    first = open_on("first", url, tmp_path, monkeypatch)
    work = first.work_folder("finetune", "abc")
    (work / "state-1").write_bytes(b"one")
    (work / ".half").write_bytes(b"not whole")
    deadline = time.monotonic() + 60
    while not list(first.bucket.list("work/finetune-abc/")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (work / "state-2").write_bytes(b"two")
    (work / "state-1").unlink()
    first.end_work("finetune", "abc")  # the job was stopped
    second = open_on("second", url, tmp_path, monkeypatch)
    work = second.work_folder("finetune", "abc")
    assert [(path.name, path.read_bytes()) for path in work.iterdir()] == [("state-2", b"two")]
    publish(second, "finetune", "abc", b"weights")
    second.clear_work("finetune", "abc")
    assert list(second.bucket.list("work/")) == [] and not work.exists()


def test_small_files_of_a_driver_are_on_other_nodes(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_on("first", url, tmp_path, monkeypatch)
    with first.keep_records():
        (first.root / "plans").mkdir()
        (first.root / "plans" / "abc.json").write_text("{}")
    second = open_on("second", url, tmp_path, monkeypatch)
    second.pull_records()
    assert (second.root / "plans" / "abc.json").read_text() == "{}"


def test_one_percent_of_failing_requests_changes_nothing(
    s3: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.set_faults(0.1)  # ten times as many, for a short test
    first = open_on("first", url, tmp_path, monkeypatch)
    for number in range(30):
        publish(first, "evaluate", f"e{number}", os.urandom(1000), score=number)
    second = open_on("second", url, tmp_path, monkeypatch)
    second.prefetch(("evaluate", f"e{number}") for number in range(30))
    for number in range(30):
        unit = ("evaluate", f"e{number}")
        name = "encoder.safetensors"
        assert (second.folder(*unit) / name).read_bytes() == (
            first.folder(*unit) / name
        ).read_bytes()
        assert second.manifest(*unit) == first.manifest(*unit)
    assert second.list_units() == sorted(("evaluate", f"e{number}") for number in range(30))


def test_an_upload_whose_last_answer_was_lost_is_sent_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object store has the object then, and knows the upload in parts no longer."""
    obstore: Any = pytest.importorskip("obstore")
    put, calls = obstore.put, []

    def lose_the_answer(*arguments: Any, **options: Any) -> Any:
        calls.append(put(*arguments, **options))
        if len(calls) == 1:
            raise FileNotFoundError("Error performing DELETE ...: 404 Not Found: NoSuchUpload")
        return calls[-1]

    monkeypatch.setattr(obstore, "put", lose_the_answer)
    (tmp_path / "file").write_bytes(b"weights")
    bucket = Bucket(parse_url(url))
    bucket.upload("merge/abc/encoder.safetensors", tmp_path / "file")
    there = bucket.read("merge/abc/encoder.safetensors")
    assert len(calls) == 2 and there is not None and there[0] == b"weights"
    with pytest.raises(FileNotFoundError):
        bucket.upload("merge/abc/other", tmp_path / "gone")


def test_another_bucket_under_the_same_url_has_another_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_on("first", url, tmp_path, monkeypatch)
    publish(first, "merge", "abc", b"weights")
    first.bucket.remove([item.key for item in list(first.bucket.list(""))])
    again = open_on("first", url, tmp_path, monkeypatch)
    assert again.root != first.root and not again.is_complete("merge", "abc")


def test_keys_are_those_of_a_folder(url: str, tmp_path: Path, s3: S3Server) -> None:
    """So that a copy of the bucket is a storage folder."""
    store = open_store(url)
    assert isinstance(store, ObjectStore)
    publish(store, "merge", "abc", b"weights")
    bucket = Bucket(parse_url(url))
    assert sorted(item.key for item in bucket.list("")) == [
        "merge/abc/encoder.safetensors",
        "merge/abc/manifest.json",
        "storage.json",
    ]
