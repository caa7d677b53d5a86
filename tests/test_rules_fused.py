"""What onnxruntime's fused operators say about their axes, and models that its optimisers have made."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import oracles
import pytest
from strategies import Builder
from test_rules import HEIGHT, WIDTH, Build, Case, check, dense, grid, made

from conet_onnx.analysis import analyze
from conet_onnx.graph import Graph
from conet_onnx.planning import plan
from conet_onnx.rewriting import rewrite
from conet_onnx.verification import verify

OWN = "com.microsoft"
OPSETS = (13, 21)


def sequence(b: Builder, x: str) -> str:
    """[N, C, H, W] as [N, H·W, C]."""
    n, c, h, w = b.shapes[x]
    return b.transpose(b.node("Reshape", [x, b.integers([0, c, h * w])], (n, c, h * w)), (0, 2, 1))


def image(b: Builder, x: str, height: int, width: int) -> str:
    """[N, H·W, C] as [N, C, H, W]."""
    n, _, c = b.shapes[x]
    return b.node("Reshape", [b.transpose(x, (0, 2, 1)), b.integers([-1, c, height, width])], (n, c, height, width))


def vector(b: Builder, c: int, around: float = 0.0) -> str:
    return b.weight(b.floats(c, scale=0.3, around=around))


def unary(op: str, **attributes: Any) -> Build:
    return lambda b, x: b.node(op, [x], b.shapes[x], domain=OWN, **attributes)


def biased(op: str) -> Build:
    def build(b: Builder, x: str) -> str:
        y = dense(b, sequence(b, x), 5)
        return image(b, b.node(op, [y, vector(b, 5)], b.shapes[y], domain=OWN), *b.shapes[x][2:])

    return build


def fused_conv(*, group: int = 1, residual: bool = False, bias: bool = True, **attributes: Any) -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        inputs = [x, b.weight(b.floats(6, c // group, 3, 3, scale=0.3)), vector(b, 6) if bias else ""]
        if residual:
            inputs.append(b.conv(x, 6))
        said = attributes if "auto_pad" in attributes else {"pads": [1] * 4, **attributes}
        return b.node("FusedConv", inputs, (n, 6, h, w), domain=OWN, group=group, **said)

    return build


def strided(b: Builder, x: str) -> str:
    n, c, _, _ = b.shapes[x]
    weight = b.weight(b.floats(5, c, 3, 2, scale=0.3))
    attributes = {"pads": [1, 0, 0, 1], "strides": [2, 1], "dilations": [1, 2], "activation": "Relu"}
    return b.node("FusedConv", [x, weight], (n, 5, 2, 2), domain=OWN, **attributes)


def fused_gemm(b: Builder, x: str) -> str:
    n, c, h, w = b.shapes[x]
    flat = b.node("Flatten", [x], (n, c * h * w), axis=1)
    for o, turned in ((7, 0), (5, 1)):
        weight = b.floats(b.shapes[flat][1], o, scale=0.2)
        inputs = [flat, b.weight(weight.T.copy() if turned else weight), vector(b, o)]
        attributes = {"transB": turned, "activation": "LeakyRelu", "activation_alpha": 0.3, "alpha": 0.5}
        flat = b.node("FusedGemm", inputs, (n, o), domain=OWN, **attributes)
    return flat


def fused_matmul(turn_a: int = 0, turn_b: int = 0, op: str = "FusedMatMul") -> Build:
    def build(b: Builder, x: str) -> str:
        n, c, h, w = b.shapes[x]
        y = b.node("Reshape", [x, b.integers([0, c, h * w])], (n, c, h * w)) if turn_a else sequence(b, x)
        weight = b.floats(c, 5, scale=0.5)
        inputs = [y, b.weight(weight.T.copy() if turn_b else weight)]
        y = b.node(op, inputs, (n, h * w, 5), domain=OWN, transA=turn_a, transB=turn_b, alpha=0.7)
        return image(b, y, h, w)

    return build


def gram(b: Builder, x: str) -> str:
    """Two activations multiplied, as attention does."""
    n, _, h, w = b.shapes[x]
    y = sequence(b, x)
    return b.node("FusedMatMul", [y, y], (n, h * w, h * w), domain=OWN, transB=1, alpha=0.1)


def skipped(op: str, *, parameters: int = 1, sums: bool = False, rank: int = 3, constant: bool = False) -> Build:
    """A block of a transformer: x + MLP(x), normalised; the sum is used too."""

    def build(b: Builder, x: str) -> str:
        y = sequence(b, x)
        n, s, c = b.shapes[y]
        skip = b.weight(b.floats(*(1, s, c)[3 - rank :])) if constant else dense(b, b.node("Tanh", [y], (n, s, c)), c)
        inputs = [y, skip, vector(b, c, 1.0), *(vector(b, c) for _ in range(parameters))]
        names = b.node_of(op, inputs, [(n, s, c)] * (4 if sums else 1), domain=OWN)
        if sums:
            b.nodes[-1].output[1:3] = ["", ""]
        z = b.node("Add", [names[0], names[3]], (n, s, c)) if sums else names[0]
        return image(b, z, *b.shapes[x][2:])

    return build


def embedded(*, segments: bool = True, mask: bool = True, positions: bool = False, sums: bool = False) -> Build:
    """Words by number, made as wide as the channels, and added to them."""

    def build(b: Builder, x: str) -> str:
        y = sequence(b, x)
        n, s, c = b.shapes[y]
        ids = b.weight(np.array([[1, 3, 0, 2, 4, 4, 1, 0, 5, 6, 2, 7]], np.int32))
        flags = b.weight((np.arange(s) % 2).astype(np.int32)[None])
        tables = [b.weight(b.floats(rows, c)) for rows in (9, 12, 2)]
        inputs = [ids, flags if segments else "", *tables[: 2 + segments], *([] if segments else [""])]
        inputs += [vector(b, c, 1.0), vector(b, c), flags if mask else "", ids if positions else ""]
        shapes = [(1, s, c), (1,), (1, s, c)] if sums else [(1, s, c), (1,)]
        names = b.node_of("EmbedLayerNormalization", inputs, shapes, domain=OWN)
        words = b.node("Add", [names[0], names[2]], (1, s, c)) if sums else names[0]
        return image(b, b.node("Add", [y, words], (n, s, c)), *b.shapes[x][2:])

    return build


def own_norm(op: str, parameters: int, **attributes: Any) -> Build:
    """Operators that onnxruntime has put into ONNX's own domain."""

    def build(b: Builder, x: str) -> str:
        y = sequence(b, x)
        given = [vector(b, b.shapes[y][2], 1.0) for _ in range(parameters)]
        return image(b, b.node(op, [y, *given], b.shapes[y], **attributes), *b.shapes[x][2:])

    return build


NORM: Any = {"widths": [6], "mixed": [6], "opsets": OPSETS}
CASES = [
    Case("Gelu", unary("Gelu"), [6], opsets=OPSETS),
    Case("QuickGelu", unary("QuickGelu", alpha=1.3), [6], opsets=OPSETS),
    Case("FastGelu", unary("FastGelu"), [6], opsets=OPSETS),
    Case("ScaledSiLU", unary("ScaledSiLU", alpha=0.7), [6], opsets=OPSETS),
    Case("FastGelu with a bias", biased("FastGelu"), [6, 5], opsets=OPSETS),
    Case("BiasGelu", biased("BiasGelu"), [6, 5], opsets=OPSETS),
    Case("FusedConv", fused_conv(activation="Relu"), [6, 6], opsets=OPSETS),
    Case("FusedConv in groups", fused_conv(group=2, activation="Tanh"), [2, 3, 3], opsets=OPSETS),
    Case("depthwise FusedConv", fused_conv(group=6, activation="Sigmoid"), [6], opsets=OPSETS),
    Case("FusedConv with a residual", fused_conv(residual=True, activation="Relu"), [6, 6], opsets=OPSETS),
    Case("FusedConv with a residual and no bias", fused_conv(residual=True, bias=False), [6, 6], opsets=OPSETS),
    Case("FusedConv, padded alike", fused_conv(auto_pad="SAME_UPPER"), [6, 6], opsets=OPSETS),
    Case("FusedConv with strides", strided, [6, 5], opsets=OPSETS),
    Case("FusedGemm", fused_gemm, [6, 7, 5], opsets=OPSETS),
    *(Case(f"FusedMatMul {a}{t}", fused_matmul(a, t), [6, 5], opsets=OPSETS) for a in (0, 1) for t in (0, 1)),
    Case("TransposeMatMul", fused_matmul(0, 1, "TransposeMatMul"), [6, 5], opsets=OPSETS),
    Case("FusedMatMul of two activations", gram, [6], opsets=OPSETS),
    Case("SkipLayerNormalization", skipped("SkipLayerNormalization"), **NORM),
    Case("SkipLayerNormalization with bias", skipped("SkipLayerNormalization", parameters=2), **NORM),
    Case("SkipLayerNormalization and its sum", skipped("SkipLayerNormalization", sums=True), **NORM),
    *(
        Case(f"SkipLayerNormalization of a table of rank {rank}", build, **NORM)
        for rank in (2, 3)
        for build in [skipped("SkipLayerNormalization", constant=True, rank=rank)]
    ),
    Case("SkipSimplifiedLayerNormalization", skipped("SkipSimplifiedLayerNormalization"), **NORM),
    Case("EmbedLayerNormalization", embedded(), **NORM, frozen=("picked",)),
    Case("EmbedLayerNormalization of two tables", embedded(segments=False, mask=False), **NORM, frozen=("picked",)),
    Case("EmbedLayerNormalization and its sum", embedded(positions=True, sums=True), **NORM, frozen=("picked",)),
    Case("SimplifiedLayerNormalization", own_norm("SimplifiedLayerNormalization", 1), **NORM),
    Case("LayerNormalization before opset 17", own_norm("LayerNormalization", 2), [6], [], (13,), mixed=[6]),
]


@pytest.mark.parametrize(("case", "opset", "dynamic"), grid(CASES))
def test_an_operator_resizes_exactly_or_freezes(case: Case, opset: int, dynamic: bool) -> None:
    check(case, opset, dynamic)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_laws_hold(case: Case) -> None:
    oracles.keep_all_laws(made(case, case.opsets[-1]))


@pytest.mark.parametrize("case", [c for c in CASES if c.widths], ids=str)
def test_the_proof_masks_it_too(case: Case) -> None:
    """Of widths that a statistic is taken across, growing is proved; halving says that it is an approximation."""
    source = Graph(made(case, case.opsets[-1]))
    analysis = analyze(source)
    for scale in (0.5, 2):
        decided = plan(analysis, {n: max(1, int(w.size * scale)) for n, w in analysis.widths.items()})
        proof = verify(source, rewrite(source, decided), decided, provider="cpu")
        exact = not case.mixed or scale == 2
        assert ("function" in {check.name for check in proof.checks}) == exact, proof.lines()
        assert exact or "mixes channels" in str(proof.skipped)


@pytest.mark.parametrize(
    ("op", "attributes", "kind"),
    [
        ("FusedMatMul", {"transBatchA": 1}, "transposed batch"),
        ("FusedGemm", {"activation": "Softmax"}, "activation"),
        ("MatMulNBits", {}, "unknown op"),
        ("SomethingNew", {}, "unknown op"),
    ],
)
def test_what_cannot_be_proved_is_frozen(op: str, attributes: dict[str, Any], kind: str) -> None:
    b = Builder(random.Random(3), opset=21)
    b.tidy = True
    x = dense(b, b.input("x", (2, 3)), 6)
    y = b.node(op, [x, b.weight(b.floats(6, 5))], (2, 5), domain=OWN, **attributes)
    analysis = analyze(Graph(b.model([y])))
    assert not analysis.widths
    assert kind in {f.reason.kind for f in analysis.frozen}
    assert any(op in f.reason.detail for f in analysis.frozen)


# Operators without a kernel for CPUs: each is resized as the nodes that it stands for are


def bias_add(b: Builder, x: str, skip: str, bias: str, *, fused: bool) -> str:
    if fused:
        return b.node("BiasAdd", [x, bias, skip], b.shapes[x], domain=OWN)
    return b.node("Add", [b.node("Add", [x, bias], b.shapes[x]), skip], b.shapes[x])


def split_gelu(b: Builder, x: str, skip: str, bias: str, *, fused: bool) -> str:
    n, s, c = b.shapes[x]
    half = (n, s, c // 2)
    if fused:
        return b.node("BiasSplitGelu", [x, bias], half, domain=OWN)
    left, right = b.split(b.node("Add", [x, bias], (n, s, c)), 2, [c // 2] * 2)
    return b.node("Mul", [left, b.node("Tanh", [right], half)], half)


def group_norm(last: bool, skips: int = 0) -> Callable[..., str]:
    """GroupNorm, or SkipGroupNorm with a residual, and its sum."""

    def build(b: Builder, x: str, skip: str, bias: str, *, fused: bool) -> str:
        n, s, c = b.shapes[x]
        scale, other = vector(b, c, 1.0), vector(b, c)
        first, second = (b.node("Reshape", [t, b.integers([n, s, 1, c])], (n, s, 1, c)) for t in (x, skip))
        if not last:
            first, second = (b.transpose(t, (0, 3, 1, 2)) for t in (first, second))
        shape = b.shapes[first]
        if fused and skips:
            inputs = [first, scale, other, second, bias]
            names = b.node_of(
                "SkipGroupNorm", inputs, [shape] * 2, domain=OWN, groups=2, activation=1, channels_last=last
            )
        elif fused:
            attributes = {"groups": 2, "activation": 0, "channels_last": int(last)}
            names = [b.node("GroupNorm", [first, scale, other], shape, domain=OWN, **attributes)]
        else:
            y = first if not last else b.transpose(first, (0, 3, 1, 2))
            if skips:
                wide = b.node("Reshape", [bias, b.integers([1, c, 1, 1])], (1, c, 1, 1))
                residual = second if not last else b.transpose(second, (0, 3, 1, 2))
                y = b.node("Add", [b.node("Add", [y, wide], b.shapes[y]), residual], b.shapes[y])
            names = [b.node("GroupNormalization", [y, scale, other], b.shapes[y], num_groups=2), y][: 1 + skips]
            names = names if not last else [b.transpose(t, (0, 2, 3, 1)) for t in names]
        y = names[0] if len(names) == 1 else b.node("Mul", names, shape)
        y = y if last else b.transpose(y, (0, 2, 3, 1))
        return b.node("Reshape", [y, b.integers([n, s, -1])], (n, s, c))

    return build


def nhwc(op: str, group: int = 1, residual: bool = False) -> Callable[..., str]:
    def build(b: Builder, x: str, skip: str, bias: str, *, fused: bool) -> str:
        n, s, c = b.shapes[x]
        y, z = (b.node("Reshape", [t, b.integers([n, 4, 3, -1])], (n, 4, 3, c)) for t in (x, skip))
        own = op == "NhwcConv"
        kernel = b.weight(b.floats(c, *((3, 3, c // group) if own else (c // group, 3, 3)), scale=0.3))
        attributes = {"group": group, "pads": [1] * 4, "kernel_shape": [3, 3]}
        if fused:
            y = b.node(op, [y, kernel, bias, *([z] if residual else [])], b.shapes[y], domain=OWN, **attributes)
        else:
            kernel = b.transpose(kernel, (0, 3, 1, 2)) if own else kernel
            y = b.node("Conv", [b.transpose(y, (0, 3, 1, 2)), kernel, bias], (n, c, 4, 3), **attributes)
            y = b.transpose(y, (0, 2, 3, 1))
            y = b.node("Add", [y, z], b.shapes[y]) if residual else y
        return b.node("Reshape", [y, b.integers([n, s, -1])], (n, s, c))

    return build


# What is resized, and a residual that not all of them read
WITHOUT_KERNEL: dict[str, tuple[Callable[..., str], list[int]]] = {
    "BiasAdd": (bias_add, [6]),
    "BiasSplitGelu": (split_gelu, [3, 6]),
    "GroupNorm": (group_norm(True), [2, 3, 6]),
    "GroupNorm, channels first": (group_norm(False), [2, 3, 6]),
    "SkipGroupNorm": (group_norm(True, 1), [2, 3]),
    "NhwcConv": (nhwc("NhwcConv"), [6, 6, 6]),
    "NhwcConv in groups": (nhwc("NhwcConv", 2), [2, 3, 3, 6]),
    "NhwcFusedConv": (nhwc("NhwcFusedConv"), [6, 6, 6]),
    "NhwcFusedConv with a residual": (nhwc("NhwcFusedConv", 2, True), [2, 3, 3]),
}


@pytest.mark.parametrize("name", WITHOUT_KERNEL)
@pytest.mark.parametrize("scale", [0.5, 2])
def test_an_operator_without_a_kernel_is_resized_as_the_nodes_that_it_stands_for(name: str, scale: float) -> None:
    build, widths = WITHOUT_KERNEL[name]
    resized = []
    for fused in (True, False):
        b = Builder(random.Random(3), opset=21)
        b.tidy = True
        x = b.input("x", (2, HEIGHT * WIDTH, 3))
        layers = [b.weight(b.floats(3, 6)), b.weight(b.floats(3, 6)), vector(b, 6)]
        y, skip = (b.node("MatMul", [x, w], (2, HEIGHT * WIDTH, 6)) for w in layers[:2])
        y = build(b, y, skip, layers[2], fused=fused)
        model = b.model([dense(b, y, 2)])
        renamed = {t.name: f"w{k}" for k, t in enumerate(t for t in model.graph.initializer if t.data_type == 1)}
        for tensor in model.graph.initializer:
            tensor.name = renamed.get(tensor.name, tensor.name)
        for node in model.graph.node:
            node.input[:] = [renamed.get(n, n) for n in node.input]
        onnx.checker.check_model(model, full_check=True)
        analysis = analyze(Graph(model))
        assert sorted(w.size for w in analysis.widths.values()) == sorted(widths)
        assert tuple(analysis.costs.source)[:2] == oracles.counted(analysis.graph)[:2]
        sizes = {n: max(1, int(w.size * scale)) for n, w in analysis.widths.items()}
        made_ = rewrite(analysis.graph, plan(analysis, sizes))
        assert made_.shape(made_.outputs[0].name) == (2, HEIGHT * WIDTH, 2)
        resized.append({n: made_.array(n) for n in renamed.values()})
    assert resized[0].keys() == resized[1].keys()
    assert all(np.array_equal(resized[0][n], resized[1][n]) for n in resized[0])
