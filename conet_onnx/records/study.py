"""Trials in an Optuna study: in a SQLite file in the run's folder, or in a database that several hosts share."""

from __future__ import annotations

import math
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conet_onnx.errors import DataError, OutputError, UsageError
from conet_onnx.files import atomic_write
from conet_onnx.records.database import Journal, connected, maker, opened, quiet, said, undisturbed
from conet_onnx.records.trial import State, Trial

if TYPE_CHECKING:
    import optuna

__all__ = ["TrialStudy", "copied", "locked", "read_shared", "read_trials", "study_of"]

NAME = "conet-onnx"
STATES: Mapping[str, State] = {"COMPLETE": "complete", "FAIL": "failed"}  # in Optuna and here; all else is running
LOCK_FILE = ".lock"
STUDY_FILE = "study"  # the name of a shared study
BEGUN = ("params", "macs", "bytes", "parent", "reason", "latency")  # user attributes, written with the trial
# What came of it: one user attribute, so that it is noted whole or not at all. Earlier releases wrote one for each.
OUTCOME = ("validation", "measured", "seconds", "evaluation_seconds", "flushed")


class TrialStudy:
    """The trials of one run, in order. A trial begins, its outcome is noted, and it is judged and told last of all;
    each is one transaction.

    A trial that a killed process left behind is "running", or "evaluated" if its outcome had been noted. After a power
    cut there may be less: of a file, all trials whose outcome was noted, since all else follows from these.
    """

    def __init__(
        self,
        place: Path | str,
        *,
        name: str = NAME,
        bounds: Mapping[str, tuple[int, int]] | None = None,
        writes: bool = True,
    ) -> None:
        """Open the study in a file, or one of that name in a database by its URL; make it where there is none.
        `bounds` are the widths' smallest and largest. One that is not to be written to is left as it is."""
        self._place = place
        self._bounds = bounds or {}
        self._journal: Journal | None = None
        if isinstance(place, Path):
            if new := not place.exists():
                _make(place)
            self._journal = Journal(place)
            self._storage, self._id = _storage(place, self._journal, checked=not new)
            if writes:
                with _writing(place):
                    self._journal.begin()
        else:
            self._storage, self._id = opened(place, name)
        self._ids: dict[int, int] = {}  # the storage's id of each trial, by its number

    @property
    def storage(self) -> optuna.storages.RDBStorage:
        """The database."""
        return self._storage

    def close(self) -> None:
        """Let go of the database."""
        with undisturbed():
            self._storage.remove_session()
            self._storage.engine.dispose()
            if self._journal is not None:
                self._journal.close()

    def trials(self) -> tuple[Trial, ...]:
        """All of them by number."""
        found: dict[int, Trial] = {}
        with _reading(self._place):
            frozen = self._storage.get_all_trials(self._id, deepcopy=False)
        for one in frozen:
            trial = _trial(one)
            if trial.number not in found:  # a process that was thought dead has begun it once more: the first counts
                found[trial.number] = trial
                self._ids[trial.number] = one._trial_id
        return tuple(found[number] for number in sorted(found))

    def begin(self, trial: Trial) -> None:
        """Note a running trial, in one transaction."""
        import optuna

        proto = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=dict(trial.widths),
            distributions={name: self._range(name, width) for name, width in trial.widths.items()},
            user_attrs={"number": trial.number} | {key: getattr(trial, key) for key in BEGUN},
        )
        with _writing(self._place), self._briefly():  # it is asked for again, and is the same
            self._ids[trial.number] = self._storage.create_new_trial(self._id, proto)

    def note(self, trial: Trial) -> None:
        """Note what came of a running trial, in one transaction."""
        with _writing(self._place):
            outcome = {key: getattr(trial, key) for key in OUTCOME}
            self._storage.set_trial_user_attr(self._id_of(trial.number), "outcome", outcome)

    def finish(self, trial: Trial) -> None:
        """Tell how a trial that was noted has been judged: complete if its objective is a number, else failed.

        Nothing where another process has told it already: from the same outcomes, all judge alike.
        """
        import optuna

        states = optuna.trial.TrialState
        trial_id = self._id_of(trial.number)
        failed = math.isnan(trial.objective)
        # it follows from what was noted
        with _writing(self._place), self._briefly(), suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial_id, "accepted", trial.accepted)
            self._storage.set_trial_state_values(
                trial_id, states.FAIL if failed else states.COMPLETE, None if failed else [trial.objective]
            )

    def _briefly(self) -> AbstractContextManager[None]:
        return nullcontext() if self._journal is None else self._journal.brief()

    def _id_of(self, number: int) -> int:
        if number not in self._ids:
            self.trials()
        return self._ids[number]

    def _range(self, name: str, width: int) -> optuna.distributions.IntDistribution:
        import optuna

        low, high = self._bounds.get(name, (width, width))
        return optuna.distributions.IntDistribution(min(low, width), max(high, width))


def read_trials(file: Path) -> tuple[Trial, ...]:
    """The trials in a study's file, by number. Raises DataError where it is missing or holds none of ours."""
    if not file.exists():
        raise DataError(f"{file} is missing: the trials of this run are lost.")
    study = TrialStudy(file, writes=False)
    try:
        return study.trials()
    finally:
        study.close()


def read_shared(url: str, folder: Path) -> tuple[Trial, ...]:
    """The trials of the study that processes with this folder share. Raises DataError where they cannot be read."""
    if "***" in url:
        raise DataError(f"the trials of {folder} are in {url}, whose password is not noted: they are known at the end.")
    study = TrialStudy(url, name=study_of(folder))
    try:
        return study.trials()
    finally:
        study.close()


def copied(study: TrialStudy, file: Path, *, bounds: Mapping[str, tuple[int, int]]) -> None:
    """Write its finished trials to a file of their own, whole or not at all."""
    with atomic_write(file) as part:
        part.unlink()  # an empty one is no database
        copy = TrialStudy(part, bounds=bounds)
        try:
            for trial in study.trials():
                copy.begin(trial)
                if trial.state != "running":
                    copy.note(trial)
                if trial.state in ("complete", "failed"):
                    copy.finish(trial)
        finally:
            copy.close()


def study_of(folder: Path) -> str:
    """The name of the study that processes with this folder share, which the first of them draws."""
    file = folder / STUDY_FILE
    try:
        with open(file, "x", encoding="utf-8") as stream:
            stream.write(f"{NAME}-{secrets.token_hex(8)}\n")
    except FileExistsError:
        pass
    except OSError as error:
        raise OutputError(f"Cannot write in {folder}: {error.strerror or error}. Choose another --out.") from error
    for _ in range(100):  # between making and writing it lies a moment
        if (text := file.read_text(encoding="utf-8")).endswith("\n"):
            return text.strip()
        time.sleep(0.05)
    raise DataError(f"{file} holds no name of a study: it was cut short. Choose another --out.")


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
def _writing(place: Path | str) -> Iterator[None]:
    import optuna
    import sqlalchemy

    try:
        with undisturbed():
            yield
    except (sqlite3.Error, sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
        remedy = "Make room" if isinstance(place, Path) else "See that it runs and lets you write"
        raise OutputError(f"Cannot write {said(place)}: {_cause(error)}. {remedy}, and go on with --resume.") from error


@contextmanager
def _reading(place: Path | str) -> Iterator[None]:
    import optuna
    import sqlalchemy

    try:
        with undisturbed():
            yield
    except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
        raise DataError(f"Cannot read {said(place)}: {_cause(error)}. See that it runs.") from error


def _cause(error: Exception) -> str:
    return str(error.__cause__ or error).splitlines()[0]


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

    with atomic_write(file) as part, _writing(file), quiet():
        made = connected(maker(part), new=True)
        made.create_new_study([optuna.study.StudyDirection.MINIMIZE], NAME)
        made.remove_session()


def _storage(file: Path, journal: Journal, *, checked: bool) -> tuple[optuna.storages.RDBStorage, int]:
    """The database in a file that holds a study of ours, and the study's id. Raises DataError where it does not."""
    import optuna
    import sqlalchemy

    try:
        with quiet():
            storage = connected(journal.connect, checked=checked)
            return storage, storage.get_study_id_from_name(NAME)
    except (KeyError, RuntimeError, sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
        raise DataError(f"{file} is not the study of a search. Was it edited?") from error


def _trial(frozen: optuna.trial.FrozenTrial) -> Trial:
    attributes: dict[str, Any] = frozen.user_attrs
    number = attributes.get("number", frozen.number)
    begun = Trial(
        number=number, widths=dict(frozen.params), **{key: attributes[key] for key in BEGUN if key in attributes}
    )
    state = STATES.get(frozen.state.name, "evaluated" if "outcome" in attributes else "running")
    if state == "running":
        return begun
    known = {**attributes, **attributes.get("outcome", {})}
    noted = replace(begun, state=state, **{key: known[key] for key in OUTCOME if key in known})
    if state == "evaluated":
        return noted
    objective = math.nan if frozen.value is None else frozen.value
    return replace(noted, objective=objective, accepted=known.get("accepted", False))
