"""Everything there is to know about a model before resizing it: its widths, their costs, and what is frozen."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from conet_onnx.collecting import collector_paused
from conet_onnx.costs import Costs
from conet_onnx.coupling import Coupling, Frozen, Width
from conet_onnx.folding import fold
from conet_onnx.graph import Graph, Value

__all__ = ["Analysis", "analyze"]

FORMAT = "conet-onnx-analysis/1"


class Analysis(Coupling):
    """A graph's widths and costs."""

    @cached_property
    def costs(self) -> Costs:
        """Prices of any widths."""
        return Costs(self)

    def as_json(self) -> dict[str, Any]:
        """As in `analyze --json`: model, groups, frozen axes, coverage."""
        graph, source = self.graph, self.costs.source
        return {
            "format": FORMAT,
            "model": {
                "file": os.path.basename(graph.file),
                "sha256": graph.sha256,
                "opset": graph.opset,
                "nodes": len(graph.nodes),
                "params": source.params,
                "macs": source.macs,
                "inputs": [_value(v) for v in graph.inputs],
                "outputs": [_value(v) for v in graph.outputs],
            },
            "groups": [self._group(width) for width in self.widths.values()],
            "frozen": [_frozen(f) for f in self.frozen],
            "coverage": self.costs.coverage._asdict(),
        }

    def _group(self, width: Width) -> dict[str, Any]:
        return {
            "id": width.id,
            "name": width.name,
            "size": width.size,
            "min": width.min,
            "max": width.max,
            "multiple": width.multiple,
            "exact": width.exact,
            "mixed_by": list(width.mixed_by),
            "members": [{"tensor": m.tensor, "axis": m.axis, "role": m.role} for m in width.members],
            **self.costs.share(width.id)._asdict(),
        }


@collector_paused()
def analyze(graph: Graph, *, freeze: Iterable[str] = ()) -> Analysis:
    """Find a graph's widths. `freeze` takes out widths by id or name, or all that touch a tensor or a node.

    Raises UsageError for a name that is none of these.
    """
    analysis = Analysis(graph)
    fold(analysis)
    analysis.freeze(freeze)
    return analysis


def _value(value: Value) -> dict[str, Any]:
    return {"name": value.name, "shape": [s or None for s in value.shape], "dtype": value.dtype.name}


def _frozen(frozen: Frozen) -> dict[str, Any]:
    reason = frozen.reason
    return {
        "tensor": frozen.tensor,
        "axis": frozen.axis,
        "size": frozen.size,
        "reason": {"kind": reason.kind, "node": reason.node, "detail": reason.detail},
    }
