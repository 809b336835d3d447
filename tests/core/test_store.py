"""The store: readers see complete units only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from speechft_ray.core import store as store_module
from speechft_ray.core.errors import UserError
from speechft_ray.core.files import write_json
from speechft_ray.core.provenance import code_version
from speechft_ray.core.store import CHECKSUM, MANIFEST, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "root")


def publish(store: Store, text: str = "one", fingerprint: str = "f1", **facts: object) -> None:
    with store.publish("merge", fingerprint, facts) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "data.txt").write_text(text)


def everything(store: Store) -> list[str]:
    return sorted(
        str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()
    )


def test_a_published_unit_is_complete_with_facts_and_hashes(store: Store) -> None:
    assert not store.is_complete("merge", "f1")
    publish(store, alpha=0.5)
    assert store.is_complete("merge", "f1")
    assert store.manifest("merge", "f1") == {
        "made_with": code_version(),
        "alpha": 0.5,
        "files": {"sub/data.txt": {"sha256": hashlib.sha256(b"one").hexdigest(), "bytes": 3}},
    }
    assert everything(store) == ["merge/f1/manifest.json", "merge/f1/sub/data.txt"]


def test_facts_may_be_added_while_publishing(store: Store) -> None:
    facts: dict[str, object] = {}
    with store.publish("merge", "f1", facts):
        facts["seconds"] = 3
    assert store.manifest("merge", "f1")["seconds"] == 3


def test_a_body_that_raises_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="half way"), store.publish("merge", "f1", {}) as folder:
        (folder / "data.txt").write_text("half")
        raise RuntimeError("half way")
    assert list((store.root / "merge").iterdir()) == []
    assert store.fingerprints("merge") == []


def test_facts_that_are_no_json_leave_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"):
        publish(store, loss=float("nan"))
    assert list((store.root / "merge").iterdir()) == []


def test_a_unit_is_not_seen_before_its_manifest_and_its_rename(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, list[str], set[str]]] = []
    real = Path.rename

    def watching(self: Path, target: Path) -> Path:
        seen.append(
            (
                store.is_complete("merge", "f1"),
                store.fingerprints("merge"),
                {path.name for path in self.iterdir()},
            )
        )
        return real(self, target)

    monkeypatch.setattr(Path, "rename", watching)
    publish(store)
    # At the moment of the one rename the folder is whole, manifest included, and still no reader
    # has it.
    assert seen == [(False, [], {MANIFEST, "sub"})]
    assert store.fingerprints("merge") == ["f1"]


def test_the_manifest_is_written_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    present: list[set[str]] = []

    def record_folder(path: Path, value: object) -> None:
        present.append({item.name for item in path.parent.iterdir()})
        write_json(path, value)

    monkeypatch.setattr(store_module, "write_json", record_folder)
    publish(store)
    assert present == [{"sub"}]


def test_of_two_publishers_the_first_wins(store: Store) -> None:
    with store.publish("merge", "f1", {"by": "slow"}) as folder:
        (folder / "data.txt").write_text("slow")
        with store.publish("merge", "f1", {"by": "quick"}) as other:
            (other / "data.txt").write_text("quick")
    assert store.manifest("merge", "f1")["by"] == "quick"
    assert everything(store) == ["merge/f1/data.txt", "merge/f1/manifest.json"]
    assert store.find_damaged_files("merge", "f1") == []


def test_many_threads_publish_one_unit(store: Store) -> None:
    barrier = threading.Barrier(8)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            barrier.wait()
            publish(store)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert everything(store) == ["merge/f1/manifest.json", "merge/f1/sub/data.txt"]


def test_a_killed_publisher_leaves_no_unit(store: Store) -> None:
    """After a kill between the files and the manifest, the next try publishes the unit."""
    code = (
        "import os, sys; from pathlib import Path; from speechft_ray.core.store import Store\n"
        "with Store(Path(sys.argv[1])).publish('merge', 'f1', {}) as folder:\n"
        "    (folder / 'data.txt').write_text('half'); os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.root)], check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 9
    assert not store.is_complete("merge", "f1") and store.fingerprints("merge") == []
    publish(store)
    assert store.fingerprints("merge") == ["f1"]


def test_a_folder_without_a_manifest_is_replaced(store: Store) -> None:
    stray = store.folder("merge", "f1")
    stray.mkdir(parents=True)
    (stray / "old.txt").write_text("left by an earlier, killed copy")
    publish(store)
    assert everything(store) == ["merge/f1/manifest.json", "merge/f1/sub/data.txt"]


def test_damage_is_named_by_file(store: Store) -> None:
    publish(store)
    with store.publish("merge", "f2", {}) as folder:
        for name in ("a", "b", "c"):
            (folder / name).write_text(name)
    (store.folder("merge", "f2") / "a").write_text("A")
    (store.folder("merge", "f2") / "b").unlink()
    assert store.find_damaged_files("merge", "f2") == ["a", "b"]
    assert store.find_damaged_files("merge", "f1") == []


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\udcff"])
def test_a_broken_manifest_is_told_with_the_way_out(store: Store, content: str) -> None:
    publish(store)
    (store.folder("merge", "f1") / MANIFEST).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        UserError, match=r"f1.* cannot be read .*: `speechft run` sets this unit aside"
    ):
        store.manifest("merge", "f1")


def test_a_discarded_unit_is_gone_and_can_be_made_again(store: Store) -> None:
    publish(store, text="one")
    store.discard("merge", "f1")
    assert not store.is_complete("merge", "f1") and everything(store) == []
    publish(store, text="two")
    assert (store.folder("merge", "f1") / "sub" / "data.txt").read_text() == "two"
    store.discard("merge", "never there")


def test_what_an_interrupted_discard_leaves_is_not_listed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    store.discard("merge", "f1")
    assert store.fingerprints("merge") == []


def test_a_unit_that_another_process_discards_at_the_same_moment_is_no_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers that make room in one cache choose the same oldest entry."""
    publish(store)
    rename = Path.rename

    def lose_the_race(self: Path, target: Path) -> Path:
        shutil.rmtree(self)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", lose_the_race)
    store.discard("merge", "f1")
    assert everything(store) == []


def test_fingerprints_are_sorted_and_by_stage(store: Store) -> None:
    for name in ("b", "a"):
        publish(store, fingerprint=name)
    assert store.fingerprints("merge") == ["a", "b"]
    assert store.fingerprints("evaluate") == []


def test_unfinished_work_is_kept_until_cleared(store: Store) -> None:
    (store.work_folder("finetune", "f1") / "last.pt").write_text("x")
    assert [path.name for path in store.work_folder("finetune", "f1").iterdir()] == ["last.pt"]
    store.clear_work("finetune", "f1")
    store.clear_work("finetune", "f1")
    assert everything(store) == []


def test_a_root_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*--storage"):
        Store(tmp_path / "file" / "root")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_root_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    store = Store(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        store.check_writable()
    tmp_path.chmod(0o700)


def test_one_changed_digit_in_a_manifest_is_noticed(store: Store) -> None:
    publish(store, score=12.5, nested={"1": [0.1, None, "text \u00e9"]})
    path = store.folder("merge", "f1") / MANIFEST
    assert store.explain_damage("merge", "f1", contents=True) is None
    path.write_text(path.read_text().replace("12.5", "12.6"))
    with pytest.raises(UserError, match="its checksum differs"):
        store.manifest("merge", "f1")
    assert "its checksum differs" in (store.explain_damage("merge", "f1", contents=False) or "")


def test_a_manifest_that_was_read_before_is_read_again_when_it_changed(store: Store) -> None:
    publish(store, score=1.0)
    read = store.manifest("merge", "f1")
    read["score"] = 5.0  # a reader's own copy
    assert store.manifest("merge", "f1")["score"] == 1.0
    store.discard("merge", "f1")
    with pytest.raises(UserError, match="cannot be read"):
        store.manifest("merge", "f1")
    publish(store, score=2.0)
    assert store.manifest("merge", "f1")["score"] == 2.0
    # Size, inode and time may be those of before: a copy has the time of its object.
    path = store.root / "merge" / "f1" / MANIFEST
    before, text = path.stat(), path.read_text()
    path.write_text(text.replace("2.0", "3.0").replace(CHECKSUM, "x" * len(CHECKSUM)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (
        before.st_mtime_ns,
        before.st_size,
        before.st_ino,
    )
    assert store.manifest("merge", "f1")["score"] == 3.0


def test_a_manifest_of_an_older_version_has_no_checksum_and_counts(store: Store) -> None:
    publish(store, score=12.5)
    path = store.folder("merge", "f1") / MANIFEST
    facts = json.loads(path.read_text())
    assert len(facts.pop(CHECKSUM)) == 64
    path.write_text(json.dumps(facts))
    assert store.manifest("merge", "f1")["score"] == 12.5
    assert store.explain_damage("merge", "f1", contents=True) is None


def test_numbers_as_keys_have_the_checksum_of_their_texts(store: Store) -> None:
    publish(store, counts={10: 1, 9: 2})
    assert store.manifest("merge", "f1")["counts"] == {"10": 1, "9": 2}


@pytest.mark.parametrize(
    ("text", "contents", "sentence"),
    [("on", False, "has 2 bytes, and had 3"), ("onf", True, "differs from its sha256")],
)
def test_damaged_files_are_told_and_kept_aside(
    store: Store, text: str, contents: bool, sentence: str
) -> None:
    publish(store)
    publish(store, fingerprint="f2")
    file = store.folder("merge", "f1") / "sub" / "data.txt"
    file.write_text(text)
    assert sentence in (store.explain_damage("merge", "f1", contents) or "")
    kept = store.set_aside("merge", "f1")
    assert (kept / "sub" / "data.txt").read_text() == text
    assert not store.is_complete("merge", "f1")
    assert store.list_units() == [("merge", "f2")]
    publish(store)
    assert store.explain_damage("merge", "f1", contents=True) is None


def test_a_missing_file_is_told(store: Store) -> None:
    publish(store)
    (store.folder("merge", "f1") / "sub" / "data.txt").unlink()
    assert "data.txt is missing" in (store.explain_damage("merge", "f1", contents=False) or "")
