"""Models of the Hugging Face hub: downloads the files that the ``hf`` format reads, and no others.

``huggingface_hub`` does the work, so its settings apply: tokens (``HF_TOKEN``, or the one that
``hf auth login`` stores), ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, and its cache (``HF_HOME``,
``HF_HUB_CACHE``), which it shares with transformers. It is imported inside the functions that need
it, since other encoders do not.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints.catalogue import HubName
from speechft_ray.speech.checkpoints.download import (
    Progress,
    check_size,
    compute_sha256,
    make_too_large_error,
)

CONFIG = "config.json"
PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
SETTINGS = (PROCESSOR, PREPROCESSOR)
"""Files that say how waveforms are normalised, the preferred one first."""

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of the weights in a folder of transformers, safetensors first; an index names the shards of
a sharded model."""

_SHARD = re.compile(r"[A-Za-z0-9_-]{1,80}\.(safetensors|bin)")
_MAX_SHARDS = 64
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_MAX_SHA1_BYTES = 64 * 2**20
"""The hub names files of git, which are small, by a SHA-1, and others by a SHA-256."""


def cache_folder() -> Path:
    """Returns the cache of ``huggingface_hub`` (``$HF_HUB_CACHE``, else ``$HF_HOME/hub``)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def find_cached(model: HubName) -> Path | None:
    """Returns the folder of a model in the cache, or None when a file that we read is missing.
    Needs no network."""
    folder = _find_folder(model)
    return folder if folder is not None and not _list_missing(model, folder) else None


def download_model(model: HubName, progress: Progress | None, max_bytes: int) -> Path:
    """Returns the folder of a model in the cache, downloading the files that are missing.

    Every file that we read is compared with the hash that the hub stated for it. Raises
    ``UserError`` where the model does not exist, needs a token or its terms accepted, has a file
    larger than ``max_bytes`` or than the disk, has changed in the cache, or is incomplete where
    nothing can be downloaded.
    """
    folder = find_cached(model)
    if folder is None:
        with _explain_errors(model):
            folder = _download_missing(model, progress, max_bytes)
    for name in (CONFIG, *SETTINGS, *_list_weights(folder)):
        _verify_hash(folder / name)
    return folder


def _download_missing(model: HubName, progress: Progress | None, max_bytes: int) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def download(file: str, revision: str) -> Path:
        return _download_file(model, file, revision, progress, max_bytes)

    cached = _find_folder(model)
    revision = cached.name if cached else model.revision
    # One request that fails at once: downloads repeat theirs for half a minute without a network.
    get_hf_file_metadata(hf_hub_url(model.repo, CONFIG, revision=revision))
    folder = download(CONFIG, revision).parent

    # All other files come from the commit of config.json, even if the branch moves on meanwhile.
    commit = folder.name
    for name in SETTINGS:
        with suppress(RemoteEntryNotFoundError):  # without both, `feat_extract_norm` decides
            download(name, commit)
    for kind in sorted(WEIGHTS, key=lambda kind: not (folder / kind).exists()):
        with suppress(RemoteEntryNotFoundError):
            download(kind, commit)
            break
    else:
        raise UserError(
            f"{model} has no weights for PyTorch (none of {', '.join(WEIGHTS)}): take another "
            "model."
        )
    for file in _list_weights(folder):
        download(file, commit)
    return folder


def _download_file(
    model: HubName, file: str, revision: str, progress: Progress | None, max_bytes: int
) -> Path:
    from huggingface_hub import hf_hub_download

    title = f"{file} of {model}"
    plan = hf_hub_download(model.repo, file, revision=revision, dry_run=True)
    if plan.will_download and plan.file_size is not None:
        parents = (cache_folder(), *cache_folder().absolute().parents)
        disk = next(folder for folder in parents if folder.exists())
        check_size(title, disk, plan.file_size, 0, max_bytes)
    bar = _make_bar(title, progress, max_bytes)
    path = hf_hub_download(
        model.repo, file, revision=revision, library_name="speechft_ray", tqdm_class=bar
    )
    return Path(path)


def _make_bar(title: str, progress: Progress | None, max_bytes: int) -> type[Any]:
    """Returns a class that ``hf_hub_download`` calls as a progress bar; it also ends a download
    that is larger than the server announced."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options["disable"] = True  # the caller draws its own
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.n > max_bytes:
                raise make_too_large_error(title, f"more than {self.n}", max_bytes)
            if progress:
                progress(self.n, self.total)

        def update_transfer(self, n: float) -> None:
            """Receives bytes on the wire, compressed; ``update`` counts those of the file."""

    return Bar


def _find_folder(model: HubName) -> Path | None:
    """Returns the folder in the cache that holds the ``config.json`` of a revision; its name is
    the commit."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model.repo, CONFIG, revision=model.revision)
    return Path(path).parent if isinstance(path, str) else None


def _list_missing(model: HubName, folder: Path) -> list[str]:
    """Returns the names of the files that we read and the cache lacks.

    A file that the model does not have is noted in the cache. Where neither of ``SETTINGS`` is
    there and nobody asked for one of them, it counts as missing: how waveforms are normalised would
    be a guess. Where one is there, it is used, as transformers does without a network.
    """
    from huggingface_hub import try_to_load_from_cache

    answers = {
        name: try_to_load_from_cache(model.repo, name, revision=folder.name) for name in SETTINGS
    }
    is_guess = not any(isinstance(answer, str) for answer in answers.values())
    missing = [name for name, answer in answers.items() if is_guess and answer is None][-1:]
    weights = _list_weights(folder) or [WEIGHTS[0]]
    return missing + [name for name in weights if not (folder / name).exists()]


def _list_weights(folder: Path) -> list[str]:
    """Returns the names of the files that hold the weights: the first of ``WEIGHTS`` in the folder,
    and for an index the shards that it names. They become paths, so they must be plain names."""
    kind = next((kind for kind in WEIGHTS if (folder / kind).exists()), None)
    if kind is None or not kind.endswith(".json"):
        return [kind] if kind else []
    index = folder / kind
    try:
        shards = sorted(
            set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{index} is no index of a sharded model: remove it to download it again."
        ) from error
    if not 1 <= len(shards) <= _MAX_SHARDS or not all(
        _SHARD.fullmatch(str(name)) for name in shards
    ):
        raise UserError(f"{index} names files that no sharded model has: take another model.")
    return [kind, *map(str, shards)]


def _verify_hash(file: Path) -> None:
    """Compares a file with the hash by which the cache calls its content: the ETag of the hub, a
    SHA-256, or for files of git the SHA-1 of git. Others (of a mirror, or a copied file) pass."""
    if not file.is_symlink():
        return
    blob = file.parent / file.readlink()
    stat = blob.stat()
    if _SHA256.fullmatch(blob.name):
        hashes = {compute_sha256(blob, stat.st_size, stat.st_mtime_ns)}
    elif _SHA1.fullmatch(blob.name) and stat.st_size <= _MAX_SHA1_BYTES:
        data = blob.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        hashes = {git.hexdigest(), hashlib.sha1(data, usedforsecurity=False).hexdigest()}
    else:
        return
    if blob.name not in hashes:
        raise UserError(
            f"{file} is not the file that was downloaded: its hash is {min(hashes)[:12]}.., but "
            f"the hub stated {blob.name[:12]}... Remove {blob.resolve()} to download it again."
        )


@contextmanager
def _explain_errors(model: HubName) -> Iterator[None]:
    """Turns the errors of ``huggingface_hub`` into one sentence that says how to go on."""
    from huggingface_hub import constants, errors

    cache, endpoint = cache_folder(), constants.ENDPOINT
    otherwise = f"or give the path of a folder with its {CONFIG}, {PREPROCESSOR} and weights."
    log_in = "set HF_TOKEN, or run `hf auth login`"
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise UserError(
            f"{_describe_incomplete(model)}, and HF_HUB_OFFLINE forbids downloads: run once "
            f"without it, {otherwise}"
        ) from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"{model} is gated: accept its terms at {endpoint}/{model.repo}, then {log_in} with a "
            "token of the same account."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{endpoint} has no model `{model.repo}`, or it is private: check the name, and for a "
            f"private one {log_in}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"`{model.repo}` has no revision `{model.revision}`: give a branch, a tag or a commit."
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise UserError(
            f"`{model.repo}` has no {error.response.url.path.rsplit('/')[-1]}, so it is no model "
            "of transformers: take another model."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        how = f"check the token ({log_in})" if status in (401, 403) else "try later"
        raise UserError(
            f"{model} cannot be downloaded ({endpoint} answers {status}): {how}, {otherwise}"
        ) from error
    except (
        errors.HTTPError,  # type: ignore[attr-defined]
        errors.LocalEntryNotFoundError,
        RuntimeError,  # of hf_xet
    ) as error:
        cause = error.__cause__ or error
        raise UserError(
            f"{_describe_incomplete(model)}, and {endpoint} cannot be reached ({_shorten(cause)}): "
            f"run again with a network, {otherwise}"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"{model} was not downloaded: the disk of {cache} is full.") from error
        raise UserError(
            f"{model} was not downloaded into {cache} ({_shorten(error)}): another folder can be "
            "named with HF_HUB_CACHE."
        ) from error


def _describe_incomplete(model: HubName) -> str:
    folder = _find_folder(model)
    missing = _list_missing(model, folder) if folder else [CONFIG]
    return f"{model} is not complete in the cache {cache_folder()} (no {', '.join(missing)})"


def _shorten(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160] or type(error).__name__
