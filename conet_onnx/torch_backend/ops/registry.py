"""The table of what each ONNX operator becomes in torch."""

from __future__ import annotations

from collections.abc import Callable

from conet_onnx.graph import Node
from conet_onnx.torch_backend.building import Builder, Result

__all__ = ["FLOW", "LOWER", "REVIEWED", "Lowering", "flows", "lowers"]

Lowering = Callable[[Builder, Node], Result]

REVIEWED = 28  # the newest opset whose operators were compared with this table

LOWER: dict[str, Lowering] = {}  # by Node.operator
FLOW: dict[str, Lowering] = {}  # the same, of what is lowered only where nothing could be trained otherwise


def lowers(*ops: str, domain: str = "") -> Callable[[Lowering], Lowering]:
    """Register a function for some operators of ai.onnx, in all versions from opset 7 to REVIEWED, or of a domain.

    Where a version means something else, the function asks `node.since`.
    """

    def register(function: Lowering) -> Lowering:
        for op in (f"{domain}.{op}" if domain else op for op in ops):
            assert op not in LOWER, f"{op} is lowered twice"
            LOWER[op] = function
        return function

    return register


def flows(*ops: str) -> Callable[[Lowering], Lowering]:
    """Register a function for control flow or sequences of ai.onnx."""

    def register(function: Lowering) -> Lowering:
        for op in ops:
            assert op not in FLOW, f"{op} is lowered twice"
            assert op not in LOWER, f"{op} is lowered twice"
            FLOW[op] = function
        return function

    return register
