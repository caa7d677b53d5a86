"""The benchmark of quality: what it compares is within its budget, what it writes is what was recorded."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_latency_prediction import world

import conet_onnx as co
from conet_onnx.data import Normalisation, load_data
from conet_onnx.errors import BudgetUnreachable, UsageError
from conet_onnx.graph import Graph
from conet_onnx.latency.prediction import Predictor, predictor
from conet_onnx.planning import scaled
from conet_onnx.transfer import transferred
from models.catalogue import built
from models.exporting import save
from tools import bench_quality
from tools.bench_quality import Asked, Bench, Cell, Setting, bisected, cells_of, done, measured, share, widths_of
from tools.pruning import KINDS, Placed, module_of, placed, pruned
from tools.quality_page import METHODS, goals, page

MODEL = Path(__file__).parent.parent / "models" / "digits_resnet8.onnx"
BOTH = "macs=0.5 latency=0.6"


def setting(**other: Any) -> Setting:
    plain: dict[str, Any] = {"trials": 1, "epochs_per_trial": 1, "epochs": 1, "samples": 64, "threads": 1}
    plain |= {"source": str(MODEL), "sha256": "0", "data": "digits", "latency": 0.1, "training": {}}
    return Setting(**{**plain, **other})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    source = co.load(MODEL)
    data = bench_quality.with_samples(load_data("digits").with_validation(), 64)
    table = tmp_path_factory.mktemp("tables") / "latency.json"
    return Bench(setting(sha256=source.sha256), source, data, table, "resnet20", training_threads=1)


class Foretold(Bench):
    """Its latencies follow from a law, which the prediction knows; what is measured is `slower`."""

    slower = 1.0
    compares = 0

    @cached_property
    def predicted(self) -> Predictor:
        return self.__dict__["law"][1]

    def compared(self, model: Graph, batch: int | None = None) -> Any:
        self.__dict__["compares"] = self.compares + 1
        found = replace(self.__dict__["law"][0], analysis=self.analysis).compare(self.source, model)
        ratio = replace(found.ratio, p50=found.ratio.p50 * self.slower)
        return replace(found, ratio=ratio)


@pytest.fixture
def foretold(bench: Bench) -> Foretold:
    made, profile = world("digits_resnet8")
    table = profile.run(compare=made.compare, measure=made.measure, time_all=made.time_all)
    found = Foretold(bench.setting, bench.source, bench.dataset, bench.table, bench.network, 1)
    found.__dict__["law"] = (made, predictor(found.analysis, profile.operators, table))
    return found


def record(method: str, budget: str, seed: int = 0, top1: float = 0.9, **other: Any) -> dict[str, Any]:
    source = {"test": {"top1": 0.92, "loss": 0.3}, "validation": {"top1": 0.92, "loss": 0.3}, "params": 1000}
    source |= {"macs": 10**6, "bytes": 4000, "latency_ms": 1.0, "images_per_second": 1000.0}
    model = {**source, "test": {"top1": top1, "loss": 0.4}, "macs": 500_000, "params": 500}
    made = {
        "method": method,
        "budget": budget,
        "seed": seed,
        "setting": asdict(setting(source="runs/net.onnx", training={"augment": ("flip", "crop")})),
        "machine": {"processor": "a processor"},
        "source": source,
        "model": model,
        "latency": {"p50": 0.5, "low": 0.4, "high": 0.6},
        "throughput": {"batch": 32, "p50": 1.5, "low": 1.4, "high": 1.6},
        "trained": {"epochs": 2, "samples": 128},
        "seconds": {"training": 10.0, "total": 12.0},
        "others": 0.02,
    }
    return made | ({"algorithm": "anneal"} if method == "ours" else {}) | other


class TestThePage:
    def test_a_row_is_the_mean_over_seeds_with_their_deviation(self) -> None:
        before = {"untrained": {"test": {"top1": 0.2, "loss": 3.0}}}
        records = [record("uniform", "macs=0.5", s, top1=top1, **before) for s, top1 in ((0, 0.8), (1, 0.9))]
        text = page([*records, record("ours", "macs=0.5")], ["Beside others."])
        assert "\nBeside others.\n" in text
        assert "| macs=0.5 | ours | 1 | 90.00 % | – | 0.3000 |" in text
        row = next(line for line in text.splitlines() if line.startswith("| macs=0.5 | uniform |"))
        assert row.startswith("| macs=0.5 | uniform | 2 | 85.00 ± 7.07 % | 20.0 ± 0.0 % |")
        assert "| ×0.500 ± 0.000 | ×0.50 ± 0.00 | ×0.500 ± 0.000 | ×1.50 ± 0.00 | 2 ± 0 | 10 ± 0 | 2 ± 0 |" in row

    def test_seconds_beside_others_are_left_out(self) -> None:
        busy = {"others": 0.7, "seconds": {"training": 99.0, "total": 199.0}}
        for more, shown in (([], "| 2 | – | – |"), ([record("uniform", "macs=0.5", 1)], "| 2 ± 0 | 10 | 2 |")):
            text = page([record("uniform", "macs=0.5", **busy), *more])
            assert shown in next(line for line in text.splitlines() if line.startswith("| macs=0.5 |"))

    def test_settings_machines_and_methods_are_those_of_the_records(self) -> None:
        records = [record("ours", "macs=0.5"), record("tp-local", "macs=0.5", machine={"processor": "another"})]
        text = page(records)
        assert "searches 1 trials of 1 and 1 on the best, in epochs; all others 2 at once, of which" in text
        assert "augment flip crop" in text
        assert "(1 of 2 records): processor a processor." in text
        assert "(1 of 2 records): processor another." in text
        assert "`--algorithm auto` (anneal)" in text
        assert METHODS["tp-local"] in text
        assert METHODS["tp-global"] not in text

    def test_records_of_several_settings_are_not_compared(self) -> None:
        others = [record(method, "macs=0.5") for method in ("ours", "uniform")]
        for other in others:
            other["setting"] = {**other["setting"], "epochs": 7}
        text = page([record("uniform", "macs=0.5"), *others])
        assert [line for line in text.splitlines() if line.startswith("## net")] == [
            "## net, 64 samples, 2 epochs",
            "## net, 64 samples, 8 epochs",
        ]
        ours = [line for line in text.splitlines() if "macs=0.5: ours at least" in line]
        assert [line.endswith("not measured.") for line in ours] == [True, False]

    def test_budgets_of_a_kind_stand_together_largest_first(self) -> None:
        records = [record("ours", budget) for budget in ("macs=0.3", "latency=0.5", "macs=1.0", BOTH, "macs=0.5")]
        rows = [line.split("|")[1].strip() for line in page(records).splitlines() if line.startswith("| ma")]
        assert [row for row in rows if "=" in row] == ["macs=1.0", "macs=0.5", BOTH, "macs=0.3"]


class TestGoals:
    def lines(self, *records: dict[str, Any]) -> str:
        return "\n".join(goals(records))

    def test_ours_is_held_against_the_nearest_of_the_others_and_not_against_our_own(self) -> None:
        others = [record("tp-global", "macs=0.5", top1=0.85), record("reallocate", "macs=0.5", top1=0.99)]
        held = self.lines(record("ours", "macs=0.5", top1=0.86), *others, record("random", "macs=0.5", top1=0.7))
        assert "best of the others (tp-global): +1.00 points: holds." in held
        short = self.lines(record("ours", "macs=0.5", top1=0.84), *others)
        assert "best of the others (tp-global): -1.00 points: falls short by 1.00." in short

    def test_margins_are_of_the_seeds_that_both_have(self) -> None:
        ours = [record("ours", "macs=0.3", seed, top1=top1) for seed, top1 in ((0, 0.83), (1, 0.5))]
        assert "2.0 points above uniform: +3.00 points: holds." in self.lines(
            *ours, record("uniform", "macs=0.3", top1=0.8)
        )

    def test_free_widths_are_held_to_the_same_and_stand_alone_where_there_is_nothing_else(self) -> None:
        free, other = record("ours free", "macs=0.5", top1=0.82), record("uniform", "macs=0.5", top1=0.8)
        text = self.lines(free, other)
        assert "ours free at or above the best of the others (uniform): +2.00 points: holds." in text
        assert "ours free at least 1.0 points above uniform: +2.00 points: holds." in text
        assert "ours at or above" not in text
        both = self.lines(free, other, record("ours", "macs=0.5", top1=0.79))
        assert "ours at or above the best of the others (uniform): -1.00 points: falls short by 1.00." in both
        assert "ours free at or above the best of the others (uniform): +2.00 points: holds." in both

    def test_throughput_and_what_was_not_measured(self) -> None:
        text = self.lines(record("ours", "macs=0.5"), record("ours", "macs=0.3"))
        assert "1.6 times the source's throughput: 1.50 times: falls short by 0.10." in text
        assert "macs=0.3: ours at least 2.0 points above uniform: not measured." in text
        assert "best of the others: not measured." in text
        assert "macs=1.0" not in text

    def test_half_the_macs_within_a_limit_on_latency_too_is_half_the_macs(self) -> None:
        text = self.lines(record("ours", BOTH))
        assert f"{BOTH}: ours has 1.6 times the source's throughput: 1.50 times: falls short" in text

    def test_the_source_that_was_trained_for_as_long_has_to_be_beaten(self) -> None:
        records = [
            record("ours", "macs=1.0"),
            record("source", "macs=1.0", top1=0.8),
            record("source labels", "macs=1.0"),
        ]
        said = "for as much longer (source labels): +0.00 points: falls short."
        assert f"ours above the source trained {said}" in self.lines(*records)
        assert "ours free above" not in self.lines(*records)
        assert f"ours free above the source trained {said}" in self.lines(*records, record("ours free", "macs=1.0"))

    @pytest.mark.parametrize(("top1", "said"), [(0.9, "-2.00 points: holds."), (0.85, "falls short by 4.00.")])
    def test_one_shot_is_judged_before_training(self, top1: float, said: str) -> None:
        untrained = {"untrained": {"test": {"top1": top1, "loss": 1.0}}}
        assert said in self.lines(record("ours one-shot", "macs=0.7", top1=0.1, **untrained))


class TestCells:
    def test_the_source_itself_only_where_it_is_within_the_budget(self, bench: Bench) -> None:
        cells = cells_of(("ours", "source"), ("macs=0.5", "macs=1.0", "latency=0.5", "latency=1"), 2, bench.analysis)
        assert len(cells) == 2 * (4 + 2)
        assert {cell.budget for cell in cells if cell.method == "source"} == {"macs=1.0", "latency=1"}

    def test_unknown_methods_and_budgets_are_refused(self, bench: Bench) -> None:
        for methods, budgets in ((("our",), ("macs=0.5",)), (("ours",), ("mac=0.5",))):
            with pytest.raises(UsageError):
                cells_of(methods, budgets, 1, bench.analysis)

    def test_a_record_of_other_settings_is_refused(self, tmp_path: Path) -> None:
        cell, own = Cell("ours", "macs=0.5", 0), setting()
        assert not done(cell, own, tmp_path)
        file = cell.file(own, tmp_path)
        file.write_text(json.dumps({"setting": asdict(own), "algorithm": bench_quality.AUTO}))
        assert done(cell, own, tmp_path)
        with pytest.raises(UsageError, match="epochs 1, now 5"):
            done(cell, setting(epochs=5), tmp_path)
        file.write_text(json.dumps({"setting": asdict(own), "algorithm": "random"}))
        with pytest.raises(UsageError, match="algorithm 'random'"):
            done(cell, own, tmp_path)

    def test_a_cell_is_recorded_once_and_trained_as_long_as_a_search(
        self, bench: Bench, tmp_path: Path, one_thread: None
    ) -> None:
        cells = [Cell(method, "macs=0.6", 0) for method in ("ours", "uniform")]
        assert measured(cells, bench, tmp_path) == []
        files = [cell.file(bench.setting, tmp_path) for cell in cells]
        written = [file.read_bytes() for file in files]
        records = [json.loads(text) for text in written]
        for made in records:
            assert made["trained"]["epochs"] == 2
            assert made["trained"]["samples"] == 128
            assert made["model"]["macs"] <= 0.6 * made["source"]["macs"]
            assert made["throughput"]["batch"] == 32
        assert records[1]["trained"]["hold"] == 0.5
        files[1].write_text(json.dumps({**records[1], "trained": {**records[1]["trained"], "hold": 0.1}}))
        with pytest.raises(UsageError, match=r"hold 0\.1, now 0\.5"):
            done(cells[1], bench.setting, tmp_path)
        files[1].write_bytes(written[1])
        assert 0 <= records[1]["untrained"]["test"]["top1"] <= 1
        assert measured([*cells, Cell("tp-global", "macs=0.6", 0)], bench, tmp_path)  # digits are of no such network
        assert [file.read_bytes() for file in files] == written
        assert page(records).count("| macs=0.6 |") == 2

    @pytest.mark.parametrize(
        ("method", "budget", "taught"),
        [("uniform", "macs=0.6", 0.9), ("source", "macs=1.0", 0.5), ("source labels", "macs=1.0", None)],
    )
    def test_a_teacher_says_as_much_as_in_a_search_of_the_budget(
        self,
        method: str,
        budget: str,
        taught: float | None,
        bench: Bench,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        asked = []

        class Enough(Exception):
            pass

        def fit(*_: Any, teacher: Any, distill: float, **__: Any) -> None:
            asked.append(None if teacher is None else distill)
            raise Enough

        monkeypatch.setattr("conet_onnx.torch_backend.train.fit", fit)
        with pytest.raises(Enough):
            bench_quality.run(Cell(method, budget, 0), bench, tmp_path)
        assert asked == [taught]


class TestAligned:
    @pytest.mark.parametrize("method", ["uniform", "ours one-shot"])
    def test_widths_are_what_the_machine_runs_fast_and_within_the_budget(self, method: str, bench: Bench) -> None:
        block = max(bench.fast.values())
        assert block in (4, 8, 16)  # of onnxruntime's layouts
        sizes = {}
        for name in (method, f"{method} aligned"):
            made = co.analyze(bench_quality._at_once(Cell(name, "macs=0.6", 0), bench))
            assert made.costs.source.macs <= 0.6 * bench.analysis.costs.source.macs
            sizes[name] = [made.all_widths[width].size for width in bench.fast if bench.fast[width] == block]
        assert all(size % block == 0 or size in (1, 2, 4, 8) for size in sizes[f"{method} aligned"])
        assert not all(size % block == 0 or size in (1, 2, 4, 8) for size in sizes[method])

    def test_a_search_has_them_unless_it_is_asked_for_others(
        self, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        class Enough(Exception):
            pass

        def search(*_: Any, **how: Any) -> None:
            asked.append((how["algorithm"], how["multiple"]))
            raise Enough

        monkeypatch.setattr(bench_quality, "search", search)
        for method in ("ours", "ours free", "anneal"):
            with pytest.raises(Enough):
                bench_quality.run(Cell(method, "macs=0.6", 0), bench, tmp_path)
        assert asked == [("auto", None), ("auto", "none"), ("anneal", None)]


class TestLatency:
    def test_the_largest_that_is_within_as_predicted(self, foretold: Foretold) -> None:
        asked = Asked.of("latency=0.6", foretold.analysis)
        source = foretold.predicted.predict(foretold.predicted.source)

        def part(graph: Graph) -> float:
            found = widths_of(foretold.analysis, graph)
            assert found is not None
            return foretold.predicted.predict(foretold.analysis.costs.row(found)) / source

        assert 0.5 < part(bench_quality._uniform(Cell("uniform", "latency=0.6", 0), foretold, asked, 1.0)) <= 0.6
        assert part(bench_quality._uniform(Cell("uniform", "latency=0.6", 0), foretold, asked, 0.5)) <= 0.3
        assert 0.5 < part(bench_quality._one_shot(Cell("ours one-shot", "latency=0.6", 0), foretold, asked, 1.0)) <= 0.6

    def test_what_is_measured_to_take_more_is_made_again_for_less(self, foretold: Foretold) -> None:
        foretold.__dict__["slower"] = 1.2
        cell = Cell("uniform", "latency=0.6", 0)
        assert foretold.compared(bench_quality._at_once(cell, foretold)).ratio.p50 <= 0.6
        foretold.__dict__["slower"] = 30.0
        with pytest.raises(BudgetUnreachable):
            bench_quality._at_once(cell, foretold)

    def test_sizes_of_no_widths_of_the_source_are_measured(self, foretold: Foretold) -> None:
        asked = Asked.of("latency=0.5", foretold.analysis)
        assert asked.most is not None
        widths = scaled(foretold.analysis, 0.5)[0]
        small = transferred(foretold.analysis, widths).graph
        assert widths_of(foretold.analysis, small) == {**dict.fromkeys(foretold.analysis.widths, 0), **widths}
        share(small, foretold, asked.most)
        assert foretold.compares == 0
        name = next(n for n in small.weights if len(small.weights[n].dims) == 4 and small.weights[n].dims[0] == 32)
        other = Graph(_wider(small, name))
        assert widths_of(foretold.analysis, other) is None

    def test_numbers_are_found_from_either_side(self) -> None:
        assert bisected(lambda x: x <= 0.3, 0.0, 1.0, 30) == pytest.approx(0.3)
        assert bisected(lambda x: True, 0.0, 1.0, 3) == 1.0
        assert bisected(lambda x: False, 0.0, 1.0, 3) is None


def _wider(graph: Graph, name: str) -> Any:
    """A message in which one weight has a row more: no model that runs, and no widths."""
    from onnx import numpy_helper

    proto = graph.proto()
    for weight in proto.graph.initializer:
        if weight.name == name:
            array = numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array(np.concatenate([array, array[:1]]), name))
    return proto


class TestTorchPruning:
    def source(self, folder: Path, network: str) -> tuple[Graph, torch.nn.Module]:
        torch.manual_seed(0)
        module, shape = built(network, classes=7, size=16)
        with torch.no_grad():
            for name, own in module.named_parameters():
                if "bn" in name:
                    own.copy_(torch.rand_like(own) + 0.5)
        Normalisation(scale=1.0).save_beside(folder / "net.onnx")
        return save(module, shape, folder / "net.onnx", keep_norms=True), module.eval()

    @pytest.mark.parametrize("network", ["resnet20", "plain20"])
    def test_the_network_is_built_with_the_files_weights(self, network: str, tmp_path: Path) -> None:
        source, module = self.source(tmp_path, network)
        x = torch.randn(3, 3, 16, 16)
        again, shape = module_of(source, network)
        assert shape == (3, 16, 16)
        assert torch.equal(again.eval()(x), module(x))
        assert torch.equal(placed(again)(x), module(x))

    def test_another_network_is_refused(self, tmp_path: Path) -> None:
        source, _ = self.source(tmp_path, "plain20")
        with pytest.raises(UsageError, match="is not resnet32: it lacks"):
            module_of(source, "resnet32")
        with pytest.raises(UsageError, match="no network"):
            module_of(source, "net")

    @pytest.mark.parametrize("network", ["resnet20", "plain20"])
    def test_each_kind_leaves_a_model_that_runs_and_no_two_the_same(self, network: str, tmp_path: Path) -> None:
        pytest.importorskip("torch_pruning", reason="Torch-Pruning is in requirements/zoo.txt alone")
        source, _ = self.source(tmp_path, network)
        costs = set()
        for kind in KINDS:
            module, shape = module_of(source, network)
            made = pruned(module, shape, kind, 0.4)
            assert made.outputs[0].shape[-1] == 7
            costs.add(co.analyze(made).costs.source)
            co.latency.compare(source, made, threads=1, seconds=0.02)
        assert all(cost.macs < co.analyze(source).costs.source.macs for cost in costs)
        assert len(costs) == len(KINDS)

    def test_channels_that_say_nothing_can_go_on_either_side_of_a_padded_shortcut(self, tmp_path: Path) -> None:
        tp = pytest.importorskip("torch_pruning", reason="Torch-Pruning is in requirements/zoo.txt alone")
        from tools.pruning import _places_pruned

        _, module = self.source(tmp_path, "resnet20")
        placed(module)
        shortcut = module.layer2[0].downsample
        assert isinstance(shortcut, Placed)
        before = shortcut.places.index(0)
        first, second = [1, 4, 5], [before + 4, before + 5, 0, 30]  # of the streams before and behind it
        with torch.no_grad():
            for norms, channels in (
                ([module.bn1, *(block.bn2 for block in module.layer1)], first),
                ([block.bn2 for block in module.layer2], second),
            ):
                for norm in norms:
                    norm.weight[channels] = 0
                    norm.bias[channels] = 0
            x = torch.randn(3, 3, 16, 16)
            expected = module(x)
        graph = tp.DependencyGraph().build_dependency(
            module, torch.zeros(1, 3, 16, 16), customized_pruners={Placed: _places_pruned()}
        )
        for root, channels in ((module.conv1, first), (module.layer2[0].conv2, second)):
            graph.get_pruning_group(root, tp.prune_conv_out_channels, idxs=channels).prune()
        assert (shortcut.inputs, len(shortcut.places)) == (13, 28)
        assert module.layer1[0].conv1.in_channels == 13
        assert module.layer2[1].conv1.in_channels == 28
        with torch.no_grad():
            assert torch.allclose(module(x), expected, atol=1e-5)
