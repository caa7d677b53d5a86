"""Tell from a specification what kind of data set it is, and open it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from conet_onnx.data.arrays import digits, npz
from conet_onnx.data.cifar import LAYOUTS, cifar
from conet_onnx.data.dataset import DataSet
from conet_onnx.data.folders import class_folders, holds_images
from conet_onnx.data.parquet import parquet
from conet_onnx.data.raw import array_places, raw_file, raw_folder
from conet_onnx.data.user import user_function
from conet_onnx.errors import DataError

__all__ = ["load_data"]

KINDS = (
    "digits, a folder of class folders, a folder or file of parquet, an .npz or .npy, a folder of these, cifar10:DIR, "
    "cifar100:DIR or module:function"
)


def load_data(spec: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> DataSet:
    """Open a data set; its splits are read when they are first asked for.

    `spec` is one of: `digits`; a folder of class folders (below train, validation|val and test, or alone), or of images
    without labels; a folder or file of parquet in the Hugging Face image layout; an `.npz` with x_train, y_train,
    x_test, y_test; for models that take no images, an `.npz` or `.npy` or a folder of them with an array for each input
    (data.raw); `cifar10:DIR`, `cifar100:DIR`; `module:function`. Relative paths and modules are looked up in `root`
    (default: the current folder). Without a validation split, a tenth of train is held out, drawn with seed 0.
    Raises DataError where it is none of these, or cannot be read.
    """
    return _opened(os.fspath(spec), Path(root) if root is not None else Path()).with_validation()


def _opened(spec: str, root: Path) -> DataSet:
    if spec == "digits":
        return digits()
    kind, _, rest = spec.partition(":")
    if kind in LAYOUTS and rest:
        return cifar(kind, root / Path(rest).expanduser())
    path = root / Path(spec).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec):
        return user_function(kind, rest, root)
    raise DataError(f"No data set {spec!r}: there is no such file or folder. Data is {KINDS}.")


def _folder(path: Path) -> DataSet:
    if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
        return parquet(path)
    for kind, (name, _, _) in LAYOUTS.items():
        if path.name == name or (path / name).is_dir():
            raise DataError(f"{path} holds {name}: name it as {kind}:{path}.")
    arrays = array_places(path)
    if arrays and not holds_images(path):
        return raw_folder(path, arrays)
    if any(path.glob("*/")) or holds_images(path):
        return class_folders(path)
    raise DataError(f"{path} holds no data; expected class folders, parquet files or arrays (.npz, .npy) in it.")


def _file(path: Path) -> DataSet:
    if path.suffix == ".parquet":
        return parquet(path)
    if path.suffix == ".npz":
        return npz(path) or raw_file(path)
    if path.suffix == ".npy":
        return raw_file(path)
    raise DataError(f"{path} is no data set that is known by its name; data is {KINDS}.")
