"""A limit on latency in `resize`: what predicts it, what measures the result, and what is said of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conet_onnx.cli.output import Bar, says, several
from conet_onnx.cli.profile import estimated, warning, where
from conet_onnx.errors import BudgetUnreachable

if TYPE_CHECKING:
    from conet_onnx.analysis import Analysis
    from conet_onnx.graph import Graph
    from conet_onnx.latency import Comparison
    from conet_onnx.latency.limits import Met, Most
    from conet_onnx.latency.prediction import Predictor
    from conet_onnx.latency.profiling import Profile
    from conet_onnx.latency.slowdowns import Layer

__all__ = ["Asked", "Timed", "multiples"]

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
        from conet_onnx.latency.preparing import prepared
        from conet_onnx.runtime import resolve

        provider = resolve(self.provider)

        def begins(asked: Profile) -> None:
            bar.log(
                f"No --table: profiling {analysis.graph.file or 'the model'} on {where(provider, self.threads)} first; "
                f"{estimated(asked)}. `conet-onnx profile` keeps it for the next time."
            )

        how: dict[str, Any] = {"provider": provider, "threads": self.threads}
        found = prepared(analysis, self.tables, **how, warn=lambda line: bar.log(f"Warning: {line}"), begins=begins)
        return Timed(self.most, analysis, found.predicted, provider, self.threads)


def multiples(
    asked: int | str | None,
    analysis: Analysis,
    timed: Timed | None,
    tables: tuple[str, ...],
    provider: str,
    threads: int | None,
) -> int | Mapping[str, int] | None:
    """--multiple, with `auto`, which a limit on latency has by default, as what each width runs fast at."""
    if timed is not None and asked in (None, "auto"):
        return timed.multiples
    if asked != "auto":
        return asked if isinstance(asked, int) else None
    from conet_onnx.latency.preparing import fast_widths
    from conet_onnx.runtime import resolve

    return fast_widths(analysis, tables, provider=resolve(provider), threads=threads, warn=warning)


@dataclass(frozen=True, slots=True)
class Timed:
    """A limit on the latency of one model, with what predicts it."""

    most: Most
    analysis: Analysis
    predicted: Predictor
    provider: str
    threads: int | None

    @property
    def multiples(self) -> dict[str, int]:
        """What each width is a multiple of, unless the user says otherwise."""
        from conet_onnx.latency.limits import fast_multiples

        return fast_multiples(self.predicted.operators, self.predicted)

    @property
    def least(self) -> dict[str, int]:
        """What none is below, where it has room: of smaller ones the table knows nothing."""
        from conet_onnx.latency.limits import least_widths

        return least_widths(self.multiples)

    def limits(self, factor: float) -> Sequence[Any]:
        """Further limits for planning.allocated: of `factor` times the limit. Raises BudgetUnreachable where even the
        smallest widths are predicted to take more."""
        from conet_onnx.latency.limits import in_units, limit

        source = self.predicted.predict(self.predicted.source)
        most = factor * self.most.seconds(source)
        least = self.least
        smallest = {name: min(least[name], width.size) for name, width in self.analysis.widths.items()}
        shortest = self.predicted.predict(self.analysis.costs.row(smallest))
        if shortest > most:
            raise BudgetUnreachable(
                f"The budget (latency {self.most}) cannot be met: the nearest that can is about "
                f"latency={in_units(shortest)} ({shortest / source:.3f} of the source), as predicted."
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

    def slower(self, widths: Mapping[str, int]) -> Sequence[Layer]:
        """The layers that are predicted to take longer at these widths."""
        from conet_onnx.latency.slowdowns import by_table

        return by_table(self.analysis.graph, self.predicted, self.analysis.costs.row(widths))
