"""Searchers by the name that a user gives."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from conet_onnx.errors import NotYet, UsageError
from conet_onnx.searching.anneal import Anneal
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.random import RandomSearch
from conet_onnx.searching.searcher import Searcher
from conet_onnx.searching.space import WidthSpace

__all__ = ["ALGORITHMS", "find_maker", "make_searcher"]

Maker = Callable[..., Searcher]

ALGORITHMS: dict[str, Maker | None] = {  # None: in the contract, and not in this release
    "auto": Anneal,
    "anneal": Anneal,
    "conet-sa": None,
    "conet-greedy": None,
    "network-adjustment": None,
    "compound": None,
    "random": RandomSearch,
}


def make_searcher(algorithm: str, space: WidthSpace, limits: Limits, *, trials: int, seed: int) -> Searcher:
    """The searcher of that name. Raises UsageError for an unknown one, NotYet for one of a later release."""
    return find_maker(algorithm)(space, limits, trials=trials, seed=seed)


def find_maker(algorithm: str) -> Maker:
    """The searcher's class. Raises as `make_searcher`."""
    ready = ", ".join(name for name, maker in ALGORITHMS.items() if maker)
    if algorithm not in ALGORITHMS:
        close = get_close_matches(algorithm, ALGORITHMS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {ready}."
        raise UsageError(f"no algorithm {algorithm!r}: {hint}")
    maker = ALGORITHMS[algorithm]
    if maker is None:
        raise NotYet(f"algorithm {algorithm!r} comes in a later release; this one has {ready}.")
    return maker
