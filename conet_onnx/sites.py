"""Integers in attributes and constant inputs that carry sizes, grouped by the place that holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from conet_onnx.coupling import Coupling
from conet_onnx.dims import Axis
from conet_onnx.graph import Graph, Node
from conet_onnx.rules.registry import flat_integers

__all__ = ["Place", "places"]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One attribute or input of a node, and the sizes that its elements carry.

    `values` are the source's elements, None for one that is computed while the model runs; `sizes` are the axes that
    they equal, None for an element that no size governs. A `fresh` place gets a constant of its own: the source's is
    shared, computed or absent. An `always` one gets it in every resized model, since the source computes it.
    """

    node: Node
    where: str
    tensor: str  # the input's value; "" for an attribute or an absent input
    values: tuple[int | None, ...]
    sizes: tuple[Axis | None, ...]
    fresh: bool
    always: bool
    whole: bool  # the source has no such attribute or constant: an edit gives every element
    itemsize: int

    @property
    def signs(self) -> tuple[int, ...]:
        """-1 for an element that counts from the end, as negative bounds of Slice do."""
        return tuple(-1 if old is not None and old < 0 else 1 for old in self.values)

    def edits(self, size: Callable[[Axis], int]) -> tuple[int, ...] | None:
        """The new elements, given new sizes; None where nothing changes. An element that follows the batch is -1."""
        new = tuple(
            old if ax is None and old is not None else -1 if ax is None or ax.size[0] != ax.size[1] else sign * size(ax)
            for old, ax, sign in zip(self.values, self.sizes, self.signs, strict=True)
        )
        same = all(a == b for a, b in zip(self.values, new, strict=True))
        return None if same and not self.always else new


def places(coupling: Coupling) -> tuple[Place, ...]:
    """All places of a graph that a resize may have to edit."""
    graph = coupling.graph
    found: dict[tuple[int, str], dict[int, tuple[Axis, int | None]]] = {}
    for node_index, site in coupling.sites:
        found.setdefault((node_index, site.where), {})[site.position] = (site.size, site.literal)
    for node_index, k in coupling.computed:
        found.setdefault((node_index, f"input:{k}"), {})
    made = []
    for (node_index, where), sites in sorted(found.items()):
        node = graph.nodes[node_index]
        always = where.startswith("input:") and (node_index, int(where[6:])) in coupling.computed
        governed = any(set(coupling.solver.leaves(ax)) & coupling.resizable for ax, _ in sites.values())
        if governed or always:
            made.append(_place(graph, node, where, sites, always))
    return tuple(made)


def _place(graph: Graph, node: Node, where: str, sites: dict[int, tuple[Axis, int | None]], always: bool) -> Place:
    values: tuple[int | None, ...]
    kind, _, name = where.partition(":")
    index = int(name) if kind == "input" else -1
    tensor = node.inputs[index] if 0 <= index < len(node.inputs) else ""
    if kind == "attribute":
        value = node.attributes.get(name)
        known = () if value is None else value if isinstance(value, tuple) else (value,)
    else:
        constant = graph.constant(tensor) if tensor else None
        known = () if constant is None else flat_integers(constant)
    length = len(known) or 1 + max(sites)
    values = known or tuple(sites[i][1] if i in sites else None for i in range(length))
    fresh = kind == "input" and not (tensor in graph.weights and graph.readings(tensor) == 1)
    dtype = graph.dtype(tensor) if tensor else None
    return Place(
        node=node,
        where=where,
        tensor=tensor,
        values=values,
        sizes=tuple(sites[i][0] if i in sites else None for i in range(length)),
        fresh=fresh,
        always=always,
        whole=always or not known,
        itemsize=dtype.itemsize if dtype is not None else 8,
    )
