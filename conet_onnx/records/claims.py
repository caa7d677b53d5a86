"""Which of several processes, on one host or many, does a piece of work: claims in the database that they share."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from conet_onnx.errors import OutputError
from conet_onnx.records.database import together

if TYPE_CHECKING:
    import sqlalchemy

__all__ = ["Claims", "Shared", "Sole"]

TABLE = "conet_onnx_claims"
LEASE = 45.0  # seconds without a beat after which whoever holds a claim counts as dead
BEAT = 5.0  # seconds between two


class Claims(Protocol):
    """A piece of work goes to one process; to another one only if the first has died before it was done."""

    @property
    def shared(self) -> bool:
        """Whether there may be others."""

    def take(self, work: str) -> bool:
        """Whether this process is to do it. False while another one does, and where it is done."""

    def holds(self, work: str) -> bool:
        """Whether it still is this process's: it may have been thought dead."""

    def done(self, work: str) -> None:
        """Nobody need do it again."""


class Sole:
    """One process, which does everything."""

    @property
    def shared(self) -> bool:
        """Alone."""
        return False

    def take(self, work: str) -> bool:
        """Always."""
        return True

    def holds(self, work: str) -> bool:
        """Always."""
        return True

    def done(self, work: str) -> None:
        """Nothing to say, nobody to tell."""


class Shared:
    """A row for each claim: (study, work) is its key, so the database itself lets one process insert it.

    Whoever holds claims counts their beats up, in a thread. One whose beats stand still for `lease` seconds, by the
    clock of the process that looks (clocks of hosts differ), is taken over: with an update that names the owner and the
    beats that were seen, which the database lets one process make. On the same host a process that is gone is known to
    be gone at once.
    """

    def __init__(
        self,
        engine: sqlalchemy.Engine,
        study: str,
        *,
        owner: str | None = None,
        lease: float = LEASE,
        beat: float = BEAT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import sqlalchemy as sql

        self._engine = engine
        self._study = study
        self._owner = owner or f"{_host()} {os.getpid()} {secrets.token_hex(4)}"
        self._lease = lease
        self._clock = clock
        self._seen: dict[str, tuple[str, int, float]] = {}  # owner, beats, and since when, of others' work
        text, number = sql.String(190), sql.Integer  # a key of two such texts is short enough for MySQL
        self._table = sql.Table(
            TABLE,
            sql.MetaData(),
            sql.Column("study", text, primary_key=True),
            sql.Column("work", text, primary_key=True),
            sql.Column("owner", text, nullable=False),
            sql.Column("beats", number, nullable=False),
            sql.Column("done", number, nullable=False),
        )
        together(lambda: self._table.create(engine, checkfirst=True))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beats, args=(beat,), daemon=True)
        self._thread.start()

    @property
    def shared(self) -> bool:
        """There may be others."""
        return True

    def close(self) -> None:
        """Beat no more, and let go of what is not done, so that others need not wait."""
        import sqlalchemy as sql

        self._closed.set()
        self._thread.join()
        with suppress(sql.exc.SQLAlchemyError), self._engine.begin() as connection:
            connection.execute(self._table.delete().where(*self._mine(), self._table.c.done == 0))

    def take(self, work: str) -> bool:
        """By an insert, or in place of one who is dead."""
        import sqlalchemy as sql

        row = self._row(work)
        if row is None:
            values = {"study": self._study, "work": work, "owner": self._owner, "beats": 0, "done": 0}
            try:
                with self._connection() as connection:
                    connection.execute(self._table.insert().values(values))
            except sql.exc.IntegrityError:  # another one was faster
                return False
            return True
        if row.done:
            return False
        if row.owner == self._owner:
            return True
        if not self._dead(work, row):
            return False
        was = (self._table.c.owner == row.owner, self._table.c.beats == row.beats, self._table.c.done == 0)
        with self._connection() as connection:
            change = self._table.update().where(*self._at(work), *was).values(owner=self._owner, beats=row.beats + 1)
            return connection.execute(change).rowcount == 1

    def holds(self, work: str) -> bool:
        """By its row."""
        row = self._row(work)
        return row is not None and row.owner == self._owner

    def done(self, work: str) -> None:
        """In its row."""
        with self._connection() as connection:
            connection.execute(self._table.update().where(*self._at(work)).values(done=1))

    def _row(self, work: str) -> Any:
        with self._connection() as connection:
            return connection.execute(self._table.select().where(*self._at(work))).one_or_none()

    @contextmanager
    def _connection(self) -> Iterator[sqlalchemy.Connection]:
        """One transaction. Raises OutputError where the database is away."""
        import sqlalchemy as sql

        try:
            with self._engine.begin() as connection:
                yield connection
        except sql.exc.OperationalError as error:
            cause = str(error.orig or error).splitlines()[0]
            raise OutputError(f"Cannot use --storage: {cause}. See that it runs, and go on with --resume.") from error

    def _dead(self, work: str, row: Any) -> bool:
        if _gone(row.owner):
            return True
        now = self._clock()
        owner, beats, since = self._seen.get(work, ("", -1, now))
        if (owner, beats) != (row.owner, row.beats):
            self._seen[work] = (row.owner, row.beats, now)
            return False
        return now - since >= self._lease

    def _at(self, work: str) -> tuple[Any, ...]:
        return (self._table.c.study == self._study, self._table.c.work == work)

    def _mine(self) -> tuple[Any, ...]:
        return (self._table.c.study == self._study, self._table.c.owner == self._owner)

    def _beats(self, beat: float) -> None:
        import sqlalchemy as sql

        mine = self._table.update().where(*self._mine(), self._table.c.done == 0)
        while not self._closed.wait(beat):
            # A database that is away for a moment costs a beat; if it stays away, others take over.
            with suppress(sql.exc.SQLAlchemyError), self._engine.begin() as connection:
                connection.execute(mine.values(beats=self._table.c.beats + 1))


def _host() -> str:
    """The host and, where there is such a thing, the space in which its process numbers count (containers)."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()}{space}".replace(" ", "_")[:100]


def _gone(owner: str) -> bool:
    """Whether the process is one of this host's that no longer runs."""
    host, pid, *_ = owner.split(" ")
    if host != _host() or not pid.isdigit() or os.name == "nt":  # there, signal 0 would end it
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
