"""What a searcher may ask about models beside trials, answered once and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conet_onnx.loading import load
from conet_onnx.plans import Floats
from conet_onnx.records.trial import Trial
from conet_onnx.searching.loop import Clock
from conet_onnx.searching.measuring import save
from conet_onnx.searching.recipe import Measured
from conet_onnx.searching.trial import Workshop

__all__ = ["MEASURING", "TRYING", "Probing"]

MEASURING = "measuring what the channels are worth"  # phases, as progress says them
TRYING = "trying widths before any training"


@dataclass(frozen=True, slots=True)
class Probing:
    """Of one run: what was measured of a model is kept in DIR/measures, so that a resumed run need not ask again.

    It counts as evaluation, and says nothing of how long trials take.
    """

    folder: Path
    workshop: Workshop
    clock: Clock
    known: dict[Path, Measured] = field(default_factory=dict)
    tried: dict[tuple[int, ...], float] = field(default_factory=dict)

    def curves(self, trial: Trial | None) -> Measured:
        """What masked channels cost a trial's trained model, or the source, by quantity and width."""
        file = self.folder / "measures" / ("source.json" if trial is None else f"{trial.number}.json")
        if file not in self.known:
            self.known[file] = self._read(file) if file.exists() else self._measured(file, trial)
        return self.known[file]

    def kept(self) -> Mapping[str, Floats]:
        """What the best channels of each width of the source are worth by the recipe's criterion."""
        self.clock.says(MEASURING, self.clock.done)
        begun = time.perf_counter()
        found = self.workshop.kept
        self._spent(begun)
        return found

    def untrained(self, widths: Mapping[str, int]) -> float:
        """Loss of the source at these widths before any training, on some training samples; a NaN where it fails."""
        sizes = tuple(widths[name] for name in self.workshop.analysis.widths)
        if sizes not in self.tried:
            self.clock.says(TRYING, self.clock.done)
            begun = time.perf_counter()
            self.tried[sizes] = self.workshop.untrained(widths)
            self._spent(begun)
        return self.tried[sizes]

    def _read(self, file: Path) -> Measured:
        found: Measured = json.loads(file.read_text(encoding="utf-8"))["widths"]
        return found

    def _measured(self, file: Path, trial: Trial | None) -> Measured:
        workshop = self.workshop
        self.clock.says(MEASURING, self.clock.done)
        begun = time.perf_counter()
        graph = workshop.source
        if trial is not None:
            graph = load(self.folder / "weights" / f"{trial.number}.onnx", input_shapes=graph.input_shapes)
        found = workshop.curves(graph)
        if (asked := workshop.recipe.measure) is not None:
            save(file, asked, found)
        self._spent(begun)
        return found

    def _spent(self, begun: float) -> None:
        seconds = time.perf_counter() - begun
        self.clock.judged += seconds
        self.clock.beside = max(self.clock.beside - seconds, 0.0)
        if self.clock.begun is not None:
            self.clock.begun += seconds
