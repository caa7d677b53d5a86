"""What data sets of the package datasets promise, tried on a stand-in for it that has what is used of its interface."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cli_support import call, only_line, save, small_model
from PIL import Image as Pillow

from conet_onnx.data import DataSet, load_data
from conet_onnx.errors import DataError


@dataclass(frozen=True)
class Image:
    decode: bool = True


@dataclass(frozen=True)
class ClassLabel:
    dtype: str = "int64"


@dataclass(frozen=True)
class Value:
    dtype: str


@dataclass(frozen=True)
class Column:
    """What version 4 and later give for a column: rows are read when they are asked for."""

    values: list[Any]

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]


@dataclass(frozen=True)
class Dataset:
    features: Mapping[str, Any]
    rows: Mapping[str, list[Any]]
    split: str | None = None

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return Column(self.rows[key])
        row = {name: values[key] for name, values in self.rows.items()}
        assert not any(getattr(self.features[name], "decode", False) for name in row), "images decode in conet_onnx"
        if "broken" in row.values():
            raise RuntimeError("a page\nis damaged")
        return row

    def cast_column(self, name: str, feature: Any) -> Dataset:
        return replace(self, features={**self.features, name: feature})

    def select_columns(self, names: list[str]) -> Dataset:
        return replace(self, rows={n: self.rows[n] for n in names}, features={n: self.features[n] for n in names})


@dataclass
class Hub:
    """What is there to load, by (ID, configuration) and by folder, and what was asked for."""

    sets: dict[Any, Any] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)

    def load_dataset(self, name: str, config: str | None = None) -> Any:
        return self._load((name, config))

    def load_from_disk(self, folder: str) -> Any:
        return self._load(Path(folder))

    def _load(self, key: Any) -> Any:
        self.asked.append(key)
        if key not in self.sets:
            raise FileNotFoundError(f"there is no\n{key}")
        return self.sets[key]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made, module = Hub(), ModuleType("datasets")
    for name, value in {
        "Image": Image,
        "ClassLabel": ClassLabel,
        "load_dataset": made.load_dataset,
        "load_from_disk": made.load_from_disk,
    }.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return made


def pixels(count: int, size: int = 4) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def encoded(image: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    Pillow.fromarray(image.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


def images(count: int, size: int = 4) -> list[Any]:
    return [{"bytes": encoded(image), "path": None} for image in pixels(count, size)]


def photos(count: int, *, column: str = "img", split: str | None = None, **others: tuple[Any, list[Any]]) -> Dataset:
    """A column of images, and others by name: a feature and its values; `label` unless others are given."""
    columns = {column: (Image(), images(count)), **(others or {"label": (ClassLabel(), list(range(count)))})}
    features = {name: feature for name, (feature, _) in columns.items()}
    return Dataset(features, {name: values for name, (_, values) in columns.items()}, split)


class TestLoading:
    def test_splits_go_by_their_names_and_others_are_left_out(self, hub: Hub) -> None:
        hub.sets["some/set", None] = {"train": photos(20), "unsupervised": photos(3), "test": photos(5)}
        data = load_data("hf:some/set")
        assert data.name == "hf:some/set"
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "validation": 2, "test": 5}
        test = data.split("test")
        assert test.labels is not None
        assert test.labels.tolist() == list(range(5))
        assert np.array_equal(test.images[:], pixels(5))

    @pytest.mark.parametrize(("spec", "key"), [("a/b", ("a/b", None)), ("a/b:c", ("a/b", "c")), ("b", ("b", None))])
    def test_a_configuration_comes_after_the_name(self, hub: Hub, spec: str, key: Any) -> None:
        hub.sets[key] = {"test": photos(2)}
        assert len(load_data(f"hf:{spec}").split("test")) == 2
        assert hub.asked == [key]

    @pytest.mark.parametrize("as_dictionary", [True, False])
    def test_a_folder_is_read_where_it_lies(self, hub: Hub, tmp_path: Path, as_dictionary: bool) -> None:
        (tmp_path / "saved").mkdir()
        made = photos(2, split="test")
        hub.sets[tmp_path / "saved"] = {"test": made} if as_dictionary else made
        assert list(load_data("hf:saved", root=tmp_path).splits) == ["test"]
        assert hub.asked == [tmp_path / "saved"]

    @pytest.mark.parametrize(("folder", "split"), [("val", "validation"), ("photos", "train")])
    def test_one_that_knows_no_split_goes_by_its_folder(
        self, hub: Hub, tmp_path: Path, folder: str, split: str
    ) -> None:
        (tmp_path / folder).mkdir()
        hub.sets[tmp_path / folder] = photos(4)
        assert split in load_data(f"hf:{folder}", root=tmp_path).splits

    def test_images_are_files_where_the_bytes_are_not_there(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "x.png").write_bytes(encoded(pixels(1)[0]))
        row = {"bytes": None, "path": str(tmp_path / "x.png")}
        hub.sets["s", None] = {"test": Dataset({"image": Image()}, {"image": [row]})}
        assert np.array_equal(load_data("hf:s").split("test").images[:], pixels(1))

    def test_images_are_resized(self, hub: Hub) -> None:
        hub.sets["s", None] = {"test": photos(3)}
        data = load_data("hf:s", resize=6, crop=5)
        assert (data.name, data.split("test").shape) == ("hf:s (resize 6, crop 5)", (3, 5, 5))


class TestColumns:
    INTEGERS = (Value("int32"), [4, 5])
    CLASSES = (ClassLabel(), [2, 3])

    def labels(self, hub: Hub, **columns: Any) -> list[int] | None:
        hub.sets["s", None] = {"test": photos(2, **columns)}
        labels = load_data("hf:s").split("test").labels
        return None if labels is None else labels.tolist()

    @pytest.mark.parametrize("name", ["label", "labels", "fine_label"])
    def test_usual_names_are_labels_if_they_hold_integers(self, hub: Hub, name: str) -> None:
        assert self.labels(hub, **{name: self.INTEGERS, "coarse_label": self.CLASSES}) == [4, 5]

    def test_the_only_classes_are_labels_whatever_they_are_called(self, hub: Hub) -> None:
        assert self.labels(hub, species=self.CLASSES, number=self.INTEGERS) == [2, 3]

    def test_without_classes_there_are_no_labels(self, hub: Hub) -> None:
        assert self.labels(hub, number=self.INTEGERS) is None
        assert self.labels(hub, label=(ClassLabel(), [-1, -1])) is None

    @pytest.mark.parametrize(
        ("columns", "says"),
        [
            ({"a": CLASSES, "b": CLASSES}, r"img \(Image\), a \(ClassLabel\), b \(ClassLabel\); expected labels as"),
            ({"label": (Value("string"), ["a", "b"])}, r"label \(Value\); expected labels as integers"),
            ({"label": (ClassLabel(), [1, None])}, "some rows have no label"),
            ({"label": CLASSES, "mask": (Image(), images(2)), "column": "photo"}, "expected one of images, or called"),
        ],
    )
    def test_what_cannot_be_told_is_an_error(self, hub: Hub, columns: dict[str, Any], says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            self.labels(hub, **columns)
        assert str(caught.value).startswith("hf:s (test)")

    def test_of_several_images_the_usual_name_wins(self, hub: Hub) -> None:
        assert self.labels(hub, mask=(Image(), [None, None]), label=self.CLASSES) == [2, 3]


class TestFailures:
    def fails(self, what: Callable[[], DataSet], says: str) -> str:
        with pytest.raises(DataError, match=says) as caught:
            what().split("test")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_what_cannot_be_loaded_is_said_in_one_line(self, hub: Hub, tmp_path: Path) -> None:
        self.fails(lambda: load_data("hf:no/such"), r"Cannot load hf:no/such \(FileNotFoundError: there is no")
        self.fails(lambda: load_data(f"hf:{tmp_path}"), "a folder that save_to_disk wrote")

    @pytest.mark.parametrize(
        ("sets", "says"),
        [
            ({"all": photos(2)}, "has the splits all; expected train"),
            ({"val": photos(2), "validation": photos(2)}, "two validation splits among val, validation"),
            ({"test": photos(0)}, r"hf:s \(test\): there are no rows"),
            ({"test": Dataset({"n": Value("int64")}, {"n": [1]})}, r"columns n \(Value\); expected one of images"),
            ({"test": Dataset({"i": Image()}, {"i": [None]})}, r"hf:s \(test\): row 0 has no image"),
            ({"test": Dataset({"i": Image()}, {"i": ["broken"]})}, "row 0 .RuntimeError: a page is damaged"),
            (
                {"test": Dataset({"i": Image()}, {"i": [*images(1), {"bytes": b"junk", "path": None}]})},
                r"hf:s \(test\): row 1 is not a readable image",
            ),
        ],
    )
    def test_what_it_holds_is_said(self, hub: Hub, sets: dict[str, Any], says: str) -> None:
        hub.sets["s", None] = sets
        self.fails(lambda: load_data("hf:s"), says)

    @pytest.mark.parametrize("there", [None, ModuleType("datasets")])
    def test_without_the_package_it_says_how_to_install_it(
        self, monkeypatch: pytest.MonkeyPatch, there: ModuleType | None, tmp_path: Path
    ) -> None:
        monkeypatch.setitem(sys.modules, "datasets", there)  # None: it is not there; empty: a folder of this name is
        assert "pip install 'conet-onnx[hf]'" in self.fails(lambda: load_data("hf:some/set"), "needs the package")
        result = call("evaluate", save(small_model(), tmp_path / "m.onnx"), "--data", "hf:some/set")
        assert result.code == 3
        assert "pip install 'conet-onnx[hf]'" in only_line(result)
