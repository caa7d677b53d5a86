"""The models whose groups are kept in tests/golden, and what such a file says of one."""

from __future__ import annotations

import functools
import importlib
import json
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import torch

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.coupling import Width
from conet_onnx.graph import Graph
from golden_models import convolutions, references, transformers, vision
from tools.zoo_models import hand_made
from tools.zoo_models.entry import from_torch

__all__ = ["FOLDER", "GOLDEN", "Golden", "analysis_of", "model_of", "text_of", "versions_of"]

FOLDER = Path(__file__).resolve().parent.parent / "golden"
TORCH = {**vision.MODELS, **transformers.MODELS, **convolutions.MODELS}
MADE_WITH = {
    "torchscript": ("torch",),
    "dynamo": ("torch", "onnxscript"),
    "onnx": (),
    "onnxruntime": ("torch", "onnxruntime"),
}


@dataclass(frozen=True)
class Golden:
    """A model: how it is built, which packages have a say in its names, whether its laws are checked here too."""

    build: Callable[[], onnx.ModelProto]
    exporter: str
    laws: bool = True


def _module(name: str, exporter: str, opset: int = 17, *, laws: bool = True) -> Golden:
    return Golden(partial(from_torch, TORCH[name], exporter, opset=opset), exporter, laws)


def _source(name: str, exporter: str, *, laws: bool = True) -> Golden:
    make, opset = hand_made.TORCH[name]
    return Golden(partial(from_torch, make, exporter, opset=opset), exporter, laws)


def _made(name: str, exporter: str = "onnx", *, laws: bool = True) -> Golden:
    return Golden(hand_made.ONNX[name], exporter, laws)


def _reference(name: str, *, laws: bool) -> Golden:
    return Golden(partial(references.made, name), "torchscript", laws)


GOLDEN: dict[str, Golden] = {
    # torchvision
    "swin_v2": _module("swin_v2", "torchscript"),
    "max_vit": _module("max_vit", "torchscript"),
    "vit": _module("vit", "torchscript", 14),
    "conv_next": _module("conv_next", "torchscript", 16),
    "shuffle_net": _module("shuffle_net", "torchscript", 11),
    "dense_net": _module("dense_net", "torchscript", 13),
    "reg_net": _module("reg_net", "torchscript", 12),
    "goog_le_net": _module("goog_le_net", "torchscript", 15, laws=False),
    # text, and images by attention
    "bert": _module("bert", "torchscript"),
    "bert-dynamo": _module("bert", "dynamo"),
    "bert_tied": _module("bert_tied", "torchscript", 14),
    "llama": _module("llama", "torchscript"),
    "llama-dynamo": _module("llama", "dynamo"),
    "t5": _module("t5", "torchscript"),
    "cait": _module("cait", "torchscript", 14),
    "xcit": _module("xcit", "torchscript", 17),
    # convolutions
    "conv_next_v2": _module("conv_next_v2", "torchscript"),
    "ghost": _module("ghost", "torchscript", 13),
    "split_attention": _module("split_attention", "torchscript", 16),
    "eca": _module("eca", "torchscript", 14),
    "standardised": _module("standardised", "torchscript", 17),
    "padded_shortcut": _module("padded_shortcut", "dynamo"),
    # the reference networks of models/; ShuffleNetV2 stands above, and the laws of ResNet-18 are in test_laws_zoo
    **{name: _reference(name, laws=name != "resnet_basic") for name in references.MODELS},
    # from source
    "yolo_11": _source("yolo, head as in 11", "torchscript"),
    "u_net": _source("u-net", "torchscript"),
    "espcn": _source("espcn", "torchscript"),
    "dcgan": _source("dcgan generator", "torchscript"),
    "lstm": _source("lstm text, both ways", "torchscript"),
    "gru": _source("gru text", "torchscript"),
    "wavenet": _source("wavenet", "torchscript"),
    "volumes": _source("3-d convolutions", "torchscript"),
    "siamese": _source("siamese", "torchscript"),
    # files that were not exported from torch
    "keras": _made("keras, channels last"),
    "opset_7": _made("operator set 7"),
    "branches": _made("if and loop"),
    "float16": _made("float16", laws=False),
    "int8_tensors": _made("int8, scales of tensors", "onnxruntime"),
    "int8_channels": _made("int8, scales of channels", "onnxruntime"),
}


@functools.cache
def model_of(name: str) -> onnx.ModelProto:
    """The model, made once in this process; never to be changed. The state of torch's chance is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return GOLDEN[name].build()


@functools.cache
def analysis_of(name: str) -> Analysis:
    """The model, analysed once in this process."""
    return analyze(Graph(model_of(name)))


def versions_of(name: str) -> dict[str, str]:
    """The packages whose versions decide how nodes and tensors are called."""
    packages = {package: importlib.import_module(package) for package in MADE_WITH[GOLDEN[name].exporter]}
    return {package: str(module.__version__).partition("+")[0] for package, module in packages.items()}


def text_of(name: str) -> str:
    """The golden file: JSON with a width in a few lines, each member as "tensor[axis] role"."""
    analysis = analysis_of(name)
    coverage = {what: round(share, 4) for what, share in analysis.costs.coverage._asdict().items()}
    frozen = Counter(f.reason.kind for f in analysis.frozen)
    parts = {
        "made with": json.dumps(versions_of(name)),
        "coverage": json.dumps(coverage),
        "frozen axes": json.dumps(dict(sorted(frozen.items()))),
        "widths": "[\n" + ",\n".join(_width(width) for width in analysis.widths.values()) + "\n  ]",
    }
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {value}" for key, value in parts.items()) + "\n}\n"


def _width(width: Width) -> str:
    head = {"id": width.id, "size": width.size, "exact": width.exact}
    head |= {"max": width.max} if width.max is not None else {}
    head |= {"mixed_by": list(width.mixed_by)} if width.mixed_by else {}
    members = ", ".join(json.dumps(f"{m.tensor}[{m.axis}] {m.role}").replace(" ", "\0") for m in width.members)
    lines = textwrap.wrap(members.replace(",\0", ", "), 112, break_long_words=False, break_on_hyphens=False)
    listed = "\n".join(f"      {line}" for line in lines).replace("\0", " ")
    return f'    {json.dumps(head)[:-1]}, "members": [\n{listed}\n    ]}}'
