"""Tell from a specification what kind of data set it is, and open it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from conet_onnx.data.arrays import digits, npz
from conet_onnx.data.cifar import LAYOUTS, cifar
from conet_onnx.data.dataset import DataSet
from conet_onnx.data.folders import class_folders, holds_images
from conet_onnx.data.hugging_face import hugging_face
from conet_onnx.data.images import Sizing
from conet_onnx.data.parquet import parquet
from conet_onnx.data.raw import array_places, raw_file, raw_folder
from conet_onnx.data.user import user_function
from conet_onnx.errors import DataError, UsageError

__all__ = ["DataSpec", "load_data"]

KINDS = (
    "digits, a folder of class folders, a folder or file of parquet, hf:ID[:CONFIG] or hf:FOLDER, an .npz or .npy, a "
    "folder of these, cifar10:DIR, cifar100:DIR or module:function"
)


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A data set by its name, and how the images in its files come to one size: plain values, for any process."""

    data: str
    resize: int | None = None  # see data.images.Sizing
    crop: int | None = None

    def __str__(self) -> str:
        """`photos`, or `photos (resize 256, crop 224)`."""
        return _named(self.data, Sizing(self.resize, self.crop))


def load_data(
    spec: str | os.PathLike[str] | DataSpec,
    *,
    resize: int | None = None,
    crop: int | None = None,
    root: str | os.PathLike[str] | None = None,
) -> DataSet:
    """Open a data set; its splits are read when they are first asked for.

    `spec` is one of: `digits`; a folder of class folders (below train, validation|val and test, or alone), or of images
    without labels; a folder or file of parquet in the Hugging Face image layout; `hf:ID`, `hf:ID:CONFIG` or `hf:FOLDER`
    for the package datasets; an `.npz` with x_train, y_train, x_test, y_test; for models that take no images, an `.npz`
    or `.npy` or a folder of them with an array for each input (data.raw); `cifar10:DIR`, `cifar100:DIR`;
    `module:function`. Relative paths and modules are looked up in `root` (default: the current folder). Without a
    validation split, a tenth of train is held out, drawn with seed 0.

    Images in files of any size come to one with `resize` and `crop`, as torchvision's Resize and CenterCrop do. A
    DataSpec says all three at once; what is said beside it counts more.
    Raises DataError where it is none of these, or cannot be read; UsageError where arrays are to be resized.
    """
    asked = spec if isinstance(spec, DataSpec) else DataSpec(os.fspath(spec))
    sizing = Sizing(asked.resize if resize is None else resize, asked.crop if crop is None else crop)
    place = Path(root) if root is not None else Path()
    images = _images(asked.data, sizing, place)
    again = DataSpec(asked.data, sizing.resize, sizing.crop) if root is None else None
    if images is not None:
        return replace(DataSet(_named(images.name, sizing), images.splits).with_validation(), spec=again)
    arrays = _arrays(asked.data, place)
    if sizing:
        raise UsageError(
            f"{sizing}: image files are resized, and {arrays.name} is arrays; store them at the size that the model "
            "takes."
        )
    return replace(arrays.with_validation(), spec=again)


def _named(name: str, sizing: Sizing) -> str:
    return f"{name} ({sizing})" if sizing else name


def _images(spec: str, sizing: Sizing, root: Path) -> DataSet | None:
    """A data set of image files; None for what is something else."""
    kind, _, rest = spec.partition(":")
    if kind == "hf" and rest:
        return hugging_face(rest, sizing, root)
    path = root / Path(spec).expanduser()
    if spec == "digits" or (kind in LAYOUTS and rest):
        return None
    if path.suffix == ".parquet" and path.is_file():
        return parquet(path, sizing)
    if not path.is_dir():
        return None
    if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
        return parquet(path, sizing)
    for layout, name in LAYOUTS.items():
        if path.name == name or (path / name).is_dir():
            raise DataError(f"{path} holds {name}: name it as {layout}:{path}.")
    if holds_images(path) or (any(path.glob("*/")) and not array_places(path)):
        return class_folders(path, sizing)
    return None


def _arrays(spec: str, root: Path) -> DataSet:
    if spec == "digits":
        return digits()
    kind, _, rest = spec.partition(":")
    if kind in LAYOUTS and rest:
        return cifar(kind, root / Path(rest).expanduser())
    path = root / Path(spec).expanduser()
    if path.is_dir():
        places = array_places(path)
        if not places:
            raise DataError(
                f"{path} holds no data; expected class folders, parquet files or arrays (.npz, .npy) in it."
            )
        return raw_folder(path, places)
    if path.is_file():
        return _file(path)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec):
        return user_function(kind, rest, root)
    raise DataError(f"No data set {spec!r}: there is no such file or folder. Data is {KINDS}.")


def _file(path: Path) -> DataSet:
    if path.suffix == ".npz":
        return npz(path) or raw_file(path)
    if path.suffix == ".npy":
        return raw_file(path)
    raise DataError(f"{path} is no data set that is known by its name; data is {KINDS}.")
