"""`finetune` trains a model as it is: on labels, on what a teacher says, and only where there is something to learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_support import call, listing, only_line, save, small_model
from onnx import TensorProto, helper, numpy_helper

import conet_onnx as co
from conet_onnx.data import Normalisation, load_data
from conet_onnx.errors import UsageError
from conet_onnx.evaluation import Choice, evaluate
from conet_onnx.finetuning import finetune
from conet_onnx.runtime import run

PLAIN = Choice(Normalisation(mean=(0.0,), std=(1.0,), scale=1.0), "given")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """model.onnx and teacher.onnx, and images of four classes that a threshold tells apart, with and without labels."""
    save(small_model(classes=4), tmp_path / "model.onnx")
    save(small_model(classes=4, seed=1), tmp_path / "teacher.onnx")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 400), ("test", 80)):
        labels = rng.integers(0, 4, count)
        images = rng.normal(0, 0.3, (count, 1, 8, 8)) + (labels - 1.5)[:, None, None, None]
        arrays |= {f"x_{split}": images.astype(np.float32), f"y_{split}": labels}
    np.savez(tmp_path / "data.npz", **arrays)
    np.savez(tmp_path / "bare.npz", **{name: array for name, array in arrays.items() if name.startswith("x_")})
    monkeypatch.chdir(tmp_path)
    return tmp_path


ONE = ("--mean", "0", "--std", "1", "--threads", "1", "--provider", "cpu")


class TestLearning:
    def test_from_labels(self, folder: Path) -> None:
        result = call("finetune model.onnx -o out.onnx --data data.npz --epochs 15 --lr 0.05 --json out.json", *ONE)
        assert result.code == 0
        found = json.loads((folder / "out.json").read_text())
        assert found["format"] == "conet-onnx-finetune/1"
        assert set(found) == {
            "format",
            "normalisation",
            "epochs",
            "seconds",
            "before",
            "after",
            "untrained",
            "untrained_weights",
            "undropped",
            "flushed",
        }
        assert found["before"]["test"]["top1"] < 0.6
        assert found["after"]["test"]["top1"] > 0.9
        assert len(found["epochs"]) == 15
        assert found["epochs"][-1]["cross_entropy"] < found["epochs"][0]["cross_entropy"]
        for expected in ("validation accuracy", "test accuracy", "15 epochs in", "Written: out.onnx",
                         "conet-onnx evaluate out.onnx --data data.npz"):  # fmt: skip
            assert expected in result.out
        assert "Training model.onnx for 15 epochs on 360 images of data.npz, from labels." in result.err
        again = evaluate(co.load("out.onnx"), load_data("data.npz"), provider="cpu", normalisation=PLAIN.normalisation)
        assert again.top1 == found["after"]["test"]["top1"]

    def test_the_network_stays_what_it_was(self, folder: Path) -> None:
        assert call("finetune model.onnx -o out.onnx --data data.npz --epochs 1", *ONE).code == 0
        before, after = (onnx.load(name) for name in ("model.onnx", "out.onnx"))
        for model in (before, after):
            for tensor in model.graph.initializer:
                tensor.ClearField("raw_data")
        assert before == after

    def test_from_a_teacher_alone(self, folder: Path) -> None:
        """Without labels the student comes to say what the teacher says."""
        line = "finetune model.onnx -o out.onnx --data bare.npz --teacher teacher.onnx --epochs 30 --lr 0.05"
        result = call(line, *ONE)
        assert result.code == 0
        assert "from what teacher.onnx says." in result.err
        assert "training distillation, first and last epoch" in result.out
        assert "accuracy" not in result.out
        x = np.load("bare.npz")["x_test"]
        said = {}
        for name in ("model.onnx", "teacher.onnx", "out.onnx"):
            scores = np.exp(run(co.load(name), {"x": x}, provider="cpu")["y"])
            said[name] = scores / scores.sum(1, keepdims=True)
        far = {name: np.abs(shares - said["teacher.onnx"]).mean() for name, shares in said.items()}
        assert far["out.onnx"] < far["model.onnx"] / 5

    def test_from_a_folder_of_images(self, folder: Path) -> None:
        """Any model and images are enough: the model as it was teaches what has become of it."""
        from PIL import Image

        (folder / "images").mkdir()
        for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)):
            Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        assert call("resize model.onnx -o small.onnx --scale 0.5").code == 0
        result = call(
            "finetune small.onnx -o out.onnx --data images --teacher model.onnx --epochs 8 --json out.json", *ONE
        )
        assert result.code == 0
        assert "on 36 images of images, from what model.onnx says." in result.err
        epochs = json.loads((folder / "out.json").read_text())["epochs"]
        assert epochs[-1]["distillation"] < epochs[0]["distillation"]

    def test_labels_can_be_left_out(self, folder: Path) -> None:
        lines = [
            f"finetune model.onnx -o {out} --data {data} --teacher teacher.onnx --epochs 2 {more}"
            for out, data, more in (("a.onnx", "data.npz", "--labels none"), ("b.onnx", "bare.npz", ""),
                                    ("c.onnx", "data.npz", ""))
        ]  # fmt: skip
        assert [call(line, *ONE).code for line in lines] == [0, 0, 0]
        a, b, c = (Path(name).read_bytes() for name in ("a.onnx", "b.onnx", "c.onnx"))
        assert a == b
        assert a != c

    def test_the_same_seed_gives_the_same_bytes(self, folder: Path) -> None:
        for out, seed in (("a", 1), ("b", 1), ("c", 2)):
            assert call(f"finetune model.onnx -o {out} --data data.npz --epochs 1 --seed {seed}", *ONE).code == 0
        a, b, c = (Path(name).read_bytes() for name in "abc")
        assert a == b != c

    def test_settings_reach_the_training(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, object] = {}

        def fit(*_: object, **settings: object) -> object:
            asked.update(settings)
            raise UsageError("seen")

        monkeypatch.setattr("conet_onnx.torch_backend.train.fit", fit)
        line = (
            "finetune model.onnx -o o.onnx --data data.npz --teacher teacher.onnx --epochs 3 --distill 0.25 --batch 8 "
            "--temperature 2 --optimizer adamw --lr 0.1 --weight-decay 0.3 --precision bf16-mixed --seed 9 "
            "--batchnorm reinsert --schedule step --warmup 0.3 --accumulate 2 --clip 1.5 --ema 0.99"
        )
        assert only_line(call(line, *ONE)).endswith("seen")
        wanted = {"epochs": 3, "distill": 0.25, "batch": 8, "temperature": 2.0, "optimizer": "adamw", "lr": 0.1,
                  "weight_decay": 0.3, "precision": "bf16-mixed", "seed": 9, "threads": 1, "labels": True,
                  "batchnorm": "reinsert", "schedule": "step", "warmup": 0.3, "accumulate": 2, "clip": 1.5,
                  "ema": 0.99}  # fmt: skip
        assert {name: asked[name] for name in wanted} == wanted
        assert only_line(call("finetune model.onnx -o o.onnx --data data.npz", *ONE)).endswith("seen")
        assert asked["distill"] == 0.9


def two_outputs(first: str, second: str) -> onnx.ModelProto:
    """The small model with its classes sorted, which torch's table does not have: Unique of its scores."""
    model = small_model(classes=4)
    model.graph.node.append(helper.make_node("Unique", ["y"], ["values"], name="sorted"))
    made = {"y": model.graph.output[0], "values": helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n"])}
    ordered = [onnx.ValueInfoProto.FromString(made[name].SerializeToString()) for name in (first, second)]
    del model.graph.output[:]
    model.graph.output.extend(ordered)
    return model


class TestOutputsThatCannotBeTrained:
    def test_they_are_named(self, folder: Path) -> None:
        save(two_outputs("y", "values"), folder / "model.onnx")
        result = call("finetune model.onnx -o out.onnx --data data.npz --epochs 1", *ONE)
        assert result.code == 0
        assert "Not trained: output 'values'." in result.out
        assert "Unique 'sorted'" in result.out

    def test_weights_that_only_they_depend_on_are_named(self, folder: Path) -> None:
        model = two_outputs("y", "values")
        names = [f"scale{k}" for k in range(4)]
        for k, name in enumerate(names):
            model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 4), np.float32), name))
            model.graph.node.insert(
                len(model.graph.node) - 1, helper.make_node("Mul", [f"s{k - 1}" if k else "y", name], [f"s{k}"])
            )
        model.graph.node[-1].input[0] = "s3"
        save(model, folder / "model.onnx")
        result = call("finetune model.onnx -o out.onnx --data data.npz --epochs 1 --json out.json", *ONE)
        assert result.code == 0
        assert "Not trained: 4 weights ('scale0', 'scale1', 'scale2' ...). Unique 'sorted'" in result.out
        found = json.loads((folder / "out.json").read_text())["untrained_weights"]
        assert list(found) == names
        after = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "out.onnx").graph.initializer}
        assert all((after[name] == 1).all() for name in names)

    def test_the_first_must_be_trained(self, folder: Path) -> None:
        save(two_outputs("values", "y"), folder / "model.onnx")
        result = call("finetune model.onnx -o out.onnx --data data.npz --epochs 1", *ONE)
        assert result.code != 0
        assert not (folder / "out.onnx").exists()


class TestBadInput:
    @pytest.mark.parametrize(
        ("line", "code", "expected"),
        [
            ("model.onnx -o o.onnx --data bare.npz", 2, "bare.npz has no labels, and there is no teacher"),
            ("model.onnx -o o.onnx --data data.npz --labels none", 2, "its labels are not to be used"),
            ("missing.onnx -o o.onnx --data data.npz", 3, "missing.onnx"),
            ("model.onnx -o o.onnx --data data.npz --teacher missing.onnx", 3, "missing.onnx"),
            ("model.onnx -o o.onnx --data missing.npz", 3, "missing.npz"),
            ("model.onnx -o no/o.onnx --data data.npz", 2, "there is no folder"),
            ("model.onnx -o o.onnx --json o.onnx --data data.npz", 2, "different files"),
            ("model.onnx -o model.onnx --data data.npz", 2, "different files"),
            ("model.onnx -o teacher.onnx --data data.npz --teacher teacher.onnx", 2, "different files"),
            ("model.onnx -o o.onnx --json model.onnx --data data.npz", 2, "different files"),
            ("model.onnx -o o.onnx --data data.npz --epochs 0", 2, "--epochs"),
            ("model.onnx -o o.onnx --data data.npz --distill 2", 2, "--distill"),
            ("model.onnx -o o.onnx --data data.npz --lr nan", 2, "--lr"),
            ("model.onnx -o o.onnx --data data.npz --lr 1e30 --epochs 3", 2, "diverged"),
            ("model.onnx -o o.onnx --data data.npz --precision sixteen", 2, "sixteen"),
            ("model.onnx -o o.onnx --data digits --epochs 1", 3, "out of range"),
            ("wide.onnx -o o.onnx --data data.npz", 3, "16"),
            ("model.onnx -o o.onnx --data data.npz --teacher ten.onnx --epochs 1", 2, "10 classes"),
        ],
    )
    def test_each_is_one_line_and_leaves_nothing(self, folder: Path, line: str, code: int, expected: str) -> None:
        save(small_model(classes=4, size=16), folder / "wide.onnx")
        save(small_model(classes=10), folder / "ten.onnx")
        before = listing(folder)
        result = call(f"finetune {line}", *ONE)
        assert expected in only_line(result)
        assert result.code == code
        assert listing(folder) == before

    def test_without_labels_the_inputs_must_be_said(self, folder: Path) -> None:
        result = call("finetune model.onnx -o o.onnx --data bare.npz --teacher teacher.onnx --epochs 1")
        assert result.code == 3
        assert "say it with --mean and --std" in only_line(result)

    def test_interrupted_it_leaves_nothing(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fit(*_: object, **__: object) -> object:
            raise KeyboardInterrupt

        monkeypatch.setattr("conet_onnx.torch_backend.train.fit", fit)
        before = listing(folder)
        result = call("finetune model.onnx -o o.onnx --data data.npz", *ONE)
        assert result.code == 130
        assert "nothing was written" in result.err
        assert listing(folder) == before


def test_from_python(folder: Path) -> None:
    dataset = load_data("data.npz")
    found = finetune(co.load("model.onnx"), dataset, epochs=2, choice=PLAIN, provider="cpu", threads=1)
    assert list(found.before) == list(found.after) == ["validation", "test"]
    assert found.untrained == {}
    assert found.untrained_weights == {}
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load("model.onnx").graph.initializer}
    assert all(not np.array_equal(found.graph.array(name), array) for name, array in weights.items())


TASK = '''
import numpy as np
from torch.nn import functional as F


class Height:
    """The first score is the mean of the image."""

    def loss(self, outputs, targets):
        return F.mse_loss(outputs["y"][:, 0], targets)

    def metric(self, outputs, targets):
        return {"off": float(np.abs(outputs["y"][:, 0] - targets).mean())}


class Blind:
    """Not a task."""


def data():
    from conet_onnx.data import DataSet, Split

    rng = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", 300), ("validation", 40), ("test", 50)):
        heights = rng.uniform(-2, 2, count).astype(np.float32)
        images = rng.normal(0, 0.3, (count, 1, 8, 8)) + heights[:, None, None, None]
        splits[name] = Split(images.astype(np.float32), heights)
    return DataSet("heights", splits)
'''


class TestTasks:
    @pytest.fixture(autouse=True)
    def module(self, folder: Path, request: pytest.FixtureRequest) -> str:
        name = f"task_{abs(hash(request.node.name))}"  # modules are imported once
        (folder / f"{name}.py").write_text(TASK)
        return name

    def test_a_users_own_is_learned_and_judged_by(self, folder: Path, module: str) -> None:
        line = f"finetune model.onnx -o out.onnx --data {module}:data --task {module}:Height --epochs 20 --lr 0.05"
        result = call(f"{line} --json out.json", *ONE)
        assert result.code == 0, result.err
        assert f"from the loss of {module}:Height." in result.err
        assert "test off" in result.out
        found = json.loads((folder / "out.json").read_text())
        assert found["after"]["test"]["measures"]["off"] < found["before"]["test"]["measures"]["off"] / 3
        assert found["after"]["test"]["samples"] == 50

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            ("nothing", "write it as module:name"),
            ("{}:Nothing", "has no attribute 'Nothing'"),
            ("no_such_module:Task", "No module named 'no_such_module'"),
            ("{}:Blind", "it has no method loss(outputs, targets)"),
        ],
    )
    def test_what_is_none_is_said(self, folder: Path, module: str, task: str, expected: str) -> None:
        result = call(f"finetune model.onnx -o o.onnx --data {module}:data --task {task.format(module)}", *ONE)
        assert expected in only_line(result)
        assert result.code == 2


def test_without_labels_agreement_with_the_teacher_is_told(folder: Path) -> None:
    result = call(
        "finetune model.onnx -o out.onnx --data bare.npz --teacher teacher.onnx --epochs 20 --lr 0.05 --json out.json",
        *ONE,
    )
    assert "test same class as the teacher" in result.out
    assert "conet-onnx evaluate" not in result.out  # it wants labels
    found = json.loads((folder / "out.json").read_text())
    before, after = (found[when]["test"] for when in ("before", "after"))
    assert after["error"] < before["error"] / 4
    assert after["same"] > before["same"]


def test_a_batch_is_freed_where_it_is_asked_for(folder: Path) -> None:
    model = small_model(classes=4)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    save(model, folder / "one.onnx")
    line = "finetune one.onnx --data data.npz --epochs 1"
    assert call(f"{line} -o kept.onnx", *ONE).code == 0
    result = call(f"{line} -o free.onnx --free-batch", *ONE)
    assert result.code == 0
    assert "The batch is free (it was 1): x [batch, 1, 8, 8]" in result.out
    kept, free = (co.load(name) for name in ("kept.onnx", "free.onnx"))
    assert (kept.inputs[0].shape[0], free.inputs[0].shape[0]) == (1, "batch")
    assert all(np.array_equal(kept.array(name), free.array(name)) for name in kept.weights)
