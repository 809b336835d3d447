"""Optuna's samplers by the names that a search spec uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

import optuna
from optuna.samplers import BaseSampler

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import SearchSpec

SMALLEST_POPULATION, LARGEST_POPULATION = 8, 50
"""Of NSGA-II and III. Optuna's 50 would leave a search of 60 trials no second generation."""


def open_sampler(search: SearchSpec) -> BaseSampler:
    """Returns the sampler of a search. Raises ``UserError`` when a package that it needs is not
    installed."""
    if search.sampler == "cmaes" and find_spec("cmaes") is None:
        raise UserError(
            "the sampler `cmaes` needs the package of that name: pip install cmaes, or take `tpe`."
        )
    return _SAMPLERS[search.sampler](search)


def startup(search: SearchSpec) -> int:
    """Random trials before a model is trusted: Optuna's 10, or a quarter of a small budget."""
    return max(2, min(10, search.trials // 4))


def _tpe(search: SearchSpec) -> BaseSampler:
    # group: parameters that only some methods have are modelled among the trials that have them
    return optuna.samplers.TPESampler(
        n_startup_trials=startup(search),
        multivariate=True,
        group=True,
        constant_liar=True,
        seed=search.seed,
    )


def _cmaes(search: SearchSpec) -> BaseSampler:
    return optuna.samplers.CmaEsSampler(seed=search.seed, warn_independent_sampling=False)


def _nsga2(search: SearchSpec) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(population_size=population(search), seed=search.seed)


def _nsga3(search: SearchSpec) -> BaseSampler:
    return optuna.samplers.NSGAIIISampler(population_size=population(search), seed=search.seed)


def population(search: SearchSpec) -> int:
    """A sixth of the budget, within limits."""
    return min(LARGEST_POPULATION, max(SMALLEST_POPULATION, search.trials // 6))


def _gp(search: SearchSpec) -> BaseSampler:
    return optuna.samplers.GPSampler(
        n_startup_trials=startup(search), seed=search.seed, warn_independent_sampling=False
    )


def _random(search: SearchSpec) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=search.seed)


def _qmc(search: SearchSpec) -> BaseSampler:
    return optuna.samplers.QMCSampler(
        scramble=True,
        seed=search.seed,
        warn_asynchronous_seeding=False,
        warn_independent_sampling=False,
    )


_SAMPLERS: Mapping[str, Callable[[SearchSpec], BaseSampler]] = {
    "tpe": _tpe,
    "cmaes": _cmaes,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "gp": _gp,
    "random": _random,
    "qmc": _qmc,
}
