"""Task arithmetic: the sum of the task vectors (arXiv 2212.04089).

The authors' code (github.com/mlfoundations/task_vectors) multiplies the sum by a coefficient that
is chosen on validation data. Here that is ``scale``, or alpha; its default is 1.
"""

from __future__ import annotations

from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.linear import combine


class TaskArithmeticParams(AveragedParams):
    """Parameters of task arithmetic; the defaults give the plain sum. A negative weight negates a
    task vector."""

    normalize: bool = False
    """Whether the weighted sum is divided by the sum of the weights in it."""


METHODS.register(
    "task_arithmetic",
    MergeMethod(
        params=TaskArithmeticParams,
        combine=combine,
        blockwise=True,
        donors=one_per_weight,
        neutral={},
    ),
)
