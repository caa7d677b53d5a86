"""The tool that breaks rules on purpose: what it changes, and that a broken rule is noticed and a whole one is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.graph import Graph
from conet_onnx.rules import RULES
from tools.mutants import Mutant, broken, installed, rules

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _rules_are_put_back():
    before = {operator: list(entries) for operator, entries in RULES.items()}
    yield
    RULES.update(before)


def analysed() -> Analysis:
    """Two convolutions, of five channels in between."""
    shapes = {"w1": (5, 3, 1, 1), "w2": (2, 5, 1, 1)}
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (1, 3, 4, 4)), ("y", None)))
    nodes = [helper.make_node("Conv", ["x", "w1"], ["h"], "one"), helper.make_node("Conv", ["h", "w2"], ["y"], "two")]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return analyze(Graph(model))


def coupled() -> list[list[tuple[str, int]]]:
    """The weights' axes that each width is held in."""
    return [[(m.tensor, m.axis) for m in width.members] for width in analysed().widths.values()]


COUPLED = [[("w1", 0), ("w2", 1)]]


def listened() -> set[str]:
    heard: set[str] = set()
    end = installed(lambda operator, since, change: heard.add(str(Mutant(operator, since, change))))
    analysed()
    end()
    return heard


class TestChanges:
    def test_every_fact_has_a_change_that_names_it_alike_at_every_node(self):
        heard = listened()
        assert heard >= {
            "Conv@1 without the rule",
            "Conv@1 outputs without 0",
            "Conv@1 outputs 0.0 and 0.1 swapped",
            "Conv@1 outputs 0.1 a size of its own",
            "Conv@1 equal without 0.1 = i",
            "Conv@1 equal without 1.0 = o",
            "Conv@1 equal without 1.1 = i",
            "Conv@1 contracts 0 left out",
            "Conv@1 contracts 0 side 1 left out",
            "Conv@1 contracts 0 side 1 along the axis before",
            "Conv@1 contracts 0 makes 0 left out",
            "Conv@1 contracts 0 at twice the price",
            "Conv@1 frozen without 0.2 (spatial)",
        }
        assert all(mutant.startswith("Conv@1 ") for mutant in heard)

    def test_listening_changes_nothing_and_ends(self):
        before, widths = {op: list(entries) for op, entries in RULES.items()}, analysed().widths
        end = installed(lambda *_: None)
        assert analysed().widths == widths
        end()
        assert before == RULES

    @pytest.mark.parametrize(
        ("change", "left"),
        [
            ("without the rule", []),
            ("outputs 0.1 a size of its own", [[("w1", 0)], [("w2", 0)]]),
            ("equal without 0.1 = i", [[("w1", 0)]]),
            ("contracts 0 left out", []),
            ("outputs without 0", [[("w1", 0)]]),
            ("frozen without 0.2 (spatial)", COUPLED),
            ("nothing of this name", COUPLED),
        ],
    )
    def test_a_mutant_changes_one_fact(self, change: str, left: list[list[tuple[str, int]]]):
        assert coupled() == COUPLED
        broken(Mutant("Conv", 1, change))
        assert coupled() == left

    def test_there_is_no_mutant_of_an_operator_without_a_rule(self):
        with pytest.raises(KeyError):
            broken(Mutant("Loop", 1, "without the rule"))

    def test_every_rule_of_every_version_is_there(self):
        assert len(rules()) == sum(map(len, RULES.values()))
        assert {("LayerNormalization", 0), ("LayerNormalization", 1)} <= set(rules())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, str]], str, Path]:
    """The tool on a file of two tests: one that looks at widths, and one that fails by itself."""
    folder = tmp_path_factory.mktemp("mutate")
    text = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_mutate_rules import COUPLED, coupled

def test_one_width():
    assert coupled() == COUPLED

def test_fails_by_itself():
    coupled()
    raise AssertionError
"""
    tests = folder / "test_two.py"
    tests.write_text(text)
    command = [sys.executable, ROOT / "tools" / "mutate_rules.py", "--tests", tests, "--heard", folder / "heard"]
    command += ["--records", folder / "records.jsonl", "--table", folder / "table.md", "--only", "Conv@1*"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()], done.stdout, folder


class TestTool:
    def test_a_broken_rule_is_noticed_by_the_test_that_looks(self, ran):
        verdicts = {v["mutant"]: v for v in ran[0]}
        for change in ("equal without 0.1 = i", "without the rule", "outputs 0.1 a size of its own"):
            assert verdicts[f"Conv@1 {change}"]["verdict"] == "killed"
            assert verdicts[f"Conv@1 {change}"]["by"].endswith("::test_one_width")

    def test_what_no_test_looks_at_survives_and_is_printed(self, ran):
        verdicts = {v["mutant"]: v["verdict"] for v in ran[0]}
        assert verdicts["Conv@1 contracts 0 at twice the price"] == "survived"
        assert "survived: Conv@1 contracts 0 at twice the price   # UNEXPLAINED" in ran[1]
        assert "`Conv@1 contracts 0 at twice the price`" in (ran[2] / "table.md").read_text()

    def test_unbroken_the_test_passes_and_one_that_does_not_counts_for_nothing(self, ran):
        assert "test_fails_by_itself" in ran[1].split("fails unbroken: ")[1]
        heard = [json.loads(line) for path in (ran[2] / "heard").iterdir() for line in path.read_text().splitlines()]
        assert {h["test"].rpartition("::")[2]: h["passed"] for h in heard} == {
            "test_one_width": True,
            "test_fails_by_itself": False,
        }
        assert {v["tests"] for v in ran[0]} == {1}
