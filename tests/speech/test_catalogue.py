"""Names of encoders: what they mean, where they lie, and what comes from a network that is a folder
served on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints import download
from speechft_ray.speech.checkpoints.cache import download_encoder, is_cached
from speechft_ray.speech.checkpoints.catalogue import (
    PACKAGED,
    PUBLISHED,
    cache_folder,
    is_encoder_name,
    list_names,
    parse_hub_name,
)
from speechft_ray.speech.checkpoints.load import load_encoder, weights_fingerprint
from speechft_ray.speech.encoders.base import FAMILIES
from tests.speech.network import serving
from tests.speech.toy_models import toy_hubert


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and no network at all."""
    monkeypatch.setenv("SPEECHFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download.requests, "get", no_network)
    return tmp_path / "cache" / "encoders"


def no_network(url: str, **options: object) -> requests.Response:
    raise requests.ConnectionError(url)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands for the whole network."""
    with serving(tmp_path / "served", monkeypatch) as folder:
        monkeypatch.setattr(download.requests, "get", requests.api.get)
        yield folder


def hub_folder(served: Path, *files: str, revision: str = "main") -> Path:
    """Publishes a model ``some/model`` whose files hold their own names."""
    folder = served / "some" / "model" / "resolve" / revision
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text(file)
    return folder


def test_every_name_is_of_a_family_that_exists() -> None:
    assert {item.family for item in PUBLISHED.values()} <= set(FAMILIES.names())
    assert len({item.file for item in PUBLISHED.values()}) == len(PUBLISHED)
    assert set(list_names()) == {"fbank", *PACKAGED, *PUBLISHED}
    assert all(
        item.url == f"https://huggingface.co/s3prl/converted_ckpts/resolve/main/{item.file}"
        for item in PUBLISHED.values()
    )


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache" / "encoders"
    monkeypatch.delenv("SPEECHFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "speechft_ray" / "encoders"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "speechft_ray" / "encoders"


def test_a_name_is_downloaded_once_and_loads(
    served: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = toy_hubert()
    torch.save(
        {**weights.config, "model_weight": dict(weights.state)}, served / "hubert_base_ls960.pt"
    )
    assert not is_cached("hubert_base")
    told: list[int] = []
    loaded = load_encoder("hubert_base", lambda done, total: told.append(done))
    assert weights_fingerprint(loaded) == weights_fingerprint(weights)
    assert told[-1] == (cache / "hubert_base_ls960.pt").stat().st_size
    assert is_cached("hubert_base")
    monkeypatch.setattr(download.requests, "get", no_network)
    assert weights_fingerprint(load_encoder("hubert_base")) == weights_fingerprint(weights)


def test_a_file_that_changed_in_the_cache_does_not_load(served: Path, cache: Path) -> None:
    (served / "wavlm_base.pt").write_bytes(b"as it was")
    download_encoder("wavlm_base")
    (cache / "wavlm_base.pt").write_bytes(b"as it is now")
    with pytest.raises(UserError, match="is not the file that was downloaded"):
        load_encoder("wavlm_base")


def test_offline_says_which_file_to_put_where(cache: Path) -> None:
    with pytest.raises(UserError, match="no connection") as error:
        load_encoder("wav2vec2_base")
    assert f"put that file at {cache / 'wav2vec_small.pt'}, or run again with a network." in str(
        error.value
    )
    (cache / "wav2vec_small.pt").write_bytes(b"put there by hand")
    assert download_encoder("wav2vec2_base") == cache / "wav2vec_small.pt"
    with pytest.raises(UserError, match="no connection") as error:
        load_encoder("hf:facebook/hubert-base-ls960")
    assert str(cache / "hf" / "facebook" / "hubert-base-ls960@main") in str(error.value)
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        ("config.json", "model.safetensors"),
        ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin"),
        ("config.json", "preprocessor_config.json", "pytorch_model.bin"),
    ],
)
def test_a_folder_of_the_hub(
    served: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    hub_folder(served, *files)
    folder = download_encoder("hf:some/model")
    assert folder == cache / "hf" / "some" / "model@main"
    weights = next(file for file in files if file.startswith(("model", "pytorch")))
    here = {path.name for path in folder.iterdir() if path.suffix != ".sha256"}
    assert here == {file for file in files if not file.startswith(("model", "pytorch"))} | {weights}
    monkeypatch.setattr(download.requests, "get", no_network)
    assert is_cached("hf:some/model")
    assert download_encoder("hf:some/model") == folder


def test_a_revision_is_a_folder_of_its_own(served: Path, cache: Path) -> None:
    hub_folder(served, "config.json", "model.safetensors", revision="v1.0")
    assert download_encoder("hf:some/model@v1.0") == cache / "hf" / "some" / "model@v1.0"
    assert not is_cached("hf:some/model")


def pieces(folder: Path, files: list[str]) -> None:
    text = json.dumps({"weight_map": {f"tensor{index}": file for index, file in enumerate(files)}})
    (folder / "model.safetensors.index.json").write_text(text)


def test_a_model_in_pieces(served: Path, cache: Path) -> None:
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    pieces(hub_folder(served, "config.json", *files), files)
    folder = download_encoder("hf:some/model")
    assert all((folder / file).read_text() == file for file in files)
    (folder / files[1]).unlink()
    assert not is_cached("hf:some/model")
    assert (download_encoder("hf:some/model") / files[1]).exists()


@pytest.mark.parametrize(
    "file", ["../../../escaped.bin", "/tmp/escaped.bin", "a/b.bin", "b.bin\n", "code.py", ".bin"]
)
def test_a_piece_cannot_leave_its_folder(served: Path, cache: Path, file: str) -> None:
    pieces(hub_folder(served, "config.json"), [file])
    with pytest.raises(UserError, match="names files that no model in pieces has"):
        download_encoder("hf:some/model")
    assert not list(cache.rglob("escaped*"))


def test_a_model_without_weights_or_without_anything(served: Path) -> None:
    hub_folder(served, "config.json")
    with pytest.raises(UserError, match="has no weights for PyTorch"):
        download_encoder("hf:some/model")
    with pytest.raises(UserError, match=r"config.json is not there \(the server answers 404\)"):
        download_encoder("hf:some/other")


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:model",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/..",
        "hf:a/b@",
        "hf:a/b@../c",
        "hf:a/b@x/y",
        "hf:a/b?x",
        "hf:a/b c",
        "hf:a/b\n",
    ],
)
def test_names_that_are_no_models(name: str) -> None:
    with pytest.raises(UserError, match="is no model of the Hugging Face hub: write hf:OWNER/NAME"):
        load_encoder(name)


def test_names_and_paths_are_told_apart() -> None:
    assert is_encoder_name("hubert_base")
    assert is_encoder_name("hf:some/model")
    assert not is_encoder_name("./hubert_base")
    found = parse_hub_name("hf:facebook/wav2vec2-base@abc123")
    assert found is not None
    assert (found.owner, found.name, found.revision) == ("facebook", "wav2vec2-base", "abc123")
    with pytest.raises(UserError, match="Did you mean `hubert_base`"):
        load_encoder("hubert_bas")


def test_a_limit_that_is_no_number(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (served / "wavlm_base.pt").write_bytes(bytes(1000))
    monkeypatch.setenv("SPEECHFT_MAX_DOWNLOAD_BYTES", "8 GB")
    with pytest.raises(UserError, match="must be a whole number of bytes, but is `8 GB`"):
        download_encoder("wavlm_base")
    monkeypatch.setenv("SPEECHFT_MAX_DOWNLOAD_BYTES", "999")
    with pytest.raises(UserError, match="allow more with SPEECHFT_MAX_DOWNLOAD_BYTES"):
        download_encoder("wavlm_base")
