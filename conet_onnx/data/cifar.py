"""CIFAR-10 and CIFAR-100 as their authors publish them: folders of Python pickles, which torchvision reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conet_onnx.data.arrays import split_of
from conet_onnx.data.dataset import DataSet, Split, Splits
from conet_onnx.errors import DataError
from conet_onnx.importing import needs_torchvision

__all__ = ["LAYOUTS", "cifar"]

LAYOUTS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # kind -> folder, as it is unpacked


def cifar(kind: str, root: Path) -> DataSet:
    """CIFAR-10 (`cifar10`) or CIFAR-100 (`cifar100`, fine labels) from the unpacked folder, or the folder around it.

    Nothing is downloaded. A pickle may run what it likes, so torchvision opens the authors' own files only: those whose
    MD5 sums it knows. Raises DataError where there is no folder and, when a split is read, where files are missing or
    are not the authors'; UsageError where torchvision cannot be used.
    """
    name = LAYOUTS[kind]
    folder = root / name if (root / name).is_dir() else root
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; {_expected(kind)} there.")
    readers: dict[str, Callable[[], Split]] = {
        "train": partial(_read, kind, folder, train=True),
        "test": partial(_read, kind, folder, train=False),
    }
    return DataSet(f"{kind}:{root}", Splits(readers))


def _read(kind: str, folder: Path, *, train: bool) -> Split:
    with needs_torchvision(f"{kind}:DIR"):
        from torchvision import datasets
    published = getattr(datasets, kind.upper())
    here = type(published.__name__, (published,), {"base_folder": ""})  # the files lie in `root` itself
    try:
        made = here(folder, train=train)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{_missing_or_changed(here, folder) or error}; {_expected(kind)} in {folder}.") from error
    return split_of(made.data.transpose(0, 3, 1, 2), np.asarray(made.targets), str(folder))


def _missing_or_changed(published: Any, folder: Path) -> str:
    """Which of the files that torchvision asks for are not there, or are not what was published; empty if none."""
    from torchvision.datasets.utils import check_integrity

    meta = published.meta
    sums = dict([*published.train_list, *published.test_list, (meta["filename"], meta["md5"])])
    missing = [name for name in sums if not (folder / name).is_file()]
    if missing:
        return f"{folder} lacks {', '.join(missing)}"
    try:
        changed = [name for name, md5 in sums.items() if not check_integrity(folder / name, md5)]
    except OSError as error:
        return f"Cannot read {error.filename or folder}: {error.strerror or error}"
    return f"{', '.join(changed)} differs from what was published (by its MD5 sum)" if changed else ""


def _expected(kind: str) -> str:
    return f"expected the unpacked {LAYOUTS[kind]} (the Python version), which is never downloaded here,"
