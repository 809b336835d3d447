"""The study as a file that optuna-dashboard reads: a view of a search, never read to go on.

``<storage>/search/<fingerprint>/study.db``; look at it with ``optuna-dashboard
sqlite:///.../study.db``.
"""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from speechft_ray.core.specs import SearchSpec
from speechft_ray.search.optuna_proposer import (
    OptunaProposer,
    directions,
    suppress_experimental_warnings,
)

FILE = "study.db"


class StudyView:
    """Copies reported trials into a database, in order.

    A file that is damaged, absent or of other trials is rewritten. ``copy`` never raises: where the
    file cannot be written, one sentence says so and the search goes on.
    """

    def __init__(
        self, folder: Path, name: str, proposer: OptunaProposer, search: SearchSpec
    ) -> None:
        self.path = folder / FILE
        self.trouble: str | None = None
        self._name, self._proposer, self._search = name, proposer, search
        self._study: optuna.Study | None = None
        self._copied = 0

    def copy(self, number: int) -> None:
        """Adds a reported trial, unless an earlier run added it."""
        if self.trouble is not None:
            return
        try:
            with suppress_experimental_warnings():
                if self._study is None:
                    self._study = self._open()
                if number >= self._copied:
                    self._study.add_trial(self._proposer.study.get_trials(deepcopy=False)[number])
                    self._copied = number + 1
        except Exception as error:  # sqlite, a full disk, a foreign file: no result depends on it
            self.trouble = (
                f"{self.path} cannot be written ({type(error).__name__}); "
                "the search goes on without this view."
            )

    def check(self) -> None:
        """Rewrites the file where its trials differ from the reported ones.

        Called once all trials of earlier runs are reported.
        """
        trials = self._proposer.study.get_trials(deepcopy=False)
        if self._study is None or self.trouble is not None:
            return
        with suppress_experimental_warnings():
            stored_trials = self._study.get_trials(deepcopy=False)
        if [_comparable(trial) for trial in stored_trials] != [
            _comparable(trial) for trial in trials[: len(stored_trials)]
        ]:
            self._remove()
            self._study = None
            self._copied = 0
            for number in range(sum(trial.state.is_finished() for trial in trials)):
                self.copy(number)

    def _open(self) -> optuna.Study:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            study = self._create()
            self._copied = len(study.get_trials(deepcopy=False))
        except Exception:  # not a database, or half of one
            self._remove()
            study, self._copied = self._create(), 0
        return study

    def _create(self) -> optuna.Study:
        return optuna.create_study(
            storage=RDBStorage(f"sqlite:///{self.path}"),
            study_name=self._name,
            directions=directions(self._search),
            load_if_exists=True,
        )

    def _remove(self) -> None:
        for path in self.path.parent.glob(f"{FILE}*"):
            path.unlink(missing_ok=True)


def _comparable(trial: FrozenTrial) -> tuple[object, ...]:
    return trial.state, trial.params, trial.values
