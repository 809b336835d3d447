"""What this package does on one GPU: encoding, fine-tuning, probes, memory. Under 8 minutes.

    python -m benchmarks.gpu [sections] [--minutes 7] [--json gpu.json] [--device cuda:0]
    python -m benchmarks.gpu --toy                      # seconds, on a CPU

Encoders have the shapes of HuBERT Base and Large and random weights; utterances have the lengths of
train-clean-100 (``lengths.py``, seeded) and are noise. Sections:

- ``device``: TFLOP/s of matrix products, which "share of peak" refers to;
- ``encode``: audio seconds per second in ``float32``, ``tf32`` and ``bfloat16``, utterances one by
  one, in batches of equal length and in padded batches, and the error of the states;
- ``finetune``: updates per second, beside a plain loop over the same model;
- ``probes``: updates per second of PR's CTC probe for each form of stored features, and of SID's
  pooled probe;
- ``oom``: what a batch that is too large does.

A table in Markdown is printed at the end; ``--json`` is written after every section. A section that
fails is a line of the table, and what no longer fits into ``--minutes`` is left out and said.

Needs torch, numpy and safetensors, and beside them what the encoders and probes import: s3prl (pure
Python; it imports torchaudio, whose Python part is enough, and requests, urllib3, idna, certifi,
charset_normalizer, filelock, tqdm), pydantic with pydantic_core (compiled: carry the wheel for the
Python of that machine), annotated_types, typing_inspection, typing_extensions and rapidfuzz (pure
Python where its compiled part does not load). Not needed: ray, mlflow, optuna, scipy, sklearn,
soundfile, matplotlib, ruamel.yaml, typer. To carry them, unpack the wheels into one folder and put
it on PYTHONPATH together with this repository.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

NEEDS = (
    "torch",
    "numpy",
    "safetensors",
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_inspection",
    "typing_extensions",
    "s3prl",
    "torchaudio",
    "rapidfuzz",
    "requests",
    "urllib3",
    "idna",
    "certifi",
    "charset_normalizer",
    "filelock",
    "tqdm",
)
"""Packages that this script imports, directly or through others."""

SECTIONS = ("device", "encode", "finetune", "probes", "oom")


def list_missing() -> list[str]:
    """Returns the packages of ``NEEDS`` that cannot be found."""
    missing = []
    for name in NEEDS:
        try:
            if importlib.util.find_spec(name) is None:
                missing.append(name)
        except (ImportError, ValueError):
            missing.append(name)
    return missing


def choose_device(name: str | None, toy: bool) -> Any:
    """Returns the ``torch.device``. Raises ``ValueError`` with a sentence when it is not there."""
    import torch

    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        if not toy:
            raise ValueError(
                "torch finds no GPU here: give --toy for tiny sizes, or --device cpu to measure "
                "the full sizes on a CPU all the same."
            )
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {name} cannot be used here: {reason}") from error
    return device


def format_table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a Markdown table."""
    columns = ("section", "case", "value", "unit", "note")
    lines = ["| " + " | ".join(columns) + " |", "|---|---|---:|---|---|"]
    for row in rows:
        value = row["value"]
        text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
        cells = [row["section"], row["case"], text, row["unit"], row["note"]]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the sections; exits with 2 and one sentence where it cannot begin, with 1 where a
    section failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all unless given")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, for a test on a CPU")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; the GPU where there is one")
    parser.add_argument("--minutes", type=float, default=7.0, help="time in all (7)")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    began = time.monotonic()
    if unknown := sorted(set(options.sections) - set(SECTIONS)):
        sys.exit(_refuse(f"no section is called {unknown[0]}: choose of {', '.join(SECTIONS)}."))
    if missing := list_missing():
        sys.exit(
            _refuse(
                f"{', '.join(missing)} cannot be imported here: unpack the wheels into a folder on "
                "PYTHONPATH (the text at the top of benchmarks/gpu.py says which are needed)."
            )
        )
    try:
        device = choose_device(options.device, options.toy)
    except ValueError as error:
        sys.exit(_refuse(str(error)))
    from benchmarks.gpu_bench import Bench, run_section

    bench = Bench(device=device, toy=options.toy, ends=began + 60 * options.minutes)
    for section in options.sections or SECTIONS:
        run_section(bench, section)
        if options.json:
            options.json.write_text(json.dumps(bench.rows, indent=1))
    print(format_table(bench.rows))
    sys.exit(1 if any(row["case"] == "failed" for row in bench.rows) else 0)


def _refuse(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
