"""A training that can be stopped, or killed, and goes on as if it had not been."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from conet_onnx.errors import UsageError
from conet_onnx.files import atomic_write

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Checkpoint", "Progressed", "Stopped", "stoppable"]

FORMAT = "conet-onnx-training/1"


class Stopped(KeyboardInterrupt):
    """A signal came, and all that was done is kept in the checkpoint."""


@dataclass(slots=True)
class Progressed:
    """How far a training is: epochs that are finished, and batches of the one that is not, with their sums; and what
    the layers had gained when the last epoch ended (adas)."""

    epoch: int = 0
    batch: int = 0
    seen: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    gains: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that holds a training's state; `about` says what is trained how, and must be the same to go on."""

    path: Path
    about: Mapping[str, Any]

    def save(self, fabric: Fabric, state: Mapping[str, Any]) -> None:
        """Write the state, whole or not at all. All processes of a training call it; the first one writes."""
        whole = {"format": FORMAT, "about": dict(self.about), **state}
        with atomic_write(self.path) if fabric.is_global_zero else nullcontext(self.path) as path:
            fabric.save(path, whole)
        fabric.barrier()

    def load(self, fabric: Fabric) -> dict[str, Any] | None:
        """The state, or None where there is none yet. Raises UsageError where it is of another training."""
        if not self.path.exists():
            return None
        try:
            state = fabric.load(self.path, weights_only=True)
            found = state["about"]
            if state["format"] != FORMAT:
                raise ValueError(f"its format is {state['format']!r}")
        except Exception as error:  # torch raises what pickle, zip and its own reader raise
            text = " ".join(str(error).split())[:200]
            raise UsageError(f"{self.path} is no checkpoint of a training: {text}. Remove it to begin anew.") from error
        for name, value in self.about.items():
            if found.get(name) != value:
                raise UsageError(
                    f"{self.path} is of another training: its {name} is {found.get(name)!r}, now {value!r}. Say the "
                    "same as before, or remove the file to begin anew."
                )
        return state


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, once; a second one acts as ever. Off the main thread there is none."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}

    def ask(which: int, _: FrameType | None) -> None:
        asked.set()
        for other, handler in before.items():
            signal.signal(other, handler)

    for which in before:
        signal.signal(which, ask)
    try:
        yield asked
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
