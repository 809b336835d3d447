"""Options that the verbs about sweeps share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import speechft_ray

DEFAULT_SPACE = "alpha"


def _complete_space(start: str) -> list[str]:
    """Returns the packaged search spaces whose names begin so, for completion in a shell."""
    folder = Path(speechft_ray.__file__).parent / "search_spaces"
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    return sorted(name for name in names if name.startswith(start))


Space = Annotated[
    str,
    typer.Option(
        help="Search space: a YAML file, or the name of a packaged one.",
        autocompletion=_complete_space,
    ),
]
SetField = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Another value for a field of the space, as evaluate[0].updates=50; [*] is every "
        "entry; repeatable.",
    ),
]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke",
        help="A few updates of everything, on small synthetic corpora, under the name NAME-smoke "
        "in the storage STORAGE-smoke.",
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="Encoder to start from: a name of `speechft encoders`, hf:OWNER/NAME, or a file."
    ),
]
Corpora = Annotated[
    Path | None, typer.Option(help="Folder with the real corpora, one sub-folder each.")
]
Manifest = Annotated[
    Path | None, typer.Option(help="Your own recordings: a tsv with path, split and label columns.")
]
Storage = Annotated[
    str,
    typer.Option(
        help="Where everything is kept: a folder that every node sees under this path, or a bucket "
        "such as s3://BUCKET/PREFIX."
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Features that evaluations share, best on a node's own disk; default: STORAGE/cache."
    ),
]
CacheGb = Annotated[
    float,
    typer.Option(min=0, help="Limit of the cache in GB; the oldest features are removed first."),
]
Address = Annotated[
    str,
    typer.Option(
        help="Ray cluster: `local` (start one here), `auto` (the running one) or HOST:PORT."
    ),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate", help="With a plan: measure the speed of this machine, some seconds, once."
    ),
]
Throughput = Annotated[
    list[str] | None,
    typer.Option(
        help="With a plan: NAME=VALUE of another machine: encode (x real time), finetune, probe "
        "(updates a second); repeatable."
    ),
]
CpusPerTrial = Annotated[
    float | None,
    typer.Option(help="CPUs of a fine-tuning or evaluation; default: `resources` of the space."),
]
GpusPerTrial = Annotated[
    float | None,
    typer.Option(
        help="GPUs of a fine-tuning or evaluation, 0.25 is a share; default: `resources` of the "
        "space, else by need of memory."
    ),
]
MemoryPerTrial = Annotated[
    float | None,
    typer.Option(
        metavar="GB", help="Main memory of a fine-tuning or evaluation that a node sets aside."
    ),
]
Label = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Label that the nodes of fine-tunings and evaluations must have, as "
        "ray.io/accelerator-type=A100; repeatable.",
    ),
]
PaperReport = Annotated[
    Path | None, typer.Option(help="Report folder; default: STORAGE/report/paper-SCALE.")
]
Report = Annotated[Path | None, typer.Option(help="Report folder; default: STORAGE/report/NAME.")]
Mlflow = Annotated[
    str | None, typer.Option(help="MLflow URI; default: sqlite in the storage folder.")
]
Track = Annotated[
    str | None,
    typer.Option(
        help="Where curves and results are logged: mlflow, jsonl, tensorboard, wandb, with commas "
        "between them, or none. Default: mlflow,jsonl."
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object (docs/monitoring.md) and nothing else."),
]
Retries = Annotated[
    int,
    typer.Option(
        min=0,
        help="How often a job runs again after its worker or node was lost without progress.",
    ),
]
StallMinutes = Annotated[
    list[str] | None,
    typer.Option(
        help="Minutes without progress after which a job is killed and runs again, for all stages "
        "or as STAGE=MINUTES; may be repeated; 0: never. Default: 60."
    ),
]
