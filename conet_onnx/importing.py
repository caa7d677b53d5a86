"""Imports that may fail: objects of the user's own, named as `module:name`, and torchvision, which must fit torch."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from conet_onnx.errors import UsageError

__all__ = ["imported", "needs_torchvision"]


def imported(spec: str, root: Path, what: str) -> Any:
    """`module:name`, found in `root` or among what is installed; `what` it is for opens every complaint.

    Raises UsageError where it is not written so, or cannot be imported.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec):
        raise UsageError(f"{what} {spec}: write it as module:name.")
    module, _, name = spec.partition(":")
    place = str(root.resolve())
    sys.path.insert(0, place)  # a console script does not look into the current folder by itself
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # it is the user's code: it may raise anything
        text = " ".join(str(error).split())
        raise UsageError(f"{what} {spec} failed ({type(error).__name__}: {text}).") from error
    finally:
        sys.path.remove(place)


@contextmanager
def needs_torchvision(what: str) -> Iterator[None]:
    """Around imports of torchvision's parts: `what` they are for opens the complaint.

    Raises UsageError where torchvision is missing or was built for another torch, whose operators it lacks then.
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:  # one for another torch raises the latter
        text, torch = " ".join(str(error).split()), metadata.version("torch")
        raise UsageError(f"{what} needs a torchvision that fits torch {torch}: {text}") from error
