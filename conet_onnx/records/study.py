"""Trials in an Optuna study: a SQLite file in the run's folder that survives a kill at any moment."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conet_onnx.errors import DataError, OutputError, UsageError
from conet_onnx.files import atomic_write
from conet_onnx.records.trial import State, Trial

if TYPE_CHECKING:
    import optuna

__all__ = ["TrialStudy", "locked", "read_trials"]

NAME = "conet-onnx"
STATES: Mapping[str, State] = {"COMPLETE": "complete", "FAIL": "failed"}  # in Optuna and here; all else is running
LOCK_FILE = ".lock"
BEGUN = ("params", "macs", "bytes", "parent", "reason")  # user attributes, written with the trial
FINISHED = ("validation", "measured", "accepted", "seconds", "evaluation_seconds")  # written before it is told


class TrialStudy:
    """The trials of one run, in order; every change is one SQLite transaction, and a trial is told last of all.

    A trial that a killed process left behind is RUNNING here, whatever of its results had been noted.
    """

    def __init__(self, file: Path, *, bounds: Mapping[str, tuple[int, int]] | None = None) -> None:
        """Open the study in `file`; make it where there is none. `bounds` are the widths' smallest and largest."""
        self._file = file
        self._bounds = bounds or {}
        if not file.exists():
            _make(file)
        self._storage = _storage(file)
        self._id = self._storage.get_study_id_from_name(NAME)

    def close(self) -> None:
        """Let go of the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def trials(self) -> tuple[Trial, ...]:
        """All of them by number."""
        return tuple(map(_trial, self._storage.get_all_trials(self._id, deepcopy=False)))

    def begin(self, trial: Trial) -> None:
        """Note a running trial, in one transaction. Its number must be the next one."""
        import optuna

        proto = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=dict(trial.widths),
            distributions={name: self._range(name, width) for name, width in trial.widths.items()},
            user_attrs={key: getattr(trial, key) for key in BEGUN},
        )
        with _writing(self._file):
            number = self._storage.get_trial_number_from_id(self._storage.create_new_trial(self._id, proto))
        if number != trial.number:
            raise UsageError(f"trial {trial.number} became number {number}: two processes write to one study.")

    def finish(self, trial: Trial) -> None:
        """Note a finished trial's results; complete if its objective is a number, else failed."""
        import optuna

        states = optuna.trial.TrialState
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
        with _writing(self._file):
            for key in FINISHED:
                self._storage.set_trial_user_attr(trial_id, key, getattr(trial, key))
            if math.isnan(trial.objective):
                self._storage.set_trial_state_values(trial_id, states.FAIL)
            else:
                self._storage.set_trial_state_values(trial_id, states.COMPLETE, [trial.objective])

    def _range(self, name: str, width: int) -> optuna.distributions.IntDistribution:
        import optuna

        low, high = self._bounds.get(name, (width, width))
        return optuna.distributions.IntDistribution(min(low, width), max(high, width))


def read_trials(file: Path) -> tuple[Trial, ...]:
    """The trials in a study's file, by number. Raises DataError where it is missing or holds none of ours."""
    if not file.exists():
        raise DataError(f"{file} is missing: the trials of this run are lost.")
    study = TrialStudy(file)
    try:
        return study.trials()
    finally:
        study.close()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the folder for this process; the operating system lets go of it when the process ends, however it ends.

    Raises UsageError where another process holds it.
    """
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"Cannot write in {directory}: {error.strerror or error}. Choose another --out.") from error
    try:
        try:
            _lock(descriptor)
        except OSError as error:
            raise UsageError(
                f"{directory} is in use by another search; wait for it, or choose another --out."
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    import optuna
    import sqlalchemy

    try:
        yield
    except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        raise OutputError(
            f"Cannot write {file}: {str(cause).splitlines()[0]}. Make room, and go on with --resume."
        ) from error


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        getattr(msvcrt, "locking")(descriptor, getattr(msvcrt, "LK_NBLCK"), 1)  # noqa: B009 (mypy on Linux lacks them)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _make(file: Path) -> None:
    """An empty study, whole or not at all: creating its tables takes many transactions."""
    import optuna

    with atomic_write(file) as part, _writing(file), _quiet():
        made = _connected(part, skip_table_creation=False)
        made.create_new_study([optuna.study.StudyDirection.MINIMIZE], NAME)
        made.remove_session()


def _storage(file: Path) -> optuna.storages.RDBStorage:
    """The database in a file that holds a study of ours. Raises DataError where it does not."""
    import optuna
    import sqlalchemy

    try:
        with _quiet():
            storage = _connected(file)
            storage.get_study_id_from_name(NAME)
    except (KeyError, RuntimeError, sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
        raise DataError(f"{file} is not the study of a search. Was it edited?") from error
    return storage


def _connected(file: Path, *, skip_table_creation: bool = True) -> optuna.storages.RDBStorage:
    import optuna
    import sqlalchemy

    engine = {  # a creator, since a path with ?, % or {} would not survive in a URL
        "creator": lambda: sqlite3.connect(file),
        "poolclass": sqlalchemy.NullPool,
    }
    return optuna.storages.RDBStorage("sqlite://", engine, skip_table_creation=skip_table_creation)


@contextmanager
def _quiet() -> Iterator[None]:
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _trial(frozen: optuna.trial.FrozenTrial) -> Trial:
    state = STATES.get(frozen.state.name, "running")
    attributes: dict[str, Any] = frozen.user_attrs
    begun = Trial(number=frozen.number, widths=dict(frozen.params), **{key: attributes[key] for key in BEGUN})
    if state == "running":
        return begun
    objective = math.nan if frozen.value is None else frozen.value
    told = {key: attributes[key] for key in FINISHED if key in attributes}  # earlier releases noted less
    return replace(begun, state=state, objective=objective, **told)
