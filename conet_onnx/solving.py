"""Solve equations between axes by unification.

Every rule of every operator ends as "this axis equals that one". Both sides are resolved first, always: what is bound
was unbound a moment before. Equal sums are walked from the left and cut at the nearer boundary; equal products are
walked from the outermost factor, and the larger factor is split by the smaller. What cannot be aligned is frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from conet_onnx.dims import ONE, Axis, Dim, Factor, Segment, Size, axis, concatenation, product, total

__all__ = ["Reason", "Solver"]

UNROLL = 64  # n·(b + c) is written out as b + c + b + c + ... up to this n


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a size must not change: what kind of obstacle, at which node, in words."""

    kind: str
    node: str
    detail: str

    def __str__(self) -> str:
        return self.detail


@dataclass(slots=True)  # not frozen: one is made for every equation, and it would take three times as long
class _Equation:
    left: Axis
    right: Axis
    node: str


class Conflict(Exception):
    """Two axes of different size were said to be equal: a rule or a shape is wrong."""


class Solver:
    """Bindings of dims to axes, and why those that became plain integers did."""

    def __init__(self) -> None:
        self._bound: dict[Dim, Axis] = {}
        self._latest: dict[Dim, tuple[Axis, int]] = {}  # resolved, when so many dims were bound
        self._leaves: dict[Axis | Segment, tuple[tuple[Dim, ...], int]] = {}
        self._depth: dict[Dim, int] = {}
        self._reasons: dict[Dim, Reason | _Equation] = {}
        self._cause: Reason | _Equation | None = None

    # Reading

    def resolve(self, ax: Axis | Segment) -> Axis:
        """The axis in terms of unbound dims only, but for composite atoms: sums behind a product, resolved apart."""
        if self.is_resolved(ax):
            return ax if isinstance(ax, Axis) else concatenation((ax,))
        if (dim := ax.lone) is not None:
            return self.resolve_dim(dim)
        segments = ax.segments if isinstance(ax, Axis) else (ax,)
        return total(part for s in segments for part in self._expand(s))

    def are_resolved(self, shape: Iterable[Segment]) -> bool:
        """Whether none of the dims of some axes is bound."""
        bound = self._bound
        for segment in shape:
            for dim in segment.dims:
                if dim in bound:
                    return False
        return True

    def is_resolved(self, ax: Axis | Segment) -> bool:
        """Whether none of its dims is bound."""
        bound = self._bound
        for dim in ax.dims:  # noqa: SIM110  (seldom more than two: a generator would take longer than they)
            if dim in bound:
                return False
        return True

    def resolve_dim(self, dim: Dim) -> Axis:
        """What a dim is bound to, resolved; the dim itself where it is unbound."""
        if dim not in self._bound:
            return axis(dim)
        known, at = self._latest.get(dim) or (self._bound[dim], -1)
        if at == len(self._bound):
            return known
        resolved = self.resolve(known)
        # Path compression, apart from the bindings: those say where a reason came from.
        self._latest[dim] = resolved, len(self._bound)
        return resolved

    def is_composite(self, dim: Dim) -> bool:
        """Whether a dim left in a resolved axis is a sum that could not be written out there."""
        return dim in self._bound

    def leaves(self, ax: Axis | Segment) -> tuple[Dim, ...]:
        """The unbound dims of an axis, those inside composite atoms included."""
        bound = self._bound
        for dim in ax.dims:
            if dim in bound:
                break
        else:
            return ax.dims  # as most are: looking them up would take longer
        known, at = self._leaves.get(ax, ((), -1))
        if at != len(self._bound):
            known = self._walk(ax)
            self._leaves[ax] = known, len(self._bound)
        return known

    def _walk(self, ax: Axis | Segment) -> tuple[Dim, ...]:
        """What `leaves` returns, not remembered: while axes are being equated it is soon outdated."""
        if self.is_resolved(ax) or self.is_resolved(ax := self.resolve(ax)):
            return ax.dims
        inner = [self._walk(self.resolve_dim(dim)) if dim in self._bound else (dim,) for dim in ax.dims]
        return tuple(chain.from_iterable(inner))

    def reason(self, ax: Axis | Segment) -> Reason | None:
        """Why (a part of) the axis became a plain integer: the first known cause, followed to where it came from."""
        return self._reason_of(ax, set())

    # Writing

    def equate(self, left: Axis | Segment, right: Axis | Segment, node: str) -> None:
        """Make two axes equal; what cannot be aligned is frozen, blaming `node`. Raises Conflict where sizes differ."""
        if left is right or left == right:
            return
        left, right = _as_axis(left), _as_axis(right)
        if left.size != right.size:
            raise Conflict(f"{node}: {left} has size {left.size}, {right} has size {right.size}")
        self._cause = _Equation(left, right, node)
        pending = [(left, right)]
        while pending:
            pending.extend(self._step(*pending.pop()))
        self._cause = None

    def freeze(self, ax: Axis | Segment, reason: Reason) -> None:
        """Bind every unbound dim of the axis to its size. Rigid dims are left alone: they never change anyway."""
        for dim in self._walk(ax):
            if not dim.rigid and dim not in self._bound:
                if dim.size[0] != dim.size[1]:
                    continue  # follows a symbolic size; nothing here can be bound to one number
                self._bind(dim, axis(dim.size[0]), reason)

    # One step of unification: returns the smaller equations that remain

    def _step(self, left: Axis, right: Axis) -> list[tuple[Axis, Axis]]:
        left, right = self.resolve(left), self.resolve(right)
        if left == right:
            return []
        for one, other in (
            ((left, right), (right, left)) if self._deeper(left, right) else ((right, left), (left, right))
        ):
            dim = one.lone
            if dim is not None and self._may_bind(dim, other):
                self._bind(dim, other)
                return []
        if len(left.segments) == 1 and len(right.segments) == 1:
            return self._align(left.segments[0], right.segments[0])
        for one, other in ((left, right), (right, left)):
            if one.lone is not None and one.lone.rigid and all(dim.rigid for dim in self._walk(other)):
                return []  # one more than the batch, say, counted and put together: neither ever changes
        at = left.segments[0].size if self._shorter(left, right) else right.segments[0].size
        heads = self._cut(left, at)
        tails = self._cut(right, at) if heads is not None else None
        if heads is None or tails is None:
            return [(left, right)]  # a binding was made; resolve again
        return [(heads[1], tails[1]), (heads[0], tails[0])]  # the last is solved first: from the left

    def _deeper(self, left: Axis, right: Axis) -> bool:
        """Of two lone dims the shallower is bound to the deeper, so that chains of bindings stay short."""
        a, b = left.lone, right.lone
        return a is None or b is None or self._depth.get(a, 0) < self._depth.get(b, 0)

    def _shorter(self, left: Axis, right: Axis) -> bool:
        return left.segments[0].size <= right.segments[0].size

    def _cut(self, ax: Axis, at: Size) -> tuple[Axis, Axis] | None:
        """Cut a resolved axis after its first `at` positions; None where a dim had to be bound first."""
        head = ax.segments[0]
        if head.size == at:
            return total((head,)), total(ax.segments[1:])
        first, inner = head.factors[0], product(*head.factors[1:])
        count = _divide(at, inner.size)
        if count is None and head.size[0] != head.size[1]:
            return self._give_up(ax)  # blocks that follow a symbolic size have no fixed boundary inside
        if count is None and isinstance(first, int):  # inside a block of n·inner: take whole blocks out first
            whole = at[0] // inner.size[0]
            after = [product(n, inner) for n in (first - whole - 1,) if n]
            rest = concatenation((inner, *after, *ax.segments[1:]))
            cut = self._cut(rest, _minus(at, _times(inner.size, whole)))
            before = [product(n, inner) for n in (whole,) if n]
            return None if cut is None else (total((*before, *cut[0].segments)), cut[1])
        if isinstance(first, int):
            n = count[0] if count is not None and count[0] == count[1] else 0
            if not 0 < n < first:
                return self._give_up(ax)
            return total((product(n, inner),)), total((product(first - n, inner), *ax.segments[1:]))
        if first.rigid or first in self._bound:
            return self._give_up(ax)
        if count is None or count[0] != count[1] or first.size[0] != first.size[1]:
            self._freeze_here(axis(first))
            return None
        a, b = Dim(f"{first.name}[:{count[0]}]", count), Dim(f"{first.name}[{count[0]}:]", _minus(first.size, count))
        self._bind(first, total((product(a), product(b))))
        return None

    def _align(self, left: Segment, right: Segment) -> list[tuple[Axis, Axis]]:
        """Equate two products of equal size, factor by factor."""
        a, b = list(left.factors), list(right.factors)
        while a and b and a[0] == b[0]:
            a, b = a[1:], b[1:]
        while a and b and a[-1] == b[-1]:
            a, b = a[:-1], b[:-1]
        if not a or not b:
            return []  # equal sizes: what is left on one side would have size one
        if len(a) < len(left.factors) and (len(a) == 1 or len(b) == 1):
            return [(axis(*a), axis(*b))]
        f, h = a[0], b[0]
        if _size(f) == _size(h):
            return [(axis(*a[1:]), axis(*b[1:])), (axis(f), axis(h))]
        small, large, rest_small, rest_large = (f, h, a[1:], b[1:]) if _size(f) < _size(h) else (h, f, b[1:], a[1:])
        inner = _divide(_size(large), _size(small))
        if inner is None:
            self._freeze_here(axis(*a), axis(*b))
            return []  # all of it keeps its size now
        if isinstance(large, Dim) and large.rigid:
            self._freeze_here(axis(*a), axis(*b))
            return []  # only rigid and plain sizes are left, and none of them ever changes
        if isinstance(large, int):
            return [(axis(*rest_small), axis(inner[0], *rest_large)), (axis(small), axis(_size(small)[0]))]
        q = Dim(f"{large.name}/{_size(small)[0]}", inner)
        return [(axis(*rest_small), axis(q, *rest_large)), (axis(large), axis(small, q))]

    # Binding

    def _may_bind(self, dim: Dim, other: Axis) -> bool:
        if dim in self._bound:
            return False  # a composite atom
        if not dim.rigid:
            return True
        target = other.lone
        return target is not None and target.rigid

    def _bind(self, dim: Dim, to: Axis, cause: Reason | None = None) -> None:
        assert dim not in self._bound, f"{dim} is bound already"
        assert dim.size == to.size, f"{dim} has size {dim.size}, not {to.size}"
        assert dim not in self._walk(to), f"{dim} would contain itself"
        self._bound[dim] = to
        if (target := to.lone) is not None:
            self._depth[target] = max(self._depth.get(target, 0), self._depth.get(dim, 0) + 1)
        found = cause or self._cause
        if found is None:
            return
        for segment in to.segments:
            if len(segment.factors) > len(segment.dims):  # it holds a plain integer
                self._reasons[dim] = found
                return

    def _freeze_here(self, *axes: Axis) -> None:
        """Freeze dims that the current equation cannot align."""
        node = self._cause.node if isinstance(self._cause, _Equation) else ""
        for ax in axes:
            self.freeze(ax, Reason("misaligned", node, f"{node} regroups {ax} in blocks that do not nest"))

    def _give_up(self, ax: Axis) -> tuple[Axis, Axis] | None:
        before = len(self._bound)
        self._freeze_here(ax)
        if len(self._bound) == before:
            raise Conflict(f"cannot cut {ax}")
        return None

    def _expand(self, segment: Segment) -> Sequence[Segment]:
        """One segment with its bound dims replaced; sums are written out where that keeps the row-major order."""
        if len(segment.factors) == 1 and isinstance(dim := segment.factors[0], Dim):
            return self.resolve_dim(dim).segments
        parts = [ONE]
        for factor in segment.factors:
            value = self.resolve_dim(factor) if isinstance(factor, Dim) and factor in self._bound else None
            if value is None:
                parts = [product(p, factor) for p in parts]
            elif len(value.segments) == 1:
                parts = [product(p, *value.segments[0].factors) for p in parts]
            else:
                parts = [new for p in parts for new in self._distribute(p, factor, value)]
        return parts

    def _distribute(self, prefix: Segment, dim: Factor, value: Axis) -> Iterable[Segment]:
        if prefix.fixed and prefix.size[0] <= UNROLL:
            return value.segments * prefix.size[0]
        return (product(prefix, self._composite(dim)),)

    def _composite(self, dim: Factor) -> Factor:
        """The last dim on the way to the sum, so that equal sums that were unified are one atom."""
        while isinstance(dim, Dim) and (target := self._bound[dim].lone) is not None:
            dim = target
        return dim

    def _reason_of(self, ax: Axis | Segment, seen: set[Dim]) -> Reason | None:
        for segment in _as_axis(ax).segments:
            if segment.origin is not None and (found := self._reason_of(segment.origin, seen)) is not None:
                return found
        for dim in ax.dims:
            if dim in seen:
                continue
            seen.add(dim)
            cause = self._reasons.get(dim)
            if isinstance(cause, Reason):
                return cause
            if isinstance(cause, _Equation):
                for side in (cause.left, cause.right):
                    if (found := self._reason_of(side, seen)) is not None:
                        return found
                return Reason("fixed", cause.node, f"{cause.node} ties it to a size that is fixed")
            if dim in self._bound and (found := self._reason_of(self._bound[dim], seen)) is not None:
                return found
        return None


def _as_axis(ax: Axis | Segment) -> Axis:
    return ax if isinstance(ax, Axis) else concatenation((ax,))


def _size(factor: Factor) -> Size:
    return factor.size if isinstance(factor, Dim) else (factor, factor)


def _divide(size: Size, by: Size) -> Size | None:
    """size / by where that is whole at both assignments."""
    return None if size[0] % by[0] or size[1] % by[1] else (size[0] // by[0], size[1] // by[1])


def _minus(size: Size, other: Size) -> Size:
    return size[0] - other[0], size[1] - other[1]


def _times(size: Size, n: int) -> Size:
    return size[0] * n, size[1] * n
