"""What data for models that take no images promises: each input is fed what bears its name, or it is said why not."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_support import call, only_line, save
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.data import RAW, DataSet, Feeds, Normalisation, Split, check_fits, fed, load_data
from conet_onnx.errors import DataError
from conet_onnx.evaluation import choose_normalisation, evaluate, resolve_normalisation
from conet_onnx.graph import Graph

Array = np.ndarray[Any, Any]
TOKENS, LENGTH, CLASSES = 11, 4, 6


def samples(count: int = 20, *, seed: int = 0) -> dict[str, Array]:
    """Tokens and which of them count, as a text classifier takes them, and labels."""
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, TOKENS, (count, LENGTH)),
        "mask": rng.integers(0, 2, (count, LENGTH)).astype(np.float32),
        "y": rng.integers(0, CLASSES, count),
    }


def classifier(
    *, batch: int | str = "batch", mask_batch: int | str | None = None, length: int | str = LENGTH
) -> onnx.ModelProto:
    """scores [batch, classes]: the sum of embeddings of the `ids` [batch, length] that the `mask` keeps."""
    table = np.random.default_rng(1).standard_normal((TOKENS, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["scores"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, length]),
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, [mask_batch or batch, length]),
    ]
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CLASSES])
    weights = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "middle"),
    ]
    graph = helper.make_graph(nodes, "text", inputs, [scores], weights)
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])


def expected(model: onnx.ModelProto, data: Mapping[str, Array]) -> float:
    """The oracle: numpy's accuracy."""
    table = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    scores = (table[data["ids"]] * data["mask"][:, :, None]).sum(1)
    return float((scores.argmax(1) == data["y"]).mean())


def write_folder(folder: Path, arrays: Mapping[str, Array]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def inputs_of(split: Split) -> dict[str, Array]:
    assert isinstance(split.images, Feeds)
    return {name: np.asarray(rows[:]) for name, rows in split.images.arrays.items()}


def same(split: Split, data: Mapping[str, Array]) -> bool:
    found = inputs_of(split)
    assert split.labels is not None
    assert sorted(found) == ["ids", "mask"]
    return all(np.array_equal(found[name], data[name]) for name in found) and np.array_equal(split.labels, data["y"])


def one_line(caught: pytest.ExceptionInfo[DataError]) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


class TestNpz:
    def test_each_array_is_an_input_and_y_the_labels(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "texts.npz", **samples())
        data = load_data(tmp_path / "texts.npz")
        assert list(data.splits) == ["train", "validation"]
        assert [len(data.split(name)) for name in data.splits] == [18, 2]
        joined = [inputs_of(data.split(name))["ids"] for name in data.splits]
        assert sorted(map(bytes, np.concatenate(joined))) == sorted(map(bytes, samples()["ids"]))

    def test_the_files_name_tells_the_split(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "texts-test.npz", **samples())
        data = load_data(tmp_path / "texts-test.npz")
        assert list(data.splits) == ["test"]
        assert same(data.split("test"), samples())

    def test_labels_may_be_called_labels_and_may_be_absent(self, tmp_path: Path) -> None:
        arrays = samples()
        labels = arrays.pop("y")
        np.savez(tmp_path / "named-test.npz", labels=labels[:, None], **arrays)
        np.savez(tmp_path / "none-test.npz", **arrays)
        named = load_data(tmp_path / "named-test.npz").split("test").labels
        assert named is not None
        assert named.tolist() == labels.tolist()
        assert load_data(tmp_path / "none-test.npz").split("test").labels is None

    def test_names_that_no_file_can_have_are_kept(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "test.npz", **{"encoder/ids:0": samples()["ids"]})
        assert list(inputs_of(load_data(tmp_path / "test.npz").split("test"))) == ["encoder/ids:0"]

    def test_an_input_whose_name_begins_with_x_is_no_split(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "test.npz", x_1=samples()["ids"])
        assert list(inputs_of(load_data(tmp_path / "test.npz").split("test"))) == ["x_1"]


class TestFolder:
    @pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "validation", "testing")])
    @pytest.mark.parametrize("kind", ["npz", "npy", "npz inside"])
    def test_splits_go_by_name(self, tmp_path: Path, names: Sequence[str], kind: str) -> None:
        for seed, name in enumerate(names):
            if kind == "npz":
                np.savez(tmp_path / f"{name}.npz", **samples(seed=seed))
            elif kind == "npy":
                write_folder(tmp_path / name, samples(seed=seed))
            else:
                (tmp_path / name).mkdir()
                np.savez(tmp_path / name / "part.npz", **samples(seed=seed))
        data = load_data(tmp_path)
        assert list(data.splits) == ["train", "validation", "test"]
        assert all(same(data.split(name), samples(seed=seed)) for seed, name in enumerate(data.splits))

    def test_arrays_without_a_split_are_train(self, tmp_path: Path) -> None:
        write_folder(tmp_path, samples())
        data = load_data(tmp_path)
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "validation": 2}

    def test_npy_files_are_mapped_and_only_rows_that_are_asked_for_are_read(self, tmp_path: Path) -> None:
        write_folder(tmp_path, samples(50))
        train = load_data(tmp_path).split("train")
        assert isinstance(train.images, Feeds)
        for part in (train, train.take(np.array([5, 1]))):
            assert isinstance(part.images, Feeds)
            assert not any(isinstance(rows, np.ndarray) for rows in part.images.arrays.values())
        batch, labels = next(train.batches(7, seed=3))
        assert labels is not None
        for ids, mask, label in zip(batch["ids"], batch["mask"], labels, strict=True):
            whole = samples(50)
            at = np.flatnonzero((whole["ids"] == ids).all(1) & (whole["mask"] == mask).all(1) & (whole["y"] == label))
            assert len(at) == 1

    def test_one_npy_is_the_only_input_whatever_it_is_called(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).standard_normal((20, 3, 4, 4))
        np.save(tmp_path / "numbers-test.npy", x)
        data = load_data(tmp_path / "numbers-test.npy")
        value = helper.make_tensor_value_info("anything", TensorProto.FLOAT, ["n", 3, 4, 4])
        made = helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["n", 48])
        nodes = [helper.make_node("Flatten", ["anything"], ["flat"])]
        graph = Graph(helper.make_model(helper.make_graph(nodes, "g", [value], [made])))
        check_fits(graph, data)
        (batch, labels), *_ = data.split("test").batches(5)
        assert labels is None
        assert np.array_equal(fed(graph, batch)["anything"], x[:5].astype(np.float32))
        with pytest.raises(DataError, match=r"2 inputs \('ids', 'mask'\); one array without a name"):
            check_fits(Graph(classifier()), data)

    def test_images_come_first(self, tmp_path: Path) -> None:
        from PIL import Image

        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name / "0.png")
        write_folder(tmp_path, samples())
        assert load_data(tmp_path).split("train").shape == (1, 4, 4)

    @pytest.mark.parametrize(
        ("files", "says"),
        [
            (["train.npz", "training.npz"], "both the train split"),
            (["one.npz", "two.npz"], "both without a split in their names"),
            (["one.npz", "test.npz"], r"one\.npz: its name tells no split"),
            (["ids.npy", "test/ids.npy"], "holds arrays beside its splits"),
            (["val/a.npz", "val/b.npz"], r"holds a\.npz, b\.npz; keep one"),
            (["val/a.npz", "val/b.npy"], "keep one .npz, or a NAME.npy"),
            (["val/y.npy"], "holds only y; expected an array for each"),
            (["val/y.npy", "val/labels.npy", "val/ids.npy"], "both y and labels"),
        ],
    )
    def test_what_could_be_two_things_is_not_guessed(self, tmp_path: Path, files: list[str], says: str) -> None:
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            if file.endswith(".npz"):
                np.savez(tmp_path / file, ids=np.arange(4))
            else:
                np.save(tmp_path / file, np.arange(4))
        with pytest.raises(DataError, match=says) as caught:
            load_data(tmp_path).split("validation")
        assert str(tmp_path) in one_line(caught)


class TestDamage:
    @pytest.mark.parametrize(
        ("arrays", "says"),
        [
            ({"ids": np.arange(4), "mask": np.arange(5)}, "differ in samples: 'ids' has 4, 'mask' has 5"),
            ({"ids": np.arange(4), "y": np.arange(5)}, "4 samples and 5 labels"),
            ({"ids": np.arange(4), "y": np.eye(4)}, "expected one integer a sample"),
            ({"ids": np.array(3)}, "'ids' is a single number"),
            ({"ids": np.array(["a", "b"])}, "'ids' is <U1; expected numbers"),
            ({"ids": np.array([{}, {}])}, "Object arrays cannot be loaded"),
            ({"ids": np.zeros((0, 4))}, "no samples"),
            ({"y": np.arange(4)}, "holds only y"),
        ],
    )
    def test_arrays_that_do_not_fit_each_other_are_named(
        self, tmp_path: Path, arrays: dict[str, Array], says: str
    ) -> None:
        path = tmp_path / "test.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's types take allow_pickle for one of them
        with pytest.raises(DataError, match=says) as caught:
            load_data(path).split("test")
        assert str(path) in one_line(caught)

    @pytest.mark.parametrize("content", ["empty", "text", "header", "rows", "archive", "pickle"])
    def test_an_npy_that_is_damaged_or_asks_for_a_pickle_is_named(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "test" / "ids.npy"
        write_folder(path.parent, samples(1000))
        whole = path.read_bytes()
        if content == "pickle":
            np.save(path, np.array([{}]), allow_pickle=True)
        elif content == "archive":
            with zipfile.ZipFile(path, "w") as made:
                made.writestr("ids.npy", whole)
        else:
            path.write_bytes({"empty": b"", "text": b"1,2,3", "header": whole[:40], "rows": whole[:-100]}[content])
        with pytest.raises(DataError, match=r"Cannot read .*ids\.npy as an \.npy array") as caught:
            load_data(tmp_path).split("test")
        one_line(caught)

    def test_a_truncated_npz_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "test.npz"
        np.savez(path, **samples(1000))
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(DataError, match=r"Cannot read .*test\.npz") as caught:
            load_data(path).split("test")
        one_line(caught)

    def test_what_is_no_array_in_an_npz_is_named(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "test.npz", "w") as made:
            made.writestr("notes.txt", b"hello")
        with pytest.raises(DataError, match=r"notes\.txt is not stored as an array"):
            load_data(tmp_path / "test.npz").split("test")

    def test_an_npz_of_images_in_a_folder_is_to_be_named_itself(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "all.npz", x_train=np.zeros((4, 8, 8)))
        with pytest.raises(DataError, match=r"splits of its own \(x_train\)"):
            load_data(tmp_path).split("train")


class TestUserFunction:
    def load(self, folder: Path, body: str) -> DataSet:
        (folder / "user_feeds.py").write_text(f"import numpy as np\ndef f(): return {body}\n")
        try:
            return load_data("user_feeds:f", root=folder)
        finally:
            sys.modules.pop("user_feeds", None)

    def test_a_dictionary_of_arrays_is_an_array_for_each_input(self, tmp_path: Path) -> None:
        data = self.load(tmp_path, "{'test': ({'ids': np.ones((3, 4), int), 'mask': [[0.5]] * 3}, [1, 2, 0])}")
        test = data.split("test")
        assert inputs_of(test)["mask"].tolist() == [[0.5]] * 3
        assert test.labels is not None
        assert test.labels.tolist() == [1, 2, 0]

    def test_what_it_maps_into_memory_stays_mapped(self, tmp_path: Path) -> None:
        np.save(tmp_path / "ids.npy", samples()["ids"])
        data = self.load(tmp_path, f"{{'train': ({{'ids': np.load(r'{tmp_path / 'ids.npy'}', mmap_mode='r')}}, None)}}")
        images = data.split("train").images
        assert isinstance(images, Feeds)
        assert not isinstance(images.arrays["ids"], np.ndarray)

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("{'test': ({}, None)}", "there is no array"),
            ("{'test': ({'ids': [[1], [1, 2]]}, None)}", "its inputs and labels do not make arrays"),
            ("{'test': ({'ids': [1, 2], 'mask': [1]}, None)}", "'ids' has 2, 'mask' has 1"),
            ("{'test': ({'ids': [1, 2]}, ['a', 'b'])}", "expected one integer a sample"),
        ],
    )
    def test_what_does_not_fit_is_said(self, tmp_path: Path, body: str, says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            self.load(tmp_path, body)
        assert "user_feeds:f: test" in one_line(caught)


def dataset(**changes: Array | None) -> DataSet:
    arrays = {name: array for name, array in {**samples(), **changes}.items() if array is not None}
    labels = arrays.pop("y", None)
    return DataSet("d", {"test": Split(Feeds(arrays), labels)})


class TestFit:
    @pytest.mark.parametrize("batch", ["batch", 1, 7, 20])
    @pytest.mark.parametrize("length", [LENGTH, "length"])
    def test_what_bears_the_inputs_names_and_shapes_fits(self, batch: int | str, length: int | str) -> None:
        check_fits(Graph(classifier(batch=batch, length=length)), dataset())

    @pytest.mark.parametrize(
        ("stored", "fits"), [("i1", True), ("<i4", True), (">i8", True), ("?", True), ("u8", False), ("f4", False)]
    )
    def test_integers_take_what_fits_into_them(self, stored: str, fits: bool) -> None:
        data = dataset(ids=samples()["ids"].astype(stored))
        if fits:
            check_fits(Graph(classifier()), data)
        else:
            with pytest.raises(DataError, match=rf"'ids' takes int64, the data holds {np.dtype(stored)}"):
                check_fits(Graph(classifier()), data)

    @pytest.mark.parametrize(("stored", "fits"), [("f2", True), ("f8", True), ("u1", True), ("i4", False)])
    def test_floats_take_floats_and_small_integers(self, stored: str, fits: bool) -> None:
        data = dataset(mask=samples()["mask"].astype(stored))
        if fits:
            check_fits(Graph(classifier()), data)
        else:
            with pytest.raises(DataError, match=r"'mask' takes float32, the data holds int32.* store it as float32"):
                check_fits(Graph(classifier()), data)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"mask": None}, r"takes 'ids', 'mask', the data holds 'ids' \(missing: 'mask'; unknown: none\)"),
            ({"weight": np.zeros(20)}, r"missing: none; unknown: 'weight'"),
            ({"mask": None, "attention": np.zeros((20, 4))}, r"missing: 'mask'; unknown: 'attention'"),
            ({"ids": np.zeros((20, 5), int)}, "'ids' takes 4 for each sample, the data holds 5"),
            ({"ids": np.zeros(20, int)}, "'ids' takes 4 for each sample, the data holds scalars"),
            ({"mask": np.zeros((20, 4, 1))}, "'mask' takes 4 for each sample, the data holds 4x1"),
            ({"y": np.full(20, CLASSES)}, "label 6 of sample 0 is out of range; the model has 6 classes"),
        ],
    )
    def test_what_does_not_fit_is_named_on_both_sides(self, changes: dict[str, Array | None], says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            check_fits(Graph(classifier()), dataset(**changes))
        assert one_line(caught).startswith("d (test): ")

    def test_inputs_that_are_not_of_samples_are_named(self) -> None:
        with pytest.raises(DataError, match=r"first axes of different sizes \('ids' 20, 'mask' 5\)"):
            check_fits(Graph(classifier(batch=20, mask_batch=5)), dataset())
        model = classifier()
        del model.graph.input[1].type.tensor_type.shape.dim[:]
        with pytest.raises(DataError, match="'mask' has no axis of samples"):
            check_fits(Graph(model), dataset())

    def test_arrays_of_different_lengths_are_no_feeds(self) -> None:
        with pytest.raises(DataError, match="'ids' has 20, 'mask' has 3"):
            dataset(mask=np.zeros((3, LENGTH)))


class TestEvaluation:
    def test_accuracy_is_numpys_whatever_the_batch(self) -> None:
        truth = expected(classifier(), samples())
        found = {
            (fixed, batch): evaluate(Graph(classifier(batch=fixed)), dataset(), provider="cpu", batch=batch)
            for fixed in ("batch", 1, 7, 64)
            for batch in (3, 256)
        }
        assert {(made.samples, made.top1) for made in found.values()} == {(20, truth)}
        assert max(made.loss for made in found.values()) == pytest.approx(min(made.loss for made in found.values()))

    def test_arrays_are_cast_to_the_inputs_types(self) -> None:
        stored = dataset(ids=samples()["ids"].astype(np.uint8), mask=samples()["mask"].astype(np.float64))
        assert evaluate(Graph(classifier()), stored, provider="cpu").top1 == expected(classifier(), samples())

    def test_nothing_is_chosen_without_labels_or_beside_a_file(self, tmp_path: Path) -> None:
        graph = Graph(classifier(), file=str(save(classifier(), tmp_path / "text.onnx")))
        Normalisation(scale=0.5).save_beside(tmp_path / "text.onnx")
        test = DataSet("d", {"train": Split(dataset().split("test").images), "test": dataset().split("test")})
        for choice in (
            choose_normalisation(graph, test),
            resolve_normalisation(graph, test),
            resolve_normalisation(graph, DataSet("d", {"test": test.split("test")}), split="test"),
        ):
            assert (choice.name, choice.normalisation, choice.scores) == ("raw inputs", RAW, ())

    def test_a_normalisation_that_is_given_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"d \(test\) is fed as it is"):
            evaluate(Graph(classifier()), dataset(), normalisation=Normalisation(scale=0.5), provider="cpu")

    @pytest.mark.parametrize("kind", ["npz", "npy"])
    def test_the_command_evaluates_files(self, tmp_path: Path, kind: str) -> None:
        model = save(classifier(), tmp_path / "text.onnx")
        data = tmp_path / "data"
        if kind == "npy":
            write_folder(data / "test", samples())
        else:
            data.mkdir()
            np.savez(data / "test.npz", **samples())
        result = call("evaluate", model, "--data", data, "--json", "-", "--provider", "cpu")
        assert result.code == 0, result.err
        assert json.loads(result.out)["top1"] == expected(classifier(), samples())
        assert "Inputs: as they are stored." in result.err
        assert "20 test samples" in call("evaluate", model, "--data", data, "--provider", "cpu").out

    def test_the_command_refuses_a_mean_and_wrong_names(self, tmp_path: Path) -> None:
        model = save(classifier(), tmp_path / "text.onnx")
        np.savez(tmp_path / "test.npz", **samples())
        result = call("evaluate", model, "--data", tmp_path / "test.npz", "--mean", "0", "--std", "1")
        assert result.code == 2
        assert "--mean and --std are for images" in only_line(result)
        np.savez(tmp_path / "test.npz", tokens=samples()["ids"], y=samples()["y"])
        result = call("evaluate", model, "--data", tmp_path / "test.npz")
        assert result.code == 3
        assert "missing: 'ids', 'mask'; unknown: 'tokens'" in only_line(result)
