"""Memory that stays with the process while a model is trained on the CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["memory_kept"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
MOST = 2**31 - 1  # an int is what it takes
USUAL = 32 * 2**20  # where glibc's own thresholds stop to rise: twice that is left at the top of the heap


@contextmanager
def memory_kept() -> Iterator[None]:
    """What is freed stays at hand, and goes back to the system at the end, where the C library is glibc.

    Each step of training frees what the next one takes again. glibc gives the heap's top back to the system as soon as
    some tens of MB are free there, and large blocks at once, and the system then hands out every page anew, and clears
    it. Afterwards its thresholds are where they rise to by themselves. Elsewhere nothing is changed.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, MOST)
    libc.mallopt(M_TRIM_THRESHOLD, MOST)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, USUAL)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * USUAL)
        libc.malloc_trim(ctypes.c_size_t(0))
