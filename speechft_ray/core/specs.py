"""Specs of sweeps: frozen models whose canonical JSON is hashed into fingerprints.

Paths, devices and resources are other types (``records.Place``, ``resources.ResourceRequest``), so
that they cannot get into a fingerprint. Defaults are the paper's (Speech-FT, arXiv 2502.12672);
"official configs" are the YAML files of its published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.metrics import label_evaluation
from speechft_ray.core.resources import StageResources
from speechft_ray.core.rung_spec import RungSpec
from speechft_ray.core.spec_base import ConstraintSpec, Fraction, Name, RenamedSpec, Spec

Precision = Literal["float32", "tf32", "bfloat16"]
"""Number type of products (``speech.precision``). TF32 is float32 on a CPU."""


class CorpusSpec(Spec):
    """A corpus by its registered name. Where its files are is not part of it."""

    name: str = "synthetic"
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """The corpus' own options (checked by its options model)."""


class Objective(Spec):
    """One fine-tuning loss: a head on the last hidden state, and the labels of its targets."""

    head: str
    """Registered head: ``frame`` (cross-entropy per frame), ``ctc``, ``pooled`` (mean over frames,
    cross-entropy), ``masked`` (prediction of the start encoder's own clusters at masked frames:
    continued pre-training, paper section 4.2)."""
    corpus: CorpusSpec
    column: str | None = None
    """Label column of the corpus; ``None`` for a head that learns from audio alone."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this loss in the sum (paper: none given for multitask; 1:1)."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Utterances of this objective in one update (paper section 4.2: effective batch 32 for most
    tasks)."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """The head's own options (checked by its options model)."""


class AdapterSpec(Spec):
    """Low-rank adapters, trained instead of all weights and merged into the weights at the end."""

    kind: Literal["lora", "dora"] = "lora"
    """``lora``: W0 + (scale / rank) B A (arXiv 2106.09685). ``dora``: the same, scaled to a learned
    norm per output (arXiv 2402.09353)."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of B A (peft's default). The journal version reports LoRA and DoRA but no rank that
    could be read."""
    scale: Annotated[float, Field(gt=0)] = 16.0
    """``lora_alpha`` of peft: B A is multiplied by scale / rank."""
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
        "fc1",
        "fc2",
    )
    """Last parts of the names of the linear layers with adapters (all of a transformer layer)."""


class AfterSpec(Spec):
    """The merge that a later stage of a sequential chain starts from: phi = (1 - alpha) start +
    alpha tuned."""

    finetune: Name
    """Name of the earlier run; the run with the same seed is used."""
    method: str = "linear"
    """Registered merge method."""
    params: dict[str, JsonValue] = Field(default_factory=dict)
    """The method's own parameters (checked by its model)."""
    alpha: Fraction = 0.25
    """Share of the earlier run's model (paper: 0.25 at every stage; 1 is tuning twice without
    interpolation)."""


LATER_FIELDS = (
    *("gather", "after", "adapter", "keep_at", "head_phase_dropout", "non_finite_limit"),
    "precision",
)
"""Fields of a fine-tuning that were added after the first sweeps. They are part of identity only
where they differ from their default."""


class FinetuneSpec(Spec):
    """One stable fine-tuning run."""

    name: Name
    """Name in the table; not part of identity."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)]
    updates: Annotated[int, Field(ge=1)]
    """Optimiser updates in all."""
    peak_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Adam's peak rate (official configs)."""
    schedule: tuple[Fraction, Fraction, Fraction] = (0.1, 0.4, 0.5)
    """Fractions of the updates spent rising, holding and falling (official scheduler)."""
    head_only_fraction: Fraction = 0.1
    """Share of the updates that train only the head (beta of the paper; official configs
    ``finetune_steps: 0.1``)."""
    freeze_front_end: bool = True
    """Whether the convolutional down-sampling module is frozen throughout (paper section 3.1)."""
    anchor_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Lambda of the L2-SP regularization baseline: lambda * sum (theta - theta0)^2 added to the
    loss."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Global gradient norm (official configs)."""
    validate_every_updates: Annotated[int, Field(ge=1)] = 1000
    """Updates between validations; the checkpoint with the best one is kept."""
    crop_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """Random crop of longer training utterances for pooled objectives (s3prl ``voxceleb1``: 8 s);
    ``None`` uses all."""
    seed: Annotated[int, Field(ge=0)] = 0
    gather: Annotated[tuple[Literal["fisher", "gram", "waves"], ...], Field(max_length=3)] = ()
    """What the merge methods ``fisher``, ``regmean`` and ``regmean_plusplus`` need of the tuning
    set: statistics with the tuned weights, or a sample of its waveforms."""

    after: AfterSpec | None = None
    """Start from a merge of an earlier run instead of the pre-trained encoder: one stage of a
    sequential chain, with a new head, a head-only phase and a schedule of its own (paper section
    4.4)."""
    adapter: AdapterSpec | None = None
    """Train a low-rank change instead of the weights themselves (journal version, Table VIII: LoRA
    and DoRA)."""
    keep_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Fractions of the updates after which the weights are stored as well (journal version: an
    early checkpoint at 0.2)."""
    head_phase_dropout: bool = True
    """Whether the frozen encoder uses dropout in the head-only phase, as in the official code.
    Without it, the last hidden state of every utterance is computed once and cached."""
    non_finite_limit: Annotated[int, Field(ge=0)] = 10
    """Consecutive updates without a finite loss and gradient that a run tolerates; each is
    skipped."""
    precision: Precision = "float32"
    """Products of encoder and heads in training and validation, forward and backward (the official
    configs set no ``fp16``, so float32)."""

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> FinetuneSpec:
        if abs(sum(self.schedule) - 1.0) > 1e-6:
            raise ValueError(f"`schedule` must sum to 1, but sums to {sum(self.schedule):g}")
        return self

    def identity(self) -> dict[str, Any]:
        """Returns the fields that determine the result, apart from the start encoder, to which
        ``after`` leads; see ``LATER_FIELDS``."""
        defaults = {name: type(self).model_fields[name].default for name in LATER_FIELDS}
        unset = {name for name, default in defaults.items() if getattr(self, name) == default}
        return self.model_dump(mode="json", exclude={"name", "after", *unset})


Rate = Annotated[float, Field(gt=0)]

FeatureForm = Literal["auto", "exact", "int8", "compact"]
COMPACT_RANK = 0.99
"""Fraction of the variance that the basis of ``compact`` holds where no rank is stated. At the
proportion of the shipped encoder, LibriSpeech-100 with a Base encoder then takes 38 GB
(docs/superb.md)."""


class EvalSpec(Spec):
    """One frozen-encoder evaluation: a probe trained on one task."""

    task: str
    """Registered task."""
    name: Name | None = None
    """Tells this evaluation from others of the same task in one sweep. Its metrics have the name
    behind their own: ``pr.per.czech``."""
    in_score: bool = True
    """Whether its metrics are part of the SUPERB score. ``False``: they are only shown, such as
    Chinese ASR beside an English score (paper, Table 3)."""
    corpus: CorpusSpec
    column: str | None = None
    """Label column; ``None``: the task's own."""
    updates: Annotated[int, Field(ge=1)]
    """Optimiser updates of the probe."""
    learning_rate: (
        Rate | Literal["grid"] | Annotated[tuple[Rate, ...], Field(min_length=1)] | None
    ) = None
    """Constant rate of Adam; ``None``: the task's own (s3prl's config). Several are trained
    together and the best on dev is selected, as for published numbers; ``grid``: 1e-1, 1e-2, 1e-3,
    1e-4, 1e-5 (five rates per task: s3prl issues 120, 498)."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Utterances in one update; ``None``: the task's own (s3prl's config)."""
    validate_every_updates: Annotated[int, Field(ge=1)] | None = None
    """Updates between validations; ``None``: a tenth of ``updates``."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Validations without improvement after which the training of a probe ends; ``None``, as
    published: it takes all updates."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of probes, with seeds 0, 1, ...; each gives one value of every metric."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """The task's own options (checked by its options model)."""
    folds: dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=2)]] = Field(
        default_factory=dict, max_length=1
    )
    """An option of the corpus and its values, one per fold (IEMOCAP: ``fold: [1, 2, 3, 4, 5]``).
    Every fold is evaluated by itself; the result is the mean over folds, seed by seed."""
    features: FeatureForm = "auto"
    """How the frame states that a probe is trained on are stored and read. ``exact``: float16.
    ``int8``: one scale per frame and layer. ``compact``: coefficients in a basis of all layers.
    ``auto``: the plan chooses by the size of the corpus (``superb.storage_plan.choose_form``), and
    writes its choice into the spec unless that is ``exact``."""
    rank: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Size of the basis of ``compact``: a number of directions, or the fraction of the variance of
    training frames that they hold; ``None``: ``COMPACT_RANK``."""

    @model_validator(mode="before")
    @classmethod
    def _state_the_rank(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        if raw.get("features") == "compact" and raw.get("rank") is None:
            return {**raw, "rank": COMPACT_RANK}
        if raw.get("features") != "compact" and raw.get("rank") is not None:
            raise ValueError("`rank` belongs to `features: compact`: set that, or leave it out")
        return raw

    precision: Precision = "float32"
    """Products of the encoder. Probes are always trained in float32."""

    def corpora(self) -> tuple[CorpusSpec, ...]:
        """Returns the corpus of each fold; without folds one corpus."""
        options = [{name: value} for name, values in self.folds.items() for value in values] or [{}]
        return tuple(
            self.corpus.model_copy(update={"options": {**self.corpus.options, **fold}})
            for fold in options
        )

    @property
    def label(self) -> str:
        """What tells it from the other evaluations of a sweep: ``pr``, or ``pr.czech``."""
        return label_evaluation(self.task, self.name)

    def identity(self) -> dict[str, Any]:
        """Returns the fields that determine the result: not what it is called and counted for."""
        return self.model_dump(mode="json", exclude={"name", "in_score"})

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        unset = {
            "name": self.name is None,
            "in_score": self.in_score,
            "folds": not self.folds,
            "features": self.features in ("auto", "exact"),
            "rank": self.rank is None,
            "precision": self.precision == "float32",
            "patience": self.patience is None,
        }
        return {name: value for name, value in fields.items() if not unset.get(name)}


class ScoreSpec(Spec):
    """The values of each metric that count as 0 and as 1000 in the SUPERB score."""

    zero: Literal["paper", "measured"] = "paper"
    """``paper``: the FBank row of the paper's Table 15. ``measured``: FBank is evaluated in this
    sweep, on its corpora."""
    topline: dict[str, float] = Field(default_factory=dict)
    """Metric name to the value that counts as 1 (in the unit of the metric table); needed with
    ``measured``."""


Sampler = Literal["tpe", "cmaes", "nsga2", "nsga3", "gp", "random", "qmc", "greedy_soup"]


class SearchSpec(RungSpec):
    """A search over merges. It reads dev metrics only; what it selects is measured on test."""

    first_names: ClassVar[Mapping[str, str]] = {
        "max_concurrent": "window",
        "pruning_margin": "margin",
    }

    trials: Annotated[int, Field(ge=1)]
    """The budget: proposals in all."""
    axes: dict[str, JsonValue]
    """What is searched: ``alpha``, ``method``, ``donors``, a method's own parameters under its
    name, and which of several fine-tuning runs of one name (``core/axes.py``)."""
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = ("score",)
    """``score`` (SUPERB score on dev), a metric of a task on dev, or ``distance`` (relative L2
    distance to the pre-trained encoder, smaller is better). Several give a Pareto front."""
    constraints: tuple[ConstraintSpec, ...] = ()
    sampler: Sampler = "tpe"
    """``tpe`` models good and bad merges (arXiv 2304.11127); for most searches of up to a thousand
    trials."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Most trials that run at once. Proposal k depends on the results of exactly the trials 0 to k
    - ``max_concurrent``, whatever ended when, so the search can be repeated. Use about eight times
    the workers (benchmarks/search_idle.py); ``None``: an eighth of ``trials``, at least 4."""
    stop_early: Literal["bound", "median", "none"] | None = None
    """Pruning rule. ``bound``: prunes a merge that cannot reach the best score, even if its
    remaining tasks equal the best seen there. ``median``: prunes one whose tasks so far are below
    the median of others (Google Vizier, KDD 2017). ``None``: ``bound`` in a search for the score
    alone, else ``none``."""
    pruning_margin: Annotated[float, Field(ge=0)] = 0.0
    """Points that ``bound`` and ``median`` add to their estimate of what a merge can reach."""

    def concurrency(self) -> int:
        """``max_concurrent``, or its default."""
        return self.max_concurrent or max(4, self.trials // 8)

    def pruning_rule(self) -> Literal["bound", "median", "none"]:
        """``stop_early``, or its default."""
        is_bound = self.objectives == ("score",) and not self.list_rungs()
        return self.stop_early or ("bound" if is_bound else "none")


class StopSpec(RenamedSpec):
    """Early stopping of fine-tuning runs that fall behind others in their validation metric.

    Only runs of one name are compared, and only on Ray: in one process every run goes to its end.
    A stopped run is marked in the table; it is no failure and not tried again under the same rule.
    """

    first_names: ClassVar[Mapping[str, str]] = {
        "grace_period": "grace",
        "reduction_factor": "keep_one_of",
    }

    rule: Literal["asha", "median"]
    """``asha``: successive halving (arXiv 1810.05934). ``median``: below the median of the others
    (Google Vizier, KDD 2017)."""
    grace_period: Fraction = 0.25
    """Share of the updates before which no run is stopped."""
    reduction_factor: Annotated[int, Field(ge=2)] = 4
    """``asha``: one of so many runs continues at every rung (Ray Tune's default)."""


class SweepSpec(Spec):
    """A whole sweep. Axes of the YAML file are already expanded: every entry is concrete."""

    name: Name
    """Name in the report, in trackers and in `speechft ls`; not part of identity."""
    encoder: str = "tiny_hubert"
    """Catalogue name or file of the pre-trained encoder."""
    finetune: Annotated[tuple[FinetuneSpec, ...], Field(min_length=1)]
    merge: tuple[MergeSpec, ...] = ()
    """The merges of a sweep; empty where ``search`` proposes them."""
    search: SearchSpec | None = None
    """A search that proposes the merges, instead of the list."""
    evaluate: Annotated[tuple[EvalSpec, ...], Field(min_length=1)]
    """The tasks. A search evaluates each merge in this order and may prune it in between: put cheap
    and informative tasks first."""
    score: ScoreSpec = ScoreSpec()
    stop_tuning: StopSpec | None = None
    """Early stopping of fine-tuning runs; ``None``: every run takes all its updates."""
    resources: dict[Literal["finetune", "merge", "evaluate"], StageResources] = Field(
        default_factory=dict
    )
    """What jobs ask of the cluster, by stage. Not part of identity."""
