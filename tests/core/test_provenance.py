"""The version of the code in manifests: cheap, and never a reason to fail."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import speechft_ray
from speechft_ray.core import provenance
from speechft_ray.core.provenance import code_version, read_commit
from speechft_ray.core.store import Store


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *identity, "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "speechft_ray").mkdir(parents=True)
    (root / "speechft_ray" / "file.py").write_text("1")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    git(root, "tag", "v9")
    return root


def test_the_commit_and_whether_files_differ(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "--short", "HEAD")
    assert read_commit(checkout) == commit
    (checkout / "speechft_ray" / "file.py").write_text("2")
    assert read_commit(checkout) == f"{commit}-dirty"


def test_a_package_outside_its_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout / ".venv" / "lib"  # inside a repository, but not its root
    (installed / "speechft_ray").mkdir(parents=True)
    assert read_commit(installed) is None
    (checkout / "speechft_ray" / "file.py").unlink()
    (checkout / "speechft_ray").rmdir()
    assert read_commit(checkout) is None  # a repository of something else


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("git"),
        subprocess.TimeoutExpired("git", 1),
        subprocess.CalledProcessError(1, "git"),
    ],
)
def test_git_that_fails_is_no_error(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert read_commit(checkout) is None


def test_a_manifest_has_the_version_which_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots: list[Path] = []

    def record_root(root: Path) -> str:
        roots.append(root)
        return "abc"

    monkeypatch.setattr(provenance, "read_commit", record_root)
    code_version.cache_clear()
    store = Store(tmp_path)
    for name in ("a", "b"):
        with store.publish("merge", name, {}):
            pass
    expected = {"speechft_ray": speechft_ray.__version__, "commit": "abc"}
    assert store.manifest("merge", "b")["made_with"] == expected
    assert roots == [Path(speechft_ray.__file__).parents[1]]
    code_version.cache_clear()
