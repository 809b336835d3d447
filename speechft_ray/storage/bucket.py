"""Objects of a bucket: reading, writing whole or on a condition, listing. The only module that
knows the client library."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from speechft_ray.core.errors import StorageDown, UserError
from speechft_ray.storage.address import BucketAddress

RETRY_SECONDS = 150.0
"""How long a request is repeated after throttling, errors of the server and of the connection. Less
than five minutes, the life of a signature (AWS, "Signing AWS API requests")."""

FIRST_RETRY_SECONDS = 15.0
"""The same for the first request of a process, which finds most mistakes of an address."""

MOST_RETRIES = 10
CONNECT_SECONDS, REQUEST_SECONDS = 5, 60
_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0, None)
"""Pauses between tries where the library does not try again by itself."""
CHUNK_BYTES = 8 * 2**20
"""Bytes that are read or written at once."""

_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)</Code>")
"""How S3 and Google Cloud Storage, and Azure say so; both are 404, as for a missing object."""

T = TypeVar("T")


class Item(NamedTuple):
    """An object of a bucket."""

    key: str
    size: int
    modified: float
    """Seconds since 1970, by the clock of the object store."""


class Version(NamedTuple):
    """Which state of an object was read or written: a condition of the next write."""

    e_tag: str | None
    number: str | None


class NoAnswer(UserError):
    """The first request of a process got no answer, or errors of the server: that may pass."""


class Bucket:
    """The objects below an address. Keys are relative to its prefix, with ``/`` between parts.

    Requests that fail for a while are repeated, with exponential pauses. Methods raise
    ``StorageDown`` when they still fail, and ``UserError`` where the object store refuses.
    """

    def __init__(self, address: BucketAddress) -> None:
        """Sends nothing. Raises ``UserError`` where the library or an option is missing."""
        self.address = address
        if find_spec("obstore") is None:
            raise UserError(
                f"the storage {address} needs the Python package `obstore`, which is not installed "
                "here: pip install 'speechft_ray[s3]' on every node, or give a folder."
            )
        self._first = self._open(FIRST_RETRY_SECONDS, retries=4)
        self._store = self._open(RETRY_SECONDS, MOST_RETRIES)

    def _open(self, seconds: float, retries: int) -> Any:
        from obstore.store import from_url

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        options: dict[str, Any] = {
            "client_options": {
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                "timeout": timedelta(seconds=REQUEST_SECONDS),
            },
            "retry_config": {
                "max_retries": retries,
                "retry_timeout": timedelta(seconds=seconds),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=15),
                    "base": 2,
                },
            },
        }
        if self.address.scheme == "s3" and endpoint:
            options["endpoint"] = endpoint
        with self._translate("", UserError):
            return from_url(str(self.address), **options)

    def check(self, key: str) -> bytes | None:
        """Returns the bytes of an object, ``None`` where there is none, as the first request of a
        process: it is repeated for a short time, and every failure is a ``UserError``, of the type
        ``NoAnswer`` where that may pass."""
        with self._translate(key, NoAnswer):
            read = self._read(self._first, key)
        return None if read is None else read[0]

    def read(self, key: str) -> tuple[bytes, Item, Version] | None:
        """Returns a small object as a whole; ``None`` where there is none."""
        return self._repeat(key, lambda: self._read(self._store, key))

    def _read(self, store: Any, key: str) -> tuple[bytes, Item, Version] | None:
        import obstore

        try:
            answer = obstore.get(store, key)
            meta = answer.meta
            version = Version(meta["e_tag"], meta["version"])
            return bytes(answer.bytes()), _item(meta), version
        except FileNotFoundError as error:
            self._check_bucket(key, error)
            return None

    def find(self, key: str) -> Item | None:
        """Returns what is known of an object without its bytes; ``None`` where there is none."""
        import obstore

        def look() -> Item | None:
            try:
                return _item(obstore.head(self._store, key))
            except FileNotFoundError:
                return None

        return self._repeat(key, look)

    def write(
        self, key: str, content: bytes, *, new: bool = False, after: Version | None = None
    ) -> Version | None:
        """Writes a small object; returns its version, or ``None`` where the condition does not
        hold.

        ``new``: only where there is none; ``after``: only over that version. Where an earlier try
        of the same request did it and its answer was lost, the object has this content, which
        counts as written.
        """
        for pause in _PAUSES_SECONDS:
            try:
                version = self._write(key, content, new, after)
                if version is not None or not (new or after):
                    return version
            except StorageDown:  # the library repeats no request that is not safe to repeat
                if pause is None:
                    raise
            there = self.read(key)
            if there is not None and there[0] == content:
                return there[2]
            if pause is None or (new and there is not None):
                return None
            if after is not None and (there is None or there[2] != after):
                return None
            time.sleep(pause)
        return None

    def _write(self, key: str, content: bytes, new: bool, after: Version | None) -> Version | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "create" if new else "overwrite"
        if after is not None:
            parts = {"e_tag": after.e_tag, "version": after.number}
            mode = {name: value for name, value in parts.items() if value is not None}
        with self._translate(key):
            try:
                result = obstore.put(self._store, key, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return None
            except FileNotFoundError as error:
                self._check_bucket(key, error)
                return None  # it was removed meanwhile
        return Version(result["e_tag"], result["version"])

    def upload(self, key: str, path: Path) -> None:
        """Writes a file. Raises ``FileNotFoundError`` where the file is gone."""
        import obstore

        def send() -> None:
            with path.open("rb") as file:
                try:
                    obstore.put(self._store, key, file, chunk_size=CHUNK_BYTES)
                except FileNotFoundError as error:
                    # An upload in parts is unknown once it is complete: the first answer was lost.
                    self._check_bucket(key, error)
                    raise StorageDown(self._explain(key, error)) from None

        self._repeat(key, send)

    def download(self, key: str, path: Path | None) -> tuple[str, int] | None:
        """Writes an object to a new file, or nowhere, and returns its sha256 and bytes; ``None``
        where there is none."""
        import obstore

        def fetch() -> tuple[str, int] | None:
            digest, size = hashlib.sha256(), 0
            try:
                stream = obstore.get(self._store, key).stream(min_chunk_size=CHUNK_BYTES)
            except FileNotFoundError:
                return None
            with (path or Path(os.devnull)).open("wb") as file:
                for chunk in stream:
                    digest.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
            return digest.hexdigest(), size

        return self._repeat(key, fetch)

    def list(self, prefix: str) -> Sequence[Item]:
        """Returns the objects below a prefix, which ends at a ``/`` of their keys."""
        import obstore

        return self._repeat(
            prefix,
            lambda: [
                _item(meta) for chunk in obstore.list(self._store, prefix or None) for meta in chunk
            ],
        )

    def copy(self, source: str, target: str) -> None:
        """Copies an object inside the object store."""
        import obstore

        self._repeat(source, lambda: obstore.copy(self._store, source, target))

    def remove(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are not there are no error."""
        import obstore

        for key in keys:
            with suppress(FileNotFoundError):
                self._repeat(key, partial(obstore.delete, self._store, key))

    def _repeat(self, key: str, action: Callable[[], T]) -> T:
        """Does what may be done twice, again where the library itself gave up early, as where an
        answer breaks off."""
        began = time.monotonic()
        for pause in _PAUSES_SECONDS:
            try:
                with self._translate(key):
                    return action()
            except StorageDown:
                if pause is None or time.monotonic() - began > RETRY_SECONDS:
                    raise
                time.sleep(pause)
        raise AssertionError("the last pause is None")

    def _check_bucket(self, key: str, error: Exception) -> None:
        if _NO_BUCKET.search(str(error)):
            raise UserError(self._explain(key, error)) from None

    @contextmanager
    def _translate(self, key: str, down: type[UserError] = StorageDown) -> Iterator[None]:
        """Raises errors of the library as sentences; ``down``: the type for what may pass."""
        from obstore import exceptions

        refused = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
        try:
            yield
        except refused as error:
            raise UserError(self._explain(key, error)) from None
        except (exceptions.BaseError, TimeoutError) as error:
            if down is NoAnswer and self._find_mistake(key, error) is not None:
                down = UserError  # it is there again at the next try
            raise down(self._explain(key, error)) from None

    def _explain(self, key: str, error: Exception) -> str:
        """Returns one sentence: what the object store said, and how to go on."""
        text = " ".join(str(error).partition("Debug source")[0].split())
        return self._find_mistake(key, error) or (
            f"the storage {self.address} does not answer ({_shorten(text)}): see that this node "
            "reaches it (and what AWS_ENDPOINT_URL says, if it is set), then run the same command "
            "again."
        )

    def _find_mistake(self, key: str, error: Exception) -> str | None:
        """Returns one sentence about an address or credentials that are wrong, and how to go on;
        ``None`` where an error says nothing of them."""
        text = " ".join(str(error).partition("Debug source")[0].split())
        store = {"s3": "S3", "gs": "Google Cloud Storage"}.get(self.address.scheme, "Azure")
        place = f"the storage {self.address}"
        if _NO_BUCKET.search(text):
            return (
                f"{place}: there is no bucket `{self.address.bucket}` there: make it, or correct "
                "--storage (and AWS_ENDPOINT_URL, if it is set)."
            )
        if "169.254.169.254" in text or "metadata.google" in text or "credential" in text.lower():
            return (
                f"{place}: no credentials of {store} were found on this node: set "
                f"{_CREDENTIALS[store]}, or give the node a role that may use the bucket "
                "(docs/storages.md)."
            )
        if "MissingAccount" in str(error) or "Account must be specified" in text:
            return f"{place}: set AZURE_STORAGE_ACCOUNT_NAME to the account of the container."
        if re.search(r"\b(403|401)\b(?!\.\d)", text) or "denied" in text.lower():
            return (
                f"{place}: {store} refuses `{key}` to these credentials ({_shorten(text)}): they "
                "must be allowed to list, read, write and remove objects there."
            )
        if "redirect" in text.lower() or re.search(r"\b301\b", text):  # not 102.425301ms
            return (
                f"{place}: the bucket lies in another region: set AWS_REGION to its region "
                f"({_shorten(text)})."
            )
        return None


_CREDENTIALS = {
    "S3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "Google Cloud Storage": "GOOGLE_APPLICATION_CREDENTIALS",
    "Azure": "AZURE_STORAGE_ACCOUNT_KEY",
}


def _item(meta: Any) -> Item:
    return Item(str(meta["path"]), int(meta["size"]), meta["last_modified"].timestamp())


def _shorten(text: str) -> str:
    code = re.search(r"<Code>([A-Za-z0-9.]+)</Code>", text)
    short = re.sub(r"<\?xml.*", "", text).strip(" :")
    return (short if len(short) <= 240 else f"{short[:240]}...") + (f" {code[1]}" if code else "")
