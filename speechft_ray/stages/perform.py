"""Performs one job of a stage: reads its inputs from the store and publishes its result there.

Executors run ``perform`` in this process, in a Ray task or in a Tune trial. It is the one module
that imports fine-tuning, merging and evaluation; those packages do not import each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from speechft_ray.core.counts import COUNTS_FILE
from speechft_ray.core.errors import GpuMemoryError, UserError
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.core.records import Job, Place
from speechft_ray.core.rung_spec import SCREEN_FACT
from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec
from speechft_ray.core.store import CACHE, Store
from speechft_ray.finetuning.run import finetune
from speechft_ray.merging.base import METHODS
from speechft_ray.merging.distance import compute_relative_distance
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder, write_encoder
from speechft_ray.speech.corpora.base import SPLITS, Corpus
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.encoders.compatibility import check_same_network, find_protected_prefixes
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.gpu_memory import is_out_of_memory
from speechft_ray.stages.distances import measure_weight_distances
from speechft_ray.stages.layer_grams import compute_layer_grams
from speechft_ray.stages.merge_cache import MergeInputs, merge_with_cache
from speechft_ray.stages.sources import open_corpus, start_encoder
from speechft_ray.storage.open import open_store
from speechft_ray.superb.evaluate import SharedCaches, WeightedEncoder
from speechft_ray.superb.folds import evaluate_folds
from speechft_ray.superb.interpolation import compute_weights
from speechft_ray.superb.screening import screen_encoder
from speechft_ray.sweep.lineage import WEIGHT_DISTANCE, find_pretrained
from speechft_ray.sweep.plan import FBANK
from speechft_ray.sweep.protocols import ReportProgress

ENCODER_FILE = "encoder.safetensors"
START = "encoder"
"""Folder of the store with the pre-trained encoders that sweeps start from."""

BEST = "best"
"""``MergeSpec.checkpoint`` of the weights with the best validation."""

STATISTICS_FILE = "statistics.safetensors"
"""Statistics that a fine-tuning gathered, beside its encoder: tensors by ``<kind>:<parameter>``."""


def perform(job: Job, place: Place, report: ReportProgress) -> Mapping[str, Any]:
    """Performs one job, publishes it and returns its facts; a complete job is read from the store.

    Raises ``UserError`` for what the user can correct, ``GpuMemoryError`` among it. The executor
    turns every exception into an ``Outcome``.
    """
    store = open_store(place.storage)
    if not store.look_again(job.stage, job.fingerprint):
        store.check_writable()  # before hours of work
        torch.set_num_threads(max(1, int(job.resources.cpus)))
        try:
            _STAGES[job.stage](job, place, store, report)
            if job.work_key == job.fingerprint:
                store.clear_work(job.stage, job.work_key)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise GpuMemoryError(
                f"the GPU's memory ran out ({str(error).splitlines()[0]}): lower `batch_size`, "
                "take a larger GPU, or give the job a larger share of one (`resources:`)."
            ) from error
        finally:
            store.end_work(job.stage, job.work_key)
    return store.manifest(job.stage, job.fingerprint)


def publish_start(place: Place) -> None:
    """Puts the pre-trained encoder into the store, where every node can read it; one that is
    damaged there is put anew."""
    weights, key, notes = start_encoder(place.encoder)
    store = open_store(place.storage)
    if store.is_complete(START, key):
        if store.explain_damage(START, key, contents=not store.checks_when_reading) is None:
            return
        store.set_aside(START, key)
    facts: dict[str, Any] = {"family": weights.family, "from": place.encoder}
    if notes:
        facts["notes"] = list(notes)
    with store.publish(START, key, facts) as folder:
        write_encoder(
            folder / ENCODER_FILE, weights, {"by": "speechft_ray run", "fingerprint": key, **facts}
        )


def encoder_file(checkpoint: str | float) -> str:
    """Returns the file of a fine-tuned encoder: that of the best validation, or the one kept at a
    fraction of the updates."""
    return ENCODER_FILE if checkpoint == BEST else f"encoder-at-{checkpoint}.safetensors"


def _read_start(store: Store, planned: object) -> EncoderWeights:
    """Reads what a run starts from: a merge where it is a later stage of a chain, else the
    pre-trained encoder."""
    stage = "merge" if store.is_complete("merge", str(planned)) else START
    return _read_published_start(store.folder(stage, str(planned)))


@lru_cache(maxsize=2)
def _read_published_start(folder: Path) -> EncoderWeights:
    """Reads an encoder that the driver published: workers need neither its file nor a network."""
    weights = read_encoder(folder / ENCODER_FILE)
    if folder.parent.name == START and weights_fingerprint(weights) != folder.name:
        raise UserError(
            f"{folder} holds another encoder than its name says: remove it and run the sweep again."
        )
    return weights


def _open_corpora(job: Job, place: Place, specs: Sequence[CorpusSpec]) -> list[Corpus]:
    identities = job.corpora or [""] * len(specs)
    return [
        open_corpus(spec, place, identity=identity)
        for spec, identity in zip(specs, identities, strict=True)
    ]


def _make_corpus(job: Job, place: Place, store: Store, report: ReportProgress) -> None:
    spec = CorpusSpec.model_validate(job.payload["corpus"])
    corpus = open_corpus(spec, place, lambda done, total: report({"done": done, "total": total}))
    facts: dict[str, Any] = {"corpus": spec.model_dump(mode="json"), "content": corpus.fingerprint}
    for split in SPLITS:
        utterances = corpus.split(split)
        facts[split] = {
            "utterances": len(utterances),
            "hours": round(sum(u.seconds for u in utterances) / 3600, 4),
        }
    with store.publish("corpus", job.fingerprint, facts):
        pass


def _finetune(job: Job, place: Place, store: Store, report: ReportProgress) -> None:
    spec = FinetuneSpec.model_validate(job.payload["spec"])
    start = _read_start(store, job.payload["start"])
    corpora = _open_corpora(job, place, [objective.corpus for objective in spec.objectives])
    work = store.work_folder("finetune", job.fingerprint)
    tuned = finetune(
        spec, start, corpora, work, _select_device(job, place), report, _open_cache(place, store)
    )
    facts = {**tuned.facts, "spec": spec.model_dump(mode="json"), "start": job.payload["start"]}
    made = {
        "by": "speechft_ray finetune",
        "fingerprint": job.fingerprint,
        "spec": spec.model_dump(mode="json"),
    }
    with store.publish("finetune", job.fingerprint, facts) as folder:
        write_encoder(folder / ENCODER_FILE, tuned.weights, made)
        for fraction, weights in tuned.early_checkpoints.items():
            write_encoder(
                folder / encoder_file(fraction), weights, {**made, "checkpoint": fraction}
            )
        if tuned.statistics:
            save_file(dict(tuned.statistics), folder / STATISTICS_FILE)


def _merge(job: Job, place: Place, store: Store, report: ReportProgress) -> None:
    recipe: dict[str, Any] = dict(job.payload)
    made = {"by": "speechft_ray merge", "fingerprint": job.fingerprint, **recipe}
    with _open_merged(recipe, store) as weights:
        distance = {}
        if recipe["donors"]:
            pretrained = _read_start(store, find_pretrained(store, str(recipe["base"])))
            distance[WEIGHT_DISTANCE] = measure_weight_distances(pretrained, weights)
        with store.publish("merge", job.fingerprint, {**recipe, **distance}) as folder:
            write_encoder(folder / ENCODER_FILE, weights, made)


@contextmanager
def _open_merged(recipe: Mapping[str, Any], store: Store) -> Iterator[EncoderWeights]:
    """Yields the merge of a recipe (``sweep.plan.PlanBuilder.merge_recipe``).

    The weights are valid until the context ends.
    """
    base = _read_start(store, recipe["base"])
    if not recipe["donors"]:
        yield base
        return
    needs = METHODS.get(recipe["method"]).needs
    params = {name: value for name, value in recipe["params"].items() if name != "scale"}
    file = encoder_file(recipe.get("checkpoint", BEST))

    def read() -> MergeInputs:
        folders = [store.folder("finetune", key) for key in recipe["donors"]]
        files = [folder / STATISTICS_FILE for folder in folders] if needs else []
        donors = [read_encoder(folder / file) for folder in folders]
        check_same_network(base, dict(zip(recipe["donors"], donors, strict=True)))
        states = [donor.state for donor in donors]
        prefixes = find_protected_prefixes(base, states)
        statistics = [load_file(file) if file.is_file() else {} for file in files]
        if needs == "layer_gram":
            statistics = compute_layer_grams(base, states, prefixes, statistics, params)
        return MergeInputs(
            base=base.state, donors=states, protected_prefixes=prefixes, statistics=statistics
        )

    names = (str(store.root), recipe["base"], str(needs), file, *recipe["donors"])
    if needs == "layer_gram":  # its statistics depend on the parameters
        names += (canonical_json(params),)
    with merge_with_cache(
        names, read, recipe["method"], recipe["params"], recipe["alpha"]
    ) as state:
        yield EncoderWeights(family=base.family, config=base.config, state=state)


def _evaluate(job: Job, place: Place, store: Store, report: ReportProgress) -> None:
    spec = EvalSpec.model_validate(job.payload["spec"])
    recipe = job.payload.get("recipe")
    facts: dict[str, Any] = {}
    # A proposal of a search is merged in memory and not stored.
    if isinstance(recipe, dict):
        with _open_merged(recipe, store) as weights:
            pretrained = _read_start(store, find_pretrained(store, str(recipe["base"])))
            facts["distance"] = compute_relative_distance(pretrained.state, weights.state)
            family, config = FAMILIES.get(weights.family), weights.config
            encoder = family.build(weights)
    else:
        weights = _read_encoder(job, store)
        family, config = FAMILIES.get(weights.family), weights.config
        encoder = family.build(weights)
    caches = SharedCaches(
        cache=_open_cache(place, store),
        encoder=str(job.payload["encoder"] or FBANK),
        front_end=(family.front_end_prefixes[0], family.describe(config))
        if family.front_end_prefixes
        else None,
    )
    corpora, device = _open_corpora(job, place, spec.corpora()), _select_device(job, place)
    if job.payload.get("kind") == SCREEN_FACT:
        facts |= screen_encoder(spec, encoder, corpora, device, report, caches)
        with store.publish("evaluate", job.fingerprint, {**facts, **job.payload}):
            return
    dev_only = job.payload.get("splits") == ["dev"]
    pause: dict[str, Any] = job.payload.get("pause") or {}  # type: ignore[assignment]
    facts |= evaluate_folds(
        spec,
        encoder,
        corpora,
        device,
        report,
        caches=caches,
        dev_only=dev_only,
        work=store.work_folder("evaluate", job.work_key),
        pause_at=pause.get("update"),
        predicted_from=_open_line(job.payload.get("predicted"), store, caches),
        compared_with=_open_line(job.payload.get("compared"), store, caches),
    )
    counts = facts.pop("counts")
    with store.publish("evaluate", job.fingerprint, {**facts, **job.payload}) as folder:
        if counts:
            (folder / COUNTS_FILE).write_text(
                json.dumps(counts, allow_nan=False, separators=(",", ":")), encoding="utf-8"
            )


def _open_line(predicted: Any, store: Store, caches: SharedCaches) -> list[WeightedEncoder]:
    """Opens the encoders that a merge is predicted from (``sweep.predictions``), each with its
    weight at the alpha of that merge."""
    if predicted is None:
        return []
    alphas, keys = zip(*predicted["encodings"], strict=True)
    weights = compute_weights(alphas, predicted["recipe"]["alpha"])
    encoders = []
    for weight, key in zip(weights, keys, strict=True):
        merged = read_encoder(store.folder("merge", key) / ENCODER_FILE)
        encoder = FAMILIES.get(merged.family).build(merged)
        encoders.append(WeightedEncoder(weight, encoder, replace(caches, encoder=key)))
    return encoders


def _read_encoder(job: Job, store: Store) -> EncoderWeights:
    key = job.payload["encoder"]
    if "predicted" in job.payload:  # its line has the same network
        predicted: Any = job.payload["predicted"]
        key = predicted["encodings"][0][1]
    if key is None:
        return EncoderWeights(family=FBANK, config={}, state={})
    return read_encoder(store.folder("merge", str(key)) / ENCODER_FILE)


def _open_cache(place: Place, store: Store) -> FeatureCache:
    return FeatureCache(Path(place.cache or store.root / CACHE), int(place.cache_gb * 1e9))


def _select_device(job: Job, place: Place) -> torch.device:
    """Returns the device of a job. Of a GPU that it shares, torch takes no more memory than its
    share: it frees what it has cached first.

    Raises ``GpuMemoryError`` where the share is less than the job needs, as of a GPU of another
    size than was assumed.
    """
    use_gpu = place.device == "auto" and torch.cuda.is_available()
    if use_gpu and place.gpu_share < 1:
        share_bytes = place.gpu_share * torch.cuda.mem_get_info()[1]
        if job.resources.gpu_memory_bytes > share_bytes:
            raise GpuMemoryError(
                f"its share of this GPU has {share_bytes / 1e9:.3g} GB and the job needs up to "
                f"{job.resources.gpu_memory_bytes / 1e9:.3g} GB: the GPU is smaller than its kind, "
                "or of an unknown one."
            )
        torch.cuda.set_per_process_memory_fraction(place.gpu_share)
    return torch.device("cuda" if use_gpu else "cpu")


_STAGES: Mapping[str, Callable[[Job, Place, Store, ReportProgress], None]] = {
    "corpus": _make_corpus,
    "finetune": _finetune,
    "merge": _merge,
    "evaluate": _evaluate,
}
