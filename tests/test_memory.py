"""What training does with memory that it frees."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from conet_onnx.torch_backend.memory import memory_kept

MB = 2**20
BLOCKS, BLOCK = 6, 48 * MB

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


def faults() -> int:
    """Pages that one more step is handed by the system, which takes blocks that are as large as activations."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(BLOCK, dtype=np.uint8) for _ in range(BLOCKS)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class TestElsewhere:
    def test_no_library_is_touched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("there is none by that name"))
        with memory_kept():
            pass

    def test_a_library_without_these_calls_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As musl is."""
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
        with memory_kept():
            pass


# What these two see, memory that stays and goes, is there with glibc alone; TestElsewhere says what others get.
@pytest.mark.skipif(not GLIBC, reason="memory_kept changes nothing without glibc")
class TestMemoryKept:
    def test_a_step_takes_what_the_one_before_it_has_freed(self) -> None:
        with memory_kept():
            pass  # from here on the thresholds are what glibc ends at
        faults()
        anew = faults()
        with memory_kept():
            faults()
            kept = faults()
        assert anew >= BLOCKS  # of pages that may be huge
        assert kept < anew / 10

    def test_what_was_kept_goes_back_at_the_end_also_after_an_error(self) -> None:
        seen: list[int] = []
        with pytest.raises(ZeroDivisionError):
            self.divides(seen)
        assert resident() < seen[0] - BLOCKS * BLOCK / 2

    @staticmethod
    def divides(seen: list[int]) -> None:
        """Keeps memory, notes how much, and raises."""
        with memory_kept():
            faults()
            seen.append(resident())
            seen[0] //= 0
