"""Builds the parts that the verbs share: inputs of a plan, executors, progress bars."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

import speechft_ray
from speechft_ray.commands.features import resolve_features
from speechft_ray.commands.notes import print_notes
from speechft_ray.core.errors import SweepError, UserError, unknown_name
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Limits, Place, Stage
from speechft_ray.core.resources import ResourceRequest, StageResources
from speechft_ray.core.specs import CorpusSpec, EvalSpec, SweepSpec
from speechft_ray.cost.memory import estimate_gpu_memory
from speechft_ray.cost.sizes import EncoderSize
from speechft_ray.merging.base import METHODS
from speechft_ray.speech.checkpoints.cache import download_encoder, find_cache_folder, is_cached
from speechft_ray.speech.checkpoints.catalogue import is_encoder_name
from speechft_ray.speech.corpora.base import CORPORA, Corpus
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.speech.heads.base import HEADS
from speechft_ray.stages.perform import perform
from speechft_ray.stages.sources import open_corpus, plan_corpus, start_encoder
from speechft_ray.storage.address import CREDENTIALS, is_url, resolve_storage
from speechft_ray.superb.tasks.base import TASKS
from speechft_ray.sweep.inputs import Component, Inputs
from speechft_ray.sweep.local import LocalExecutor
from speechft_ray.sweep.plan import FBANK
from speechft_ray.sweep.protocols import Executor
from speechft_ray.sweep.protocols import Progress as SweepProgress

Answer = TypeVar("Answer")

SEARCH_SPACES = Path(speechft_ray.__file__).parent / "search_spaces"
"""The search spaces that come with the package."""

RESOURCES: Mapping[Stage, ResourceRequest] = {
    "corpus": ResourceRequest(cpus=1),
    "finetune": ResourceRequest(cpus=1, gpus=1),
    "merge": ResourceRequest(cpus=1),
    "evaluate": ResourceRequest(cpus=1, gpus=1),
}
"""What a job of each stage asks for; a cluster without GPUs gives CPUs instead. Evaluations share a
GPU as their memory allows (``cost.memory``, ``cluster.share``)."""

TRIAL_STAGES: tuple[Literal["finetune", "evaluate"], ...] = ("finetune", "evaluate")
"""Stages whose jobs ``--cpus-per-trial`` and the options beside it concern."""


def find_space(space: str) -> Path:
    """Returns the file of a search space: a path as it is, or a space of the package by its name.

    ``alpha`` and ``recipes/pr_librispeech`` are such names. Raises ``UserError`` for a name that
    the package does not have.
    """
    packaged = {
        file.relative_to(SEARCH_SPACES).with_suffix("").as_posix(): file
        for file in SEARCH_SPACES.rglob("*.yaml")
    }
    path, is_there = Path(space), False
    # Names that no file can have, and `~NOBODY`, are no paths.
    with suppress(OSError, ValueError, RuntimeError):
        path = path.expanduser()
        is_there = path.exists() and not (space in packaged and path.is_dir())
    if is_there or path.suffix in (".yaml", ".yml"):
        return path
    if space not in packaged:
        raise UserError(f"{unknown_name('search space', space, packaged)} Or give a YAML file.")
    return packaged[space]


def set_resources(
    resources: Mapping[Stage, ResourceRequest], by_stage: Mapping[Any, StageResources]
) -> dict[Stage, ResourceRequest]:
    """Returns the requests with what a user asks for in place of the defaults."""
    changed = dict(resources)
    for stage, item in by_stage.items():
        values = item.to_request()
        changed[stage] = changed[stage].model_copy(update={**values, "explicit": tuple(values)})
    return changed


def ask_for(spec: SweepSpec, asked: Mapping[str, object]) -> SweepSpec:
    """Returns the spec with what the command line asks for in each fine-tuning and evaluation."""
    if not asked:
        return spec
    resources = dict(spec.resources)
    for stage in TRIAL_STAGES:
        resources[stage] = resources.get(stage, StageResources()).model_copy(update=dict(asked))
    return spec.model_copy(update={"resources": resources})


def plan_inputs(place: Place, resources: Mapping[Stage, ResourceRequest] = RESOURCES) -> Inputs:
    """Returns what a plan needs beside the spec; downloads an encoder that is given by name.

    Raises ``UserError`` for an encoder or a corpus that cannot be read.
    """
    ensure_downloaded(place.encoder)
    encoder = start_encoder(place.encoder)
    print_notes(place.encoder, encoder.notes)
    weights = encoder.weights
    weight_bytes = sum(item.numel() * item.element_size() for item in weights.state.values())
    shape = FAMILIES.get(weights.family).describe(weights.config)
    size = EncoderSize.of("encoder", shape, weight_bytes)
    fbank = EncoderSize.of(FBANK, FAMILIES.get(FBANK).describe({}))
    estimate = _remember(
        lambda spec, size: estimate_gpu_memory(spec, size, _count_means(spec, place))
    )
    return Inputs(
        encoder=encoder.fingerprint,
        corpus=_remember(lambda spec: corpus_identity(spec, place)),
        resources=resources,
        gpu_memory=lambda spec, key: estimate(spec, size if key else fbank),
        resolve_evaluation=_remember(
            lambda spec, is_baseline: resolve_features(
                spec, is_baseline, place, lambda corpus: _open_with_progress(corpus, place)
            )
        ),
        version_of=component_version,
        trains=lambda task: TASKS.get(task).trains,
        can_screen=lambda spec, by: _can_screen(spec, by, place),
        masks=lambda head: HEADS.get(head).masking is not None,
    )


def _count_means(spec: EvalSpec, place: Place) -> int:
    """Returns how many utterances of an evaluation have their mean in memory, of the largest corpus
    on disk; those that a job synthesises are few."""
    if not TASKS.get(spec.task).pooled:
        return 0
    on_disk = [item for item in spec.corpora() if CORPORA.get(item.name).needs_root]
    return max((len(open_corpus(item, place).utterances) for item in on_disk), default=0)


def _can_screen(spec: EvalSpec, by: str, place: Place) -> bool:
    """Whether an evaluation has what a kind of screen compares: labels of utterances, or phones
    with an alignment, which every synthetic corpus has."""
    task = TASKS.get(spec.task)
    if by != "abx":
        return task.pooled
    on_disk = [item for item in spec.corpora() if CORPORA.get(item.name).needs_root]
    opened = [_open_with_progress(item, place) for item in on_disk]
    return task.columns == ("phones",) and all(
        corpus.split("dev") and corpus.split("dev")[0].alignment for corpus in opened
    )


def _remember(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Returns a function of a spec and more that answers once for each: thousands of evaluations
    share a few specs."""
    answers: dict[tuple[object, ...], Answer] = {}

    def answer_once(spec: BaseModel, *more: object) -> Answer:
        key = (spec.model_dump_json(), *more)
        if key not in answers:
            answers[key] = function(spec, *more)
        return answers[key]

    return answer_once


def plan_sweep_inputs(spec: SweepSpec, place: Place) -> Inputs:
    """Returns ``plan_inputs`` of a sweep. Raises ``SweepError`` where its own encoder is wrong."""
    try:
        return plan_inputs(place, set_resources(RESOURCES, spec.resources))
    except UserError as error:
        if place.encoder != resolve_encoder(spec.encoder):
            raise
        raise SweepError(f"the sweep `{spec.name}`", [("encoder", str(error))]) from None


def component_version(component: Component, name: str) -> int:
    """Returns the version of a registered head, merge method or task, which is part of identity."""
    if component == "head":
        return HEADS.get(name).version
    return METHODS.get(name).version if component == "method" else TASKS.get(name).version


def corpus_identity(spec: CorpusSpec, place: Place) -> tuple[str, bool]:
    """Returns the identity of a corpus and whether a job must make it before it can be read."""
    kind = CORPORA.get(spec.name)
    if kind.needs_root:
        return _open_with_progress(spec, place).fingerprint, False
    options = kind.options.model_validate(spec.options)
    return fingerprint({"corpus": spec.name, "options": options, "version": kind.version}), True


def _open_with_progress(spec: CorpusSpec, place: Place) -> Corpus:
    """Indexes a corpus on disk with a progress bar and prints each of its notes once."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        files = bars.add_task(f"indexing {spec.name}", total=None)
        corpus = plan_corpus(
            spec,
            place,
            lambda done, total: bars.update(files, completed=done, total=total),
            lambda text: console.print(f"note: {text}", markup=False),
        )
    for note in corpus.notes:
        if (corpus.fingerprint, note) not in _PRINTED_NOTES:
            _PRINTED_NOTES.add((corpus.fingerprint, note))
            console.print(f"note: {corpus.name}: {note}", markup=False)
    return corpus


_PRINTED_NOTES: set[tuple[str, str]] = set()


def resolve_place(
    spec: SweepSpec,
    *,
    storage: str | Path,
    encoder: str | None = None,
    corpora: Path | None = None,
    manifest: Path | None = None,
    cpu: bool = False,
) -> Place:
    """Returns the paths of a run, made absolute, since workers have other working folders.

    Raises ``UserError`` for a storage in the folder of a Ray job.
    """
    root = resolve_storage(storage)
    if {"runtime_resources", "working_dir_files"} <= set(Path(root).parts):
        raise UserError(
            f"the storage `{storage}` would be in the folder that Ray unpacked for this job, and "
            "be lost with it: give --storage as a path that begins with / and that all nodes see."
        )
    return Place(
        storage=root,
        encoder=resolve_encoder(encoder or spec.encoder),
        corpora=str(corpora.expanduser().absolute()) if corpora else None,
        manifest=str(manifest.expanduser().absolute()) if manifest else None,
        device="cpu" if cpu else "auto",
    )


def resolve_encoder(name: str) -> str:
    """Returns a name as it is and a path made absolute.

    A name of the catalogue means that encoder even where a file has the same name; ``./NAME`` is
    the file.
    """
    path = Path(name).expanduser()
    return name if is_encoder_name(name) or not path.exists() else str(path.absolute())


def open_executor(
    address: str | None,
    place: Place,
    note: Callable[[str], None] = print,
    resources: Mapping[Stage, ResourceRequest] = RESOURCES,
    limits: Limits = Limits(),  # noqa: B008  # frozen
    show: Callable[[Mapping[str, SweepProgress]], None] = lambda progress: None,
    stop: threading.Event | None = None,
) -> Executor:
    """Opens the executor at an address, ``None`` for this process; ``note`` prints the cluster,
    ``show`` gets the progress of the running job of this process, which ends when ``stop`` is set.

    Raises ``UserError`` where no node of a local cluster has what a user asked for in
    ``resources``.
    """
    if address is None:
        return LocalExecutor(perform, place, show, stop)
    # Importing Ray takes seconds, so it waits until there is a job.
    from speechft_ray.cluster.connect import connect
    from speechft_ray.cluster.executor import RayExecutor
    from speechft_ray.cluster.share import check_requests, list_nodes

    cluster = connect(address, allow=CREDENTIALS if is_url(place.storage) else None, note=note)
    note(
        f"Ray: {cluster.nodes} node{'s' if cluster.nodes != 1 else ''}, "
        f"{cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs"
        + (f"; dashboard at {cluster.dashboard}" if cluster.dashboard else "")
    )
    try:
        for remark in check_requests(resources, list_nodes(), place.device, is_fixed=cluster.local):
            note(remark)
    except UserError:
        cluster.close()
        raise
    return RayExecutor(perform, place, cluster=cluster, limits=limits, note=note)


def ensure_downloaded(name: str) -> None:
    """Downloads an encoder that is given by name and not cached yet, with a progress bar."""
    if not is_encoder_name(name) or is_cached(name):
        return
    Console(stderr=True).print(
        f"Downloading {name} into {find_cache_folder(name)}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    with download_progress(name) as progress:
        download_encoder(name, progress)


@contextmanager
def download_progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
