"""Rules that are broken on purpose: which ways there are to change one thing in what a rule says.

A mutant changes one fact: it leaves out an equation, a contraction, a site; moves a site to the next position; swaps
two axes of an output; or makes one of them a size of its own. It is named by what it changes, so that it means the
same at every node: `0.1` is axis 1 of input 0, other sizes have the names that the rule gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import wraps
from itertools import combinations
from typing import Any

from conet_onnx.dims import Axis, Dim, Segment, product
from conet_onnx.rules import RULES, Contraction, Facts, Op, Opaque, Operand, Shape, Site

__all__ = ["Change", "Mutant", "broken", "changes", "installed", "rules"]

SOONER = ("outputs", "contracts", "sites")  # what has more to it than to be there or not


@dataclass(frozen=True, slots=True, order=True)
class Mutant:
    """One change to the rule of one operator from one schema version on."""

    operator: str
    since: int
    change: str

    def __str__(self) -> str:
        return f"{self.operator}@{self.since} {self.change}"


@dataclass(frozen=True, slots=True)
class Change:
    """What is changed, in words, and the facts that are left; None where the rule is gone."""

    name: str
    facts: Facts | None


def rules() -> list[tuple[str, int]]:
    """Every rule: its operator, and the version that it holds from."""
    return [(operator, since) for operator in sorted(RULES) for since, _ in RULES[operator]]


def changes(op: Op, shapes: tuple[Shape | None, ...], facts: Facts) -> Iterator[Change]:
    """All ways to change one thing in a rule's facts, each under a name of its own.

    What says nothing (an equation of an axis with itself) is left as it is.
    """
    yield Change("without the rule", None)
    yield from _outputs(op, facts)
    for k, contraction in enumerate(facts.contracts):
        for name, left in _contraction(contraction, shapes):
            made = (*facts.contracts[:k], *left, *facts.contracts[k + 1 :])
            yield Change(f"contracts {k} {name}", replace(facts, contracts=made))
    for k, site in enumerate(facts.sites):
        for name, left in _site(site, op):
            made = (*facts.sites[:k], *left, *facts.sites[k + 1 :])
            yield Change(f"sites {site.where} at {site.position} {name}", replace(facts, sites=made))
    for field in fields(Facts):  # also those that are yet to come
        if field.name in SOONER:
            continue
        items = getattr(facts, field.name)
        names = [_text(item, op, shapes) for item in items]
        for name in dict.fromkeys(n for n, item in zip(names, items, strict=True) if not _is_empty(item)):
            left = tuple(item for n, item in zip(names, items, strict=True) if n != name)  # what is said twice, too
            yield Change(f"{field.name} without {name}", replace(facts, **{field.name: left}))


def _outputs(op: Op, facts: Facts) -> Iterator[Change]:
    for k, shape in enumerate(facts.outputs):
        if shape is None:
            continue

        def changed(new: Shape | None, k: int = k) -> Facts:
            return replace(facts, outputs=(*facts.outputs[:k], new, *facts.outputs[k + 1 :]))

        yield Change(f"outputs without {k}", changed(None))
        for i, j in combinations(range(len(shape)), 2):
            if shape[i] != shape[j] and (j == i + 1 or shape[i].size == shape[j].size):
                axes = list(shape)
                axes[i], axes[j] = axes[j], axes[i]
                yield Change(f"outputs {k}.{i} and {k}.{j} swapped", changed(tuple(axes)))
        for i, segment in enumerate(shape):
            if segment.dims and not _is_own(segment, op, facts):
                size = segment.size
                own = product(Dim(f"{op.node.name}.mutant", size, rigid=size[0] != size[1]))
                yield Change(f"outputs {k}.{i} a size of its own", changed((*shape[:i], own, *shape[i + 1 :])))


def _is_own(segment: Segment, op: Op, facts: Facts) -> bool:
    """Whether it is a size of the operator's own that follows the input, which nothing else is said of."""
    dim = segment.lone
    own = dim is not None and dim.rigid and dim.name.startswith(op.node.name)
    return own and all(dim not in side.dims for pair in facts.equal for side in pair)


def _contraction(
    contraction: Contraction, shapes: tuple[Shape | None, ...]
) -> Iterator[tuple[str, tuple[Contraction, ...]]]:
    yield "left out", ()
    yield "at twice the price", (replace(contraction, macs=product(2, contraction.macs)),)
    for k in range(len(contraction.produces)):
        left = (*contraction.produces[:k], *contraction.produces[k + 1 :])
        yield f"makes {k} left out", (replace(contraction, produces=left),)
    for k, operand in enumerate(contraction.operands):
        for name, changed in _operand(operand, shapes):
            operands = (*contraction.operands[:k], *changed, *contraction.operands[k + 1 :])
            yield f"side {k} {name}", (replace(contraction, operands=operands),)


def _operand(operand: Operand, shapes: tuple[Shape | None, ...]) -> Iterator[tuple[str, tuple[Operand, ...]]]:
    rank = len(shapes[operand.index] or ())
    yield "left out", ()
    if rank > 1:
        yield "along the axis before", (replace(operand, axis=(operand.axis - 1) % rank),)
    if operand.outer.factors:
        yield (
            "with its groups summed",
            (replace(operand, outer=product(), summed=product(operand.outer, operand.summed)),),
        )


def _site(site: Site, op: Op) -> Iterator[tuple[str, tuple[Site, ...]]]:
    kind, _, name = site.where.partition(":")
    known = site.holder is not None or (op.attribute(name) if kind == "attribute" else op.value(int(name))) is not None
    if site.size.fixed:
        return
    yield "left out", ()
    yield "moved", (replace(site, position=site.position - 1 if site.position else 1),)
    if site.literal and not known:  # where the file has the number, it is read there
        yield "negated", (replace(site, literal=-site.literal),)
    if site.holder is not None:
        yield "at the node itself", (replace(site, holder=None),)


def _is_empty(item: Any) -> bool:
    """Whether a fact says nothing: an equation of an axis with itself, statistics over one element."""
    match item:
        case (Axis() | Segment() as left, Axis() | Segment() as right):
            return left == right or _only(left) == _only(right)
        case (Segment() as segment, _) | (Segment() as segment):
            return segment.fixed
    return False


def _only(side: Axis | Segment) -> Axis | Segment:
    return side.segments[0] if isinstance(side, Axis) and len(side.segments) == 1 else side


def _text(item: Any, op: Op, shapes: tuple[Shape | None, ...]) -> str:
    """A fact without names that differ from node to node."""
    match item:
        case Axis():
            return " + ".join(_text(segment, op, shapes) for segment in item.segments)
        case Segment():
            for k, shape in enumerate(shapes):
                for axis, segment in enumerate(shape or ()):
                    if segment is item:
                        return f"{k}.{axis}"
            return "·".join(_factor(factor, op) for factor in item.factors) or "1"
        case (Axis() | Segment() as left, Axis() | Segment() as right):
            return f"{_text(left, op, shapes)} = {_text(right, op, shapes)}"
        case (Segment() as segment, reason):
            return f"{_text(segment, op, shapes)} ({reason.kind})"
    return str(item)


def _factor(factor: Dim | int, op: Op) -> str:
    if isinstance(factor, int):
        return "n"
    return factor.name.removeprefix(f"{op.node.name}.") if factor.name.startswith(f"{op.node.name}.") else "?"


Heard = Callable[[str, int, str], None]  # operator, since, the name of a change that could have been made


def installed(heard: Heard) -> Callable[[], None]:
    """Listen to every rule: which changes would change something, and when. Returns what ends it."""
    before = {operator: list(entries) for operator, entries in RULES.items()}
    for operator, entries in RULES.items():
        entries[:] = [(since, _listening(operator, since, function, heard)) for since, function in entries]

    def end() -> None:
        RULES.update(before)

    return end


def broken(mutant: Mutant) -> None:
    """Put a mutant in its rule's place. Raises KeyError where there is no such rule."""
    entries = RULES[mutant.operator]
    index = [since for since, _ in entries].index(mutant.since)
    entries[index] = (mutant.since, _mutated(entries[index][1], mutant.change))


def _listening(operator: str, since: int, function: Callable[..., Facts], heard: Heard) -> Callable[..., Facts]:
    @wraps(function)
    def rule(op: Op, *shapes: Shape | None) -> Facts:
        own = _apart(shapes)
        facts = function(op, *own)
        for change in changes(op, own, facts):
            heard(operator, since, change.name)
        return facts

    return rule


def _mutated(function: Callable[..., Facts], wanted: str) -> Callable[..., Facts]:
    @wraps(function)
    def rule(op: Op, *shapes: Shape | None) -> Facts:
        own = _apart(shapes)
        facts = function(op, *own)
        for change in changes(op, own, facts):
            if change.name == wanted:
                if change.facts is None:
                    raise Opaque("mutant", f"the rule of {op.node} was taken out")
                return change.facts
        return facts

    return rule


def _apart(shapes: tuple[Shape | None, ...]) -> tuple[Shape | None, ...]:
    """Equal axes as objects of their own, so that each can be told from the others in what the rule says."""
    return tuple(s and tuple(Segment(x.factors, x.size, x.dims, x.origin) for x in s) for s in shapes)
