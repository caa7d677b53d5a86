"""Compare weights and integers with what a plan makes of the source's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from conet_onnx.errors import VerificationFailed
from conet_onnx.graph import Graph, Node
from conet_onnx.verification.constants import Constants, is_float, values_of
from conet_onnx.verification.plans import Edits, Planned
from conet_onnx.verification.proof import Check
from conet_onnx.verification.structure import STORAGE, Pairs, compare_fields

__all__ = ["compare_integers", "compare_weights"]

Array = np.ndarray[Any, Any]


def compare_weights(source: Graph, resized: Graph, planned: Planned, pairs: Pairs) -> Check:
    """Each planned tensor is take(source)/divide, each other one the source's, and there are no others."""
    made = planned.made()
    before, after = ({t.name: t for t in g.model.graph.initializer} for g in (source, resized))
    fresh, patched = _integer_names(source, planned, pairs)
    read = {name for node in resized.nodes for name in (*node.inputs, *node.captured)}
    read.update(value.name for value in resized.outputs)
    for name in before.keys() - after.keys():
        if name in read or not source.consumers(name):
            raise VerificationFailed(f"initializer {name!r} is missing.")
    for name in after:
        if name not in before and name not in made and name not in fresh:
            raise VerificationFailed(f"initializer {name!r} is neither in the source nor in the plan.")
    if [name for name in before if name in after] != [name for name in after if name in before]:
        raise VerificationFailed("the initializers are not in the source's order.")
    old = Constants(source, [origin for origin, _ in made.values()], "the source")
    new = Constants(resized, list(made), "the resized model")
    for name, (origin, take) in made.items():
        expected, actual = old[origin], new[name]
        where = f"tensor {name!r}"
        if take.shape != expected.shape:
            raise VerificationFailed(f"{where}: the plan says shape {take.shape}, the source has {expected.shape}.")
        if name == origin and name in before and name in after:
            compare_fields(before[name], after[name], f"initializer {name!r}", but=STORAGE)
        if planned.changed and is_float(expected):
            _same_form(take.new_shape, expected.dtype, actual, where)
        else:
            _same_values(take.apply(expected), actual, where, divided=bool(take.divide))
    for name in source.weights:
        if name not in made and name not in patched and name in resized.weights:
            _compare_weight(name, source, resized, changed=planned.changed)
    return Check("weights", f"{len(made)} are as planned, {len(after.keys() - made.keys())} are the source's own")


def _compare_weight(name: str, source: Graph, resized: Graph, *, changed: bool) -> None:
    a, b, where = source.weights[name], resized.weights[name], f"initializer {name!r}"
    if a == b and source.arrays.get(name) is resized.arrays.get(name):
        return
    compare_fields(a, b, where, but=STORAGE)
    expected, actual = values_of(source, name), values_of(resized, name)
    if changed and is_float(expected):
        _same_form(expected.shape, expected.dtype, actual, where)
        return
    _same_values(expected, actual, where, divided=False)
    # Equal values that are stored in another way:
    compare_fields(source.tensor(name), resized.tensor(name), where, but={"data_location"})


def _same_form(shape: tuple[int, ...], dtype: np.dtype[Any], actual: Array, where: str) -> None:
    if shape != actual.shape or dtype != actual.dtype:
        raise VerificationFailed(
            f"{where} is {actual.dtype.name}{list(actual.shape)}, expected {dtype.name}{list(shape)}."
        )


def _same_values(expected: Array, actual: Array, where: str, *, divided: bool) -> None:
    """Bit for bit; a divided one to a unit in the last place, and its zero slices to the sign."""
    _same_form(expected.shape, expected.dtype, actual, where)
    expected, actual = np.atleast_1d(np.ascontiguousarray(expected), np.ascontiguousarray(actual))
    if expected.dtype == object or expected.itemsize > 8:
        wrong = np.asarray(expected != actual)
    else:
        wrong = expected.view(f"u{expected.itemsize}") != actual.view(f"u{expected.itemsize}")
    if divided and is_float(expected) and wrong.any():
        wrong &= np.nextafter(expected, actual) != actual
    if wrong.any():
        place = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        raise VerificationFailed(
            f"{where}: element {place} is {actual[place]}, expected {expected[place]} "
            f"({np.count_nonzero(wrong)} of {wrong.size} elements differ)."
        )


def _integer_sites(pairs: Pairs, planned: Planned) -> Iterator[tuple[Node, Node, int, Edits]]:
    for old, new in pairs:
        for where, edits in planned.integers.get(old.name, {}).items():
            if where.startswith("input:"):
                yield old, new, int(where.removeprefix("input:")), edits


def _integer_names(source: Graph, planned: Planned, pairs: Pairs) -> tuple[set[str], set[str]]:
    """Constants that planned integers may bring along, and the source's that they were edited in."""
    fresh: set[str] = set()
    patched: set[str] = set()
    for old, new, position, _ in _integer_sites(pairs, planned):
        name = new.inputs[position]
        (patched if name in old.inputs[position : position + 1] else fresh).add(name)
    for old, new in pairs:
        for position, name in enumerate(old.inputs):
            planned_here = f"input:{position}" in planned.integers.get(old.name, {})
            if name in patched and new.inputs[position] == name and not planned_here:
                raise VerificationFailed(
                    f"{old} reads {name!r} too, which was changed for others; the plan leaves it alone."
                )
    return fresh, patched


def compare_integers(source: Graph, resized: Graph, planned: Planned, pairs: Pairs) -> Check:
    """Constant inputs hold the source's integers with the planned edits. Attributes were compared with the nodes."""
    for old, new, position, edits in _integer_sites(pairs, planned):
        where = f"{old}: input {position}"
        actual = resized.constant(new.inputs[position])
        if actual is None:
            raise VerificationFailed(f"{where} ({new.inputs[position]!r}) is not constant; the plan gives its values.")
        name = next(iter(old.inputs[position : position + 1]), "")
        values, fixed = _known(source, name, actual)
        flat, fixed = values.reshape(-1).copy(), fixed.reshape(-1).copy()
        _same_form(values.shape, values.dtype, actual, where)
        for place, (was, to) in edits.items():
            if not 0 <= place < flat.size:
                raise VerificationFailed(f"{where}: the plan changes element {place}, and it has {flat.size}.")
            if was is not None and fixed[place] and flat[place] != was:
                raise VerificationFailed(
                    f"{where}: element {place} of the source is {flat[place]}, the plan says {was}."
                )
            flat[place], fixed[place] = to, True
        if not fixed.all():
            place = int(np.argmin(fixed))
            raise VerificationFailed(f"{where}: element {place} depends on the input, and the plan does not give it.")
        _same_values(flat.reshape(values.shape), actual, where, divided=False)
    count = sum(len(edits) for sites in planned.integers.values() for edits in sites.values())
    return Check("integers", f"{count} are as planned")


def _known(source: Graph, name: str, actual: Array) -> tuple[Array, Array]:
    """A constant's value in the source, and which of its elements are the same for every input."""
    if name in source.weights:
        value = source.array(name)
        return value, np.ones(value.shape, bool)
    a, b = (found.constants.get(name) for found in (source.inference.first, source.inference.second))
    if a is None or b is None or a.shape != b.shape:  # nothing is known: the plan must give all of it
        return np.zeros_like(actual), np.zeros(actual.shape, bool)
    return a, np.asarray(a == b)
