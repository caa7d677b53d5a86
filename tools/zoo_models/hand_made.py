"""Networks that have no package here: detectors, generators, text and sound models, old files, other number formats."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tools.zoo_models.entry import Entry, NotBuilt, from_torch

__all__ = ["entries"]

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def entries() -> list[Entry]:
    """Torch modules by both exporters; files made with onnx itself; the light models that the onnx package holds."""
    made = [
        Entry(name, "from source", exporter, partial(from_torch, make, exporter, opset=opset))
        for exporter in ("torchscript", "dynamo")
        for name, (make, opset) in TORCH.items()
    ]
    made += [Entry(name, "made with onnx", "onnx", make, "other") for name, make in ONNX.items()]
    for path in sorted(LIGHT.glob("*.onnx")):
        made.append(Entry(path.stem, "onnx light", "caffe2 and others", partial(_light, path)))
    return made


# Torch modules


def _conv(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: str = "SiLU") -> Any:
    from torch import nn

    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), getattr(nn, act)())


def _yolo(head: str) -> Any:
    """A backbone with cross-stage blocks and SPPF, a top-down neck, and a head in the manner of YOLOv5, v8 or 11."""
    import torch
    from torch import nn

    class Block(nn.Module):
        """C2f: a split, a chain whose links are all concatenated."""

        def __init__(self, i: int, o: int, n: int = 1) -> None:
            super().__init__()
            self.a, self.b = _conv(i, o, 1), _conv(o // 2 * (2 + n), o, 1)
            self.m = nn.ModuleList(nn.Sequential(_conv(o // 2, o // 2), _conv(o // 2, o // 2)) for _ in range(n))

        def forward(self, x: Any) -> Any:
            parts = list(self.a(x).chunk(2, 1))
            for m in self.m:
                parts.append(parts[-1] + m(parts[-1]))
            return self.b(torch.cat(parts, 1))

    class Pyramid(nn.Module):
        """SPPF: three poolings in a row, concatenated."""

        def __init__(self, i: int, o: int) -> None:
            super().__init__()
            self.a, self.b, self.pool = _conv(i, i // 2, 1), _conv(i * 2, o, 1), nn.MaxPool2d(5, 1, 2)

        def forward(self, x: Any) -> Any:
            parts = [self.a(x)]
            for _ in range(3):
                parts.append(self.pool(parts[-1]))
            return self.b(torch.cat(parts, 1))

    class Attention(nn.Module):
        """The attention of YOLO11's C2PSA: keys half as wide as values, a depthwise position term."""

        def __init__(self, c: int, heads: int = 2) -> None:
            super().__init__()
            self.heads, self.d, self.k = heads, c // heads, c // heads // 2
            self.qkv, self.pe, self.proj = (
                nn.Conv2d(c, c * 2, 1),
                nn.Conv2d(c, c, 3, 1, 1, groups=c),
                nn.Conv2d(c, c, 1),
            )

        def forward(self, x: Any) -> Any:
            b, c, h, w = x.shape
            qkv = self.qkv(x).view(b, self.heads, self.k * 2 + self.d, h * w)
            q, k, v = qkv.split([self.k, self.k, self.d], dim=2)
            attention = ((q.transpose(-2, -1) @ k) * self.k**-0.5).softmax(-1)
            return x + self.proj((v @ attention.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(_conv(3, 16, 3, 2), _conv(16, 32, 3, 2), Block(32, 32))
            self.down = nn.Sequential(_conv(32, 64, 3, 2), Block(64, 64, 2))
            self.deep = nn.Sequential(_conv(64, 96, 3, 2), Block(96, 96), Pyramid(96, 96))
            self.extra = Attention(96) if head == "11" else nn.Identity()
            self.up, self.join, self.back = nn.Upsample(scale_factor=2), Block(160, 64), Block(160, 96)
            self.shrink = _conv(64, 64, 3, 2)
            classes, bins = 5, 16
            self.bins, self.classes = bins, classes
            if head == "5":
                self.heads = nn.ModuleList(nn.Conv2d(c, 3 * (5 + classes), 1) for c in (64, 96))
            else:
                depthwise = head == "11"
                self.boxes = nn.ModuleList(
                    nn.Sequential(_conv(c, 32), _conv(32, 32), nn.Conv2d(32, 4 * bins, 1)) for c in (64, 96)
                )
                self.scores = nn.ModuleList(
                    nn.Sequential(
                        _conv(c, c, g=c) if depthwise else nn.Identity(),
                        _conv(c, 32),
                        _conv(32, 32),
                        nn.Conv2d(32, classes, 1),
                    )
                    for c in (64, 96)
                )
                self.register_buffer("project", torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1))

        def forward(self, x: Any) -> Any:
            small = self.stem(x)
            middle = self.down(small)
            deep = self.extra(self.deep(middle))
            top = self.join(torch.cat([self.up(deep), middle], 1))
            levels = [top, self.back(torch.cat([self.shrink(top), deep], 1))]
            if head == "5":
                made = []
                for layer, level in zip(self.heads, levels, strict=True):
                    y = layer(level)
                    b, _, h, w = y.shape
                    y = y.view(b, 3, 5 + self.classes, h, w).permute(0, 1, 3, 4, 2).sigmoid()
                    xy, wh, rest = y.split((2, 2, self.classes + 1), 4)
                    made.append(torch.cat((xy * 2 - 0.5, (wh * 2) ** 2, rest), 4).view(b, -1, 5 + self.classes))
                return torch.cat(made, 1)
            both = [
                torch.cat([a(level), b(level)], 1).flatten(2)
                for a, b, level in zip(self.boxes, self.scores, levels, strict=True)
            ]
            boxes, scores = torch.cat(both, 2).split((4 * self.bins, self.classes), 1)
            b, _, anchors = boxes.shape
            spread = boxes.view(b, 4, self.bins, anchors).transpose(2, 1).softmax(1)
            return torch.cat([(spread * self.project).sum(1), scores.sigmoid()], 1)

    return Net(), (torch.randn(2, 3, 64, 64),)


def _unet() -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, c: tuple[int, ...] = (16, 32, 64)) -> None:
            super().__init__()
            pairs = [(1, c[0]), (c[0], c[1]), (c[1], c[2])]
            double = lambda i, o: nn.Sequential(_conv(i, o, act="ReLU"), _conv(o, o, act="ReLU"))  # noqa: E731
            self.down = nn.ModuleList(double(i, o) for i, o in pairs)
            self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in ((c[2], c[1]), (c[1], c[0])))
            self.join = nn.ModuleList(double(2 * o, o) for o in (c[1], c[0]))
            self.pool, self.out = nn.MaxPool2d(2), nn.Conv2d(c[0], 2, 1)

        def forward(self, x: Any) -> Any:
            a = self.down[0](x)
            b = self.down[1](self.pool(a))
            y = self.down[2](self.pool(b))
            for up, join, skip in zip(self.up, self.join, (b, a), strict=True):
                y = join(torch.cat([up(y), skip], 1))
            return self.out(y)

    return Net(), (torch.randn(2, 1, 32, 32),)


def _dcgan() -> Any:
    import torch
    from torch import nn

    layers: list[Any] = []
    for i, o, s, p in ((24, 64, 1, 0), (64, 32, 2, 1), (32, 16, 2, 1)):
        layers += [nn.ConvTranspose2d(i, o, 4, s, p, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh()), (torch.randn(2, 24, 1, 1),)


def _espcn() -> Any:
    import torch
    from torch import nn

    layers = [nn.Conv2d(1, 32, 5, 1, 2), nn.Tanh(), nn.Conv2d(32, 16, 3, 1, 1), nn.Tanh(), nn.Conv2d(16, 36, 3, 1, 1)]
    return nn.Sequential(*layers, nn.PixelShuffle(2), nn.Conv2d(9, 9, 3, 1, 1), nn.PixelShuffle(3)), (
        torch.randn(2, 1, 12, 12),
    )


def _recurrent(cell: str, both_ways: bool) -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 24)
            self.cells = getattr(nn, cell)(24, 20, num_layers=2, batch_first=True, bidirectional=both_ways)
            self.out = nn.Linear(40 if both_ways else 20, 5)

        def forward(self, ids: Any) -> Any:
            return self.out(self.cells(self.words(ids))[0].mean(1))

    return Net(), (torch.randint(0, 50, (2, 7)),)


def _wavenet() -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, c: int = 24, skip: int = 32, layers: int = 4) -> None:
            super().__init__()
            self.first = nn.Conv1d(1, c, 1)
            self.gates = nn.ModuleList(nn.Conv1d(c, 2 * c, 2, dilation=2**k) for k in range(layers))
            self.skips = nn.ModuleList(nn.Conv1d(c, skip, 1) for _ in range(layers))
            self.rest = nn.ModuleList(nn.Conv1d(c, c, 1) for _ in range(layers))
            self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, 16, 1), nn.ReLU(), nn.Conv1d(16, 8, 1))

        def forward(self, x: Any) -> Any:
            x, total = self.first(x), 0
            for k, (gate, skip, rest) in enumerate(zip(self.gates, self.skips, self.rest, strict=True)):
                a, b = gate(nn.functional.pad(x, (2**k, 0))).chunk(2, 1)
                y = torch.tanh(a) * torch.sigmoid(b)
                total = total + skip(y)
                x = x + rest(y)
            return self.last(total)

    return Net(), (torch.randn(2, 1, 40),)


def _volumes() -> Any:
    import torch
    from torch import nn

    layers = [nn.Conv3d(1, 12, 3, 1, 1), nn.BatchNorm3d(12), nn.ReLU(), nn.MaxPool3d(2)]
    layers += [nn.Conv3d(12, 24, 3, 1, 1), nn.BatchNorm3d(24), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24, 4)), (torch.randn(2, 1, 8, 8, 8),)


def _siamese() -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 16)]
            self.trunk = nn.Sequential(_conv(1, 12, act="ReLU"), _conv(12, 24, s=2, act="ReLU"), *tail)
            self.out = nn.Linear(16, 1)

        def forward(self, a: Any, b: Any) -> Any:
            return self.out((self.trunk(a) - self.trunk(b)).abs())

    return Net(), (torch.randn(2, 1, 12, 12), torch.randn(2, 1, 12, 12))


TORCH: dict[str, tuple[Callable[[], Any], int]] = {
    "yolo, head as in v5": (partial(_yolo, "5"), 12),
    "yolo, head as in v8": (partial(_yolo, "8"), 13),
    "yolo, head as in 11": (partial(_yolo, "11"), 17),
    "u-net": (_unet, 11),
    "dcgan generator": (_dcgan, 11),
    "espcn": (_espcn, 14),
    "lstm text": (partial(_recurrent, "LSTM", False), 14),
    "lstm text, both ways": (partial(_recurrent, "LSTM", True), 17),
    "gru text": (partial(_recurrent, "GRU", False), 13),
    "rnn text, both ways": (partial(_recurrent, "RNN", True), 11),
    "wavenet": (_wavenet, 15),
    "3-d convolutions": (_volumes, 16),
    "siamese": (_siamese, 12),
}


# Files made with onnx


def _weights(seed: int, **shapes: tuple[int, ...]) -> list[TensorProto]:
    rng = np.random.default_rng(seed)
    made = []
    for name, shape in shapes.items():
        fan = int(np.prod(shape[1:])) or 1
        array = rng.standard_normal(shape) / np.sqrt(fan) if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        made.append(numpy_helper.from_array(array.astype(np.float32), name))
    return made


def _model(nodes: list[Any], weights: list[TensorProto], inputs: dict[str, Any], outputs: list[str], opset: int) -> Any:
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    for value, found in zip(model.graph.output, inferred, strict=True):
        known = found.type.tensor_type.HasField("shape")  # the checker wants a rank there
        value.CopyFrom(found if known else helper.make_tensor_value_info(found.name, TensorProto.FLOAT, [None] * 4))
    return model


def _keras() -> onnx.ModelProto:
    """As tf2onnx writes it: NHWC in and out, a Transpose around each layer, kernels transposed in the graph."""
    n = helper.make_node
    weights = _weights(1, k1=(3, 3, 3, 16), k2=(3, 3, 16, 24), d=(6 * 6 * 24, 10), b1=(16,), b2=(24,), bd=(10,))
    nodes = [
        n("Transpose", ["x"], ["x0"], perm=[0, 3, 1, 2]),
        n("Transpose", ["k1"], ["k1t"], perm=[3, 2, 0, 1]),
        n("Conv", ["x0", "k1t"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        n("Transpose", ["c1"], ["c1n"], perm=[0, 2, 3, 1]),
        n("Add", ["c1n", "b1"], ["a1"]),
        n("Relu", ["a1"], ["r1"]),
        n("Transpose", ["r1"], ["x1"], perm=[0, 3, 1, 2]),
        n("Transpose", ["k2"], ["k2t"], perm=[3, 2, 0, 1]),
        n("Conv", ["x1", "k2t"], ["c2"], pads=[1, 1, 1, 1]),
        n("Transpose", ["c2"], ["c2n"], perm=[0, 2, 3, 1]),
        n("Add", ["c2n", "b2"], ["a2"]),
        n("Relu", ["a2"], ["r2"]),
        n("Reshape", ["r2", "flat"], ["f"]),
        n("MatMul", ["f", "d"], ["m"]),
        n("Add", ["m", "bd"], ["y"]),
    ]
    flat = numpy_helper.from_array(np.array([-1, 6 * 6 * 24], np.int64), "flat")
    return _model(nodes, [*weights, flat], {"x": ["n", 12, 12, 3]}, ["y"], 13)


def _old() -> onnx.ModelProto:
    """Operator set 7: weights listed as inputs, attributes that became inputs later, `spatial`."""
    n = helper.make_node
    weights = _weights(2, w1=(16, 3, 3, 3), s=(16,), b=(16,), m=(16,), v=(16,), w2=(12, 8, 1, 1), fc=(5, 12), fb=(5,))
    nodes = [
        n("Conv", ["x", "w1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        n("BatchNormalization", ["c1", "s", "b", "m", "v"], ["n1"], spatial=1, epsilon=1e-5),
        n("Relu", ["n1"], ["r1"]),
        n("Slice", ["r1"], ["half"], axes=[1], starts=[0], ends=[8]),
        n("Conv", ["half", "w2"], ["c2"], kernel_shape=[1, 1]),
        n("GlobalAveragePool", ["c2"], ["p"]),
        n("Squeeze", ["p"], ["q"], axes=[2, 3]),
        n("Gemm", ["q", "fc", "fb"], ["y"], transB=1),
    ]
    model = _model(nodes, weights, {"x": [2, 3, 10, 10]}, ["y"], 7)
    model.graph.input.extend(helper.make_tensor_value_info(t.name, TensorProto.FLOAT, list(t.dims)) for t in weights)
    model.ir_version = 3
    return model


def _branching() -> onnx.ModelProto:
    """An If whose branches read a value of the outer graph; a Loop after it; the trunk before both is free."""
    n = helper.make_node
    weights = _weights(3, w1=(16, 3, 3, 3), w2=(12, 16, 3, 3), w3=(8, 12, 1, 1))

    def branch(op: str, name: str) -> Any:
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4)
        return helper.make_graph([n(op, ["c2"], [name])], name, [], [info])

    body = helper.make_graph(
        [n("Relu", ["state"], ["next"]), n("Identity", ["more"], ["go"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [None] * 4),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [None] * 4),
        ],
    )
    nodes = [
        n("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        n("Relu", ["c1"], ["r1"]),
        n("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        n("ReduceMean", ["x"], ["mean"], keepdims=0),
        n("Greater", ["mean", "zero"], ["positive"]),
        n("If", ["positive"], ["chosen"], then_branch=branch("Relu", "yes"), else_branch=branch("Tanh", "no")),
        n("Loop", ["times", "", "chosen"], ["looped"], body=body),
        n("Conv", ["looped", "w3"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.float32(0), "zero"), numpy_helper.from_array(np.int64(2), "times")]
    return _model(nodes, [*weights, *constants], {"x": [2, 3, 8, 8]}, ["y"], 16)


def _half_precision(dtype: int) -> onnx.ModelProto:
    """A small convolutional network whose weights and values are of another type than float32."""
    n = helper.make_node
    types = {TensorProto.FLOAT16: np.dtype(np.float16), TensorProto.BFLOAT16: helper.tensor_dtype_to_np_dtype(dtype)}
    weights = _weights(4, w1=(16, 3, 3, 3), b1=(16,), w2=(24, 16, 3, 3), w3=(4, 24, 1, 1))
    cast = [numpy_helper.from_array(numpy_helper.to_array(t).astype(types[dtype]), t.name) for t in weights]
    nodes = [
        n("Cast", ["x"], ["xh"], to=dtype),
        n("Conv", ["xh", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        n("Relu", ["c1"], ["r1"]),
        n("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        n("Relu", ["c2"], ["r2"]),
        n("Conv", ["r2", "w3"], ["c3"]),
        n("Cast", ["c3"], ["y"], to=TensorProto.FLOAT),
    ]
    return _model(nodes, cast, {"x": ["n", 3, 8, 8]}, ["y"], 22)


def _quantised(per_channel: bool) -> onnx.ModelProto:
    """A convolutional network in QDQ form, as onnxruntime's static quantisation writes it."""
    import tempfile

    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from torch import nn

    def build() -> tuple[nn.Module, tuple[torch.Tensor]]:
        convolutions = (_conv(3, 16, act="ReLU"), _conv(16, 24, s=2, act="ReLU"))
        last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
        return nn.Sequential(*convolutions, *last), (torch.randn(2, 3, 16, 16),)

    model = from_torch(build, "torchscript", opset=13)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.rows = iter([{"x": rng.standard_normal((2, 3, 16, 16)).astype(np.float32)} for _ in range(3)])

        def get_next(self) -> Any:
            return next(self.rows, None)

    with tempfile.TemporaryDirectory() as folder:
        source, made = os.path.join(folder, "float.onnx"), os.path.join(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(source, made, Reader(), quant_format=QuantFormat.QDQ, per_channel=per_channel)
        return onnx.load(made)


ONNX: dict[str, Callable[[], onnx.ModelProto]] = {
    "keras, channels last": _keras,
    "operator set 7": _old,
    "if and loop": _branching,
    "float16": partial(_half_precision, TensorProto.FLOAT16),
    "bfloat16": partial(_half_precision, TensorProto.BFLOAT16),
    "int8, scales of tensors": partial(_quantised, False),
    "int8, scales of channels": partial(_quantised, True),
}


# The light models of the onnx package


def _light(path: Path) -> onnx.ModelProto:
    """Its weights are ConstantOfShape nodes, to keep the file small: each becomes a weight with random numbers."""
    if not path.exists():
        raise NotBuilt("this release of the onnx package has no light models")
    model = onnx.load(path)
    rng = np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    variances = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = tuple(int(n) for n in shapes[node.input[0]])
        fan = int(np.prod(shape[1:])) or 1
        array = rng.standard_normal(shape) * np.sqrt(2 / fan) if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        if len(shape) == 1 and node.output[0] not in variances:
            array = array - 0.9
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), node.output[0]))
        model.graph.input.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model
