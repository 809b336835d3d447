"""A sweep, a learning curve and a merged encoder for trackers to log."""

from __future__ import annotations

from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo

SWEEP = SweepInfo("sweep-key", "alpha", {"encoder": "tiny_hubert"})
POINTS = [(10, {"loss": 2.0, "dev": 40.0}), (20, {"loss": 1.0, "dev": 30.5})]
CURVE = Curve("tuned-key", "narrow seed=0", {"finetune": "narrow", "seed": 0}, POINTS)
ROW = EncoderRow(
    key="merged-key",
    title="linear alpha=0.25",
    params={"alpha": 0.25, "method": "linear"},
    test={"pr.per": 7.25, "score": 812.5},
    dev={"pr.per": 7.0},
    extra={"real_time_factor": 0.25},
    complete=True,
)
METRICS = {"pr.per": 7.25, "dev.pr.per": 7.0, "score": 812.5, "real_time_factor": 0.25}
"""All numbers of ``ROW``."""
