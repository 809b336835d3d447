"""``speechft paper --scale real-speech``: the shape of three tables on human speech from Debian's
packages, with an encoder that is pre-trained on it first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from speechft_ray.commands.pretrain import pretrain_tiny
from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import CORPORA, find_corpus_folder

SPACES: Mapping[int, tuple[str, ...]] = {
    1: ("real_table01",),
    3: ("real_table03",),
    9: ("real_table09",),
}
"""Search spaces by table of the paper, below ``search_spaces/real_speech``."""

TITLES: Mapping[int, str] = {
    1: "In shape: three fine-tuning tasks, interpolated or not",
    3: "In shape: continued pre-training on Czech",
    9: "In shape: the score across alpha",
}

ENCODER = "human_hubert"
"""What the search spaces call the encoder."""
CORPUS = "fillets"
OPTIONS: Mapping[str, JsonValue] = {"characters": "all"}
"""What it is pre-trained on: 2.06 hours of acted Czech and Dutch."""
START = "tiny_hubert"
"""What it goes on from: the encoder of the package, which has heard synthetic speech alone."""
UPDATES = 2000
"""Of 32 s of crops each: 18 hours of crops, each recording nine times."""
CORPORA_NEEDED = ("fillets", "gcin_voice")


def select_tables(numbers: list[int], asked: bool) -> list[int]:
    """Returns the tables that have a search space at this scale, of those that were ``asked`` for
    by number or of all. Raises ``UserError`` for one that was asked for and has none."""
    if asked and (missing := [number for number in numbers if number not in SPACES]):
        raise UserError(
            f"table {missing[0]} has no search space on human speech; `--scale real-speech` has "
            f"tables {', '.join(map(str, SPACES))}."
        )
    return [number for number in numbers if number in SPACES]


def check_corpora(corpora: Path | None) -> None:
    """Raises ``UserError`` with the command line that installs the corpora that are missing."""
    root = corpora.expanduser() if corpora else None
    missing = [name for name in CORPORA_NEEDED if find_corpus_folder(name, root) is None]
    if missing:
        packages = [CORPORA.get(name).install.removeprefix("apt install ") for name in missing]
        raise UserError(
            f"`--scale real-speech` needs {' and '.join(f'`{name}`' for name in missing)}: `apt "
            f"install {' '.join(packages)}` (about 150 MB), or unpack the packages and make links "
            "with these names below --corpora."
        )


def find_encoder(storage: Path, corpora: Path | None, plan: bool, console: Console) -> str:
    """Returns the pre-trained encoder of a storage, and pre-trains it where there is none; an
    interrupted pre-training goes on.

    Raises ``UserError`` where only a ``plan`` is asked for, which computes nothing.
    """
    out = storage.expanduser().absolute() / "pretrained" / ENCODER
    if (out / "encoder.safetensors").is_file():
        return str(out)
    if plan:
        raise UserError(
            "the plan needs the encoder, which is pre-trained by the command without --plan, or "
            f"alone by `speechft pretrain --start {START} --updates {UPDATES} --corpus {CORPUS} "
            f"--option characters=all --out {out}`; `--encoder {ENCODER}=FILE` takes another one."
        )
    console.print(
        f"Pre-training {ENCODER} on {CORPUS}, from {START} (it can be stopped and goes on): {out}",
        soft_wrap=True,
    )
    work = out.with_name(f"{ENCODER}-work")
    pretrain_tiny(out, work, CORPUS, OPTIONS, corpora, START, UPDATES)
    return str(out)
