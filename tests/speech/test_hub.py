"""Models of the Hugging Face hub, from a server on this machine: the files that are downloaded,
their place in the cache, and the errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints import hub
from speechft_ray.speech.checkpoints.base import FORMATS
from speechft_ray.speech.checkpoints.cache import download_encoder, find_cache_folder, is_cached
from speechft_ray.speech.checkpoints.load import load_encoder, weights_fingerprint
from tests.speech.network import TOKEN, Network, commit_of, isolate_hub, serve_network
from tests.speech.toy_models import toy_hubert

NAME = "hf:some/model"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
SNAPSHOT = Path("models--some--model", "snapshots", commit_of("some/model", "main"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and no network."""
    return isolate_hub(tmp_path, monkeypatch)


@pytest.fixture
def network(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    with serve_network(tmp_path / "served", monkeypatch) as network:
        yield network


def set_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def add_shards(folder: Path, files: list[str]) -> None:
    text = json.dumps({"weight_map": {f"tensor{index}": file for index, file in enumerate(files)}})
    (folder / "model.safetensors.index.json").write_text(text)


def fill_cache(cache: Path, *files: str) -> Path:
    """Writes a model as ``huggingface_hub`` caches it, by hand; returns its folder."""
    folder = cache / SNAPSHOT
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text(file)
    refs = folder.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(folder.name)
    return folder


@pytest.mark.parametrize(
    "files",
    [
        ("config.json", "model.safetensors"),
        ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin"),
        ("config.json", "preprocessor_config.json", "pytorch_model.bin"),
        ("config.json", "processor_config.json", "model.safetensors"),
        ("config.json", "processor_config.json", "preprocessor_config.json", "model.safetensors"),
    ],
)
def test_the_files_that_are_read_are_downloaded_once(
    network: Network, cache: Path, files: tuple[str, ...]
) -> None:
    network.add_model("some/model", *files, "README.md", "modeling.py", "training_args.bin")
    assert not is_cached(NAME)
    folder = download_encoder(NAME)
    assert folder == cache / SNAPSHOT
    assert find_cache_folder(NAME) == cache
    weights = next(file for file in files if file.startswith(("model", "pytorch")))
    others = {file for file in files if not file.startswith(("model", "pytorch"))}
    assert {path.name for path in folder.iterdir()} == others | {weights}
    assert is_cached(NAME)
    network.requests.clear()
    assert download_encoder(NAME) == folder
    assert network.requests == []


def test_what_is_downloaded_loads_and_is_transformers_own_cache(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = toy_hubert()
    folder = network.folder / "some" / "model" / "resolve"
    folder.mkdir(parents=True)
    FORMATS.get("hf").write(folder / "main", weights, {})
    (folder / "main" / "speechft_ray.safetensors").unlink()
    progress: list[tuple[int, int | None]] = []
    loaded = load_encoder(NAME, lambda done, total: progress.append((done, total)))
    size = (folder / "main" / "model.safetensors").stat().st_size
    assert progress[-1] == (size, size)
    assert loaded.family == "hubert"
    set_offline(monkeypatch)
    assert weights_fingerprint(load_encoder(NAME)) == weights_fingerprint(loaded)
    transformers = pytest.importorskip("transformers")
    transformers.HubertModel.from_pretrained("some/model", cache_dir=str(cache))


def test_blobs_that_models_share_load(network: Network, cache: Path) -> None:
    """``huggingface_hub`` 2 keeps large files once for all models, in ``CACHE/blobs``."""
    folder = network.folder / "some" / "model" / "resolve"
    folder.mkdir(parents=True)
    FORMATS.get("hf").write(folder / "main", toy_hubert(), {})
    (folder / "main" / "speechft_ray.safetensors").unlink()
    fingerprint = weights_fingerprint(load_encoder(NAME))
    blob = (cache / SNAPSHOT / "model.safetensors").resolve()
    shared = cache / "blobs" / "ab" / "abcd"
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert weights_fingerprint(load_encoder(NAME)) == fingerprint


def test_a_cache_that_transformers_filled_is_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill_cache(cache, *FILES)
    set_offline(monkeypatch)
    assert is_cached(NAME)
    assert download_encoder(NAME) == folder


def test_a_cache_without_the_preprocessor_is_completed(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``HubertModel.from_pretrained`` does not download it, and waveforms depend on it."""
    folder = fill_cache(cache, "config.json", "model.safetensors")
    network.add_model("some/model", *FILES)
    assert not is_cached(NAME)
    with monkeypatch.context() as patch:
        set_offline(patch)
        with pytest.raises(UserError, match=r"\(no preprocessor_config.json\), and HF_HUB_OFFLINE"):
            download_encoder(NAME)
    assert download_encoder(NAME) == folder
    assert (folder / "preprocessor_config.json").read_text() == "preprocessor_config.json"
    assert not any("GET" in line and "model.safetensors" in line for line in network.requests)


def test_a_cache_where_nobody_asked_for_the_processor_is_completed(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noted that there is no ``preprocessor_config.json``, as models have that transformers 5
    saved with their processor."""
    folder = fill_cache(cache, "config.json", "model.safetensors")
    (folder.parents[1] / ".no_exist" / folder.name).mkdir(parents=True)
    (folder.parents[1] / ".no_exist" / folder.name / "preprocessor_config.json").touch()
    network.add_model("some/model", "config.json", "processor_config.json", "model.safetensors")
    with monkeypatch.context() as patch:
        set_offline(patch)
        with pytest.raises(UserError, match=r"\(no processor_config.json\), and HF_HUB_OFFLINE"):
            download_encoder(NAME)
    assert download_encoder(NAME) == folder
    assert (folder / "processor_config.json").read_text() == "processor_config.json"


def test_a_revision_is_a_folder_of_its_own(network: Network, cache: Path) -> None:
    network.add_model("some/model", "config.json", "model.safetensors", revision="v1.0")
    commit = commit_of("some/model", "v1.0")
    assert download_encoder(f"{NAME}@v1.0") == cache / SNAPSHOT.parent / commit
    assert is_cached(f"{NAME}@{commit}")
    assert not is_cached(NAME)


def test_all_files_are_of_one_commit(network: Network) -> None:
    """A branch that moves while its files are downloaded."""
    network.add_model("some/model", *FILES)
    download_encoder(NAME)
    assert [line for line in network.requests if "/resolve/main/" in line] == [
        *["HEAD /some/model/resolve/main/config.json"] * 3,
        "GET /some/model/resolve/main/config.json",
    ]


def test_a_sharded_model(network: Network) -> None:
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    add_shards(network.add_model("some/model", "config.json", *files), files)
    folder = download_encoder(NAME)
    assert all((folder / file).read_text() == file for file in files)
    (folder / files[1]).unlink()
    assert not is_cached(NAME)
    assert (download_encoder(NAME) / files[1]).exists()


@pytest.mark.parametrize(
    "file", ["../../../escaped.bin", "/tmp/escaped.bin", "a/b.bin", "b.bin\n", "code.py", ".bin"]
)
def test_a_shard_cannot_leave_its_folder(network: Network, cache: Path, file: str) -> None:
    add_shards(network.add_model("some/model", "config.json"), [file])
    with pytest.raises(UserError, match="names files that no sharded model has"):
        download_encoder(NAME)
    assert not list(cache.rglob("escaped*"))


def test_models_that_cannot_be_used(network: Network) -> None:
    network.add_model("some/model", "config.json")
    with pytest.raises(UserError, match="has no weights for PyTorch"):
        download_encoder(NAME)
    network.add_model("some/data", "README.md")
    with pytest.raises(UserError, match=r"`some/data` has no config\.json"):
        download_encoder("hf:some/data")
    with pytest.raises(UserError, match="`some/model` has no revision `v2`: give a branch"):
        download_encoder(f"{NAME}@v2")
    with pytest.raises(UserError, match="has no model `some/other`, or it is private: check the"):
        download_encoder("hf:some/other")


@pytest.mark.parametrize("place", ["environment", "file"])
def test_private_and_gated_models_need_a_token(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for repo in ("some/private", "some/gated"):
        network.add_model(repo, *FILES)
    network.private, network.gated = {"some/private"}, {"some/gated"}
    with pytest.raises(UserError, match=r"has no model .* is private.*HF_TOKEN, or run `hf auth l"):
        download_encoder("hf:some/private")
    terms = (
        rf"hf:some/gated is gated: accept its terms at {network.url}/some/gated, then set HF_TOK"
    )
    with pytest.raises(UserError, match=terms):
        download_encoder("hf:some/gated")
    if place == "environment":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    else:
        (tmp_path / "token").write_text(TOKEN)
    for repo in ("some/private", "some/gated"):
        assert (download_encoder(f"hf:{repo}") / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(500, "answers 500.: try later"), (403, "answers 403.: check the token .set HF_TOKEN")],
)
def test_other_answers(network: Network, status: int, sentence: str) -> None:
    network.status = status
    with pytest.raises(UserError, match=rf"{NAME} cannot be downloaded .{network.url} {sentence}"):
        download_encoder(NAME)


def test_without_a_network(cache: Path) -> None:
    with pytest.raises(
        UserError,
        match=rf"is not complete in the cache {cache} \(no config.json\), and http://127.0.0.1:9 "
        r"cannot be reached .*: run again with a network, or give the path of a folder",
    ):
        load_encoder(NAME)


def test_offline_mode(network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network.add_model("some/model", *FILES)
    set_offline(monkeypatch)
    with pytest.raises(UserError, match=rf"cache {cache} .no config.json., and HF_HUB_OFFLINE for"):
        download_encoder(NAME)
    assert network.requests == []


def test_a_server_that_is_no_hub(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.add_model("some/model", *FILES)
    monkeypatch.setattr("tests.speech.network.commit_of", lambda repo, revision: "")
    with pytest.raises(UserError, match=r"no config.json\), and .* cannot be reached"):
        download_encoder(NAME)


def test_a_download_that_always_breaks_off(
    network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.add_model("some/model", *FILES)
    network.broken = {"model.safetensors"}
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"\(no model.safetensors\), and .* cannot be reached"):
        download_encoder(NAME)
    assert not is_cached(NAME)
    network.broken = set()
    assert download_encoder(NAME) == cache / SNAPSHOT


def test_more_than_allowed_is_refused(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = network.add_model("some/model", *FILES)
    (folder / "model.safetensors").write_bytes(bytes(1001))
    monkeypatch.setenv("SPEECHFT_MAX_DOWNLOAD_BYTES", "1000")
    with pytest.raises(
        UserError, match=rf"model.safetensors of {NAME} has 1001 bytes, and 1000 is"
    ):
        download_encoder(NAME)
    assert "GET /some/model/resolve/main/model.safetensors" not in network.requests
    monkeypatch.setattr(hub, "check_size", lambda *arguments: None)  # a size that was not stated
    with pytest.raises(UserError, match="has more than 1001 bytes, and 1000 is the most"):
        download_encoder(NAME)
    assert not is_cached(NAME)


def test_a_full_disk(network: Network, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network.add_model("some/model", *FILES)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 5}))
        with pytest.raises(UserError, match=r"has 11 bytes, but the disk of .* has 5 left"):
            download_encoder(NAME)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    with pytest.raises(UserError, match=rf"was not downloaded: the disk of {cache} is full"):
        download_encoder(NAME)


def test_a_cache_that_cannot_be_written(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.add_model("some/model", *FILES)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(UserError, match=r"file/hub \(.*Not a directory.*HF_HUB_CACHE"):
        download_encoder(NAME)


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_changed_in_the_cache_is_refused(network: Network, file: str) -> None:
    network.add_model("some/model", *FILES)
    path = (download_encoder(NAME) / file).resolve()
    path.write_text("as it is now")
    with pytest.raises(UserError, match=f"is not the file that was downloaded.*Remove {path}"):
        download_encoder(NAME)
    path.unlink()
    assert (download_encoder(NAME) / file).read_text() == file


SCRIPT = """
import sys
import speechft_ray.cli, speechft_ray.commands.parts
from speechft_ray.speech.checkpoints.cache import download_encoder
assert "huggingface_hub" not in sys.modules
print(download_encoder("hf:some/model"))
"""


def test_the_environment_of_the_hub_is_honoured(network: Network, tmp_path: Path) -> None:
    network.add_model("some/model", *FILES)
    network.private = {"some/model"}
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": network.url}
    environment.pop("HF_HUB_CACHE", None)

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=False,
            env={**environment, **variables},
        )

    assert "has no model `some/model`, or it is private" in run().stderr
    online = run(HF_TOKEN=TOKEN)
    assert Path(online.stdout.strip()) == tmp_path / "home" / "hub" / SNAPSHOT, online.stderr
    network.requests.clear()
    assert run(HF_HUB_OFFLINE="1").stdout == online.stdout
    assert network.requests == []
