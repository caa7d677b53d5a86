"""What a search leaves behind: trials, the models that came of them, and the run that they belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from conet_onnx.errors import DataError, UsageError
from conet_onnx.files import atomic_write
from conet_onnx.records.study import read_shared, read_trials
from conet_onnx.records.trial import Trial

__all__ = ["ModelRecord", "Run", "read_run", "write_run"]

FORMAT = "conet-onnx-search/1"
RUN_FILE = "run.json"
TRIALS_FILE = "trials.db"


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model file and its numbers; `test` is None for models that are not the search's answer.

    `widths` and `trial` say which resized model it is; the source has neither. `latency_ms` is measured, `predicted_ms`
    what a latency table foretold of it, where there was one. `flushed` denormal numbers were set to zero when its last
    training ended.
    """

    file: str
    params: int
    macs: int
    bytes: int
    latency_ms: float | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    trial: int | None = None
    predicted_ms: float | None = None
    flushed: int = 0

    def as_json(self) -> dict[str, Any]:
        """The contract's M, and the widths."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelRecord:
        """The inverse of `as_json`."""
        return cls(**document)


@dataclass(frozen=True, slots=True)
class Run:
    """A search, finished (`best` is there) or not.

    `widths` maps each width of the source to its {"name", "size"}, `budget` each limited kind to its absolute limit
    (latency in milliseconds), `seconds` is {"total", "training", "evaluation", "overhead"}, `latency` the best's over
    the source's, measured in turns: {"p50", "low", "high"}, `epochs` how many epochs of training there were: of trials,
    and of what could have been the answer.
    """

    directory: Path
    source: ModelRecord
    widths: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    budget: Mapping[str, float]
    trials: tuple[Trial, ...] = ()
    best: ModelRecord | None = None
    pareto: tuple[ModelRecord, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 0

    def as_json(self) -> dict[str, Any]:
        """The contract's search document: `trials` counts the finished ones, `history` lists all of them."""
        return {
            "format": FORMAT,
            "source": self.source.as_json(),
            "best": self.best.as_json() if self.best else None,
            "pareto": [model.as_json() for model in self.pareto],
            "trials": sum(trial.state == "complete" for trial in self.trials),
            "seconds": dict(self.seconds),
            "epochs": self.epochs,
            "latency": dict(self.latency),
            "budget": dict(self.budget),
            "settings": dict(self.settings),
            "widths": {name: dict(width) for name, width in self.widths.items()},
            "history": [trial.as_json() for trial in self.trials],
        }


def read_run(
    directory: str | os.PathLike[str], *, trials: tuple[Trial, ...] | None = None, storage: str | None = None
) -> Run:
    """The run in a folder that `search` made, finished or not: `run.json`, and the trials of `trials.db`.

    Until a search with a storage is finished, its trials are there; `storage` is its URL, where the one that is noted,
    without its password, does not do. `trials` are given where they are known.

    Raises UsageError where the folder holds no run, DataError where what it holds cannot be read.
    """
    folder = Path(directory)
    try:
        text = (folder / RUN_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{folder} is not a search's folder: {RUN_FILE} cannot be read ({error.strerror or error}). "
            "Name what a search had as --out."
        ) from error
    run = _parse(folder, text)
    if trials is None:
        shared = storage or run.settings.get("storage")
        trials = read_shared(shared, folder) if shared and not run.best else read_trials(folder / TRIALS_FILE)
    return replace(run, trials=trials)


def write_run(run: Run) -> None:
    """Write `run.json`, whole or not at all. Files inside the folder are noted relative to it, so it can be moved."""
    document = {key: value for key, value in run.as_json().items() if key not in ("history", "trials")}
    for model in _models(document):
        model["file"] = _relative(run.directory, model["file"])
    with atomic_write(run.directory / RUN_FILE) as part:
        part.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _parse(folder: Path, text: str) -> Run:
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}, not {FORMAT!r}")
        return Run(
            directory=folder,
            source=ModelRecord.from_json(document["source"]),
            widths=document["widths"],
            settings=document["settings"],
            budget=document["budget"],
            best=_inside(folder, document["best"]) if document["best"] else None,
            pareto=tuple(_inside(folder, model) for model in document["pareto"]),
            seconds=document["seconds"],
            epochs=document.get("epochs", 0),  # earlier releases noted none
            latency=document["latency"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # what any wrong JSON value can raise
        raise DataError(f"{folder / RUN_FILE} is not the record of a search: {error}. Was it edited?") from error


def _models(document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    return filter(None, (document["best"], *document["pareto"]))


def _relative(folder: Path, file: str) -> str:
    path = Path(file)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else file


def _inside(folder: Path, document: Mapping[str, Any]) -> ModelRecord:
    model = ModelRecord.from_json(document)
    return replace(model, file=os.fspath(folder / model.file))
