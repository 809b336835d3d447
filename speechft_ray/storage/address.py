"""Addresses of storages: a folder, or a URL such as ``s3://BUCKET/PREFIX``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from speechft_ray.core.errors import UserError, printable, unknown_name

SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "abfs": "abfs",
    "abfss": "abfss",
}
"""Schemes of URLs by what people write, and the one under which they are kept."""

FILE = "file"
"""The scheme of a URL that is a folder after all."""

CREDENTIALS = re.compile(r"(AWS|GOOGLE|AZURE)_[A-Z0-9_]+")
"""Environment variables by which the clients of object stores are set up."""

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):/(?P<second>/?)(?P<rest>.*)", re.DOTALL)


class BucketAddress(NamedTuple):
    """Where a storage lies in an object store."""

    scheme: str
    bucket: str
    prefix: str
    """Without slashes at its ends; may be empty."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def is_url(storage: str | Path) -> bool:
    """Whether a storage is given as a URL of an object store and not as a folder."""
    match = _URL.match(str(storage))
    return match is not None and match["scheme"].lower() in SCHEMES and bool(match["second"])


def resolve_storage(storage: str | Path) -> str:
    """Returns a storage as runs keep it: a URL in its short form, or the absolute path of a folder.

    Raises ``UserError`` for a URL with a scheme that is not served, without a bucket, or with
    anything but a bucket and a prefix.
    """
    text = str(storage)
    match = _URL.match(text)
    if match is None or not match["second"]:
        return str(Path(text).expanduser().absolute())
    if match["scheme"].lower() == FILE:
        return str(Path(unquote(urlsplit(text).path)).absolute())
    return str(parse_url(text))


def parse_url(text: str) -> BucketAddress:
    """Returns the parts of a URL. Raises ``UserError``."""
    where = f"the storage `{printable(text)}`"
    match = _URL.match(text)
    scheme = match["scheme"].lower() if match else ""
    if match is None or scheme not in SCHEMES:
        raise UserError(
            f"{where}: {unknown_name('scheme', scheme, [*SCHEMES, FILE])} Or give a folder."
        )
    bucket, _, prefix = match["rest"].partition("/")
    parts = [part for part in prefix.split("/") if part]
    example = f"write {scheme}://BUCKET/PREFIX"
    if not bucket:
        raise UserError(f"{where} names no bucket: {example}.")
    if any(part in (".", "..") for part in parts) or not text.isprintable():
        raise UserError(f"{where} has a prefix with `.`, `..` or control characters: {example}.")
    if re.search(r"[?#]", text) or ("@" in bucket and not scheme.startswith("abfs")):
        raise UserError(
            f"{where} has more than a bucket and a prefix: {example}; keys and options are given "
            "in environment variables (docs/storages.md)."
        )
    return BucketAddress(SCHEMES[scheme], bucket, "/".join(parts))


def append_suffix(storage: str | Path, suffix: str) -> str:
    """Returns the storage beside another whose last part ends in a suffix."""
    return f"{resolve_storage(storage)}{suffix}"
