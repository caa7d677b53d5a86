"""A small BERT, exported from torch and fused by onnxruntime's transformers optimiser, resized."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from torch import nn

import conet_onnx as co
from conet_onnx.analysis import Analysis, analyze
from conet_onnx.graph import Graph
from conet_onnx.planning import scaled
from conet_onnx.runtime import run_all

HIDDEN, HEADS, WIDE, LENGTH, PLACES = 32, 4, 48, 8, 64
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Layer(nn.Module):
    """Attention and two dense layers, each added to what it reads and then normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.up, self.down = nn.Linear(HIDDEN, WIDE), nn.Linear(WIDE, HIDDEN)
        self.first, self.second = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        q, k, v = (f(x).view(n, t, HEADS, c // HEADS).permute(0, 2, 1, 3) for f in (self.q, self.k, self.v))
        weights = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(c // HEADS) + mask, -1)
        y = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous().view(n, t, c)
        x = self.first(self.o(y) + x)
        return self.second(self.down(nn.functional.gelu(self.up(x))) + x)


class Bert(nn.Module):
    """Two layers, and a class for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (nn.Embedding(n, HIDDEN) for n in (30, PLACES, 2))
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 3)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.register_buffer("ids", torch.arange(PLACES)[None])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        x = self.words(input_ids) + self.kinds(token_type_ids) + self.places(self.ids[:, : input_ids.shape[1]])
        x, mask = self.norm(x), (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


@pytest.fixture(scope="module", params=["Attention", "MultiHeadAttention", "no embedding"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The fused model, as a file; with or without the three projections in one weight."""
    folder: Path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, and its tracer warns of every Python integer
        torch.onnx.export(
            Bert().eval(),
            tuple(torch.ones(2, LENGTH, dtype=torch.long) for _ in INPUTS),
            folder / "bert.onnx",
            opset_version=14,
            dynamo=False,
            input_names=list(INPUTS),
            output_names=["classes"],
            dynamic_axes={name: {0: "N", 1: "T"} for name in (*INPUTS, "classes")},
        )
    options = FusionOptions("bert")
    options.use_multi_head_attention = request.param == "MultiHeadAttention"
    options.enable_embed_layer_norm = request.param != "no embedding"
    fused = optimize_model(
        str(folder / "bert.onnx"),
        model_type="bert",
        num_heads=HEADS,
        hidden_size=HIDDEN,
        optimization_options=options,
    )
    fused.save_model_to_file(str(folder / "fused.onnx"))
    found = co.load(folder / "fused.onnx", input_shapes=dict.fromkeys(INPUTS, (2, LENGTH)))
    operators = Counter(node.operator for node in found.nodes)
    attention = "MultiHeadAttention" if options.use_multi_head_attention else "Attention"
    assert operators[f"com.microsoft.{attention}"] == operators["com.microsoft.BiasGelu"] == 2
    assert operators["com.microsoft.EmbedLayerNormalization"] == options.enable_embed_layer_norm
    assert operators["LayerNormalization"] == 1 - options.enable_embed_layer_norm  # onnxruntime's own, in opset 14
    return found


@pytest.fixture(scope="module")
def analysis(model: Graph) -> Analysis:
    return analyze(model)


def test_heads_and_the_sizes_of_values_and_of_layers_are_widths(analysis: Analysis) -> None:
    assert sorted(w.size for w in analysis.widths.values()) == sorted([HIDDEN, *[HEADS, HIDDEN // HEADS, WIDE] * 2])
    assert [w.size for w in analysis.widths.values() if not w.exact] == [HIDDEN]
    assert analysis.costs.coverage.params > 0.99
    assert analysis.costs.coverage.macs == 1


def test_the_six_laws_hold(model: Graph) -> None:
    fixed = model.proto()  # the laws' inputs are of the sizes that a file declares
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, (2, LENGTH), strict=False):
            dim.dim_value = size
    oracles.keep_all_laws(fixed)


@pytest.mark.parametrize(("scale", "exact"), [(0.5, True), (2, False)])
def test_what_is_exact_is_proved(analysis: Analysis, scale: float, exact: bool) -> None:
    widths, _ = scaled(analysis, scale, exact=exact)
    decided = co.plan(analysis, widths)
    proof = co.verify(analysis.graph, co.rewrite(analysis.graph, decided), decided, provider="cpu")
    assert not proof.skipped


def test_a_halved_model_runs_on_inputs_of_any_length(analysis: Analysis) -> None:
    widths, _ = scaled(analysis, 0.5)
    decided = co.plan(analysis, widths)
    halved = co.rewrite(analysis.graph, decided)
    assert len(widths) == len(analysis.widths)
    proof = co.verify(analysis.graph, halved, decided, provider="cpu")
    assert [check.name for check in proof.skipped] == ["function"]
    for batch, length in ((1, 3), (4, 20)):
        graph = Graph(halved.proto(), input_shapes=dict.fromkeys(INPUTS, (batch, length)))
        assert run_all(graph, oracles.feeds_of(graph), threads=1)["classes"].shape == (batch, length, 3)
