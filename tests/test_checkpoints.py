"""A training that is stopped, killed, or runs into numbers that are none loses nothing that was good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli_support import call, only_line, save, small_model
from onnx import helper, numpy_helper
from test_train import SHAPE, network, problem, train, with_dropout

from conet_onnx.data import Split
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import Diverged
from conet_onnx.torch_backend.checkpoints import Stopped
from tests.onnx_parity import Array

OPTIONS: dict[str, Any] = {"epochs": 4, "teacher": network(16), "ema": 0.9, "accumulate": 3, "threads": 1}


def stopped(graph: Graph, file: Path, after: float, which: signal.Signals = signal.SIGTERM, **options: Any) -> None:
    """Train until so much is done, and then be asked to stop."""

    asked: list[float] = []

    def progress(done: float) -> None:
        if done >= after and not asked:
            asked.append(done)
            os.kill(os.getpid(), which)

    with pytest.raises(Stopped):
        train(graph, problem(), checkpoint=file, progress=progress, **options)


class TestGoingOn:
    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    @pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
    def test_the_weights_are_those_of_a_training_that_was_not_stopped(
        self, tmp_path: Path, optimizer: Any, schedule: Any
    ) -> None:
        """In the midst of an epoch, of a step of several batches, and with chance in the model."""
        options = {**OPTIONS, "optimizer": optimizer, "schedule": schedule}
        whole = train(with_dropout(), problem(), **options)
        file = tmp_path / "state.ckpt"
        stopped(with_dropout(), file, 0.37, **options)
        assert file.exists()
        stopped(with_dropout(), file, 0.7, signal.SIGINT, **options)
        rest: list[float] = []
        resumed = train(with_dropout(), problem(), checkpoint=file, progress=rest.append, **options)
        assert resumed.graph.model == whole.graph.model
        assert min(rest) > 0.7
        told = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in resumed.history]
        assert told == [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in whole.history]

    def test_with_norms_that_were_inserted(self, tmp_path: Path) -> None:
        options = {**OPTIONS, "batchnorm": "reinsert"}
        graph = Graph(small_model(classes=4, size=6))
        whole = train(graph, problem(), **{**options, "teacher": None})
        stopped(graph, tmp_path / "state", 0.5, **{**options, "teacher": None})
        resumed = train(graph, problem(), checkpoint=tmp_path / "state", **{**options, "teacher": None})
        assert resumed.graph.model == whole.graph.model

    def test_a_training_that_is_over_is_not_done_again(self, tmp_path: Path) -> None:
        first = train(network(), problem(), epochs=2, checkpoint=tmp_path / "state")
        seen: list[float] = []
        again = train(network(), problem(), epochs=2, checkpoint=tmp_path / "state", progress=seen.append)
        assert not seen
        assert again.graph.model == first.graph.model

    def test_of_another_training_is_refused(self, tmp_path: Path) -> None:
        train(network(), problem(), epochs=2, lr=0.01, checkpoint=tmp_path / "state")
        with pytest.raises(UsageError, match=r"its lr is 0\.01, now 0\.02"):
            train(network(), problem(), epochs=2, lr=0.02, checkpoint=tmp_path / "state")
        with pytest.raises(UsageError, match="of another training: its source"):
            train(network(seed=1), problem(), epochs=2, lr=0.01, checkpoint=tmp_path / "state")
        with pytest.raises(UsageError, match="of another training: its teacher"):
            train(network(), problem(), epochs=2, lr=0.01, teacher=network(16), checkpoint=tmp_path / "state")

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
    def test_what_is_no_checkpoint_is_said(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "state").write_bytes(content)
        with pytest.raises(UsageError, match="is no checkpoint of a training"):
            train(network(), problem(), epochs=1, checkpoint=tmp_path / "state")

    def test_signals_are_left_as_they_were(self, tmp_path: Path) -> None:
        before = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]
        train(network(), problem(32), epochs=1, checkpoint=tmp_path / "state")
        assert [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save(small_model(classes=4), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.normal(0, 1, (3000, 1, 8, 8)).astype(np.float32), "y_train": rng.integers(0, 4, 3000)}
    np.savez(tmp_path / "data.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    return tmp_path


LINE = "finetune model.onnx --data data.npz --mean 0 --std 1 --threads 1 --provider cpu --epochs 4 --batch 8 --ema 0.9"


class TestCommandLine:
    @pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGTERM])
    def test_after_a_signal_the_same_file_comes_out(self, folder: Path, which: signal.Signals) -> None:
        """Killed after an epoch or later, and asked to stop: --resume ends with the bytes of an uninterrupted run."""
        assert call(f"{LINE} -o whole.onnx").code == 0
        words = [sys.executable, "-m", "conet_onnx", *LINE.split(), "-o", "out.onnx"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as running:
            until = time.monotonic() + 120
            while not Path("out.onnx.ckpt").exists() and running.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
            running.send_signal(which)
            _, err = running.communicate(timeout=120)
        assert running.returncode == (130 if which == signal.SIGTERM else -signal.SIGKILL)
        assert not Path("out.onnx").exists()
        if which == signal.SIGTERM:
            assert "out.onnx.ckpt holds what was done. Go on with: conet-onnx finetune" in err
            assert err.rstrip().endswith("--resume")
        assert "go on with --resume, or remove it" in only_line(call(f"{LINE} -o out.onnx"))
        result = call(f"{LINE} -o out.onnx --resume")
        assert result.code == 0
        assert "from where it was stopped" in result.err
        assert Path("out.onnx").read_bytes() == Path("whole.onnx").read_bytes()
        assert not Path("out.onnx.ckpt").exists()


def broken(at: str) -> Graph:
    """The network, with the logarithm of something that is negative as soon as weights move: it begins at `at`."""
    model = onnx.ModelProto()
    model.CopyFrom(network().model)
    nodes = list(model.graph.node)
    nodes[-1].output[0] = "before"
    nodes += [
        helper.make_node("Mul", ["before", "small"], ["tiny"]),
        helper.make_node("Add", ["tiny", "offset"], ["moved"]),
        helper.make_node("Log", ["moved"], ["scores"], name=at),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", 4]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "small"))
    model.graph.initializer.append(numpy_helper.from_array(np.full(4, 6, np.float32), "offset"))
    return Graph(model)


class TestNumbersThatAreNone:
    def test_the_node_is_named(self) -> None:
        with pytest.raises(Diverged, match=r"nan in batch \d+ of epoch \d+.* It began at Log 'the_log'") as caught:
            train(broken("the_log"), problem(), epochs=20, lr=0.2, clip=None)
        assert "whose result holds nan" in str(caught.value)

    def test_the_last_good_weights_are_kept(self, tmp_path: Path) -> None:
        """Those of the last epoch whose losses were all numbers: what a training of so many epochs ends with."""
        seen: list[float] = []
        options: dict[str, Any] = {"epochs": 40, "lr": 0.05, "clip": None, "schedule": "constant", "warmup": 0.0}
        with pytest.raises(Diverged) as caught:
            train(broken("the_log"), problem(), progress=seen.append, **options)
        good = caught.value.good
        assert good is not None
        count = len(good.history)
        assert 0 < count == int(seen[-1] * 40)
        same = train(broken("the_log"), problem(), **{**options, "epochs": count})
        for name in same.graph.weights:
            np.testing.assert_array_equal(good.graph.array(name), same.graph.array(name))

    def test_the_data_is_blamed_where_it_is_to_blame(self) -> None:
        data = Split(np.full((20, *SHAPE), np.nan, np.float32), np.zeros(20, np.int64))
        with pytest.raises(Diverged, match="It began in the data: input 'x' holds nan") as caught:
            train(network(), data)
        assert caught.value.good is None

    def test_the_step_is_blamed_where_weights_are_lost(self) -> None:
        with pytest.raises(Diverged, match=r"It began (in the step before, which made weight '[\w.]+'|at)"):
            train(network(), problem(), lr=1e30, clip=None)

    def test_masks_are_not_blamed(self) -> None:
        """An infinity that the file holds, and that a Softmax takes away, is where nothing began."""
        from conet_onnx.torch_backend.blame import blame
        from conet_onnx.torch_backend.learner import Learner
        from tests.onnx_parity import build

        weights: dict[str, Array] = {
            "mask": np.array([[0, -np.inf, 0]], np.float32),
            "big": np.full((1, 3), 3e38, np.float32),
            "w": np.ones((3, 3), np.float32),
        }
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Add", ["m", "mask"], ["a"]),
            helper.make_node("Softmax", ["a"], ["s"], axis=-1),
            helper.make_node("Mul", ["s", "big"], ["b"]),
            helper.make_node("Add", ["b", "b"], ["y"], name="the_sum"),
        ]
        graph = Graph(build(nodes, {"x": np.zeros((2, 3), np.float32)}, weights, ["y"], 17, "batch"))
        learner = Learner(graph, torch.device("cpu"))
        learner.keep(["y"])
        said = blame(learner, [torch.tensor([[500.0, 0.0, 0.0], [9.0, 0.0, 0.0]])])
        assert "Softmax" not in said

    def test_the_command_line_writes_them(self, folder: Path) -> None:
        save(broken("the_log").model, folder / "broken.onnx")
        data = problem()
        np.savez("pixels.npz", x_train=data.images[:], y_train=data.labels)
        line = (
            "finetune broken.onnx -o out.onnx --data pixels.npz --mean 0.4 --std 0.25 --threads 1 --provider cpu "
            "--epochs 40 --lr 0.05 --clip 1000 --schedule constant --warmup 0 --batch 16"
        )
        result = call(line)
        assert result.code == 2
        assert "out.onnx holds the weights after epoch" in only_line(result)
        trained = Graph(onnx.load("out.onnx"))
        assert all(np.isfinite(trained.array(name)).all() for name in trained.weights)
        assert not np.array_equal(trained.array("fc.w"), network().array("fc.w"))
        assert not Path("out.onnx.ckpt").exists()
