"""Names of encoders: their meaning, their place in the cache, and downloads from a server on this
machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch

from speechft_ray.core.errors import UserError
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
from tests.speech.network import serve_network
from tests.speech.toy_models import toy_hubert


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and no network."""
    monkeypatch.setenv("SPEECHFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("requests.get", no_network)
    return tmp_path / "cache" / "encoders"


def no_network(url: str, **options: object) -> requests.Response:
    raise requests.ConnectionError(url)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A served folder that stands for the network."""
    with serve_network(tmp_path / "network", monkeypatch) as network:
        monkeypatch.setattr("requests.get", requests.api.get)
        yield network.folder


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
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = toy_hubert()
    torch.save(
        {**weights.config, "model_weight": dict(weights.state)}, folder / "hubert_base_ls960.pt"
    )
    assert not is_cached("hubert_base")
    progress: list[int] = []
    loaded = load_encoder("hubert_base", lambda done, total: progress.append(done))
    assert weights_fingerprint(loaded) == weights_fingerprint(weights)
    assert progress[-1] == (cache / "hubert_base_ls960.pt").stat().st_size
    assert is_cached("hubert_base")
    monkeypatch.setattr("requests.get", no_network)
    assert weights_fingerprint(load_encoder("hubert_base")) == weights_fingerprint(weights)


def test_a_file_that_changed_in_the_cache_does_not_load(folder: Path, cache: Path) -> None:
    (folder / "wavlm_base.pt").write_bytes(b"as it was")
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


def test_names_and_paths_are_distinguished() -> None:
    assert is_encoder_name("hubert_base")
    assert is_encoder_name("hf:some/model")
    assert not is_encoder_name("./hubert_base")
    model = parse_hub_name("hf:facebook/wav2vec2-base@abc123")
    assert model is not None
    assert (model.repo, model.revision) == ("facebook/wav2vec2-base", "abc123")
    assert str(model) == "hf:facebook/wav2vec2-base@abc123"
    with pytest.raises(UserError, match="Did you mean `hubert_base`"):
        load_encoder("hubert_bas")


def test_a_limit_that_is_no_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "wavlm_base.pt").write_bytes(bytes(1000))
    monkeypatch.setenv("SPEECHFT_MAX_DOWNLOAD_BYTES", "8 GB")
    with pytest.raises(UserError, match="must be a whole number of bytes, but is `8 GB`"):
        download_encoder("wavlm_base")
    monkeypatch.setenv("SPEECHFT_MAX_DOWNLOAD_BYTES", "999")
    with pytest.raises(UserError, match="allow more with SPEECHFT_MAX_DOWNLOAD_BYTES"):
        download_encoder("wavlm_base")
