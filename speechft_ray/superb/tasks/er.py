"""Task ``er``: which emotion (SUPERB on IEMOCAP; s3prl ``emotion/config.yaml``).

SUPERB averages five folds, one recording session each as the test: ``folds: {fold: [1, 2, 3, 4,
5]}`` in the spec of the evaluation. Quirk: s3prl's dev is a random fifth of the training sessions
and shares their speakers; which utterances are dev is the corpus' choice, and its option.
"""

from __future__ import annotations

from speechft_ray.superb.tasks._pooled import make_label_task
from speechft_ray.superb.tasks.base import TASKS, Published

PUBLISHED = Published("iemocap", 30_000, 1_000, folds={"fold": (1, 2, 3, 4, 5)})

TASKS.register("er", make_label_task("er", ("emotion",), learning_rate=1e-4, published=PUBLISHED))
