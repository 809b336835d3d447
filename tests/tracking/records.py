"""A sweep, a learning curve and a merged encoder for trackers to log."""

from __future__ import annotations

from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo

SWEEP = SweepInfo("sweep-key", "alpha", {"encoder": "tiny_hubert"})
POINTS = [
    (10, {"train/loss": 2.0, "dev/accuracy": 40.0}),
    (20, {"train/loss": 1.0, "dev/accuracy": 30.5}),
]
PROBE_POINTS = [(5, {"probe/loss_pr": 3.0}), (10, {"probe/loss_pr": 2.5, "probe/dev_pr.per": 30.0})]
CURVE = Curve("tuned-key", "narrow seed=0", {"finetune": "narrow", "seed": 0}, POINTS)
ROW = EncoderRow(
    key="merged-key",
    title="linear alpha=0.25",
    params={"alpha": 0.25, "method": "linear"},
    test={"pr.per": 7.25, "score": 812.5},
    dev={"pr.per": 7.0},
    extra={"real_time_factor": 0.25},
    complete=True,
    curve=PROBE_POINTS,
)
PROBES = Curve(ROW.key, ROW.title, ROW.params, PROBE_POINTS[:1], kind="encoder", state="running")
"""What is logged of the probes of ``ROW`` while they run."""
METRICS = {"pr.per": 7.25, "dev.pr.per": 7.0, "score": 812.5, "real_time_factor": 0.25}
"""All numbers of ``ROW``."""
