"""Work that is begun before its result is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """A call that runs in a thread of its own; the process does not wait for it when it ends.

    It gains where the call leaves Python to others: reading, hashing.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._made: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """What the call returns, once it has; what it raised is raised here."""
        self._thread.join()
        if not self._made and self._error is None:  # this is a fork, which threads do not follow
            self._run()
        if self._error is not None:
            raise self._error
        return self._made[0]

    def _run(self) -> None:
        try:
            self._made.append(self._call())
        except BaseException as error:  # belongs to who asks for the result
            self._error = error
