"""Fill a table: a model's operators at a grid of sizes, and the model as a whole at random widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from conet_onnx.analysis import Analysis
from conet_onnx.latency.cliffs import beside, block_of
from conet_onnx.latency.isolated import LEAST_TURNS, MOST_TURNS, Sample, time_all
from conet_onnx.latency.nodes import NULL, Made, make
from conet_onnx.latency.operators import FINEST, STEP, Kind, Operators, find_operators, resized
from conet_onnx.latency.prediction import PLANE, usable
from conet_onnx.latency.table import Anchor, Anchors, Entry, Host, Point, Sizes, Table, identity, merged
from conet_onnx.latency.timing import Comparison, Latency, compare, measure

__all__ = ["DRIFT", "Profile", "random_widths"]

Ints: TypeAlias = NDArray[np.int64]
Progress = Callable[[float], None]
Compare = Callable[..., Comparison]
Measure = Callable[..., Latency]
TimeAll = Callable[..., Iterator[tuple[int, Sample | None]]]

SMALLEST, LARGEST = 1 / 8, 2.0  # widths that the table covers, as shares of the source's
RAYS = 6  # points along a line, where there are too many free sizes for a grid
ANCHORS = 16
EVERY = 4  # of the whole models, one has widths that are no multiples of anything
ANCHOR_SECONDS = 2.0
DRIFT = 1.15  # a factor by which the source's own time moves where the machine was not at peace
AGAIN = 2  # times at most that what was measured meanwhile is measured again
SOURCE_SECONDS = 0.5
NULLS = 8  # turns of the empty call, spread over all groups
ATTEMPTS = 20  # at widths that are not measured yet
SESSION = 0.01  # seconds that making one takes, for the estimate


@dataclass(frozen=True)
class Profile:
    """What is to be measured of one model on one provider, and what is known already."""

    analysis: Analysis
    operators: Operators
    host: Host
    known: Table | None = None
    anchors: int = ANCHORS
    seed: int = 0

    @classmethod
    def of(
        cls,
        analysis: Analysis,
        *,
        provider: str,
        threads: int | None = None,
        known: Table | None = None,
        anchors: int = ANCHORS,
        seed: int = 0,
    ) -> Profile:
        """Find a model's operators. `provider` is a real one's name; `known` was measured on this host.

        Raises ModelError where the model does not run, UsageError for a table of another host.
        """
        operators = find_operators(analysis, provider=provider, threads=threads, seed=seed)
        return cls(analysis, operators, Host.here(provider, threads), known, anchors, seed)

    @cached_property
    def points(self) -> dict[Kind, list[Sizes]]:
        """What is to be measured of each kind of operator: what the table lacks of a grid."""
        made = {}
        for kind, columns in self._columns.items():
            wanted = list(_points(kind, columns, self.operators, *bounds(self.analysis)))
            entry = self.known.kinds.get(kind.key) if self.known else None
            made[kind] = [sizes for sizes in wanted if entry is None or sizes not in entry.points]
        return made

    @cached_property
    def steps(self) -> dict[Kind, list[dict[int, Sizes]]]:
        """Of each kind whose blocks are not known, and each of its free sizes: points along that size, the others being
        about the source's (cliffs.beside)."""
        made = {}
        for kind, columns in self._columns.items():
            entry = self.known.kinds.get(kind.key) if self.known else None
            if 0 < kind.symbols <= PLANE and (entry is None or not entry.blocks):
                made[kind] = self._steps(kind, columns)
        return made

    def _steps(self, kind: Kind, columns: Sequence[tuple[int, ...]]) -> list[dict[int, Sizes]]:
        lines = _lines(kind, columns, self.operators, *bounds(self.analysis))
        (source,) = self.operators.sizes(self.analysis.costs.row({})[None])
        largest = [max(int(source[place[k]]) for place in columns) for k in range(kind.symbols)]
        typical = [min(line, key=lambda at: abs(at - size)) for line, size in zip(lines, largest, strict=True)]
        there = {one.when for one in self.operators.listed if one.kind == kind}
        grain = self.operators.multiple if there == {"aligned"} else 1
        made = []
        for k, line in enumerate(lines):
            sizes = beside(line, grain=grain)
            places = {n: (*typical[:k], n, *typical[k + 1 :]) for n in sizes}
            made.append(places if len({kind.numbers(place) for place in places.values()}) > 2 else {})
        return made

    @cached_property
    def _columns(self) -> dict[Kind, list[tuple[int, ...]]]:
        grouped: dict[Kind, list[tuple[int, ...]]] = {}
        for one in self.operators.listed:
            grouped.setdefault(one.kind, []).append(one.columns)
        return grouped

    @cached_property
    def asked(self) -> list[tuple[Kind, Sizes]]:
        """All that is to be measured of operators, once each."""
        grid = [(kind, sizes) for kind, some in self.points.items() for sizes in some]
        lines = [(kind, sizes) for kind, some in self.steps.items() for line in some for sizes in line.values()]
        return list(dict.fromkeys([*grid, *lines]))

    @property
    def missing_anchors(self) -> int:
        """Whole models that are to be measured."""
        model = usable(self.analysis, self.known) if self.known else None
        return max(self.anchors - (len(model.measured) if model else 0), 0)

    def estimate(self, source_seconds: float) -> float:
        """Seconds that it takes, where a run of the source takes so long: for telling users beforehand."""
        each = source_seconds / max(len(self.operators.listed), 1)
        turns = float(np.clip(0.1 / each, LEAST_TURNS, MOST_TURNS))
        return len(self.asked) * (SESSION + turns * each) + self.missing_anchors * (
            ANCHOR_SECONDS + 20 * source_seconds
        )

    def run(
        self,
        progress: Progress | None = None,
        *,
        compare: Compare = compare,
        measure: Measure = measure,
        time_all: TimeAll = time_all,
    ) -> Table:
        """Measure, and return the table with what was known.

        The source is timed before and after its operators, and beside each whole model. Where its time moves by more
        than a factor of DRIFT, what was measured meanwhile is measured again, AGAIN times at most; what is left of the
        drift is said in the table (Anchors.drift).
        """
        tell = progress or (lambda _: None)
        share = 0.6 if self.missing_anchors else 1.0
        table, drift = self._steadily(lambda done: tell(share * done), measure, time_all)
        if self.known is not None:
            table = merged([self.known, table])
        anchors = self._anchors(table, lambda done: tell(share + (1 - share) * done), compare)
        tell(1.0)
        operators = self.operators.as_json()
        anchors = replace(anchors, drift=max(drift, anchors.drift), operators=operators)
        return replace(table, models={**table.models, identity(self.analysis.graph): anchors})

    def _steadily(self, progress: Progress, measure: Measure, time_all: TimeAll) -> tuple[Table, float]:
        """The operators' times while the source's own moved least, and by how much that was."""
        if not self.asked:
            return self._operators(progress, time_all), 1.0

        def source() -> float:
            found = measure(self.analysis.graph, **self._how, seconds=SOURCE_SECONDS)
            return found.p50_ms / 1e3

        tables: list[tuple[float, Table]] = []
        before = source()
        for k in range(1 + AGAIN):

            def told(done: float, turn: int = k) -> None:
                progress((turn + done) / (turn + 1))

            table = self._operators(told, time_all)
            after = source()
            tables.append((_factor(before, after), table))
            if tables[-1][0] <= DRIFT:
                break
            before = after
        drift, table = min(tables, key=lambda one: one[0])
        return table, drift

    @property
    def _how(self) -> dict[str, Any]:
        return {"provider": self.host.provider, "threads": self.host.threads}

    def _operators(self, progress: Progress, time_all: TimeAll) -> Table:
        asked: list[tuple[Kind | None, Sizes]] = [*self.asked, *[(None, ())] * NULLS]
        jobs = [partial(_made, kind, sizes) for kind, sizes in asked]
        found: dict[Kind, dict[Sizes, Point]] = {}
        calls = []
        for place, sample in time_all(jobs, **self._how, seed=self.seed, progress=progress):
            kind, sizes = asked[place]
            if sample is None:
                continue
            if kind is None:
                calls.append(sample.seconds)
            else:
                found.setdefault(kind, {})[sizes] = Point(sample.seconds, sample.spread, sample.runs)
        call = float(np.median(calls)) if calls else 0.0
        return Table(self.host, call, {kind.key: self._entry(kind, points, call) for kind, points in found.items()})

    def _entry(self, kind: Kind, found: dict[Sizes, Point], call: float) -> Entry:
        """Of what was measured, the grid, the points beside multiples, and the blocks that these tell of."""
        lines = [{n: found[at] for n, at in line.items() if at in found} for line in self.steps.get(kind, [])]
        blocks = tuple(block_of(line, call) if len(line) > 2 else 1 for line in lines)
        places = {at for line in self.steps.get(kind, []) for at in line.values()}
        grid = {*self.points.get(kind, [])}
        return Entry(
            kind.op,
            kind.inputs,
            {sizes: point for sizes, point in found.items() if sizes in grid},
            blocks,
            {sizes: point for sizes, point in found.items() if sizes in places},
        )

    def _anchors(self, table: Table, progress: Progress, compare: Compare) -> Anchors:
        """The source, and models at random widths in turns with it."""
        graph = self.analysis.graph
        known = usable(self.analysis, table)
        before = list(known.measured) if known else []
        rng = np.random.default_rng([self.seed, len(before)])
        many = self.missing_anchors
        asked = self._asked(rng, [one.widths for one in before], many)

        def taken(widths: dict[str, int]) -> tuple[Anchor, float]:
            found = compare(graph, resized(self.analysis, widths), **self._how, seconds=ANCHOR_SECONDS)
            row = tuple(self.analysis.costs.row(widths).tolist())
            return Anchor(row, found.ratio.p50, found.ratio.low, found.ratio.high), found.a.p50_ms / 1e3

        made: list[tuple[Anchor, float]] = []
        for k, widths in enumerate(asked):
            made.append(taken(widths))
            progress((k + 1) / len(asked))
        for _ in range(AGAIN):
            for k in _moved([seconds for _, seconds in made]):
                made[k] = taken(asked[k])
        middle = float(np.median([seconds for _, seconds in made])) if made else 0.0
        drift = max((_factor(middle, seconds) for _, seconds in made), default=1.0)
        if known is not None:
            drift = max(drift, known.drift, _factor(middle, known.seconds) if made else 1.0)
        every = [*([known.seconds] if known else []), *(seconds for _, seconds in made)]
        sizes = {name: width.size for name, width in self.analysis.widths.items()}
        anchors = (*before, *(anchor for anchor, _ in made))
        return Anchors(graph.file, float(np.median(every)), sizes, anchors, drift)

    def _asked(self, rng: np.random.Generator, known: Sequence[Sizes], many: int) -> list[dict[str, int]]:
        """Widths of whole models to be measured, none twice; fewer where there are no more."""
        seen = {*known, tuple(self.analysis.costs.row({}).tolist())}
        asked: list[dict[str, int]] = []
        for k in range(many):
            # Where other widths are laid out otherwise, some whole models are such.
            odd = self.operators.multiple > 1 and (len(known) + k + 1) % EVERY == 0
            for attempt in range(ATTEMPTS):
                multiple = 1 if odd or attempt > ATTEMPTS // 2 else STEP
                widths = random_widths(self.analysis, rng, multiple=multiple)
                row = tuple(self.analysis.costs.row(widths).tolist())
                if row not in seen:
                    seen.add(row)
                    asked.append(widths)
                    break
        return asked


def _factor(a: float, b: float) -> float:
    """How many times the larger is the smaller."""
    return max(a, b) / max(min(a, b), 1e-12)


def _moved(seconds: Sequence[float]) -> list[int]:
    """The places of times that are off from their median by more than DRIFT."""
    if not seconds:
        return []
    middle = float(np.median(seconds))
    return [k for k, one in enumerate(seconds) if _factor(middle, one) > DRIFT]


def bounds(analysis: Analysis) -> tuple[Ints, Ints]:
    """The widths between which the table is made: an eighth of each, and twice as much where it may grow."""
    low = {name: max(1, math.floor(width.size * SMALLEST)) for name, width in analysis.widths.items()}
    high = {
        name: math.ceil(width.size * LARGEST) if width.max is None and width.exact else width.size
        for name, width in analysis.widths.items()
    }
    return analysis.costs.row(low), analysis.costs.row(high)


def random_widths(analysis: Analysis, rng: np.random.Generator, *, multiple: int = STEP) -> dict[str, int]:
    """Widths as a search meets them: a common factor of 0.4 to 1 times one of 0.5 to 2 for each width, to multiples
    of `multiple` where there is room."""
    common = np.exp(rng.uniform(np.log(0.4), 0))
    made = {}
    for name, width in analysis.widths.items():
        size = width.size * common * np.exp(rng.uniform(np.log(0.5), np.log(2)))
        most = width.size if width.max is not None or not width.exact else 2 * width.size
        step = multiple if most >= multiple and width.size >= multiple else 1
        made[name] = int(np.clip(round(size / step), 1, max(most // step, 1))) * step
    return made


def _made(kind: Kind | None, sizes: Sizes) -> Made:
    if kind is None or kind.example is None:
        return NULL
    return make(kind.example, kind.numbers(sizes))


def _points(
    kind: Kind, columns: Sequence[tuple[int, ...]], operators: Operators, low: Ints, high: Ints
) -> Iterator[Sizes]:
    """Sizes at which a kind is measured: powers of two that span what its operators have, the same for all models, so
    that tables fit together; with many free sizes, those of widths that grow together."""
    if kind.symbols == 0:
        yield ()
        return
    if kind.symbols <= PLANE:
        yield from product(*_lines(kind, columns, operators, low, high))
        return
    rows = np.geomspace(low.astype(float), high.astype(float), RAYS)
    rows = np.where(rows >= STEP, np.round(rows / STEP) * STEP, np.maximum(np.round(rows), 1)).astype(np.int64)
    sizes = operators.sizes(rows)
    yield from dict.fromkeys(tuple(row[list(place)].tolist()) for place in columns for row in sizes)


def _lines(
    kind: Kind, columns: Sequence[tuple[int, ...]], operators: Operators, low: Ints, high: Ints
) -> list[list[int]]:
    """The sizes of each symbol that make the grid."""
    (smallest,), (largest,) = operators.sizes(low[None]), operators.sizes(high[None])
    lines = []
    for symbol in range(kind.symbols):
        first = min(int(smallest[place[symbol]]) for place in columns)
        last = max(int(largest[place[symbol]]) for place in columns)
        lines.append(_powers(first, last))
    return lines


def _powers(first: int, last: int) -> list[int]:
    """Powers of two from the last below `first` (and at least FINEST, if `last` is) to the first above `last`."""
    low = max(math.floor(math.log2(max(first, 1))), min(int(math.log2(FINEST)), math.ceil(math.log2(max(last, 1)))))
    high = max(math.ceil(math.log2(max(last, 1))), low)
    return [2**k for k in range(low, high + 1)]
