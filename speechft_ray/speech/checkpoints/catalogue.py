"""The catalogue of encoders by name: family, address and place in the cache.

Addresses are those of s3prl 0.4.18 (``upstream/*/hubconf.py``, the converted checkpoints). Sizes
are parameters (SUPERB, arXiv 2105.01051, table 1; WavLM, arXiv 2110.13900, table 1) times four
bytes, to estimate the time of a download.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import find_cache_root

_CONVERTED = "https://huggingface.co/s3prl/converted_ckpts/resolve/main"


@dataclass(frozen=True, kw_only=True)
class PublishedEncoder:
    """A published encoder, one file."""

    name: str
    family: str
    title: str
    file: str
    bytes: int
    """Approximate size of the file."""

    @property
    def url(self) -> str:
        return f"{_CONVERTED}/{self.file}"

    @property
    def path(self) -> Path:
        """The file in the cache; it may also be copied there by hand."""
        return cache_folder() / self.file


def _entry(name: str, family: str, file: str, bytes: int, title: str) -> PublishedEncoder:
    return PublishedEncoder(name=name, family=family, title=title, file=file, bytes=bytes)


PUBLISHED = {
    item.name: item
    for item in (
        _entry(
            "hubert_base",
            "hubert",
            "hubert_base_ls960.pt",
            378_700_000,
            "HuBERT Base, LibriSpeech 960 h",
        ),
        _entry(
            "hubert_large_ll60k",
            "hubert",
            "hubert_large_ll60k.pt",
            1_266_400_000,
            "HuBERT Large, Libri-Light 60k h",
        ),
        _entry(
            "wav2vec2_base",
            "wav2vec2",
            "wav2vec_small.pt",
            380_200_000,
            "wav2vec 2.0 Base, LibriSpeech 960 h",
        ),
        _entry(
            "wav2vec2_large_960",
            "wav2vec2",
            "libri960_big.pt",
            1_269_500_000,
            "wav2vec 2.0 Large, LibriSpeech 960 h",
        ),
        _entry(
            "wav2vec2_large_lv60",
            "wav2vec2",
            "wav2vec_vox_new.pt",
            1_269_500_000,
            "wav2vec 2.0 Large, Libri-Light 60k h",
        ),
        _entry(
            "xlsr_53", "wav2vec2", "xlsr_53_56k.pt", 1_269_500_000, "XLSR-53, 56k h in 53 languages"
        ),
        _entry(
            "wavlm_base", "wavlm", "wavlm_base.pt", 377_500_000, "WavLM Base, LibriSpeech 960 h"
        ),
        _entry("wavlm_base_plus", "wavlm", "wavlm_base_plus.pt", 378_800_000, "WavLM Base+, 94k h"),
        _entry("wavlm_large", "wavlm", "wavlm_large.pt", 1_266_500_000, "WavLM Large, 94k h"),
        _entry(
            "decoar2_base",
            "decoar2",
            "checkpoint_decoar2.pt",
            359_400_000,
            "DeCoAR 2.0, LibriSpeech 960 h",
        ),
    )
}
"""Encoders that are downloaded when they are first used, by name."""

_ASSETS = Path(__file__).parents[2] / "assets"

PACKAGED = {"tiny_hubert": _ASSETS / "tiny_hubert"}
"""Encoders in the package, by name."""

BASELINE = "fbank"
"""The encoder without parameters and without a file."""


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A model folder on the Hugging Face hub: ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``."""

    owner: str
    name: str
    revision: str

    @property
    def repo(self) -> str:
        return f"{self.owner}/{self.name}"

    def __str__(self) -> str:
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision != "main" else "")


_PART = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_HUB_NAME = re.compile(
    rf"hf:(?P<owner>{_PART.replace('.*', '[^/@]*')})/(?P<name>{_PART})(?:@(?P<revision>{_PART}))?"
)


def parse_hub_name(text: str) -> HubName | None:
    """Returns the model of the hub that a name means, None for any other kind of name.

    Raises ``UserError`` for a malformed name that begins with ``hf:``: its parts become parts of a
    path.
    """
    if not text.startswith("hf:"):
        return None
    match = _HUB_NAME.fullmatch(text)
    if match is None:
        raise UserError(
            f"`{text}` is no model of the Hugging Face hub: write hf:OWNER/NAME or "
            "hf:OWNER/NAME@REVISION, each of letters, digits, `_ . -`, for example "
            "hf:facebook/hubert-base-ls960."
        )
    return HubName(owner=match["owner"], name=match["name"], revision=match["revision"] or "main")


def is_encoder_name(text: str) -> bool:
    """Whether a text names an encoder rather than a path; ``./tiny_hubert`` is always a path."""
    return text in PUBLISHED or text in PACKAGED or text == BASELINE or text.startswith("hf:")


def list_names() -> list[str]:
    """Returns the names of the catalogue, sorted, without ``hf:`` names."""
    return sorted([*PUBLISHED, *PACKAGED, BASELINE])


def cache_folder() -> Path:
    """Returns the folder of downloaded encoders, below ``find_cache_root``."""
    return find_cache_root() / "encoders"
