"""What predicts a model's latency, from tables or from a profile that is made first."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conet_onnx.analysis import Analysis
from conet_onnx.errors import UsageError
from conet_onnx.latency.limits import fast_multiples
from conet_onnx.latency.operators import find_operators
from conet_onnx.latency.prediction import Predictor, known_operators, predictor, usable
from conet_onnx.latency.profiling import DRIFT, Profile
from conet_onnx.latency.table import Anchors, Host, Table, identity, merged
from conet_onnx.latency.timing import measure

__all__ = ["Prepared", "drifted", "fast_widths", "prepared", "read_tables", "remembered"]

Say = Callable[[str], None]
File = str | os.PathLike[str]

SOURCE_SECONDS = 0.5


@dataclass(frozen=True)
class Prepared:
    """A predictor of one model, and a table that makes it again without running anything."""

    predicted: Predictor
    table: Table


def prepared(
    analysis: Analysis,
    tables: Sequence[File],
    *,
    provider: str,
    threads: int | None,
    warn: Say,
    begins: Callable[[Profile], None],
    progress: Callable[[float], None] | None = None,
) -> Prepared:
    """What predicts a model, by what some tables hold; without any it is profiled first, which `begins` is told.

    `provider` is a real one's name. `warn` is told what makes predictions worse. Raises DataError, UsageError for
    tables that cannot be used, ModelError where the model does not run.
    """
    how: dict[str, Any] = {"provider": provider, "threads": threads}
    table = read_tables(tables, provider, threads, warn=warn)
    if table is None:
        asked = Profile.of(analysis, **how)
        begins(asked)
        table, operators = asked.run(progress), asked.operators
    else:
        operators = known_operators(analysis, table) or find_operators(analysis, **how)
        if missing := sum(kind.key not in table.kinds for kind in operators.kinds):
            kinds = f"{missing} kind{'' if missing == 1 else 's'}"
            warn(f"{kinds} of this model's operators {'is' if missing == 1 else 'are'} not in the table.")
    predicted = predictor(analysis, operators, table)
    anchors = usable(analysis, table)
    if anchors is None or not anchors.measured:
        words = " ".join(f"--table {file}" for file in tables)
        warn(
            "the table has no whole models of this file to calibrate predictions on; `conet-onnx profile "
            f"{analysis.graph.file or 'MODEL.onnx'} {words} -o TABLE.json` adds them."
        )
    elif (line := drifted(anchors)) is not None:
        warn(line)
    if anchors is None:
        seconds = measure(analysis.graph, **how, seconds=SOURCE_SECONDS).p50_ms / 1e3
        sizes = {name: width.size for name, width in analysis.widths.items()}
        own = Anchors(analysis.graph.file, seconds, sizes, (), 1.0, operators.as_json())
        table = replace(table, models={**table.models, identity(analysis.graph): own})
        predicted = predictor(analysis, operators, table)  # to the source's time, at least
    elif known_operators(analysis, table) is None:
        own = replace(anchors, operators=operators.as_json())
        table = replace(table, models={**table.models, identity(analysis.graph): own})
    return Prepared(predicted, table)


def remembered(analysis: Analysis, table: Table) -> Predictor:
    """The predictor of a table that `prepared` made of this model. Raises UsageError for another one's."""
    operators = known_operators(analysis, table)
    if operators is None:
        raise UsageError("The latency table is another model's, or one of other widths: profile the model into it.")
    return predictor(analysis, operators, table)


def fast_widths(
    analysis: Analysis, tables: Sequence[File], *, provider: str, threads: int | None, warn: Say
) -> dict[str, int]:
    """What each width is to be a multiple of: by what onnxruntime makes of the model, and what tables have measured."""
    table = read_tables(tables, provider, threads, warn=warn)
    known = known_operators(analysis, table) if table is not None else None
    operators = known or find_operators(analysis, provider=provider, threads=threads)
    return fast_multiples(operators, None if table is None else predictor(analysis, operators, table))


def read_tables(
    files: Sequence[File], provider: str, threads: int | None, *, warn: Say, strictly: bool = False
) -> Table | None:
    """What some tables hold together, or None; one of another machine is warned of, or refused `strictly`.

    Raises DataError for what is no table, UsageError for one that cannot be used here.
    """
    made = []
    for file in files:
        read = Table.read(file)
        for line in read.check(provider, threads, name=os.fspath(file)):
            if strictly:
                differ = "; ".join(read.host.differences(Host.here(provider, threads)))
                raise UsageError(f"{os.fspath(file)} was measured with {differ}: its times and new ones do not mix.")
            warn(line)
        made.append(read)
    return merged(made) if made else None


def drifted(anchors: Anchors | None) -> str | None:
    """What is to be said where the machine was not at peace while a table was made."""
    if anchors is None or anchors.drift <= DRIFT:
        return None
    return (
        f"the source's own time moved by a factor of {anchors.drift:.2f} while the table was made, though "
        "what was measured meanwhile was measured again: the machine was not idle, and predictions are worse."
    )
