"""The databases that hold studies: a SQLite file of one process, or any that Optuna speaks by URL."""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from conet_onnx.errors import OutputError, UsageError

if TYPE_CHECKING:
    import optuna

__all__ = [
    "Journal",
    "check_url",
    "connected",
    "maker",
    "opened",
    "prepare",
    "quiet",
    "said",
    "together",
    "undisturbed",
]

T = TypeVar("T")

WAIT = 60.0  # seconds for another process's transaction
TRIES = 8


def said(place: Path | str) -> str:
    """A place as it may be shown and written down: a URL without its password."""
    if isinstance(place, Path):
        return str(place)
    import sqlalchemy

    return sqlalchemy.engine.make_url(place).render_as_string(hide_password=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the block has ended; a second one acts as ever. Off the main thread nothing is held back.

    Within SQLAlchemy a KeyboardInterrupt is logged with a traceback where a connection is being closed, and lost where
    Python lets go of one by itself.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[FrameType | None] = []

    def hold(_: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        came.append(frame)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(signal.SIGINT, came[0])


def prepare() -> None:
    """Import what opening a database needs, and training after it; it takes seconds that other work can fill."""
    import importlib

    for name in ("optuna.storages", "sqlalchemy.dialects.sqlite", "alembic.migration", "lightning_fabric"):
        importlib.import_module(name)


class Journal:
    """Connections to a SQLite file. From `begin` on it is written ahead of itself (WAL), by one writer, so that a
    transaction waits for the disk once, where it must outlast a power cut, and not at all otherwise.

    Whatever is written outlasts the process, and a power cut leaves the file whole: only transactions that came last,
    and not `lasting`, are then gone (https://sqlite.org/wal.html). When it is closed, the file holds all by itself.
    Where the file system knows no WAL, every transaction waits, as by default.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._level = "FULL"
        self._ahead = False
        self._open: sqlite3.Connection | None = None

    def begin(self) -> None:
        """Write ahead from now on. Raises sqlite3.Error where the file cannot be written."""
        # As long as one connection is open, what is written stays in the log; each checkpoint costs three more waits.
        self._open = sqlite3.connect(self._file, timeout=WAIT, check_same_thread=False)
        (mode,) = self._open.execute("PRAGMA journal_mode=WAL").fetchone()
        self._ahead = mode == "wal"

    @contextmanager
    def brief(self) -> Iterator[None]:
        """Transactions that need not outlast a power cut, since they follow from those that do."""
        self._level = "NORMAL" if self._ahead else "FULL"
        try:
            yield
        finally:
            self._level = "FULL"

    def connect(self) -> sqlite3.Connection:
        """A connection at the level that holds now."""
        made = sqlite3.connect(self._file, timeout=WAIT)
        made.execute(f"PRAGMA synchronous={self._level}")
        return made

    def close(self) -> None:
        """Everything goes into the file; where another process reads it, when that is done."""
        if self._open is not None:
            with suppress(sqlite3.Error):
                self._open.execute("PRAGMA journal_mode=DELETE")
            self._open.close()


def check_url(url: str) -> None:
    """Raise UsageError for what is no URL of a database, and where the package that speaks to it is missing."""
    import sqlalchemy

    example = "write it as postgresql+psycopg://USER@HOST/NAME or sqlite:///FILE"
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise UsageError(f"--storage: that is not the URL of a database; {example}.") from error
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UsageError(f"--storage {url}: a database in memory cannot be shared; {example}.")
    try:
        sqlalchemy.create_engine(parsed).dispose()
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise UsageError(f"--storage {said(url)}: no database is called {parsed.drivername!r}; {example}.") from error
    except ImportError as error:
        needed = error.name or parsed.get_driver_name()
        raise UsageError(f"--storage {said(url)} needs the package {needed!r}: pip install {needed}.") from error


def opened(url: str, name: str) -> tuple[optuna.storages.RDBStorage, int]:
    """The study of that name, made where there is none, by however many processes at the same time; and its id.

    Raises UsageError for a wrong URL, OutputError where the database cannot be reached or written.
    """
    import optuna
    import sqlalchemy

    check_url(url)
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if sqlalchemy.engine.make_url(url).get_backend_name() == "sqlite":
        settings = {"connect_args": {"timeout": WAIT}, "poolclass": sqlalchemy.NullPool}

    def made() -> optuna.storages.RDBStorage:
        return optuna.storages.RDBStorage(url, settings)

    with quiet():
        try:
            storage = together(made)
            with suppress(optuna.exceptions.DuplicatedStudyError):
                storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], name)
            return storage, storage.get_study_id_from_name(name)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise OutputError(
                f"Cannot use --storage {said(url)}: {cause}. Is it running, and yours to write?"
            ) from error


def together(make: Callable[[], T]) -> T:
    """What `make` returns, which makes tables that are missing: where another process makes them just now, again."""
    import sqlalchemy

    for left in reversed(range(TRIES)):
        try:
            return make()
        except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.IntegrityError):
            # "already exists", or a unique index violated, in words that differ between databases
            if not left:
                raise
            time.sleep(random.uniform(0.05, 0.3))
    raise AssertionError


def connected(
    connect: Callable[[], sqlite3.Connection], *, new: bool = False, checked: bool = True
) -> optuna.storages.RDBStorage:
    """The database in the SQLite file that `connect` opens; a `new` one gets its tables. Whether this Optuna made them
    is not `checked` where that is known: it reads all of Optuna's migrations."""
    import optuna
    import sqlalchemy

    # a creator, since a path with ?, % or {} would not survive in a URL
    engine = {"creator": connect, "poolclass": sqlalchemy.NullPool}
    return optuna.storages.RDBStorage(
        "sqlite://", engine, skip_compatibility_check=new or not checked, skip_table_creation=not new
    )


def maker(file: Path) -> Callable[[], sqlite3.Connection]:
    """Connections to a SQLite file that nobody else has, and that is put on the disk when all is in it."""

    def connect() -> sqlite3.Connection:
        made = sqlite3.connect(file, timeout=WAIT)
        made.execute("PRAGMA synchronous=OFF")
        return made

    return connect


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna says nothing but errors."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
