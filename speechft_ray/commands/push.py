"""Uploads an exported encoder to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError


def check_push(repository: str, to: str) -> str:
    """Returns the user's token of the hub. Raises ``UserError`` for a name that is none, for a
    format that the hub's users cannot load, and where there is no token: before anything is
    written."""
    from huggingface_hub import get_token

    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository) is None:
        raise UserError(
            f"--push must be OWNER/NAME of a model on the Hugging Face hub, but is {repository!r} "
            "instead."
        )
    if to != "hf":
        raise UserError(
            f"--push uploads the layout of transformers, but `--to {to}` writes another: export "
            "with --to hf, or leave --push out."
        )
    token = get_token()
    if token is None:
        raise UserError(
            "--push needs a token of the Hugging Face hub, and there is none here: run `hf auth "
            "login`, or set HF_TOKEN to a token that may write. Nothing was written."
        )
    return token


def push_folder(folder: Path, repository: str, token: str) -> str:
    """Uploads a folder as one commit; returns the address. A repository that is not there is
    created, and is private until its owner changes that. Raises ``UserError`` where the hub
    refuses or does not answer."""
    from huggingface_hub import HfApi

    api: Any = HfApi(token=token, library_name="speechft_ray")
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=str(folder), commit_message="Export of speechft_ray"
        )
    except Exception as error:  # of the hub, of its HTTP library, of the network
        reason = " ".join(str(error).replace(token, "***").split())[:300]
        raise UserError(
            f"{folder} was written, but the hub does not take it as {repository} "
            f"({type(error).__name__}: {reason}): give the same command with another OUT to try "
            "again, or upload the folder with `hf upload`."
        ) from None
    return f"{api.endpoint}/{repository}"
