"""A data set made by the user's own function, named as `module:function`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from conet_onnx.data.arrays import from_arrays
from conet_onnx.data.dataset import DataSet
from conet_onnx.errors import DataError, UsageError
from conet_onnx.importing import imported

__all__ = ["user_function"]


def user_function(module: str, function: str, root: Path) -> DataSet:
    """Call `module.function()`, found in `root` or among what is installed; it returns a DataSet, or
    {"train": (x, y), ...} with train, validation and test as they are there; x are images, or {"ids": array, ...} for
    a model's inputs.

    Raises DataError where it cannot be imported or called, or returns something else.
    """
    spec = f"{module}:{function}"
    try:
        made = imported(spec, root, "--data")()
    except DataError:
        raise
    except UsageError as error:
        raise DataError(str(error)) from error
    except Exception as error:  # it is the user's code: it may raise anything
        text = " ".join(str(error).split())
        raise DataError(f"--data {spec} failed ({type(error).__name__}: {text}).") from error
    if isinstance(made, DataSet):
        return made
    if isinstance(made, Mapping):
        return from_arrays(spec, made)
    raise DataError(f"--data {spec} returned a {type(made).__name__}; expected a DataSet or {{'train': (x, y), ...}}.")
