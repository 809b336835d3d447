"""The study as a file that optuna-dashboard reads: a view of a search, never read to go on.

``<storage>/search/<fingerprint>/study.db``; look at it with ``optuna-dashboard
sqlite:///.../study.db``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from speechft_ray.core.specs import SearchSpec
from speechft_ray.search.optuna_proposer import (
    OptunaProposer,
    directions,
    ignore_experimental_warnings,
)

FILE = "study.db"


LOCK_SECONDS = 5.0
"""How long a database waits for another process, such as a dashboard or a backup, to unlock it."""


class StudyView:
    """Copies reported trials into a database, in order.

    A file that is damaged, absent or of other trials is rewritten; one that another process holds
    is left as it is. Nothing here raises: where the file cannot be read or written, ``trouble`` is
    a sentence that says so, and the search goes on without this view.
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
        with self._give_up_on_error():
            if self._study is None:
                self._study = self._open()
            if number >= self._copied:
                self._study.add_trial(self._proposer.study.get_trials(deepcopy=False)[number])
                self._copied = number + 1

    def check(self) -> None:
        """Rewrites the file where its trials differ from the reported ones.

        Called once all trials of earlier runs are reported.
        """
        if self._study is None or self.trouble is not None:
            return
        trials = self._proposer.study.get_trials(deepcopy=False)
        with self._give_up_on_error():
            stored_trials = self._study.get_trials(deepcopy=False)
            if [_comparable(trial) for trial in stored_trials] == [
                _comparable(trial) for trial in trials[: len(stored_trials)]
            ]:
                return
            self._remove()
            self._study, self._copied = None, 0
        for number in range(sum(trial.state.is_finished() for trial in trials)):
            self.copy(number)

    @contextmanager
    def _give_up_on_error(self) -> Iterator[None]:
        ignore_experimental_warnings()
        try:
            yield
        except Exception as error:  # sqlite, a full disk, a foreign file: no result depends on it
            cause = " ".join(str(error.__cause__ or error).split())[:120]
            self.trouble = (
                f"{self.path} cannot be written ({type(error).__name__}: {cause}); the search goes "
                "on without this view. The file stays as it is, and the next run adds to it."
            )

    def _open(self) -> optuna.Study:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            study = self._create()
            self._copied = len(study.get_trials(deepcopy=False))
        except Exception:
            if _may_hold_trials(self.path):
                raise
            self._remove()  # not a database, or half of one
            study, self._copied = self._create(), 0
        return study

    def _create(self) -> optuna.Study:
        storage = RDBStorage(
            f"sqlite:///{self.path}", engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}}
        )
        return optuna.create_study(
            storage=storage,
            study_name=self._name,
            directions=directions(self._search),
            load_if_exists=True,
        )

    def _remove(self) -> None:
        for path in self.path.parent.glob(f"{FILE}*"):
            path.unlink(missing_ok=True)


def _may_hold_trials(path: Path) -> bool:
    """Whether a file is a database with trials, or one that cannot be looked into now."""
    if not path.is_file():
        return False
    try:
        address = f"file:{quote(str(path))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=0)) as database:
            return database.execute("select 1 from trials limit 1").fetchone() is not None
    except sqlite3.OperationalError as error:  # locked, say, or without this table
        return "no such table" not in str(error)
    except sqlite3.DatabaseError:  # not a database, or a damaged one
        return False


def _comparable(trial: FrozenTrial) -> tuple[object, ...]:
    return trial.state, trial.params, trial.values
