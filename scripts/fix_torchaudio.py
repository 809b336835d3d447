"""Makes ``import torchaudio`` work beside a CPU build of torch; `make install` runs it.

The wheels of torchaudio on PyPI (2.11.0 and 2.11.1) link their compiled extension against CUDA.
Beside a CPU build of torch, ``import torchaudio`` raises ``OSError`` (libc10_cuda.so or
libcudart.so), and so does every speech model of transformers, whose ``audio_utils`` imports it.
Without files of the extension in its ``lib`` folder, torchaudio is a plain Python package: its
``_load_lib`` returns false, and only forced alignment and the CUDA decoder are unavailable.

So the files are renamed to ``*.so.needs-cuda``, and nothing is deleted. Where torch has CUDA, files
that an earlier run renamed get their names back. Nothing happens where torchaudio can be imported,
is absent, or fails for another reason.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

SUFFIX = ".needs-cuda"
"""Appended to the name of a file of the extension, which torchaudio then does not find."""

CUDA_LIBRARIES = ("libc10_cuda", "libtorch_cuda", "libcudart")
"""Shared objects that the extension links against and a CPU build of torch does not bring."""


def main() -> None:
    import torch

    spec = importlib.util.find_spec("torchaudio")
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent / "lib"
    if torch.version.cuda is not None:
        for file in sorted(folder.glob(f"*.so{SUFFIX}")):
            file.rename(file.with_suffix(""))
            print(f"restored {file.with_suffix('')}")
    elif any(library in read_import_error() for library in CUDA_LIBRARIES):
        for file in sorted(folder.glob("*.so")):
            file.rename(file.with_name(file.name + SUFFIX))
            print(f"renamed {file}, which needs CUDA, to *{SUFFIX}: this torch is a CPU build")


def read_import_error() -> str:
    """Returns what an ``import torchaudio`` writes to stderr in a process of its own; empty where
    it works."""
    command = [sys.executable, "-c", "import torchaudio"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    return process.stderr if process.returncode else ""


if __name__ == "__main__":
    main()
