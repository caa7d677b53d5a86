"""Run models with onnxruntime: sessions on providers that really start, seeded inputs, every intermediate tensor."""

from __future__ import annotations

import ctypes
import io
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from conet_onnx.errors import ModelError, UsageError
from conet_onnx.graph import Graph
from conet_onnx.storing import PROTOBUF_LIMIT, Data, flowing, pieces

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = [
    "PROVIDERS",
    "Model",
    "available",
    "optimised",
    "random_feeds",
    "resolve",
    "run",
    "run_all",
    "run_session",
    "session",
]

Array = np.ndarray[Any, Any]
Model = Graph | onnx.ModelProto | bytes | str | os.PathLike[str]

PROVIDERS = {  # short name -> onnxruntime's name
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "dml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
SILENT = 4  # onnxruntime's "fatal": whatever it logs as an error it also raises, and that is explained once
MARGIN = 1 << 26  # bytes for what is not a weight
EXTENT = 224  # size for a symbolic axis that is not the first
FULL_PRECISION = ("cuda", "cpu")  # the providers that compute float32 as float32 when asked to


def available() -> tuple[str, ...]:
    """Short names of the providers that start here, in onnxruntime's order of preference; the CPU is last.

    The GPU wheel lists CUDA and TensorRT on hosts without a GPU, so each is tried once a process.
    """
    short = {long: name for name, long in PROVIDERS.items()}
    return tuple(short[long] for long in _listed() if long in short and _starts(short[long]))


def resolve(provider: str = "auto", *, exact: bool = False) -> str:
    """The short name of the provider that `provider` means here; `auto` is the first that starts.

    With `exact`, `auto` considers only providers that can compute in full float32. Raises UsageError for a provider
    that is unknown or does not start.
    """
    if provider == "auto":
        listed = [name for name in FULL_PRECISION if exact and PROVIDERS[name] in _listed()] or available()
        return next(name for name in listed if _starts(name))
    if provider not in PROVIDERS:
        raise UsageError(f"Unknown provider {provider!r}; known are auto, {', '.join(sorted(PROVIDERS))}.")
    if PROVIDERS[provider] not in _listed() or not _starts(provider):
        raise UsageError(f"Provider {provider!r} does not start here; these do: {', '.join(available())}.")
    return provider


def session(
    model: Model,
    *,
    provider: str = "auto",
    threads: int | None = None,
    outputs: Sequence[str] = (),
    optimise: bool = True,
    exact: bool = False,
    profile: str | None = None,
) -> ort.InferenceSession:
    """An onnxruntime session that logs nothing and never falls back to another provider in silence.

    `threads` bounds the threads within an operator (None: onnxruntime's choice). `outputs` names further tensors to
    be returned after the model's own outputs. `optimise=False` runs every node as it stands in the file. `exact` keeps
    float32 exact where a provider would round (TF32 on CUDA). `profile` is how the name of the file begins to which
    its `end_profiling` writes what each node took. Raises ModelError where onnxruntime refuses the model,
    UsageError for a provider that does not start here.
    """
    name = resolve(provider, exact=exact)
    options = _options(threads)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if not optimise:
        import onnxruntime as ort

        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers: list[Any] = [PROVIDERS[name]]
    if name == "cuda" and exact:
        providers = [(PROVIDERS[name], {"use_tf32": "0"})]
    if name != "cpu":
        providers.append(PROVIDERS["cpu"])  # for the operators that the provider lacks
    return _start(model, outputs, lambda source: _create(source, options, providers))


def optimised(model: Model, *, provider: str = "auto", threads: int | None = None) -> onnx.ModelProto:
    """The model that onnxruntime really runs: after all of its fusions and changes of layout, as it writes it.

    Meant for the provider and the machine it was made on, and to be run with `optimise=False`. Raises ModelError where
    onnxruntime refuses the model or cannot write what it made.
    """
    name = resolve(provider)
    options = _options(threads)
    providers = [PROVIDERS[name], *([] if name == "cpu" else [PROVIDERS["cpu"]])]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        written = os.path.join(folder, "optimised.onnx")
        options.optimized_model_filepath = written
        _start(model, (), lambda source: _create(source, options, providers))
        if not os.path.exists(written):
            raise ModelError(f"onnxruntime does not write the model that it runs on {name}.")
        return onnx.load(written)


def _options(threads: int | None) -> ort.SessionOptions:
    import onnxruntime as ort

    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}.")
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def run(
    model: Model,
    feeds: Mapping[str, Array],
    outputs: Sequence[str] | None = None,
    *,
    provider: str = "auto",
    threads: int | None = None,
    optimise: bool = True,
    exact: bool = False,
) -> dict[str, Array]:
    """Tensors by name: the model's outputs, or those (intermediate ones too) that `outputs` names.

    Raises ModelError where the model does not load or does not run on these feeds.
    """
    started = session(model, provider=provider, threads=threads, outputs=outputs or (), optimise=optimise, exact=exact)
    names = [value.name for value in started.get_outputs()] if outputs is None else list(outputs)
    return run_session(started, feeds, names)


def run_session(
    started: ort.InferenceSession, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> dict[str, Array]:
    """The outputs of a session by name. Raises ModelError where it does not run on these feeds."""
    names = [value.name for value in started.get_outputs()] if outputs is None else list(outputs)
    try:
        return dict(zip(names, started.run(names, dict(feeds)), strict=True))
    except Exception as error:  # onnxruntime's errors share no base class below Exception
        raise ModelError(f"The model does not run in onnxruntime: {_first_line(error)}") from error


def run_all(
    model: Graph, feeds: Mapping[str, Array], *, provider: str = "cpu", threads: int | None = None
) -> dict[str, Array]:
    """Every tensor that a node computes, by name: nothing is optimised, so nothing is fused away."""
    names = [name for node in model.nodes for name in node.outputs if name]
    return run(model, feeds, names, provider=provider, threads=threads, optimise=False, exact=True)


def random_feeds(graph: Graph, seed: int = 0, *, batch: int | None = None) -> dict[str, Array]:
    """Seeded inputs of the declared types and shapes.

    A symbolic first axis gets `batch` (default: the size that the graph was loaded with, else 2), other symbols the
    size that the graph was loaded with, else 224; equal symbols are equal. Floats are standard normal, uint8 covers
    its range, other integers are 0 or 1, since they may be indices. Raises UsageError for inputs that are not tensors.
    """
    rng = np.random.default_rng(seed)
    protos = {value.name: value.type for value in graph.model.graph.input}
    symbols: dict[str, int] = {}
    feeds = {}
    for value in graph.inputs:
        if not protos[value.name].HasField("tensor_type"):
            raise UsageError(f"input {value.name!r} is not a tensor: random inputs cannot be made for it.")
        given = graph.input_shapes.get(value.name)
        shape = []
        for axis, dim in enumerate(value.shape):
            size = dim if isinstance(dim, int) else symbols.get(dim)
            if size is None:
                size = EXTENT if axis else 2
                size = size if given is None else given[axis]
                size = batch if axis == 0 and batch is not None else size
                if isinstance(dim, str) and dim:
                    symbols[dim] = size
            shape.append(size)
        feeds[value.name] = _random(rng, protos[value.name].tensor_type.elem_type, shape)
    return feeds


def _random(rng: np.random.Generator, kind: int, shape: Sequence[int]) -> Array:
    if kind == onnx.TensorProto.STRING:
        return rng.integers(0, 2, shape).astype(str).astype(object)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if kind == onnx.TensorProto.UINT8:
        return rng.integers(0, 256, shape).astype(dtype)
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if np.issubdtype(dtype, np.complexfloating):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


@cache  # what is installed does not change in a process
def _listed() -> tuple[str, ...]:
    import onnxruntime as ort

    return tuple(ort.get_available_providers())


@cache  # trying a provider is slow, and its answer stays the same
def _starts(name: str) -> bool:
    """Whether a tiny model's session really gets the provider; silent on both streams."""
    if name == "cpu":
        return True
    if name in ("cuda", "tensorrt") and not _cuda_devices():
        return False
    import onnxruntime as ort

    ort.set_default_logger_severity(SILENT)  # libraries that do not load are logged outside of any session
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    try:
        if name in ("cuda", "tensorrt") and hasattr(ort, "preload_dlls"):
            with redirect_stdout(io.StringIO()):
                ort.preload_dlls()  # finds CUDA and cuDNN where pip has put them
        started = _create(_tiny(), options, [PROVIDERS[name]])
        started.run(None, {"x": np.zeros(1, np.float32)})
    except Exception:  # whatever stops it, it does not start
        return False
    return PROVIDERS[name] in started.get_providers()


def _cuda_devices() -> int:
    """How many CUDA devices the driver sees; asking it is quick where there is none."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return count.value if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
    except (OSError, AttributeError):
        return 0


def _tiny() -> bytes:
    node = helper.make_node("Relu", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([node], "tiny", [x], [y]), ir_version=8, opset_imports=[helper.make_opsetid("", 13)]
    )
    return bytes(model.SerializeToString())


def _create(source: bytes | str, options: ort.SessionOptions, providers: Sequence[Any]) -> ort.InferenceSession:
    import onnxruntime as ort

    # Without fallback: it prints, and then runs on the CPU as if nothing had happened.
    return ort.InferenceSession(source, options, providers=list(providers), enable_fallback=0)


def _start(model: Model, outputs: Sequence[str], create: Callable[[bytes | str], Any]) -> ort.InferenceSession:
    """Create the session from bytes, or from a file where protobuf cannot hold the model in one piece."""
    file = model.file if isinstance(model, Graph) else os.fspath(model) if isinstance(model, str | os.PathLike) else ""
    if isinstance(model, str | os.PathLike) and not Path(file).is_file():
        raise ModelError(f"Cannot read {file}: no such file.")
    try:
        if isinstance(model, str | os.PathLike):
            return create(file) if not outputs else _start(onnx.load(file), outputs, create)
        if isinstance(model, bytes):
            return create(model if not outputs else _exposed(onnx.load_from_string(model), outputs, {}))
        proto, arrays = (model.model, model.arrays) if isinstance(model, Graph) else (model, {})
        if _weight_bytes(proto) <= PROTOBUF_LIMIT - MARGIN:
            return create(_exposed(proto, outputs, arrays))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            large = onnx.ModelProto()
            large.CopyFrom(proto)
            large.MergeFromString(_more_outputs(proto, outputs))
            Graph(large, arrays=arrays).save(Path(folder, "model.onnx"))
            return create(os.path.join(folder, "model.onnx"))
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's errors share no base class below Exception
        raise ModelError(f"{file or 'The model'} does not load in onnxruntime: {_first_line(error)}") from error


def _weight_bytes(proto: onnx.ModelProto) -> int:
    """What the weights take; asking protobuf for the exact size costs as much as serialising."""
    sizes = ((t.dims, helper.tensor_dtype_to_np_dtype(t.data_type).itemsize) for t in proto.graph.initializer)
    return sum(math.prod(dims) * itemsize for dims, itemsize in sizes)


def _exposed(proto: onnx.ModelProto, outputs: Sequence[str], arrays: Mapping[str, Data]) -> bytes:
    """The serialised model with more outputs; appended bytes merge (protobuf encoding)."""
    return b"".join((*flowing(pieces(proto, arrays)), _more_outputs(proto, outputs)))


def _more_outputs(proto: onnx.ModelProto, outputs: Sequence[str]) -> bytes:
    declared = {value.name for value in proto.graph.output}
    more = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs) if name not in declared]
    return bytes(onnx.ModelProto(graph=onnx.GraphProto(output=more)).SerializeToString()) if more else b""


def _first_line(error: Exception) -> str:
    """onnxruntime's message without its code prefix, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
