"""A limit on latency in `resize`: what predicts it, what measures the result, and what is said of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conet_onnx.cli.output import Bar, command, says, several
from conet_onnx.cli.profile import estimated, read_tables, warn_of_drift, where
from conet_onnx.errors import BudgetUnreachable

if TYPE_CHECKING:
    from conet_onnx.analysis import Analysis
    from conet_onnx.graph import Graph
    from conet_onnx.latency import Comparison
    from conet_onnx.latency.limits import Met, Most
    from conet_onnx.latency.prediction import Predictor

__all__ = ["Asked", "Timed"]

SECONDS = 5.0  # at most, for measuring source and result in turns


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says of it: the limit, the tables, and where it holds."""

    most: Most
    tables: tuple[str, ...]
    provider: str
    threads: int | None

    def prepared(self, analysis: Analysis, bar: Bar) -> Timed:
        """Read the tables, or, where there are none, profile the model first, and say so."""
        from conet_onnx.latency.operators import find_operators
        from conet_onnx.latency.prediction import known_operators, predictor, usable
        from conet_onnx.latency.profiling import Profile
        from conet_onnx.runtime import resolve

        provider = resolve(self.provider)
        how: dict[str, Any] = {"provider": provider, "threads": self.threads}
        table = read_tables(self.tables, provider, self.threads)
        if table is None:
            asked = Profile.of(analysis, **how)
            bar.log(
                f"No --table: profiling {analysis.graph.file or 'the model'} on {where(provider, self.threads)} first; "
                f"{estimated(asked)}. `conet-onnx profile` keeps it for the next time."
            )
            table, operators = asked.run(), asked.operators
        else:
            operators = known_operators(analysis, table) or find_operators(analysis, **how)
            if missing := sum(kind.key not in table.kinds for kind in operators.kinds):
                bar.log(f"Warning: {several(missing, 'kind')} of this model's operators are not in the table.")
        found = predictor(analysis, operators, table)
        anchors = usable(analysis, table)
        warn_of_drift(anchors)
        if anchors is None:
            tables = [word for table in self.tables for word in ("--table", table)]
            bar.log(
                "Warning: the table has no whole models of this file to calibrate predictions on; "
                f"{command('profile', analysis.graph.file, *tables, '-o', 'TABLE.json')} adds them."
            )
        return Timed(self.most, analysis, found, provider, self.threads)


@dataclass(frozen=True, slots=True)
class Timed:
    """A limit on the latency of one model, with what predicts it."""

    most: Most
    analysis: Analysis
    predicted: Predictor
    provider: str
    threads: int | None

    @property
    def multiple(self) -> int:
        """What widths are multiples of, unless the user says otherwise, and what none is below, where it has room:
        smaller ones are laid out so that they take more."""
        from conet_onnx.latency.limits import fast_multiple

        return fast_multiple(self.predicted.operators)

    def limits(self, factor: float) -> Sequence[Any]:
        """Further limits for planning.allocated: of `factor` times the limit. Raises BudgetUnreachable where even the
        smallest widths are predicted to take more."""
        from conet_onnx.latency.limits import in_units, limit

        source = self.predicted.predict(self.predicted.source)
        most = factor * self.most.seconds(source)
        smallest = {name: min(self.multiple, width.size) for name, width in self.analysis.widths.items()}
        least = self.predicted.predict(self.analysis.costs.row(smallest))
        if least > most:
            raise BudgetUnreachable(
                f"The budget (latency {self.most}) cannot be met: the nearest that can is about "
                f"latency={in_units(least)} ({least / source:.3f} of the source), as predicted."
            )
        return [limit(self.predicted, most)]

    def met(self, made_for: Callable[[float], tuple[Any, Any]]) -> Met[tuple[Any, Any]]:
        """The first of what is made for ever tighter limits (a choice, and what was transferred) that is within it."""
        from conet_onnx.latency.limits import met

        return met(made_for, lambda made: self.measure(made[1].graph), self.most)

    def measure(self, made: Graph) -> Comparison:
        """Source and result in turns."""
        from conet_onnx.latency import compare

        return compare(self.analysis.graph, made, provider=self.provider, threads=self.threads, seconds=SECONDS)

    def show(self, met: Met[Any], widths: Mapping[str, int]) -> None:
        """What was measured, beside the limit and the prediction."""
        a, b, ratio = met.found.a, met.found.b, met.found.ratio
        source = self.predicted.predict(self.predicted.source)
        foretold = self.predicted.predict(self.analysis.costs.row(widths)) / source
        says(
            f"Latency on {where(self.provider, self.threads)}: {a.p50_ms:.3f} ms, now {b.p50_ms:.3f} ms: "
            f"×{ratio.p50:.3f} (95% interval {ratio.low:.3f} to {ratio.high:.3f}; predicted ×{foretold:.3f}); at most "
            f"{self.most} was asked for."
        )
        if met.tightened:
            says(f"The prediction was too low: chosen again {several(met.tightened, 'time')}, for a tighter limit.")
        says()
