"""CIFAR-10 and CIFAR-100 as their authors publish them: folders of Python pickles, which torchvision leaves on disk."""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conet_onnx.data.arrays import split_of
from conet_onnx.data.dataset import DataSet, Split, Splits
from conet_onnx.errors import DataError

__all__ = ["cifar"]

# kind -> folder, key of the labels, files of each split (Krizhevsky, "Learning Multiple Layers of Features", 2009)
LAYOUTS: dict[str, tuple[str, str, dict[str, tuple[str, ...]]]] = {
    "cifar10": (
        "cifar-10-batches-py",
        "labels",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    ),
    "cifar100": ("cifar-100-python", "fine_labels", {"train": ("train",), "test": ("test",)}),
}


def cifar(kind: str, root: Path) -> DataSet:
    """CIFAR-10 (`cifar10`) or CIFAR-100 (`cifar100`, fine labels) from the unpacked folder, or the folder around it.

    Nothing is downloaded, and nothing that a pickle may ask to run is run. Raises DataError where files are missing
    or are not what they should be.
    """
    name, label, files = LAYOUTS[kind]
    folder = root / name if (root / name).is_dir() else root
    missing = [file for part in files.values() for file in part if not (folder / file).is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}; expected the unpacked {name} (the Python version) at {root}. "
            "It is never downloaded here."
        )
    readers: dict[str, Callable[[], Split]] = {
        split: partial(_read, [folder / file for file in part], label) for split, part in files.items()
    }
    return DataSet(f"{kind}:{root}", Splits(readers))


def _read(files: Sequence[Path], label: str) -> Split:
    pixels, labels = zip(*(_batch(file, label) for file in files), strict=True)
    images = np.concatenate(pixels).reshape(-1, 3, 32, 32)
    return split_of(images, np.concatenate(labels), str(files[0].parent))


def _batch(file: Path, label: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    try:
        with file.open("rb") as stream:
            batch = _Unpickler(stream, encoding="latin1").load()
        pixels, labels = np.asarray(batch["data"]), np.asarray(batch[label])
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise DataError(f"Cannot read {file} as a CIFAR batch ({type(error).__name__}: {error}).") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
        raise DataError(f"{file}: its data are {pixels.dtype} of shape {pixels.shape}; expected uint8 rows of 3072.")
    return pixels, labels


class _Unpickler(pickle.Unpickler):
    """Builds arrays and plain values; refuses everything else that a pickle can name, so nothing of it runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return _ALLOWED[module, name]


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's own, whatever this version calls it
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}
