"""What data sets promise: splits that do not leak, every layout read alike, every bad input explained in a line."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from conet_onnx.data import RAW, DataSet, Normalisation, Split, check_fits, load_data
from conet_onnx.data.dataset import Splits, split_within
from conet_onnx.data.images import Encoded, decode
from conet_onnx.data.normalisation import candidates
from conet_onnx.errors import DataError, UsageError
from conet_onnx.graph import Graph


def pixels(count: int, *, channels: int = 3, size: int = 4, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def encoded(image: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(stream, kind)
    return stream.getvalue()


def write_parquet(path: Path, images: Sequence[bytes], labels: Sequence[int | None] | None, **names: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        names.get("image", "img"): pa.array([{"bytes": blob, "path": f"{i}.png"} for i, blob in enumerate(images)])
    }
    if labels is not None:
        columns[names.get("label", "label")] = pa.array(labels, pa.int64())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_folder(root: Path, images: dict[str, np.ndarray[Any, Any]]) -> None:
    for name, of_class in images.items():
        (root / name).mkdir(parents=True)
        for i, image in enumerate(of_class):
            (root / name / f"{i:03}.png").write_bytes(encoded(image))


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def write_cifar(root: Path, kind: str, rows: int = 4) -> dict[str, np.ndarray[Any, Any]]:
    """The authors' layout; returns the images of each file."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if kind == "cifar10" else ["train", "test"]
    label, meta = ("labels", "batches.meta") if kind == "cifar10" else ("fine_labels", "meta")
    folder = root / ("cifar-10-batches-py" if kind == "cifar10" else "cifar-100-python")
    folder.mkdir(parents=True)
    made = {}
    for seed, name in enumerate(names):
        made[name] = pixels(rows, size=32, seed=seed)
        batch = {"data": made[name].reshape(rows, -1), label: [seed] * rows, "coarse_labels": [0] * rows}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / meta).write_bytes(pickle.dumps({"label_names": ["a"], "fine_label_names": ["a"]}, protocol=2))
    return made


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str) -> None:
    """Let torchvision take the files in this folder, as they are now, for those that the authors published."""
    from tools.torchvision_schemas import define_missing_schemas

    define_missing_schemas()
    from torchvision import datasets

    def md5(name: str) -> str:
        return hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()

    published = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(published, files, [[name, md5(name)] for name, _ in getattr(published, files)])
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": md5(published.meta["filename"])})


def classifier(shape: Sequence[int | str], classes: int | str | None = 10) -> Graph:
    """Only its signature matters here."""
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))
    outputs = [shape[0], classes] if classes is not None else None
    y = helper.make_tensor_value_info("scores", TensorProto.FLOAT, outputs)
    graph = helper.make_graph([helper.make_node("Flatten", ["image"], ["scores"])], "g", [x], [y])
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


def one_line(caught: pytest.ExceptionInfo[DataError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert text
    return text


class TestDigits:
    def test_splits_are_disjoint_and_cover_all_1797(self) -> None:
        data = load_data("digits")
        assert list(data.splits) == ["train", "validation", "test"]
        with np.load(Path(__file__).parent.parent / "conet_onnx/data/digits.npz") as stored:
            index = np.concatenate([stored[name] for name in data.splits])
        assert sorted(index.tolist()) == list(range(1797))

    def test_pixels_are_0_to_16_and_every_digit_is_split_alike(self) -> None:
        data = load_data("digits")
        for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
            split = data.split(name)
            assert split.images.dtype == np.uint8
            assert split.shape == (1, 8, 8)
            assert (split.images[:].min(), split.images[:].max()) == (0, 16)
            assert split.labels is not None
            everywhere = sum(np.bincount(other.labels) for other in data.splits.values() if other.labels is not None)
            assert np.abs(np.bincount(split.labels) - share * everywhere).max() <= 1

    def test_a_file_that_is_called_digits_does_not_hide_them(self, tmp_path: Path) -> None:
        (tmp_path / "digits").mkdir()
        assert len(load_data("digits", root=tmp_path).split("test")) == 359

    def test_loading_imports_nothing_heavy(self) -> None:
        code = (
            "import sys; from conet_onnx.data import load_data; load_data('digits').split('test'); "
            "print([m for m in ('torch', 'torchvision', 'pyarrow', 'PIL', 'onnxruntime') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestSplits:
    def test_a_tenth_of_train_is_held_out_where_there_is_no_validation(self, tmp_path: Path) -> None:
        x = pixels(57)
        write_npz(tmp_path / "d.npz", x_train=x, y_train=np.arange(57), x_test=x[:3], y_test=np.arange(3))
        data, again = (load_data(tmp_path / "d.npz") for _ in range(2))
        train, held_out = data.split("train"), data.split("validation")
        assert (len(train), len(held_out)) == (52, 5)
        assert train.labels is not None
        assert held_out.labels is not None
        assert sorted([*train.labels, *held_out.labels]) == list(range(57))
        assert np.array_equal(held_out.images[:], x[held_out.labels])
        assert np.array_equal(held_out.labels, again.split("validation").labels)

    def test_a_validation_split_is_left_as_it_is(self, tmp_path: Path) -> None:
        x, y = pixels(20), np.arange(20)
        write_npz(tmp_path / "d.npz", x_train=x, y_train=y, x_val=x[:7], y_val=y[:7])
        data = load_data(tmp_path / "d.npz")
        assert (len(data.split("train")), len(data.split("validation"))) == (20, 7)

    def test_a_missing_split_is_named_with_those_there_are(self, tmp_path: Path) -> None:
        write_npz(tmp_path / "d.npz", x_train=pixels(20), y_train=np.arange(20))
        with pytest.raises(DataError) as caught:
            load_data(tmp_path / "d.npz").split("test")
        assert "has no test split (it has: train, validation)" in one_line(caught)

    def test_one_training_sample_leaves_none_to_hold_out(self, tmp_path: Path) -> None:
        write_npz(tmp_path / "d.npz", x_train=pixels(1), y_train=np.zeros(1, int))
        with pytest.raises(DataError, match="at least 2"):
            load_data(tmp_path / "d.npz").split("train")

    def test_reading_one_split_reads_no_other(self) -> None:
        def broken() -> Split:
            raise AssertionError("test was read")

        data = DataSet("d", Splits({"train": lambda: Split(pixels(20)), "test": broken})).with_validation()
        assert "test" in data.splits
        assert len(data.split("validation")) == 2

    @given(st.integers(1, 40), st.integers(1, 50), st.one_of(st.none(), st.integers(0, 5)), st.booleans())
    def test_batches_hold_every_sample_once(self, count: int, size: int, seed: int | None, lazy: bool) -> None:
        x, y = pixels(count, size=2), np.arange(count)
        whole = Split(Encoded([encoded(image) for image in x], str, x.shape) if lazy else x, y)
        split = whole.take(y[::-1])
        got = list(split.batches(size, seed=seed))
        assert sorted(np.concatenate([labels for _, labels in got if labels is not None])) == list(range(count))
        assert all(np.array_equal(images, x[labels]) for images, labels in got)
        assert {len(images) for images, _ in got[:-1]} <= {size}
        assert all(len(images) == size for images, _ in split.batches(size, drop_last=True))

    def test_a_seed_draws_its_own_order(self) -> None:
        split = Split(pixels(50), np.arange(50))
        orders = [next(split.batches(50, seed=seed))[1] for seed in (None, 0, 0, 1)]
        assert np.array_equal(orders[0], np.arange(50))
        assert np.array_equal(orders[1], orders[2])
        assert not np.array_equal(orders[1], orders[3])
        assert not np.array_equal(orders[1], orders[0])

    @pytest.mark.parametrize(
        ("name", "split"),
        [
            ("train-00000-of-00001", "train"),
            ("cifar10-test", "test"),
            ("val", "validation"),
            ("Validation", "validation"),
            ("my_valid_set", "validation"),
            ("contest", None),
            ("trainval", None),
            ("", None),
        ],
    )
    def test_splits_go_by_whole_words(self, name: str, split: str | None) -> None:
        assert split_within(name) == split


class TestNpz:
    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_channels_are_found_wherever_they_are(self, tmp_path: Path, order: tuple[int, ...], channels: int) -> None:
        x = pixels(5, channels=channels)
        data = load_data(write_npz(tmp_path / "d.npz", x_test=x.transpose(order), y_test=np.arange(5)))
        assert np.array_equal(data.split("test").images[:], x)

    def test_images_without_channels_have_one(self, tmp_path: Path) -> None:
        data = load_data(write_npz(tmp_path / "d.npz", x_test=pixels(5)[:, 0], y_test=np.arange(5)))
        assert data.split("test").shape == (1, 4, 4)

    def test_floats_stay_floats_and_small_integers_become_bytes(self, tmp_path: Path) -> None:
        x = pixels(5)
        path = write_npz(tmp_path / "d.npz", x_train=x / 255, x_val=x.astype(np.int64), x_test=x.astype(np.int64) - 1)
        data = load_data(path)
        assert data.split("train").images.dtype == np.float32
        assert data.split("validation").images.dtype == np.uint8
        assert np.array_equal(data.split("test").images[:], x.astype(np.float32) - 1)

    def test_keras_labels_of_shape_n_1_are_flattened(self, tmp_path: Path) -> None:
        data = load_data(write_npz(tmp_path / "d.npz", x_test=pixels(5), y_test=np.arange(5, dtype=np.uint8)[:, None]))
        labels = data.split("test").labels
        assert labels is not None
        assert (labels.tolist(), labels.dtype) == ([0, 1, 2, 3, 4], np.int64)

    def test_images_without_labels_are_allowed(self, tmp_path: Path) -> None:
        assert load_data(write_npz(tmp_path / "d.npz", x_test=pixels(5))).split("test").labels is None

    @pytest.mark.parametrize(
        ("arrays", "says"),
        [
            ({"x_test": pixels(3), "y_test": np.arange(4)}, "3 images and 4 labels"),
            ({"x_test": pixels(3), "y_test": np.eye(3)}, "expected one integer an image"),
            ({"x_test": pixels(3), "y_test": np.array(["a", "b", "c"])}, "expected one integer an image"),
            ({"x_test": np.zeros((3, 4))}, "expected NCHW, NHWC or NHW"),
            ({"x_test": np.zeros((3, 3, 3, 3))}, "could be NCHW or NHWC"),
            ({"x_test": np.full((3, 4, 4), np.nan)}, "NaN"),
            ({"x_test": np.full((3, 4, 4), "a")}, "expected integers or floats"),
            ({"x_test": pixels(0)}, "no images"),
            ({"x_test": np.array([{}, {}])}, "Object arrays cannot be loaded"),
            ({"x_val": pixels(3), "x_validation": pixels(3)}, "two validation splits"),
            ({}, "holds nothing"),
        ],
    )
    def test_what_is_not_a_data_set_is_explained(self, tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
        path = write_npz(tmp_path / "d.npz", **arrays)
        with pytest.raises(DataError, match=says) as caught:
            load_data(path).split("test")
        assert str(path) in one_line(caught)

    @pytest.mark.parametrize("damage", ["empty", "text", "truncated", "one array", "inside"])
    def test_a_damaged_archive_is_explained(self, tmp_path: Path, damage: str) -> None:
        path = write_npz(tmp_path / "d.npz", x_test=pixels(50), y_test=np.arange(50))
        whole = path.read_bytes()
        if damage == "one array":
            with path.open("wb") as stream:
                np.save(stream, pixels(3))
        elif damage == "inside":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("x_test.npy", b"not an array")
        else:
            path.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[:-200]}[damage])
        with pytest.raises(DataError) as caught:
            load_data(path).split("test")
        assert str(path) in one_line(caught)
        assert "context manager" not in str(caught.value)


class TestParquet:
    def test_splits_go_by_file_name(self, tmp_path: Path) -> None:
        x = pixels(30)
        blobs = [encoded(image) for image in x]
        write_parquet(tmp_path / "cifar10-train.parquet", blobs[:20], list(range(20)))
        write_parquet(tmp_path / "cifar10-test.parquet", blobs[20:], list(range(20, 30)))
        data = load_data(tmp_path)
        assert [len(data.split(name)) for name in data.splits] == [18, 2, 10]
        for split in data.splits.values():
            assert np.array_equal(split.images[:], x[split.labels])

    def test_shards_are_joined_in_order(self, tmp_path: Path) -> None:
        x = pixels(30)
        for shard in range(3):
            rows = range(10 * shard, 10 * shard + 10)
            write_parquet(tmp_path / f"data/test-0000{shard}-of-00003.parquet", [encoded(x[i]) for i in rows], rows)
        test = load_data(tmp_path).split("test")
        assert test.labels is not None
        assert test.labels.tolist() == list(range(30))
        assert np.array_equal(test.images[:], x)

    def test_splits_go_by_folder_name_where_files_have_none(self, tmp_path: Path) -> None:
        for folder, count in (("train", 20), ("validation", 5), ("test", 3)):
            write_parquet(tmp_path / folder / "0000.parquet", [encoded(i) for i in pixels(count)], range(count))
        data = load_data(tmp_path)
        assert [len(data.split(name)) for name in data.splits] == [20, 5, 3]

    def test_one_file_is_the_split_of_its_name_and_else_train(self, tmp_path: Path) -> None:
        blobs = [encoded(image) for image in pixels(10)]
        write_parquet(tmp_path / "my-test.parquet", blobs, range(10))
        write_parquet(tmp_path / "all.parquet", blobs, range(10))
        assert list(load_data(tmp_path / "my-test.parquet").splits) == ["test"]
        assert list(load_data(tmp_path / "all.parquet").splits) == ["train", "validation"]

    @pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
    def test_other_usual_column_names_are_known(self, tmp_path: Path, label: str) -> None:
        write_parquet(tmp_path / "test.parquet", [encoded(pixels(1)[0])], [7], image="image", label=label)
        labels = load_data(tmp_path).split("test").labels
        assert labels is not None
        assert labels.tolist() == [7]

    def test_labels_may_be_absent_or_withheld(self, tmp_path: Path) -> None:
        blobs = [encoded(image) for image in pixels(2)]
        write_parquet(tmp_path / "train.parquet", blobs, None)
        write_parquet(tmp_path / "test.parquet", blobs, [-1, -1])
        data = load_data(tmp_path)
        assert data.split("train").labels is None
        assert data.split("test").labels is None

    def test_one_withheld_label_is_not_all_of_them(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "test.parquet", [encoded(image) for image in pixels(2)], [-1, 3])
        labels = load_data(tmp_path).split("test").labels
        assert labels is not None
        assert labels.tolist() == [-1, 3]

    def test_where_the_folder_lies_tells_no_split(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "test" / "all.parquet", [encoded(image) for image in pixels(4)], range(4))
        assert "test" not in load_data(tmp_path / "test").splits

    def test_jpeg_is_decoded_as_pillow_does(self, tmp_path: Path) -> None:
        blob = encoded(pixels(1, size=16)[0], "JPEG")
        write_parquet(tmp_path / "test.parquet", [blob], [0])
        expected = np.asarray(Image.open(io.BytesIO(blob))).transpose(2, 0, 1)
        assert np.array_equal(load_data(tmp_path).split("test").images[:][0], expected)

    def test_an_image_that_is_none_is_named_by_file_and_row(self, tmp_path: Path) -> None:
        good = encoded(pixels(1)[0])
        write_parquet(tmp_path / "test-0.parquet", [good, good], [0, 1])
        write_parquet(tmp_path / "test-1.parquet", [good, b"junk"], [0, 1])
        with pytest.raises(DataError, match=r"test-1\.parquet: row 1 is not a readable image") as caught:
            load_data(tmp_path).split("test")
        one_line(caught)

    @pytest.mark.parametrize(
        ("columns", "says"),
        [
            ({"picture": [b"x"], "label": [0]}, "expected `img` or `image`"),
            ({"img": [b"x"], "label": [0]}, "expected `img` or `image`"),
            ({"img": [{"bytes": b"x", "path": "x"}], "label": ["cat"]}, "expected labels as integers"),
            ({"img": [{"bytes": b"x", "path": "x"}], "target": [0]}, "expected labels as integers"),
            ({"img": [{"bytes": b"x", "path": "x"}, None], "label": [0, 1]}, "1 rows have no img"),
            ({"img": [{"bytes": b"x", "path": "x"}], "label": [None]}, "expected labels as integers"),
        ],
    )
    def test_wrong_columns_are_named(self, tmp_path: Path, columns: dict[str, list[Any]], says: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), tmp_path / "test.parquet")
        with pytest.raises(DataError, match=says) as caught:
            load_data(tmp_path).split("test")
        assert "test.parquet" in one_line(caught)

    def test_a_missing_label_is_an_error(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "test.parquet", [encoded(i) for i in pixels(2)], [0, None])
        with pytest.raises(DataError, match="1 rows have no label"):
            load_data(tmp_path).split("test")

    def test_no_rows_is_an_error(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pa.table({"img": pa.array([], kind)}), tmp_path / "test.parquet")
        with pytest.raises(DataError, match="no rows"):
            load_data(tmp_path).split("test")

    def test_shards_with_and_without_labels_do_not_mix(self, tmp_path: Path) -> None:
        blobs = [encoded(image) for image in pixels(2)]
        write_parquet(tmp_path / "test-0.parquet", blobs, [0, 1])
        write_parquet(tmp_path / "test-1.parquet", blobs, None)
        with pytest.raises(DataError, match="some files of a split have labels"):
            load_data(tmp_path).split("test")

    def test_a_file_that_names_no_split_beside_others_is_not_guessed(self, tmp_path: Path) -> None:
        for name in ("train", "more"):
            write_parquet(tmp_path / f"{name}.parquet", [encoded(pixels(1)[0])], [0])
        with pytest.raises(DataError, match=r"more\.parquet: its name tells no split"):
            load_data(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"PAR1 no parquet PAR1"])
    def test_a_damaged_file_is_explained(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "test.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"Cannot read .*test\.parquet as parquet") as caught:
            load_data(tmp_path).split("test")
        one_line(caught)


class TestClassFolders:
    def test_classes_are_numbered_alphabetically_as_torchvision_does(self, tmp_path: Path) -> None:
        x = pixels(6)
        write_folder(tmp_path / "train", {"b": x[:2], "a": x[2:3], "10": x[3:4], "9": x[4:5]})
        write_folder(tmp_path / "test", {"b": x[5:6]})
        data = load_data(tmp_path)
        assert list(data.splits) == ["train", "validation", "test"]
        train, held_out = data.split("train"), data.split("validation")
        found = {image.tobytes(): int(label) for split in (train, held_out) for image, label in pairs(split)}
        assert found == {x[i].tobytes(): label for i, label in enumerate([3, 3, 2, 0, 1])}
        assert pairs(data.split("test"))[0][1] == 3

    def test_files_and_their_numbers_are_those_of_torchvisions_image_folder(self, tmp_path: Path) -> None:
        from tools.torchvision_schemas import define_missing_schemas

        define_missing_schemas()
        from torchvision.datasets import ImageFolder

        x = pixels(8)
        write_folder(tmp_path / "test", {"b": x[:2], "Z": x[2:4], "a b": x[4:5], "10": x[5:6]})
        write_folder(tmp_path / "test" / "b", {"deeper": x[6:8]})
        ours = pairs(load_data(tmp_path).split("test"))
        theirs = [(np.asarray(image).transpose(2, 0, 1), label) for image, label in ImageFolder(tmp_path / "test")]
        assert len(ours) == len(theirs) == len(x)
        for (image, label), (expected, number) in zip(ours, theirs, strict=True):
            assert np.array_equal(image, expected)
            assert label == number

    @pytest.mark.parametrize("name", ["val", "validation"])
    def test_a_validation_folder_is_the_validation_split(self, tmp_path: Path, name: str) -> None:
        for split in ("train", name):
            write_folder(tmp_path / split, {"a": pixels(4), "b": pixels(4)})
        data = load_data(tmp_path)
        assert (len(data.split("train")), len(data.split("validation"))) == (8, 8)

    def test_class_folders_alone_are_train(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"a": pixels(10), "b": pixels(10)})
        assert {name: len(split) for name, split in load_data(tmp_path).splits.items()} == {
            "train": 18,
            "validation": 2,
        }

    def test_other_files_and_hidden_folders_are_ignored(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "test", {"a": pixels(2)})
        (tmp_path / "test/a/notes.txt").write_text("x")
        (tmp_path / "test/.cache").mkdir()
        assert len(load_data(tmp_path).split("test")) == 2

    def test_grayscale_has_one_channel_and_becomes_colour_among_colour(self, tmp_path: Path) -> None:
        gray = pixels(2, channels=1)
        write_folder(tmp_path / "gray/test", {"a": gray})
        write_folder(tmp_path / "both/test", {"a": gray[:1], "b": pixels(1)})
        assert np.array_equal(load_data(tmp_path / "gray").split("test").images[:], gray)
        mixed = load_data(tmp_path / "both").split("test").images[:]
        assert np.array_equal(mixed[0], np.repeat(gray[0], 3, axis=0))

    def test_images_of_two_sizes_are_named(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "test", {"a": pixels(1), "b": pixels(1, size=6)})
        with pytest.raises(DataError, match=r"000\.png is 6x6, the first image 4x4"):
            load_data(tmp_path).split("test")

    def test_more_than_8_bits_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "test/a").mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "test/a/x.png")
        with pytest.raises(DataError, match="more than 8 bits"):
            load_data(tmp_path).split("test")

    @pytest.mark.parametrize("content", [b"", b"junk", encoded(pixels(1, size=64)[0])[:200]])
    def test_an_unreadable_image_is_named(self, tmp_path: Path, content: bytes) -> None:
        write_folder(tmp_path / "test", {"a": pixels(1, size=64)})
        (tmp_path / "test/a/zzz.png").write_bytes(content)
        with pytest.raises(DataError, match=r"zzz\.png is not a readable image") as caught:
            load_data(tmp_path).split("test")
        one_line(caught)

    def test_a_class_that_train_lacks_has_no_number(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train", {"a": pixels(2)})
        write_folder(tmp_path / "test", {"b": pixels(2)})
        with pytest.raises(DataError, match="train has no class 'b'"):
            load_data(tmp_path)

    def test_an_empty_class_is_named(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "test", {"a": pixels(2)})
        (tmp_path / "test/b").mkdir()
        with pytest.raises(DataError, match="b holds no images"):
            load_data(tmp_path).split("test")

    def test_two_folders_for_one_split_are_not_merged(self, tmp_path: Path) -> None:
        for name in ("val", "validation"):
            write_folder(tmp_path / name, {"a": pixels(2)})
        with pytest.raises(DataError, match="both the validation split"):
            load_data(tmp_path)

    def test_a_split_without_class_folders_is_named(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train", {"a": pixels(2)})
        (tmp_path / "test").mkdir()
        with pytest.raises(DataError, match="test holds no class folders"):
            load_data(tmp_path)

    def test_images_without_class_folders_have_no_labels(self, tmp_path: Path) -> None:
        x = pixels(20)
        for i, image in enumerate(x):
            (tmp_path / f"{i:02}.png").write_bytes(encoded(image))
        made = load_data(tmp_path)
        assert list(made.splits) == ["train", "validation"]
        assert [len(made.split(name)) for name in made.splits] == [18, 2]
        assert all(made.split(name).labels is None for name in made.splits)
        kept = np.concatenate([made.split(name).images[:] for name in made.splits])
        assert {image.tobytes() for image in kept} == {image.tobytes() for image in x}

    def test_a_split_alone_may_have_no_labels(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"train": pixels(4)})
        write_folder(tmp_path / "test", {"b": pixels(2), "a": pixels(1)})
        made = load_data(tmp_path)
        assert made.split("train").labels is None
        assert made.split("test").labels is not None
        assert made.split("test").labels.tolist() == [0, 1, 1]

    def test_loose_images_beside_class_folders_are_ignored(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"a": pixels(5), "b": pixels(5)})
        (tmp_path / "x.png").write_bytes(encoded(pixels(1)[0]))
        assert sum(len(split) for split in load_data(tmp_path).splits.values()) == 10


class TestCifar:
    @pytest.mark.parametrize(("kind", "around"), [("cifar10", True), ("cifar10", False), ("cifar100", True)])
    @pytest.mark.parametrize("name", [None, "renamed"])
    def test_the_authors_layout_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, around: bool, name: str | None
    ) -> None:
        made = write_cifar(tmp_path, kind)
        folder = next(tmp_path.iterdir())
        publish(monkeypatch, folder, kind)
        if name is not None:
            folder = folder.rename(tmp_path / name)
        data = load_data(f"{kind}:{tmp_path if around and name is None else folder}")
        test, train, held_out = (data.split(split) for split in ("test", "train", "validation"))
        assert np.array_equal(test.images[:], made["test_batch" if kind == "cifar10" else "test"])
        assert test.labels is not None
        assert test.labels.tolist() == [5 if kind == "cifar10" else 1] * 4
        expected = [
            (image.tobytes(), number)
            for number, (file, images) in enumerate(made.items())
            if not file.startswith("test")
            for image in images
        ]
        assert sorted((image.tobytes(), int(n)) for image, n in [*pairs(train), *pairs(held_out)]) == sorted(expected)

    def test_opening_it_imports_nothing_heavy(self, tmp_path: Path) -> None:
        write_cifar(tmp_path, "cifar10")
        code = (
            "import sys; from conet_onnx.data import load_data; load_data(sys.argv[1]); "
            "print([m for m in ('torch', 'torchvision') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, f"cifar10:{tmp_path}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"

    def test_no_pickle_is_opened_that_the_authors_did_not_publish(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "sprung"),)

        write_cifar(tmp_path, "cifar10")
        folder = tmp_path / "cifar-10-batches-py"
        publish(monkeypatch, folder, "cifar10")
        for file in ("test_batch", "batches.meta"):
            before = (folder / file).read_bytes()
            (folder / file).write_bytes(pickle.dumps(Trap()))
            with pytest.raises(DataError, match=f"{file} differs from what was published") as caught:
                load_data(f"cifar10:{tmp_path}").split("test")
            one_line(caught)
            (folder / file).write_bytes(before)
        assert not (tmp_path / "sprung").exists()
        assert len(load_data(f"cifar10:{tmp_path}").split("test")) == 4

    @pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
    def test_files_of_ones_own_in_its_layout_are_refused(self, tmp_path: Path, kind: str) -> None:
        from tools.torchvision_schemas import define_missing_schemas

        define_missing_schemas()
        write_cifar(tmp_path, kind)
        with pytest.raises(DataError, match="differs from what was published") as caught:
            load_data(f"{kind}:{tmp_path}").split("train")
        one_line(caught)

    def test_missing_files_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_cifar(tmp_path, "cifar10")
        folder = tmp_path / "cifar-10-batches-py"
        publish(monkeypatch, folder, "cifar10")
        for file in ("data_batch_3", "batches.meta"):
            (folder / file).rename(tmp_path / file)
            with pytest.raises(DataError, match=f"lacks {file}; expected the unpacked cifar-10-batches-py") as caught:
                load_data(f"cifar10:{tmp_path}").split("test")
            one_line(caught)
            (tmp_path / file).rename(folder / file)

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_cifar(tmp_path, "cifar100")
        publish(monkeypatch, tmp_path / "cifar-100-python", "cifar100")

        def refuse(path: Path, md5: str) -> bool:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", refuse)
        monkeypatch.setattr("torchvision.datasets.utils.check_integrity", refuse)
        with pytest.raises(DataError, match=r"Cannot read .*train: Permission denied; expected the unpacked") as caught:
            load_data(f"cifar100:{tmp_path}").split("test")
        one_line(caught)

    def test_a_folder_that_is_not_there_is_named_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no folder .*nowhere; expected the unpacked cifar-100-python"):
            load_data(f"cifar100:{tmp_path / 'nowhere'}")

    def test_a_torchvision_that_does_not_fit_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_cifar(tmp_path, "cifar10")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "torchvision", None)
        with pytest.raises(UsageError, match="cifar10:DIR needs a torchvision that fits torch"):
            load_data(f"cifar10:{tmp_path}").split("test")

    def test_its_folder_without_the_prefix_says_the_prefix(self, tmp_path: Path) -> None:
        write_cifar(tmp_path, "cifar100")
        with pytest.raises(DataError, match="name it as cifar100:"):
            load_data(tmp_path)


class TestUserFunction:
    def load(self, folder: Path, body: str, spec: str) -> DataSet:
        (folder / f"{spec.split(':')[0]}.py").write_text(f"import numpy as np\n{body}\n")
        try:
            return load_data(spec, root=folder)
        finally:
            sys.modules.pop(spec.split(":")[0], None)

    def test_a_dictionary_of_pairs_is_a_data_set(self, tmp_path: Path) -> None:
        body = "def f(): return {'train': (np.zeros((20, 4, 4)), np.arange(20)), 'test': (np.ones((3, 4, 4)), None)}"
        data = self.load(tmp_path, body, "user_pairs:f")
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "validation": 2, "test": 3}
        assert data.split("test").labels is None
        assert str(tmp_path) not in sys.path

    def test_a_data_set_is_taken_as_it_is(self, tmp_path: Path) -> None:
        body = "from conet_onnx.data import *\ndef f(): return DataSet('mine', {'test': Split(np.zeros((3, 1, 4, 4)))})"
        assert self.load(tmp_path, body, "user_set:f").name == "mine"

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("def g(): pass", "has no attribute 'f'"),
            ("def f(): return 3", "returned a int"),
            ("def f(): raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
            ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
            ("def f(): return {'train': np.zeros(3)}", "expected a pair"),
            ("def f(): return {'first': (np.zeros((3, 4, 4)), None)}", "names no split"),
            ("def f(): return {'train': ([[[1, 2]], [[3]]], None)}", "do not make arrays"),
            ("def f(): return {'train': (None, [1])}", "no images"),
            ("def f(): return {}", "no splits"),
            ("f = 3", "not callable"),
        ],
    )
    def test_what_goes_wrong_in_it_is_said(self, tmp_path: Path, body: str, says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            self.load(tmp_path, body, "user_wrong:f")
        assert "user_wrong:f" in one_line(caught)

    def test_a_module_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="No module named 'nowhere_to_be_found'"):
            load_data("nowhere_to_be_found:f", root=tmp_path)


class TestSpecification:
    @pytest.mark.parametrize("spec", ["nowhere", "no/where.npz", "digit", "cifar10:", "a b:c", ""])
    def test_what_is_nothing_known_lists_what_is(self, tmp_path: Path, spec: str) -> None:
        with pytest.raises(DataError, match="digits, a folder of class folders") as caught:
            load_data(spec or "missing", root=tmp_path)
        one_line(caught)

    def test_an_empty_folder_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds no data"):
            load_data(tmp_path)

    def test_an_unknown_file_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_text("1,2")
        with pytest.raises(DataError, match=r"x\.csv is no data set"):
            load_data(tmp_path / "x.csv")

    def test_relative_paths_start_at_root(self, tmp_path: Path) -> None:
        write_npz(tmp_path / "d.npz", x_test=pixels(2))
        assert len(load_data("d.npz", root=tmp_path).split("test")) == 2


class TestDecoding:
    def test_lazily_and_at_once_give_the_same_pixels(self) -> None:
        x = pixels(9)
        files = [encoded(image) for image in x]
        lazy, eager = decode(files, str, limit=0), decode(files, str)
        assert isinstance(lazy, Encoded)
        assert isinstance(eager, np.ndarray)
        assert (lazy.shape, lazy.dtype) == (eager.shape, eager.dtype)
        for index in (slice(2, 5), np.array([3, 3, 0]), slice(None)):
            assert np.array_equal(lazy[index], eager[index])

    def test_transparent_palettes_lose_their_transparency(self) -> None:
        stream = io.BytesIO()
        image = Image.fromarray(pixels(1)[0].transpose(1, 2, 0)).quantize(8)
        image.save(stream, "PNG", transparency=bytes(range(8)))
        assert np.array_equal(
            decode([stream.getvalue()], str)[:][0].transpose(1, 2, 0), np.asarray(image.convert("RGB"))
        )

    def test_colour_that_turns_up_late_among_grayscale_is_named(self) -> None:
        gray, colour = encoded(pixels(1, channels=1)[0]), encoded(pixels(1)[0])
        files = [gray] * 200
        files[100] = colour  # between two of the headers that are read
        with pytest.raises(DataError, match="100 is in colour"):
            decode(files, str)


class TestFit:
    data = DataSet("d", {"train": Split(pixels(4), np.array([0, 1, 2, 9]))})

    @pytest.mark.parametrize("shape", [("n", 3, 4, 4), (1, 3, 4, 4), ("n", 3, "h", "w"), ("n", "", "", "")])
    def test_symbolic_sizes_take_anything(self, shape: Sequence[int | str]) -> None:
        check_fits(classifier(shape), self.data)

    @pytest.mark.parametrize(
        ("shape", "says"),
        [
            (("n", 1, 4, 4), "images are 3x4x4, the model's input 'image' takes 1x4x4"),
            (("n", 3, 8, 8), "resize files with --resize and --crop"),
            (("n", 4, 4, 3), "channels last"),
            (("n", 48), "takes 48"),
        ],
    )
    def test_another_shape_is_named_with_ours(self, shape: Sequence[int | str], says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            check_fits(classifier(shape), self.data)
        assert "d (train)" in one_line(caught)

    def test_labels_that_the_model_has_no_class_for_are_named(self) -> None:
        with pytest.raises(DataError, match=r"label 9 of sample 3 is out of range; the model has 9 classes, 0\.\.8"):
            check_fits(classifier(("n", 3, 4, 4), 9), self.data)
        with pytest.raises(DataError, match="label -1 of sample 0"):
            check_fits(classifier(("n", 3, 4, 4)), DataSet("d", {"train": Split(pixels(1), np.array([-1]))}))

    def test_unknown_numbers_of_classes_are_left_for_later(self) -> None:
        check_fits(classifier(("n", 3, 4, 4), "classes"), self.data)
        check_fits(classifier(("n", 3, 4, 4), None), self.data)

    def test_only_the_named_splits_are_read(self) -> None:
        def broken() -> Split:
            raise AssertionError("test was read")

        data = DataSet("d", Splits({"train": lambda: Split(pixels(4)), "test": broken}))
        check_fits(classifier(("n", 3, 4, 4)), data, "train")


class TestNormalisation:
    def test_it_scales_then_centres_each_channel(self) -> None:
        x = pixels(5)
        normalisation = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1 / 255)
        expected = (x / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([0.4, 0.5, 0.6])[:, None, None]
        got = normalisation.apply(x)
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() < 1e-6
        factor, offset = normalisation.affine(3)
        assert np.array_equal(x * factor + offset, got)

    def test_one_number_serves_all_channels(self) -> None:
        assert np.array_equal(
            Normalisation((0.5,), (0.5,)).apply(pixels(2)), Normalisation((0.5,) * 3, (0.5,) * 3).apply(pixels(2))
        )

    def test_raw_changes_no_value_and_suits_integer_models(self) -> None:
        x = pixels(2)
        assert RAW.apply(x, np.uint8) is x
        assert np.array_equal(RAW.apply(x, np.float16), x)
        with pytest.raises(DataError, match="uint8 pixels"):
            Normalisation(scale=0.5).apply(x, np.uint8)

    @given(
        st.lists(st.tuples(st.floats(-9, 9), st.floats(1e-3, 9)), min_size=1, max_size=4),
        st.floats(1e-3, 9),
    )
    def test_json_round_trips(self, numbers: list[tuple[float, float]], scale: float) -> None:
        mean, std = zip(*numbers, strict=True)
        made = Normalisation(mean, std, scale)
        assert Normalisation.from_json(made.as_json()) == made

    def test_it_is_found_beside_the_model(self, tmp_path: Path) -> None:
        made = Normalisation((0.5,), (0.25,), 1 / 16)
        made.save_beside(tmp_path / "net.onnx")
        assert (tmp_path / "net.data.json").is_file()
        assert Normalisation.beside(tmp_path / "net.onnx") == made
        assert Normalisation.beside(tmp_path / "other.onnx") is None

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "{}",
            '{"format": "conet-onnx-data/9", "scale": 1, "mean": [0], "std": [1]}',
            '{"format": "conet-onnx-data/1", "scale": 1, "mean": [0], "std": [0]}',
            '{"format": "conet-onnx-data/1", "scale": 1, "mean": [0, 0], "std": [1]}',
            '{"format": "conet-onnx-data/1", "scale": "x", "mean": [0], "std": [1]}',
            '{"format": "conet-onnx-data/1", "scale": 1, "mean": 0, "std": [1]}',
            '{"format": "conet-onnx-data/1", "scale": NaN, "mean": [0], "std": [1]}',
        ],
    )
    def test_a_broken_file_is_explained(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "net.data.json").write_text(text)
        with pytest.raises(DataError, match=r"net\.data\.json does not say how to normalise") as caught:
            Normalisation.beside(tmp_path / "net.onnx")
        one_line(caught)

    @pytest.mark.parametrize(("mean", "std"), [((), ()), ((0.0,), (0.0,)), ((0.0, 0.0), (1.0,)), ((np.inf,), (1.0,))])
    def test_senseless_numbers_are_refused(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        with pytest.raises(DataError):
            Normalisation(mean, std)

    def test_the_wrong_number_of_channels_is_named(self) -> None:
        with pytest.raises(DataError, match="is for 2 channels, the images have 3"):
            Normalisation((0.0, 0.0), (1.0, 1.0)).apply(pixels(2))

    def test_explicit_numbers_are_of_pixels_scaled_to_one(self) -> None:
        assert Normalisation.explicit([0.5], [0.25]) == Normalisation((0.5,), (0.25,), 1 / 255)
        assert Normalisation.explicit([0.5], [0.25], np.float32) == Normalisation((0.5,), (0.25,), 1.0)
        with pytest.raises(DataError, match="divide mean and std by 255"):
            Normalisation.explicit([123.7], [58.4])

    def test_candidates_suit_the_data(self) -> None:
        assert list(candidates(pixels(9))) == ["raw", "/255", "-1..1", "imagenet", "cifar10"]
        digits = candidates(load_data("digits").split("train").images[:])
        assert list(digits) == ["raw", "/255", "/max", "-1..1"]
        assert digits["/max"] == Normalisation(scale=1 / 16)
        assert candidates(pixels(9) / np.float32(255))["imagenet"].scale == 1.0


def pairs(split: Split) -> list[tuple[np.ndarray[Any, Any], int]]:
    assert split.labels is not None
    return list(zip(split.images[:], split.labels.tolist(), strict=True))
