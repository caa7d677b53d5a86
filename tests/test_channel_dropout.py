"""Training with channel dropout: repeatable, resumable, at the rates that were asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import call, only_line, save, small_model
from golden_models import model_of
from onnx import helper
from test_checkpoints import stopped
from test_dropping import residual
from test_train import network, problem, train

from conet_onnx.analysis import analyze
from conet_onnx.data import Split
from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend import fit
from conet_onnx.torch_backend.dropping import Dropping, insert_drops, seeded
from conet_onnx.torch_backend.learner import Learner
from conet_onnx.torch_backend.settings import Settings
from tests.onnx_parity import build, some

OPTIONS: dict[str, Any] = {"epochs": 4, "ema": 0.9, "accumulate": 3, "threads": 1, "channel_dropout": 0.4}


class Watched:
    """Every draw of a training: rates, samples, rows, and the state of the generator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[dict[str, float], int, Any, int]] = []
        draw = Dropping.draw

        def watched(dropping: Dropping, samples: int, generator: torch.Generator, *, rows: Any = None) -> None:
            self.seen.append((dict(dropping.rates), samples, rows, generator.initial_seed()))
            draw(dropping, samples, generator, rows=rows)

        monkeypatch.setattr(Dropping, "draw", watched)


class TestTraining:
    def test_without_it_nothing_is_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        watched = Watched(monkeypatch)
        plain = train(network(), problem(), epochs=1)
        assert not watched.seen
        assert plain.undropped == {}
        assert train(network(), problem(), epochs=1, channel_dropout=0.0).graph.model == plain.graph.model

    def test_it_changes_what_is_learned_and_learns_all_the_same(self) -> None:
        plain, dropped, again = (train(network(), problem(), channel_dropout=p) for p in (0.0, 0.2, 0.2))
        assert dropped.graph.model == again.graph.model
        assert not np.array_equal(dropped.graph.array("fc.w"), plain.graph.array("fc.w"))
        assert dropped.history[-1]["accuracy"] > 0.9
        assert dropped.history[-1]["loss"] > plain.history[-1]["loss"]
        other = train(network(), problem(), channel_dropout=0.2, seed=1)
        assert not np.array_equal(dropped.graph.array("fc.w"), other.graph.array("fc.w"))

    def test_the_rate_grows_to_what_was_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        watched = Watched(monkeypatch)
        train(network(), problem(40), epochs=4, batch=16, channel_dropout=0.2)
        rates = [rates["w0"] for rates, *_ in watched.seen]
        assert rates == pytest.approx(sorted([0.05, 0.1, 0.15, 0.2] * 3))  # batches of 16, 16 and 8
        assert [samples for _, samples, *_ in watched.seen] == [16, 16, 8] * 4
        expected = [seeded(0, epoch, at).initial_seed() for epoch in range(4) for at in (1, 2, 3)]
        assert [seed for *_, seed in watched.seen] == expected
        assert len(set(expected)) == 12

    def test_the_rate_can_grow_with_depth(self, monkeypatch: pytest.MonkeyPatch) -> None:
        watched = Watched(monkeypatch)
        x = np.random.default_rng(0).standard_normal((20, 2, 5, 5)).astype(np.float32)
        data = Split(x, np.arange(20) % 4)
        fit(residual(), data, epochs=2, batch=20, channel_dropout=0.4, dropout_by_depth=True, accelerator="cpu")
        assert [rates for rates, *_ in watched.seen] == [
            {"w0": pytest.approx(0.1), "w1": pytest.approx(0.2)},
            {"w0": pytest.approx(0.2), "w1": pytest.approx(0.4)},
        ]

    def test_norms_are_inserted_beside_it(self) -> None:
        options: dict[str, Any] = {"epochs": 2, "batchnorm": "reinsert", "accelerator": "cpu", "batch": 20}
        rng = np.random.default_rng(0)
        data = Split(rng.standard_normal((60, 2, 5, 5)).astype(np.float32), np.arange(60) % 4)
        plain, dropped = (fit(residual(), data, channel_dropout=p, **options) for p in (0.0, 0.3))
        assert not np.array_equal(plain.graph.array("d.w"), dropped.graph.array("d.w"))
        assert np.isfinite(dropped.graph.array("d.w")).all()
        assert dropped.undropped == {}

    def test_a_batch_that_is_baked_in_is_freed(self) -> None:
        free, fixed = (train(network(batch=b), problem(), epochs=2, channel_dropout=0.3).graph for b in ("batch", 1))
        for name in ("conv.w", "fc.w", "norm.v"):
            np.testing.assert_array_equal(free.array(name), fixed.array(name))

    def test_freeing_it_tells_which_positions_are_whose(self) -> None:
        """Samples are the second axis in the middle of the model, which takes any batch though it says 1."""
        rng = np.random.default_rng(0)
        weights = {"a.w": some((4, 3), rng), "b.w": some((3, 2), rng)}
        nodes = [
            helper.make_node("MatMul", ["x", "a.w"], ["h"]),
            helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0, 2]),
            helper.make_node("MatMul", ["t", "b.w"], ["u"]),
            helper.make_node("Transpose", ["u"], ["y"], perm=[1, 0, 2]),
        ]
        graph = Graph(build(nodes, {"x": np.zeros((1, 5, 4), np.float32)}, weights, ["y"], 17))
        data = Split(some((20, 5, 4), rng))
        fitted = fit(graph, data, teacher=graph, epochs=1, batch=8, channel_dropout=0.3, accelerator="cpu")
        assert fitted.undropped == {}
        assert not np.array_equal(fitted.graph.array("b.w"), weights["b.w"])
        assert fitted.graph.inputs[0].shape == (1, 5, 4)

    def test_what_is_not_dropped_is_told(self) -> None:
        graph = Graph(model_of("lstm"))
        shape = [size if isinstance(size, int) else 2 for size in graph.inputs[0].shape[1:]]
        data = Split(np.random.default_rng(0).integers(0, 2, (8, *shape)).astype(graph.inputs[0].dtype))
        options: dict[str, Any] = {"teacher": graph, "epochs": 1, "batch": 4, "accelerator": "cpu"}
        fitted = fit(graph, data, channel_dropout=0.1, **options)
        assert list(fitted.undropped) == ["w1"]

    def test_a_model_without_widths_is_refused(self) -> None:
        graph = network()
        nodes = [node for node in graph.model.graph.node if node.op_type == "Gemm"]
        model = graph.proto()
        del model.graph.node[:]
        nodes[0].input[0] = "x"
        model.graph.node.extend(nodes)
        shape = model.graph.input[0].type.tensor_type.shape
        shape.ClearField("dim")
        shape.dim.add(dim_param="batch")
        shape.dim.add(dim_value=72)
        data = Split(np.zeros((8, 72), np.float32), np.zeros(8, np.int64))
        with pytest.raises(UsageError, match="no channels can be dropped in the model, which has no widths"):
            fit(Graph(model), data, epochs=1, channel_dropout=0.1, accelerator="cpu")

    @pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
    def test_a_rate_that_makes_no_sense_is_said(self, rate: float) -> None:
        with pytest.raises(UsageError, match="a rate of dropping lies between 0 and 1"):
            Settings(epochs=1, channel_dropout=rate)


class TestGoingOn:
    @pytest.mark.parametrize("after", [0.37, 0.5])
    def test_the_weights_are_those_of_a_training_that_was_not_stopped(self, tmp_path: Path, after: float) -> None:
        """In the midst of an epoch, and at the end of one."""
        whole = train(network(), problem(), **OPTIONS)
        stopped(network(), tmp_path / "state", after, **OPTIONS)
        resumed = train(network(), problem(), checkpoint=tmp_path / "state", **OPTIONS)
        assert resumed.graph.model == whole.graph.model

    def test_a_checkpoint_of_another_rate_is_refused(self, tmp_path: Path) -> None:
        train(network(), problem(), checkpoint=tmp_path / "state", **OPTIONS)
        with pytest.raises(UsageError, match=r"its channel_dropout is 0\.4, now 0\.1"):
            train(network(), problem(), checkpoint=tmp_path / "state", **{**OPTIONS, "channel_dropout": 0.1})


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(small_model(classes=4), tmp_path / "model.onnx")
        rng = np.random.default_rng(0)
        arrays = {"x_train": rng.normal(0, 1, (60, 1, 8, 8)).astype(np.float32), "y_train": rng.integers(0, 4, 60)}
        np.savez(tmp_path / "data.npz", **arrays)
        monkeypatch.chdir(tmp_path)

    LINE = "finetune model.onnx --data data.npz --mean 0 --std 1 --threads 1 --provider cpu --epochs 1"

    def test_the_option_is_the_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        watched = Watched(monkeypatch)
        assert call(f"{self.LINE} -o plain.onnx").code == 0
        assert not watched.seen
        result = call(f"{self.LINE} -o out.onnx --channel-dropout 0.25 --json out.json")
        assert result.code == 0
        assert watched.seen[0][0] == {"w0": 0.25, "w1": 0.25}
        assert json.loads(Path("out.json").read_text())["undropped"] == {}
        assert "Not dropped" not in result.out

    def test_what_is_not_dropped_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("conet_onnx.torch_backend.train._dropping", half_dropping)
        result = call(f"{self.LINE} -o out.onnx --channel-dropout 0.25")
        assert "Not dropped: channels of w1. It is too small." in result.out

    def test_a_share_is_asked_for(self) -> None:
        assert "--channel-dropout" in only_line(call(f"{self.LINE} -o out.onnx --channel-dropout 1"))


def half_dropping(learner: Learner) -> Dropping:
    """One of the two widths."""
    made = insert_drops(learner.module, analyze(learner.graph))
    return Dropping({"w0": 6}, {"w1": "It is too small."}, "bernoulli", factors=made.factors)
