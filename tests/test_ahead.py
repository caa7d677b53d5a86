"""Work that is begun before its result is needed."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

from conet_onnx.ahead import Ahead


def test_the_work_is_done_beside_the_caller() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> int:
        begun.set()
        assert go_on.wait(10)
        return 7

    ahead = Ahead(work)
    assert begun.wait(10)  # before anyone asked for the result
    go_on.set()
    assert ahead.result() == 7
    assert ahead.result() == 7


def test_what_the_work_raises_reaches_who_asks_for_it() -> None:
    ahead = Ahead(lambda: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            ahead.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_does_the_work_itself() -> None:
    begun, release = threading.Event(), threading.Event()
    parent = os.getpid()

    def work() -> str:
        if os.getpid() == parent:
            begun.set()
            release.wait(10)
        return hashlib.sha256(b"x").hexdigest()

    ahead = Ahead(work)
    assert begun.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if ahead.result() == hashlib.sha256(b"x").hexdigest() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    release.set()
    assert ahead.result()
