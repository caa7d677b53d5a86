"""Where the nodes of a graph go in a drawing: rows by distance from the inputs, columns by branch, lanes for the rest.

A branch keeps its column from where it leaves another to where it joins again, so that straight parts of a network are
straight in its picture. A connection that jumps over rows runs down a column where that is free, and in a lane beside
the columns where it is not; all jumps of one node share a lane. Linear in practice: no crossings are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Layout", "Wire", "arrange"]


@dataclass(frozen=True, slots=True)
class Wire:
    """A connection: straight down to the next row, or along a column or a lane (numbered outwards) in between."""

    source: int
    target: int
    column: int | None = None
    lane: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Row and column of each node, and the wires between."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    wires: tuple[Wire, ...]

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return 1 + max((wire.lane for wire in self.wires if wire.lane is not None), default=-1)


class _Track:
    """What runs along one column or lane: rows, each with who owns it."""

    def __init__(self) -> None:
        self._owner: dict[int, int] = {}

    def is_free(self, rows: Iterable[int], owner: int) -> bool:
        return all(self._owner.get(row, owner) == owner for row in rows)

    def take(self, rows: Iterable[int], owner: int) -> None:
        for row in rows:
            self._owner.setdefault(row, owner)


def arrange(reads: Sequence[Sequence[int]], *, inputs: int) -> Layout:
    """Place nodes, given for each the nodes that it reads, all of them before it; the first so many are the inputs."""
    readers: list[list[int]] = [[] for _ in reads]
    for node, sources in enumerate(reads):
        for source in dict.fromkeys(sources):
            readers[source].append(node)
    rows = _rows(reads, readers, inputs)
    columns, tracks = _columns(reads, readers, rows)
    return Layout(tuple(rows), tuple(columns), tuple(_wires(readers, rows, columns, tracks)))


def _rows(reads: Sequence[Sequence[int]], readers: Sequence[Sequence[int]], inputs: int) -> list[int]:
    """The longest way from the top; what reads no input, even by others, stands as low as its readers allow."""
    rows: list[int] = []
    loose: list[bool] = []
    for node, sources in enumerate(reads):
        rows.append(1 + max((rows[source] for source in sources), default=-1))
        loose.append(node >= inputs and all(loose[source] for source in sources))
    for node in reversed(range(len(reads))):
        if loose[node] and readers[node]:
            rows[node] = min(rows[reader] for reader in readers[node]) - 1
    return rows


def _columns(
    reads: Sequence[Sequence[int]], readers: Sequence[Sequence[int]], rows: Sequence[int]
) -> tuple[list[int], list[_Track]]:
    branches = _branches(reads, readers, rows)
    columns = [0] * len(reads)
    tracks: list[_Track] = []
    trunk = max(branches, key=len, default=[])
    for branch in sorted(branches, key=lambda b: (b is not trunk, rows[b[0]], b[0])):
        ends = [rows[reader] for reader in readers[branch[-1]]]
        taken = range(rows[branch[0]], max(rows[branch[-1]] + 1, min(ends, default=0)))
        origin = columns[reads[branch[0]][0]] if reads[branch[0]] else 0
        near = sorted(range(len(tracks)), key=lambda c: (abs(c - origin), -c))
        column = next((c for c in near if tracks[c].is_free(taken, branch[-1])), len(tracks))
        if column == len(tracks):
            tracks.append(_Track())
        for node in branch:
            columns[node] = column
            tracks[column].take((rows[node],), node)
        tracks[column].take(taken, branch[-1])  # where the branch joins another, its last wire runs straight down
    return columns, tracks


def _branches(reads: Sequence[Sequence[int]], readers: Sequence[Sequence[int]], rows: Sequence[int]) -> list[list[int]]:
    """Chains in which each node is the main reader of the one before, which is its main source."""
    below = [0] * len(reads)
    for node in reversed(range(len(reads))):
        below[node] = 1 + max((below[reader] for reader in readers[node]), default=0)
    main = [max(sources, key=lambda s: (rows[s], -s)) if sources else None for sources in reads]
    branches: list[list[int]] = []
    branch_of: dict[int, list[int]] = {}
    for node in range(len(reads)):
        source = main[node]
        rivals = [reader for reader in readers[source] if main[reader] == source] if source is not None else []
        if source is not None and node == max(rivals, key=lambda r: (below[r], -r)):
            branch = branch_of[source]
        else:
            branch = []
            branches.append(branch)
        branch.append(node)
        branch_of[node] = branch
    return branches


def _wires(
    readers: Sequence[Sequence[int]], rows: Sequence[int], columns: Sequence[int], tracks: Sequence[_Track]
) -> Iterable[Wire]:
    stuck: dict[int, list[int]] = {}
    for source, targets in enumerate(readers):
        for target in targets:
            between = range(rows[source] + 1, rows[target])
            column = next((c for c in (columns[source], columns[target]) if tracks[c].is_free(between, source)), None)
            if not between:
                yield Wire(source, target)
            elif column is not None:
                tracks[column].take(between, source)
                yield Wire(source, target, column=column)
            else:
                stuck.setdefault(source, []).append(target)
    lanes: list[_Track] = []
    for source, targets in sorted(stuck.items(), key=lambda item: (rows[item[1][-1]] - rows[item[0]], item[0])):
        taken = range(rows[source], max(rows[target] for target in targets) + 1)
        lane = next((k for k, track in enumerate(lanes) if track.is_free(taken, source)), len(lanes))
        if lane == len(lanes):
            lanes.append(_Track())
        lanes[lane].take(taken, source)
        for target in targets:
            yield Wire(source, target, lane=lane)
