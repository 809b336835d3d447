"""One file over https into one place: resumed after a cut, never larger than allowed, its sha256
kept beside it.

``FILE.part`` is what has arrived so far, ``FILE.part.json`` says of which version of which address.
``FILE`` appears by one rename, so it is whole whenever it is there. ``FILE.sha256`` is what
``sha256sum --check`` reads as well.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
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
from speechft_ray.core.fingerprint import file_sha256
from speechft_ray.core.store import sync_folder, write_json

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and all bytes, ``None`` while the server has not told."""

MAX_BYTES = 8 * 2**30
"""Twice what a large encoder (317 million parameters in float32) has with Adam's two moments, 3.8e9
bytes; the bound keeps an endless answer from filling a disk."""

_CONNECT_SECONDS, _READ_SECONDS, _PAUSE_SECONDS = 10.0, 60.0, 1.0
_HOPS = 5
_BLOCK_BYTES = 1 << 16
"""What a cut may lose: a block arrives whole or not at all."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')


class NotThere(UserError):
    """The server answers, and has no such file."""


class Unreachable(UserError):
    """Nobody answers, or the connection breaks again and again; ``reason`` says how."""

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class _Cut(Exception):
    """The connection ended early; the message says how."""


def fetch(
    url: str, path: Path, *, progress: Progress | None = None, max_bytes: int = MAX_BYTES
) -> Path:
    """Downloads an address to ``path`` unless the file is there, and returns ``path``.

    What an earlier try left is taken up again where the server allows it and still has the same
    version. A cut connection is taken up as long as every try brings the file further. Two
    processes that want the same file take turns, and the second finds it done. Only https is
    spoken, also after a redirect; plain http to this very machine alone.

    Raises ``NotThere`` when the server does not have it, ``Unreachable`` when it cannot be asked,
    and ``UserError`` when the file may not be had; each says how to go on. A part of the file is
    all that is left behind then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, path, progress, max_bytes)
    except OSError as error:
        raise UserError(
            f"{path.name} cannot be kept in {path.parent} ({error.strerror}): name another folder with SPEECHFT_CACHE."
        ) from error
    return path


def _fetch(url: str, path: Path, progress: Progress | None, max_bytes: int) -> None:
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    with _alone(part) as file:
        try:
            if not path.exists():
                promised = _fill(file, url, path, note, progress, max_bytes)
                file.flush()
                os.fsync(file.fileno())
                _record(path, part, promised, url)
                part.replace(path)
                sync_folder(path.parent)
        finally:
            if path.exists() or not file.seek(0, os.SEEK_END):
                part.unlink(missing_ok=True)
                note.unlink(missing_ok=True)


def verify_sha256(path: Path) -> Path:
    """Returns ``path`` after comparing its bytes with the sha256 that was recorded when it came;
    records it if none is there.

    A file that a person put there by hand is recorded on its first use, unless the folder cannot be
    written. Raises ``UserError`` when the bytes have changed.
    """
    facts = path.stat()
    found, record = _sha256(path, facts.st_size, facts.st_mtime_ns), _record_of(path)
    if not record.exists():
        with suppress(OSError):  # a cache that a site keeps for all its people
            _write_record(path, found)
        return path
    known = record.read_text(encoding="utf-8", errors="replace").split()[:1]
    if known != [found]:
        raise UserError(
            f"{path} is not the file that was downloaded: its sha256 is {found[:12]}.., and {record.name} beside it says "
            f"{(known or ['nothing'])[0][:12]}... Remove both files to download it again."
        )
    return path


@lru_cache(maxsize=64)
def _sha256(path: Path, size_bytes: int, changed_ns: int) -> str:
    """Once per process and state of the file: one start asks several times."""
    return file_sha256(path)


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_record(path: Path, sha256: str) -> None:
    """Whole or not at all, since others may read it just now."""
    record = _record_of(path)
    fresh = record.with_name(f".{record.name}-{secrets.token_hex(4)}")
    try:
        fresh.write_text(f"{sha256}  {path.name}\n", encoding="ascii")
        fresh.replace(record)
    finally:
        fresh.unlink(missing_ok=True)


def _record(path: Path, part: Path, promised: str | None, url: str) -> None:
    found = file_sha256(part)
    if promised and promised != found:
        os.truncate(part, 0)
        raise UserError(
            f"what {url} sent has the sha256 {found}, but the server promised {promised}: download it again."
        )
    _write_record(path, found)


@contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """Yields the part file, opened to append, for this process alone; waits while another one fills
    it."""
    while True:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held the lock before may have renamed the file that we opened: then it is not
            # the part any more.
            if _inode(part) == os.fstat(file.fileno()).st_ino:
                yield file
                return


def _inode(path: Path) -> int | None:
    """Asked once: between two questions another process may take the file away."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _fill(
    file: BinaryIO, url: str, path: Path, note: Path, progress: Progress | None, max_bytes: int
) -> str | None:
    """Appends until the file is whole; returns the sha256 that the server promised, if it did."""
    furthest = file.seek(0, os.SEEK_END)
    while True:
        try:
            return _attempt(file, url, path, note, progress, max_bytes)
        except _Cut as cut:
            here = file.seek(0, os.SEEK_END)
            if here <= furthest:
                sentence = f"{path.name} is not in the cache, and {url} cannot be had ({cut}): put that file at {path}"
                raise Unreachable(f"{sentence}, or run again with a network.", str(cut)) from None
            furthest = here
            time.sleep(_PAUSE_SECONDS)


def _attempt(
    file: BinaryIO, url: str, path: Path, note: Path, progress: Progress | None, max_bytes: int
) -> str | None:
    start = file.seek(0, os.SEEK_END)
    version = _version(note, url) if start else None
    wanted = {"Range": f"bytes={start}-", "If-Range": version} if version else {}
    with _answer(url, wanted) as (answer, promised):
        if not (
            wanted
            and answer.status_code == 206
            and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        ):
            start = 0
            file.truncate(0)
        if answer.status_code == 416 and wanted:  # the part is no beginning of what the server has
            return _attempt(file, url, path, note, progress, max_bytes)
        _refuse(answer, url, path)
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        _check_room(url, path, total, start, max_bytes)
        _remember(note, url, answer.headers.get("ETag", ""))
        done = _append(file, answer, url, start, total, progress, max_bytes)
    if total is not None and done != total:
        raise _Cut(f"{done} of {total} bytes came")
    return promised


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
                raise _too_large(url, f"more than {done}", max_bytes)
            file.write(block)
            if progress:
                progress(done, total)
    except requests.RequestException as error:
        raise _Cut(_reason(error)) from error
    finally:
        file.flush()
    return done


@contextmanager
def _answer(url: str, wanted: dict[str, str]) -> Iterator[tuple[requests.Response, str | None]]:
    """Yields the answer after all redirects, and the sha256 that the Hugging Face hub states as
    ``X-Linked-ETag``."""
    headers = {
        "Accept-Encoding": "identity",
        "User-Agent": "speechft_ray",
        **wanted,
    }  # bytes as they are on the disk there
    local, here, promised = _is_local(url), url, None
    for _ in range(_HOPS):
        if urlsplit(here).scheme != "https" and not (local and _is_local(here)):
            raise UserError(
                f"{url} leads to {here}, which is not https: nothing is downloaded from there."
            )
        try:
            answer = requests.get(
                here,
                headers=headers,
                stream=True,
                timeout=(_CONNECT_SECONDS, _READ_SECONDS),
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise _Cut(_reason(error)) from error
        with answer:
            stated = _SHA256.fullmatch(answer.headers.get("X-Linked-ETag", ""))
            promised = stated.group(1) if stated else promised
            if not answer.is_redirect:
                yield answer, promised
                return
            here = urljoin(here, answer.headers["Location"])
    raise UserError(f"{url} was redirected more than {_HOPS} times: check the address.")


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in _LOOPBACK


def _refuse(answer: requests.Response, url: str, path: Path) -> None:
    status = answer.status_code
    if status in (
        401,
        403,
        404,
    ):  # the hub answers 401 for what does not exist, lest private names be guessed
        raise NotThere(
            f"{url} is not there (the server answers {status}): check the name, or put the file at {path}."
        )
    if status not in (200, 206):
        raise UserError(
            f"{url} cannot be had now (the server answers {status}): try later, or put the file at {path}."
        )


def _check_room(url: str, path: Path, total: int | None, start: int, max_bytes: int) -> None:
    if total is not None and total > max_bytes:
        raise _too_large(url, str(total), max_bytes)
    free = shutil.disk_usage(path.parent).free
    if total is not None and total - start > free:
        raise UserError(
            f"{url} has {total} bytes, but the disk of {path.parent} has {free} left: make room there."
        )


def _too_large(url: str, size: str, max_bytes: int) -> UserError:
    return UserError(
        f"{url} has {size} bytes, and {max_bytes} is the most that is downloaded: allow more with SPEECHFT_MAX_DOWNLOAD_BYTES."
    )


def _version(note: Path, url: str) -> str | None:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return str(found["etag"]) if found["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(note: Path, url: str, etag: str) -> None:
    """Notes the version of the part. A weak tag does not promise equal bytes (RFC 9110, section
    13.1.5), so it is as good as none."""
    if etag.startswith('"'):
        write_json(note, {"url": url, "etag": etag})
    else:
        note.unlink(missing_ok=True)


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return f"no answer within {_READ_SECONDS:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted here"
    return (
        "the connection broke"
        if isinstance(error, requests.exceptions.ChunkedEncodingError)
        else "no connection"
    )
