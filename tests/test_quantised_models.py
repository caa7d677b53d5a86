"""Models that onnxruntime.quantization makes bytes of, as users do: they shrink exactly."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import oracles
import pytest
import torch
from torch import nn

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph
from conet_onnx.planning import plan
from conet_onnx.rewriting import rewrite
from conet_onnx.verification import verify


@functools.cache
def by_onnxruntime(kind: str, *, channels: bool, unsigned: bool, operators: bool = False) -> onnx.ModelProto:
    """A small network that torch exports and onnxruntime.quantization makes bytes of, calibrated on random data."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    shape = (3, 6, 6) if kind == "convolutions" else (6,)
    samples = iter([{"x": np.random.default_rng(k).standard_normal((2, *shape), np.float32)} for k in range(4)])

    class Samples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def get_next(self) -> Any:
            return next(samples, None)

    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated
        torch.manual_seed(0)
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "opset_version": 17}
        axes = {"x": {0: "batch"}, "y": {0: "batch"}}
        torch.onnx.export(
            NETWORKS[kind]().eval(),
            (torch.zeros(2, *shape),),
            f"{folder}/in.onnx",
            dynamo=False,
            dynamic_axes=axes,
            **names,
        )
        quantize_static(
            f"{folder}/in.onnx",
            f"{folder}/out.onnx",
            Samples(),
            per_channel=channels,
            weight_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
        )
        return onnx.load(f"{folder}/out.onnx")


def convolutions() -> nn.Module:
    """Two convolutions, one by channel, and a linear layer."""
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()]
    return nn.Sequential(
        *first, nn.Conv2d(12, 12, 3, groups=12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
    )


def layers() -> nn.Module:
    """Three linear layers."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"convolutions": convolutions, "layers": layers}
SIZES: dict[str, Sequence[int]] = {"convolutions": (8, 12), "layers": (16, 10)}


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_models_that_onnxruntime_quantises_shrink_exactly(kind: str, channels: bool, unsigned: bool) -> None:
    model = by_onnxruntime(kind, channels=channels, unsigned=unsigned)
    analysis = analyze(Graph(model))
    assert [w.size for w in analysis.widths.values()] == list(SIZES[kind])
    verdict = oracles.keep_all_laws(model)
    assert verdict.coverage > 0.95
    assert verdict.moved > 0.05
    halved = plan(analysis, {name: width.size // 2 for name, width in analysis.widths.items()})
    proof = verify(analysis.graph, rewrite(analysis.graph, halved), halved)
    assert not proof.skipped
    assert proof.difference is not None


def test_convolutions_as_single_operators_shrink_until_one_is_unknown() -> None:
    """QLinearGlobalAveragePool and QGemm are onnxruntime's own, and have no rule."""
    model = by_onnxruntime("convolutions", channels=True, unsigned=False, operators=True)
    assert [w.size for w in analyze(Graph(model)).widths.values()] == [8]
    assert oracles.keep_all_laws(model).moved > 0.05
