"""`analyze --json` as the contract has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zoo
from onnx import helper
from test_coupling import conv, model, residual

from conet_onnx.analysis import analyze
from conet_onnx.loading import load

ROOT = Path(__file__).resolve().parent.parent


def test_the_json_has_the_fields_of_the_contract() -> None:
    found = json.loads(json.dumps(analyze(load(ROOT / "models" / "digits_resnet8.onnx")).as_json()))
    assert found["format"] == "conet-onnx-analysis/1"
    assert set(found["model"]) == {"file", "sha256", "opset", "nodes", "params", "macs", "inputs", "outputs"}
    assert set(found["model"]["inputs"][0]) == {"name", "shape", "dtype"}
    for group in found["groups"]:
        bounds = {"size", "min", "max", "multiple"}
        assert set(group) == {"id", "name", "exact", "mixed_by", "members", "params", "macs"} | bounds
        assert {key for member in group["members"] for key in member} == {"tensor", "axis", "role"}
    for frozen in found["frozen"]:
        assert set(frozen) == {"tensor", "axis", "size", "reason"}
        assert set(frozen["reason"]) == {"kind", "node", "detail"}
    assert set(found["coverage"]) == {"params", "macs"}


def test_shares_count_what_a_width_touches() -> None:
    analysis = analyze(residual())
    (group,) = analysis.as_json()["groups"]
    assert group["params"] == 6 * 3 + 6 * 3 + 5 * 6
    assert group["macs"] == 64 * (6 * 3 + 6 * 3 + 5 * 6)
    assert analysis.costs.source == (66, 64 * 66, 4 * 66)


def test_a_scale_that_layers_share_counts_once() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a", "bias"], ["ya"]),
        helper.make_node("Conv", ["ya", "b", "bias"], ["yb"]),
        helper.make_node("Add", ["ya", "yb"], ["s"]),
        conv("s", "c", "y"),
    ]
    analysis = analyze(model(nodes, {"a": (6, 3, 1, 1), "b": (6, 6, 1, 1), "c": (5, 6, 1, 1), "bias": (6,)}))
    assert analysis.costs.share("w0").params == analysis.costs.source.params == 18 + 36 + 30 + 6


@pytest.mark.parametrize("name", zoo.MODELS)
def test_convolutional_networks_are_covered_whole(name: str) -> None:
    coverage = analyze(zoo.graph(name)).costs.coverage
    assert coverage.params > 0.99
    assert coverage.macs > 0.94  # the stem of SqueezeNet reads an image, but makes a width


@pytest.mark.parametrize("name", zoo.MODELS)
def test_macs_do_not_depend_on_the_batch_of_the_file(name: str) -> None:
    static, dynamic = (zoo.graph(name, dynamic_batch=flag) for flag in (False, True))
    assert analyze(static).costs.source.macs == analyze(dynamic).costs.source.macs
