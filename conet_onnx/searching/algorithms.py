"""Methods of search by the name that a user gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from conet_onnx.errors import UsageError
from conet_onnx.searching.adjustment import NetworkAdjustment
from conet_onnx.searching.anneal import Annealing
from conet_onnx.searching.conet import ConetAnnealing, ConetGreedy
from conet_onnx.searching.method import Method, configured
from conet_onnx.searching.random import Compound, Random
from conet_onnx.searching.reallocate import Reallocation

__all__ = ["ALGORITHMS", "find_method"]

ALGORITHMS: Mapping[str, Callable[[], Method]] = {
    "auto": Reallocation,
    "anneal": Annealing,
    "reallocate": Reallocation,
    "conet-sa": ConetAnnealing,
    "conet-greedy": ConetGreedy,
    "network-adjustment": NetworkAdjustment,
    "compound": Compound,
    "random": Random,
}


def find_method(algorithm: str, given: Mapping[str, Any] | Iterable[str] = ()) -> Method:
    """The method of that name, with these constants (NAME=VALUE, or a mapping) instead of its own.

    Raises UsageError for an unknown one and for constants that it does not have.
    """
    if algorithm not in ALGORITHMS:
        close = get_close_matches(algorithm, ALGORITHMS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(ALGORITHMS)}."
        raise UsageError(f"no algorithm {algorithm!r}: {hint}")
    return configured(ALGORITHMS[algorithm](), given, name=algorithm)
