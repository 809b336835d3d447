"""Which axes matter: PED-ANOVA (Watanabe et al., IJCAI 2023), Optuna's default."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from speechft_ray.search.optuna_proposer import ignore_experimental_warnings

FEWEST_TRIALS = 8
"""Complete trials below which an importance would be noise."""


def importances(study: optuna.Study) -> dict[str, float]:
    """Returns the share of each axis that all trials have, summing to 1, for the first objective;
    empty for too few trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < FEWEST_TRIALS or len({trial.values[0] for trial in complete}) < 2:
        return {}
    shared = sorted(set.intersection(*(set(trial.params) for trial in complete)))
    if len(shared) < 2:
        return {}
    several = len(study.directions) > 1
    ignore_experimental_warnings()
    shares = optuna.importance.get_param_importances(
        study, params=shared, target=(lambda trial: trial.values[0]) if several else None
    )
    return {name: float(value) for name, value in shares.items()}
