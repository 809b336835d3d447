"""Downloads one file over https: resumes after a cut, bounds the size, records the sha256.

``FILE.part`` holds the bytes received so far, ``FILE.part.json`` their address and version.
``FILE`` appears by one rename, so it is complete whenever it exists. ``FILE.sha256`` has the format
of ``sha256sum --check``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import requests

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write, sync_folder, write_json
from speechft_ray.core.fingerprint import file_sha256

Progress = Callable[[int, int | None], None]
"""Called with the bytes received and the bytes of the whole file, None where unknown."""

MAX_BYTES = 8 * 2**30
"""Twice the 3.8e9 bytes of a large encoder (317 million parameters in float32) with Adam's two
moments; the bound keeps an endless answer from filling a disk."""

_CONNECT_SECONDS, _READ_SECONDS, _PAUSE_SECONDS = 10.0, 60.0, 1.0
_HOPS = 5
_BLOCK_BYTES = 1 << 16
"""Unit of writing: a cut loses at most one block."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')


class _Interrupted(Exception):
    """The connection ended early; the message says why."""


def fetch(
    url: str, path: Path, *, progress: Progress | None = None, max_bytes: int = MAX_BYTES
) -> Path:
    """Downloads an address to ``path`` unless the file exists, and returns ``path``.

    A partial file of an earlier call is resumed where the server supports it and still has the same
    version. A broken connection is opened again as long as every attempt receives more bytes.
    Processes that download the same file wait for each other. Only https is allowed, also after a
    redirect; plain http only to this machine.

    Raises ``UserError`` when the server does not have the file or cannot be reached, and when the
    file is too large or cannot be written. Only the partial file is left behind then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, path, progress, max_bytes)
    except OSError as error:
        raise UserError(
            f"{path.name} cannot be kept in {path.parent} ({error.strerror}): name another folder "
            "with SPEECHFT_CACHE."
        ) from error
    return path


def _fetch(url: str, path: Path, progress: Progress | None, max_bytes: int) -> None:
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    with _lock(part) as file:
        try:
            if not path.exists():
                stated = _download(file, url, path, note, progress, max_bytes)
                file.flush()
                os.fsync(file.fileno())
                _record_sha256(path, part, stated, url)
                part.replace(path)
                sync_folder(path.parent)
        finally:
            if path.exists() or not file.seek(0, os.SEEK_END):
                part.unlink(missing_ok=True)
                note.unlink(missing_ok=True)


def verify_sha256(path: Path) -> Path:
    """Returns ``path`` after comparing its sha256 with the recorded one; records it if none is.

    A file that was copied there by hand is recorded on its first use, unless the folder is not
    writable. Raises ``UserError`` when the bytes have changed.
    """
    stat, record = path.stat(), _record_path(path)
    sha256 = compute_sha256(path, stat.st_size, stat.st_mtime_ns)
    if not record.exists():
        with suppress(OSError):  # a cache that all users of a site share is not writable
            _write_record(path, sha256)
        return path
    expected = record.read_text(encoding="utf-8", errors="replace").split()[:1]
    if expected != [sha256]:
        raise UserError(
            f"{path} is not the file that was downloaded: its sha256 is {sha256[:12]}.., and "
            f"{record.name} beside it says {(expected or ['nothing'])[0][:12]}... Remove both "
            "files to download it again."
        )
    return path


@lru_cache(maxsize=64)
def compute_sha256(path: Path, size_bytes: int, changed_ns: int) -> str:
    """Returns the sha256 of a file; cached per process, size and time of change, since one run asks
    for it several times."""
    return file_sha256(path)


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_record(path: Path, sha256: str) -> None:
    """Writes the record by a rename: other processes may be reading it."""
    with atomic_write(_record_path(path)) as temporary:
        temporary.write_text(f"{sha256}  {path.name}\n", encoding="ascii")


def _record_sha256(path: Path, part: Path, stated: str | None, url: str) -> None:
    sha256 = file_sha256(part)
    if stated and stated != sha256:
        os.truncate(part, 0)
        raise UserError(
            f"what {url} sent has the sha256 {sha256}, but the server promised {stated}: download "
            "it again."
        )
    _write_record(path, sha256)


@contextmanager
def _lock(part: Path) -> Iterator[BinaryIO]:
    """Yields the partial file, opened to append and locked for this process."""
    while True:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The process that held the lock before may have renamed the file that we opened.
            if _read_inode(part) == os.fstat(file.fileno()).st_ino:
                yield file
                return


def _read_inode(path: Path) -> int | None:
    """One system call: another process may remove the file between two."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _download(
    file: BinaryIO, url: str, path: Path, note: Path, progress: Progress | None, max_bytes: int
) -> str | None:
    """Appends until the file is complete; returns the sha256 that the server stated, if any."""
    size = file.seek(0, os.SEEK_END)
    while True:
        try:
            return _attempt(file, url, path, note, progress, max_bytes)
        except _Interrupted as error:
            previous, size = size, file.seek(0, os.SEEK_END)
            if size <= previous:
                raise UserError(
                    f"{path.name} is not in the cache, and {url} cannot be downloaded ({error}): "
                    f"put that file at {path}, or run again with a network."
                ) from None
            time.sleep(_PAUSE_SECONDS)


def _attempt(
    file: BinaryIO, url: str, path: Path, note: Path, progress: Progress | None, max_bytes: int
) -> str | None:
    # Ask for the rest of the partial file, if the server still has the same version of it.
    start = file.seek(0, os.SEEK_END)
    version = _read_version(note, url) if start else None
    resume = {"Range": f"bytes={start}-", "If-Range": version} if version else {}
    with _request(url, resume) as (answer, stated):
        # Any answer but that rest means the whole file: discard the partial one.
        if not (
            resume
            and answer.status_code == 206
            and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        ):
            start = 0
            file.truncate(0)
        if answer.status_code == 416 and resume:  # the partial file is longer than the server's
            return _attempt(file, url, path, note, progress, max_bytes)

        # Check the size before a byte is written, then append.
        _check_status(answer, url, path)
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if total is not None:
            check_size(url, path.parent, total, start, max_bytes)
        _write_version(note, url, answer.headers.get("ETag", ""))
        done = _append(file, answer, url, start, total, progress, max_bytes)
    if total is not None and done != total:
        raise _Interrupted(f"{done} of {total} bytes received")
    return stated


def _append(
    file: BinaryIO,
    answer: requests.Response,
    url: str,
    start: int,
    total: int | None,
    progress: Progress | None,
    max_bytes: int,
) -> int:
    done = start
    try:
        for block in answer.iter_content(_BLOCK_BYTES):
            done += len(block)
            if done > max_bytes:
                raise make_too_large_error(url, f"more than {done}", max_bytes)
            file.write(block)
            if progress:
                progress(done, total)
    except requests.RequestException as error:
        raise _Interrupted(_describe_error(error)) from error
    finally:
        file.flush()
    return done


@contextmanager
def _request(url: str, resume: dict[str, str]) -> Iterator[tuple[requests.Response, str | None]]:
    """Yields the answer after all redirects, and the sha256 that the Hugging Face hub states as
    ``X-Linked-ETag``."""
    # `identity`: the bytes as they are on the server's disk, so that ranges and sizes agree.
    headers = {"Accept-Encoding": "identity", "User-Agent": "speechft_ray", **resume}
    local, address, stated = _is_local(url), url, None
    for _ in range(_HOPS):
        if urlsplit(address).scheme != "https" and not (local and _is_local(address)):
            raise UserError(
                f"{url} leads to {address}, which is not https: nothing is downloaded from there."
            )
        try:
            answer = requests.get(
                address,
                headers=headers,
                stream=True,
                timeout=(_CONNECT_SECONDS, _READ_SECONDS),
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise _Interrupted(_describe_error(error)) from error
        with answer:
            match = _SHA256.fullmatch(answer.headers.get("X-Linked-ETag", ""))
            stated = match.group(1) if match else stated
            if not answer.is_redirect:
                yield answer, stated
                return
            address = urljoin(address, answer.headers["Location"])
    raise UserError(f"{url} was redirected more than {_HOPS} times: check the address.")


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in _LOOPBACK


def _check_status(answer: requests.Response, url: str, path: Path) -> None:
    status = answer.status_code
    # The hub answers 401 for names that do not exist, so that private ones cannot be guessed.
    if status in (401, 403, 404):
        raise UserError(
            f"{url} does not exist (the server answers {status}): check the name, or put the file "
            f"at {path}."
        )
    if status not in (200, 206):
        raise UserError(
            f"{url} cannot be downloaded now (the server answers {status}): try later, or put the "
            f"file at {path}."
        )


def check_size(what: str, folder: Path, total: int, present: int, max_bytes: int) -> None:
    """Raises ``UserError`` when a file of ``total`` bytes, ``present`` of them downloaded already,
    is larger than allowed or than the disk of ``folder``."""
    if total > max_bytes:
        raise make_too_large_error(what, str(total), max_bytes)
    free = shutil.disk_usage(folder).free
    if total - present > free:
        raise UserError(
            f"{what} has {total} bytes, but the disk of {folder} has {free} left: free some space "
            "there."
        )


def make_too_large_error(what: str, size: str, max_bytes: int) -> UserError:
    """Returns the error for a file that is larger than allowed."""
    return UserError(
        f"{what} has {size} bytes, and {max_bytes} is the most that is downloaded: allow more with "
        "SPEECHFT_MAX_DOWNLOAD_BYTES."
    )


def _read_version(note: Path, url: str) -> str | None:
    try:
        version = json.loads(note.read_text(encoding="utf-8"))
        return str(version["etag"]) if version["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_version(note: Path, url: str, etag: str) -> None:
    """Records the version of the partial file. A weak tag does not promise equal bytes (RFC 9110,
    section 13.1.5), so it is treated as none."""
    if etag.startswith('"'):
        write_json(note, {"url": url, "etag": etag})
    else:
        note.unlink(missing_ok=True)


def _describe_error(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return f"no answer within {_READ_SECONDS:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted here"
    return (
        "the connection broke"
        if isinstance(error, requests.exceptions.ChunkedEncodingError)
        else "no connection"
    )
