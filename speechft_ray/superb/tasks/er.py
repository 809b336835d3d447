"""Task ``er``: which emotion (SUPERB on IEMOCAP; s3prl ``emotion/config.yaml``).

One fold: the corpus' own splits. s3prl averages five folds, one recording session each as the test; give five corpora and
average their scores to do the same. s3prl's dev shares its speakers with train; here that is the corpus' choice.
"""

from __future__ import annotations

from speechft_ray.superb.tasks._pooled import labels_task
from speechft_ray.superb.tasks.base import TASKS

TASKS.register("er", labels_task("er", ("emotion",), learning_rate=1e-4))
