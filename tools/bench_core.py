"""Measure the speed and memory of the core against their limits, each beside what it is compared with, in one run."""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.measuring import (  # noqa: E402 - found through the line above
    Row,
    compared,
    facts,
    forget,
    heading,
    high_water,
    in_turns,
    line,
    markdown,
    timed,
    within,
)

__all__ = ["BENCHES", "ON_REQUEST", "main"]

SEED = 0
COPIES = 2.0  # of the weights, whatever else a process needs included


@dataclass(frozen=True, slots=True)
class Setting:
    """Where files go, which models are measured, and how often."""

    folder: Path
    models: tuple[str, ...]
    repeats: int
    exports: Path

    def among(self, *names: str) -> Iterator[str]:
        """Those of the names that are to be measured."""
        return (name for name in names if name in self.models)

    def file(self, name: str) -> Path:
        """The export of a network, written when first asked for."""
        path = self.folder / f"{name}.onnx"
        if not path.exists():
            from tests import zoo

            onnx.save(zoo.onnx_model(name), path)
        return path

    def save(self, name: str, model: onnx.ModelProto) -> Path:
        """A file with the model."""
        path = self.folder / f"{name}.onnx"
        onnx.save(model, path)
        return path


def startup(setting: Setting) -> Iterator[Row]:
    """A new process that prints the command line's help."""
    command = [sys.executable, "-m", "conet_onnx", "--help"]
    run = partial(subprocess.run, command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    yield within("startup", "conet-onnx --help", [timed(run) for _ in range(setting.repeats)], 0.5)


def analysis(setting: Setting) -> Iterator[Row]:
    """Analyze alone: the file loaded, its shapes known."""
    for name in setting.models:
        times = [_analysis_alone(setting.file(name)) for _ in range(setting.repeats)]
        yield within("analyze", name, times, 0.1)


def loading(setting: Setting) -> Iterator[Row]:
    """Load, shapes and analyze, from a file that the system has forgotten."""
    for name in setting.models:
        times = [_load_and_analysis(setting.file(name)) for _ in range(setting.repeats)]
        yield within("load+analyze", name, times, 0.5)


def growth(setting: Setting) -> Iterator[Row]:
    """How time grows from 1,000 to 10,000 nodes; 10 is linear."""
    for residual in (False, True):
        case = "residual" if residual else "plain"
        small, large = (setting.save(f"{case}-{n}", _chain(n, residual)) for n in (1_000, 10_000))
        for label, measure in (("analyze", _analysis_alone), ("load+analyze", _load_and_analysis)):
            pairs = in_turns(partial(measure, large), partial(measure, small), setting.repeats)
            yield compared("growth", f"10k nodes, {case}, {label}", pairs, "1k nodes", 12)


def resizing(setting: Setting) -> Iterator[Row]:
    """File to file without verification, against onnx.load and onnx.save of the source, or of the result too."""
    out, copied = setting.folder / "out.onnx", setting.folder / "copy.onnx"
    cases = [(name, 0.5) for name in setting.models]
    cases += [(name, 2.0) for name in setting.among("resnet18", "resnet50", "densenet121")]
    for name, scale in cases:
        path = setting.file(name)
        _resize(path, out, scale)  # what is imported late is imported here
        peers = {"load + save": path} if scale < 1 else {"load + save": path, "load + save of the result": out}
        for what, file in peers.items():
            pairs = in_turns(
                partial(_resize_time, path, out, scale), partial(_copy_time, file, copied), setting.repeats
            )
            limit = max(3.0, 0.3 / statistics.median(peer for _, peer in pairs))
            yield compared("resize", f"{name} x{scale:g}", pairs, what, limit)


def memory(setting: Setting) -> Iterator[Row]:
    """Peak memory above what the process held before, in copies of the weights: of the larger of the two models."""
    small = setting.save("small", _chain(20, residual=True))
    files = [setting.save("wide", _wide()), *map(setting.file, setting.among("resnet18", "resnet50"))]
    for path, scale in itertools.product(files, (None, 0.5, 0.95, 0.98, 2.0)):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peak = pool.submit(_peak, scale, path, small).result()
        resized = [] if scale is None else [path.with_suffix(".resized")]
        weights = max(map(_weight_bytes, (path, *resized)))
        action = "load" if scale is None else f"resize x{scale:g}"
        case, ratio = f"{path.stem}, {action}", peak / weights
        yield Row("memory", case, peak / 1e6, weights / 1e6, "MB", "the weights", ratio, ratio, ratio, COPIES)


def training(setting: Setting) -> Iterator[Row]:
    """A step of SGD on 32 images: the lowered graph against the torch module that was exported."""
    import torch

    import conet_onnx as co
    from conet_onnx.graph import Graph
    from tests import zoo

    labels = torch.arange(32) % zoo.CLASSES
    for name in setting.among("resnet18", "mobilenet_v2"):
        batch = torch.from_numpy(zoo.example(name, 32))
        peer = _step(copy.deepcopy(zoo.module(name)), batch, labels)
        for kept in (True, False):
            graph = Graph(zoo.onnx_model(name, dynamic_batch=True, keep_norms=kept))
            ours = _step(co.to_torch(graph), batch, labels)
            timed(ours), timed(peer)
            pairs = in_turns(partial(timed, ours), partial(timed, peer), 2 * setting.repeats)
            case = f"{name}, norms {'kept' if kept else 'folded'}"
            yield compared("training step", case, pairs, "the torch module", 1.15)


def pricing(setting: Setting) -> Iterator[Row]:
    """Costs of 1,000 width sets that differ in every width, one by one and all at once."""
    import conet_onnx as co

    for name in setting.among("resnet50", "densenet121"):
        found = co.analyze(co.load(setting.file(name)))
        tops = [width.size + 1 for width in found.widths.values()]
        drawn = np.random.default_rng(SEED).integers(1, tops, (1000, len(tops)))
        sets = [dict(zip(found.widths, row, strict=True)) for row in drawn.tolist()]
        calls = {
            "price": partial(_each, found.costs.price, sets),
            "price_many": partial(found.costs.price_many, drawn),
        }
        for label, call in calls.items():
            times = [timed(call) / len(sets) for _ in range(setting.repeats)]
            yield within("pricing", f"{name}, {label}", times, 1e-3)


def allocate(setting: Setting) -> Iterator[Row]:
    """Widths for a budget by what channels are worth, scores included, after the analysis; not part of a run of all."""
    import conet_onnx as co
    from conet_onnx.criteria import channel_scores
    from conet_onnx.planning import allocated

    for name in setting.among("resnet50", "densenet121"):
        for kind, share in (("macs", 0.5), ("params", 0.5)):
            times = []
            for _ in range(setting.repeats):
                found = co.analyze(co.load(setting.file(name)))
                most = {kind: share * getattr(found.costs.source, kind)}
                times.append(timed(lambda found=found, most=most: allocated(found, most, channel_scores(found, "l2"))))
            yield within("allocate", f"{name}, {kind}={share:g}", times, 2.0 if name == "resnet50" else 4.0)


def metrics(setting: Setting) -> Iterator[Row]:
    """Scoring ResNet-34 against numpy.linalg.svd on both unfoldings of every layer, and the same EVBMF, with singular
    vectors (as it is called without more words) and without; not part of a run of all."""
    import conet_onnx as co
    from conet_onnx.metrics import layers
    from conet_onnx.metrics.evbmf import evbmf

    found = co.analyze(co.load(setting.file("resnet34")))
    weights = [layer.unfolded(found.graph.array(layer.tensor))[0] for layer in layers(found)]

    def peer(vectors: bool) -> None:
        for weight in weights:
            for array in (weight, weight.swapaxes(0, 1)):
                matrix = array.reshape(len(array), -1)
                values = np.linalg.svd(matrix, full_matrices=False, compute_uv=vectors)
                evbmf(values[1] if vectors else values, *matrix.shape)

    for vectors, what in ((True, "numpy.linalg.svd"), (False, "numpy.linalg.svd, values only")):
        pairs = in_turns(partial(timed, co.score, found), partial(timed, peer, vectors), setting.repeats)
        yield compared("metrics", "resnet34, all layers", pairs, what, 0.1)


def large(setting: Setting) -> Iterator[Row]:
    """A chain of 100,000 nodes, and 3 GB of weights in a file of their own, once each; not part of a run of all."""
    path = setting.save("chain-100000", _chain(100_000, residual=True))
    yield within("large", "100k nodes, analyze", [_analysis_alone(path)], 20)
    small = setting.save("small", _chain(20, residual=True))
    path = _outside(setting.folder / "outside.onnx")
    weights = path.with_suffix(".data").stat().st_size
    for scale in (0.5, 0.98):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peak = pool.submit(_peak, scale, path, small).result()
        ratio = peak / weights
        what = "the weights, in a file of their own"
        yield Row("large", f"3 GB, resize x{scale:g}", peak / 1e6, weights / 1e6, "MB", what, ratio, ratio, ratio, 1.3)


def peers(setting: Setting) -> Iterator[Row]:
    """Beside Torch-Pruning, on twenty networks; not part of a run of all."""
    from tools.peers import beside

    yield from beside(setting.folder, _analysis_alone, partial(_resize_time, scale=0.5), setting.repeats)


def exports(setting: Setting) -> Iterator[Row]:
    """Every file that `tools/zoo.py --keep` has left: analyze alone, and all from file to widths beyond onnx.load; not
    part of a run of all."""
    for path in sorted(setting.exports.glob("*.onnx")):
        times = [_analysis_alone(path) for _ in range(setting.repeats)]
        yield within("analyze", path.stem, times, 0.1)
        beyond = [max(0.0, _load_and_analysis(path) - _load_time(path)) for _ in range(setting.repeats)]
        yield within("load+analyze - onnx.load", path.stem, beyond, 1.0)


BENCHES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "startup": startup,
    "analyze": analysis,
    "load": loading,
    "growth": growth,
    "resize": resizing,
    "memory": memory,
    "training": training,
    "pricing": pricing,
    "metrics": metrics,
    "allocate": allocate,
    "large": large,
    "peers": peers,
    "exports": exports,
}


ON_REQUEST = frozenset({"allocate", "exports", "large", "metrics", "peers"})  # minutes, disk, packages or files


def main() -> int:
    """Run the benchmarks; 1 if one is over its limit."""
    import torch

    from tests import zoo

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHES, help="run this one; may be given again")
    parser.add_argument("--model", action="append", choices=zoo.MODELS, help="measure on this one; may be given again")
    parser.add_argument("--exports", type=Path, default=ROOT / "runs" / "zoo", metavar="DIR", help="for --only exports")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch; default: all cores")
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement; the median counts")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the rows as JSON")
    parser.add_argument("--table", type=Path, metavar="F", help="also write the table as Markdown")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    packages = ("torch", "torchvision", "onnx", "numpy", "networkx")
    blas = os.environ.get("OMP_NUM_THREADS", "all")  # the threads of numpy, which reads it when it is imported
    machine = facts(packages, threads=arguments.threads, OMP_NUM_THREADS=blas, repeats=arguments.repeats)
    print(*(f"{key}: {value}" for key, value in machine.items()), "", heading(), sep="\n")
    started = time.perf_counter()
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), tuple(arguments.model or zoo.MODELS), arguments.repeats, arguments.exports)
        for name in arguments.only or [name for name in BENCHES if name not in ON_REQUEST]:
            try:
                for row in BENCHES[name](setting):
                    rows.append(row)
                    print(line(row), flush=True)
            except Exception as error:  # whatever breaks one benchmark is reported, and the others still run
                failed.append(name)
                print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
    held = sum(row.ok for row in rows)
    print(f"\n{held} of {len(rows)} within their limits, in {time.perf_counter() - started:.0f} s.")
    if failed:
        print(f"Failed, and missing from the table: {', '.join(failed)}.")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")
    if arguments.table:
        command = shlex.join(["python", "tools/bench_core.py", *sys.argv[1:]])
        arguments.table.write_text(markdown("Speed and memory of the core", command, machine, rows))
    return int(held < len(rows) or bool(failed))


def _analysis_alone(path: Path) -> float:
    import conet_onnx as co

    graph = co.load(path)
    for node in graph.nodes:
        for name in node.outputs:
            graph.shape(name)
    return timed(_analyze, graph)


def _load_and_analysis(path: Path) -> float:
    import conet_onnx as co

    forget(path)
    return timed(lambda: _analyze(co.load(path)))


def _load_time(path: Path) -> float:
    forget(path)
    return timed(onnx.load, path)


def _analyze(graph: Any) -> Any:
    """Analyze, and ask for all that may be computed late."""
    import conet_onnx as co

    found = co.analyze(graph)
    return found, found.widths, found.frozen, found.costs


def _resize_time(path: Path, out: Path, scale: float) -> float:
    forget(path)
    out.unlink(missing_ok=True)  # to free a file takes time, and is not what is measured
    return timed(_resize, path, out, scale)


def _copy_time(path: Path, out: Path) -> float:
    forget(path)
    out.unlink(missing_ok=True)
    return timed(lambda: onnx.save(onnx.load(path), out))


def _resize(path: Path, out: Path, scale: float) -> None:
    """What `conet-onnx resize --scale --no-verify` does; widths that growth would not keep exact stay."""
    import conet_onnx as co

    graph = co.load(path)
    found = co.analyze(graph)
    sizes = {
        name: max(width.min, round(width.size * scale) // width.multiple * width.multiple)
        for name, width in found.widths.items()
        if width.exact or scale < 1
    }
    plan = co.plan(found, sizes, transfer="slice" if scale < 1 else "net2net")
    co.rewrite(graph, plan).save(out)


def _step(module: Any, batch: Any, labels: Any) -> Callable[[], None]:
    import torch

    module.train()
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(module(batch), labels).backward()
        optimiser.step()

    return step


def _each(call: Callable[[Any], Any], arguments: list[Any]) -> None:
    for argument in arguments:
        call(argument)


def _weight_bytes(path: Path) -> int:
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(path).graph.initializer)


def _peak(scale: float | None, path: Path, small: Path) -> int:
    """Bytes by which loading or resizing raises this process's memory; run in a new one, where `small` warms it up."""
    import conet_onnx as co

    def act(file: Path) -> None:
        if scale is None:
            co.load(file)
        else:
            _resize(file, file.with_suffix(".resized"), scale)

    act(small)
    gc.collect()
    with high_water() as risen:
        act(path)
        return risen()


def _chain(nodes: int, residual: bool) -> onnx.ModelProto:
    """`nodes` nodes: Conv and Relu on four channels in turn, if residual with an Add across each two."""
    rng = np.random.default_rng(SEED)
    made: list[onnx.NodeProto] = []
    weights = []
    last, skip = "x", ""
    for index, kind in enumerate(itertools.islice(itertools.cycle(("Conv", "Relu", "Add")[: 2 + residual]), nodes - 1)):
        inputs = [last]
        if kind == "Conv":
            skip = last if index else ""
            array = rng.standard_normal((4, 4 if index else 3, 1, 1)).astype(np.float32)
            weights.append(numpy_helper.from_array(array, f"w{index}"))
            inputs.append(f"w{index}")
        if kind == "Add":
            inputs.append(skip or last)
        last = f"v{index}"
        made.append(helper.make_node(kind, inputs, [last], name=f"n{index}"))
    return _model(made, weights, 4)


def _wide(layers: int = 20, width: int = 512) -> onnx.ModelProto:
    """About 180 MB of weights in few nodes, so that hardly anything else counts."""
    rng = np.random.default_rng(SEED)
    made, weights, last = [], [], "x"
    for index in range(layers):
        array = rng.standard_normal((width, width if index else 3, 3, 3), dtype=np.float32)
        weights.append(numpy_helper.from_array(array, f"w{index}"))
        made.append(helper.make_node("Conv", [last, f"w{index}"], [f"v{index}"], name=f"n{index}", pads=[1, 1, 1, 1]))
        last = f"v{index}"
    return _model(made, weights, width)


def _outside(path: Path, layers: int = 48, width: int = 4096) -> Path:
    """About 3 GB of weights in `NAME.data`, written a layer at a time."""
    rng = np.random.default_rng(SEED)
    made, weights, last = [], [], "x"
    with path.with_suffix(".data").open("wb") as stream:
        for index in range(layers):
            array = rng.standard_normal((width, width if index else 3, 1, 1), dtype=np.float32)
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            places = {"location": path.with_suffix(".data").name, "offset": stream.tell(), "length": array.nbytes}
            for key, value in places.items():
                tensor.external_data.add(key=key, value=str(value))
            stream.write(array.data)
            weights.append(tensor)
            made.append(helper.make_node("Conv", [last, f"w{index}"], [f"v{index}"], name=f"n{index}"))
            last = f"v{index}"
    onnx.save(_model(made, weights, width), path)
    return path


def _model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], channels: int) -> onnx.ModelProto:
    """The nodes from an image `x`, pooled into `y`."""
    pool = helper.make_node("GlobalAveragePool", [nodes[-1].output[0]], ["y"], name="pool")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 1, 1])
    graph = helper.make_graph([*nodes, pool], "bench", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


if __name__ == "__main__":
    sys.exit(main())
