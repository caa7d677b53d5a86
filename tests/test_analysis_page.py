"""The page of an analysis says what the analysis says, stands alone, and survives hostile names."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import strategies
import zoo
from cli_support import save, small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from conet_onnx.analysis import Analysis, analyze
from conet_onnx.errors import OutputError
from conet_onnx.graph import Graph
from conet_onnx.hints import HINTS
from conet_onnx.report.analysis import render, write_page
from conet_onnx.report.layout import Layout, arrange

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=https://example.org/x onerror=alert(2)>",
    "a&amp;b\"'<b>bold</b> </script a <!-- ]]>",
)


class Page(HTMLParser):
    """Tags with their attributes, texts of scripts and styles, and the cells of each table by its id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, dict[str, str | None], str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = self.tables[str(dict(attrs)["id"])] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        if tag in ("script", "style", "td", "th", "text", "title"):
            self._open = tag
            self.texts.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            tag, attributes, text = self.texts[-1]
            self.texts[-1] = tag, attributes, text + data
        if self._open in ("td", "th"):
            self._rows[-1][-1] += data

    def of(self, tag: str) -> list[str]:
        return [text for kind, _, text in self.texts if kind == tag]

    @property
    def facts(self) -> dict[str, Any]:
        (text,) = (text for _, attributes, text in self.texts if attributes.get("id") == "facts")
        found = json.loads(text)
        assert isinstance(found, dict)
        return found

    @property
    def boxes(self) -> list[dict[str, str | None]]:
        return [a for tag, a in self.tags if tag == "g" and str(a.get("class")).split()[0] == "b"]


def page_of(analysis: Analysis) -> Page:
    return Page(render(analysis, analysis.as_json()))


def hostile() -> Analysis:
    """A model all of whose names are markup."""
    model = small_model()
    names = dict(zip(("c1.w", "a", "c1"), HOSTILE, strict=True))
    for node in model.graph.node:
        node.name = names.get(node.name, node.name)
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    model.graph.node[5].op_type, model.graph.node[5].domain = "<i>", "me"
    model.opset_import.append(onnx.helper.make_opsetid("me", 1))
    return analyze(Graph(model))


@pytest.fixture(scope="module")
def resnet() -> Analysis:
    return analyze(zoo.graph("resnet18"))


class TestContent:
    @pytest.mark.parametrize("name", ["resnet18", "densenet121", "shufflenet_v2_x0_5"])
    def test_every_width_and_every_frozen_axis_has_a_row(self, name: str) -> None:
        analysis = analyze(zoo.graph(name, dynamic_batch=True))
        document = analysis.as_json()
        page = Page(render(analysis, document))
        rows = page.tables["widths"]
        assert rows[0] == ["id", "name", "size", "kind", "members", "params", "MACs"]
        assert [row[:5] for row in rows[1:]] == [
            [g["id"], g["name"], str(g["size"]), "exact", str(len(g["members"]))] for g in document["groups"]
        ]
        assert [row[6] for row in rows[1:]] == [
            f"{g['macs'] / document['model']['macs']:.1%}" for g in document["groups"]
        ]
        assert page.tables["axes"][1:] == [
            [f"{f['tensor']}[{f['axis']}]", str(f["size"]), *(f["reason"][k] for k in ("kind", "detail", "node"))]
            for f in document["frozen"]
        ]
        kinds = {f["reason"]["kind"] for f in document["frozen"]}
        assert {row[0]: row[2] for row in page.tables["kinds"][1:]} == {kind: HINTS[kind] for kind in kinds}

    @pytest.mark.parametrize("name", ["resnet18", "densenet121", "shufflenet_v2_x0_5", "googlenet"])
    def test_every_width_is_in_the_graph_and_has_a_colour(self, name: str) -> None:
        analysis = analyze(zoo.graph(name, dynamic_batch=True))
        page = page_of(analysis)
        drawn = {identity for box in page.boxes for identity in (box.get("data-w") or "").split()}
        assert drawn == set(analysis.widths)
        style = "".join(page.of("style"))
        assert set(re.findall(r"\.h(\d+) \{ --h", style)) == {str(k) for k in range(len(analysis.widths))}

    def test_a_node_has_the_widths_of_what_it_makes(self, resnet: Analysis) -> None:
        page = page_of(resnet)
        nodes = page.facts["nodes"]
        ids = {width.dim: identity for identity, width in resnet.widths.items()}
        for box in page.boxes:
            made = nodes[int(str(box["data-n"]))]["out"]
            dims = [d for name in made for s in resnet.shapes[name] for d in resnet.solver.leaves(s)]
            assert (box.get("data-w") or "").split() == list(dict.fromkeys(ids[d] for d in dims if d in ids))

    def test_every_node_of_a_plain_network_is_drawn(self, resnet: Analysis) -> None:
        names = [node["name"] for node in page_of(resnet).facts["nodes"]]
        assert names == ["x", *(node.name for node in resnet.graph.nodes), "y"]

    def test_nodes_that_compute_sizes_are_left_out_and_counted(self) -> None:
        analysis = analyze(zoo.graph("shufflenet_v2_x0_5", dynamic_batch=True))
        text = render(analysis, analysis.as_json())
        left = len(analysis.graph.nodes) + 2 - len(Page(text).boxes)
        assert left > 100
        assert f"Not drawn: {left} nodes" in text
        assert not {n["op"] for n in Page(text).facts["nodes"]} & {"Shape", "Constant"}

    def test_the_facts_say_what_each_axis_is(self, resnet: Analysis) -> None:
        facts = page_of(resnet).facts
        weight = facts["tensors"]["fc.weight"]
        assert weight[0][:2] == ["10", []]
        assert facts["reasons"][weight[0][2]] == ["output", "it is an axis of the model's output 'y'"]
        assert weight[1] == ["512 = w10", ["w10"], -1]
        assert [w["id"] for w in facts["widths"]] == list(resnet.widths)
        members = [[m.tensor, m.axis, m.role] for m in resnet.widths["w1"].members]
        assert facts["widths"][1]["members"] == members

    def test_mixed_widths_name_what_mixes_them(self) -> None:
        analyses = (analyze(Graph(strategies.random_model(_chance(k)))) for k in range(200))
        mixed = next(found for found in analyses if not all(w.exact for w in found.widths.values()))
        page = page_of(mixed)
        width = next(w for w in mixed.widths.values() if not w.exact)
        row = next(row for row in page.tables["widths"] if row[0] == width.id)
        assert row[3].startswith(f"mixed by {width.mixed_by[0]}")
        assert any("mix" in str(box["class"]).split() for box in page.boxes)

    def test_a_model_without_widths_has_its_reasons(self) -> None:
        analysis = analyze(Graph(small_model()), freeze=("w0", "w1"))
        text = render(analysis, analysis.as_json())
        assert "No width of this model can change" in text
        assert "it was frozen by request" in text
        assert "widths" not in Page(text).tables

    def test_random_graphs_have_a_page(self) -> None:
        for k in range(40):
            analysis = analyze(Graph(strategies.random_model(_chance(k))))
            page = page_of(analysis)
            assert len(page.tables.get("widths", [[]])) == 1 + len(analysis.widths)


class TestAlone:
    def test_nothing_in_it_is_asked_of_a_network(self, resnet: Analysis) -> None:
        for analysis in (resnet, hostile()):
            text = render(analysis, analysis.as_json())
            page = Page(text)
            for tag, attributes in page.tags:
                assert not {"src", "href", "srcset", "action", "data", "poster"} & attributes.keys(), (tag, attributes)
                assert tag not in ("link", "iframe", "object", "embed", "base", "img", "use", "image")
            assert not re.search(r"url\(|@import|@font-face", "".join(page.of("style")))
            scripts = "".join(t for kind, a, t in page.texts if kind == "script" and "id" not in a)
            assert not re.search(r"https?:|fetch\(|XMLHttpRequest|WebSocket|import\(|innerHTML|eval\(", scripts)
            (policy,) = (a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
            assert policy == "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"

    def test_names_are_never_taken_for_markup(self) -> None:
        page = page_of(hostile())
        assert [tag for tag, _ in page.tags].count("script") == 2
        assert not {"img", "b", "i"} & {tag for tag, a in page.tags if not str(a.get("class")).startswith("k ")}
        assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
        assert not any("<" in text for kind, attributes, text in page.texts if attributes.get("id") == "facts")
        assert page.tables["widths"][1][1] == HOSTILE[0]
        assert {node["name"] for node in page.facts["nodes"]} >= {HOSTILE[2]}
        assert {node["op"] for node in page.facts["nodes"]} >= {"<i>"}
        assert HOSTILE[1] in page.facts["tensors"]
        assert any("'<i>'" in row[3] or "<i>" in row[3] for row in page.tables["axes"])

    def test_the_same_model_gives_the_same_page_in_another_process(self, tmp_path: Path) -> None:
        file = save(small_model(), tmp_path / "small.onnx")
        pages = []
        for seed in ("1", "2"):
            command = [sys.executable, "-m", "conet_onnx", "analyze", str(file), "--html", str(tmp_path / seed)]
            subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": seed})
            pages.append((tmp_path / seed).read_bytes())
        assert pages[0] == pages[1]

    def test_it_appears_whole_or_not_at_all(self, tmp_path: Path, resnet: Analysis) -> None:
        with pytest.raises(OutputError):
            write_page(resnet, resnet.as_json(), tmp_path / "missing" / "page.html")
        write_page(resnet, resnet.as_json(), tmp_path / "page.html")
        assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def _chance(seed: int) -> random.Random:
    return random.Random(f"page {seed}")


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """What each node reads, and how many of the first are inputs."""
    inputs = draw(st.integers(1, 2))
    reads: list[list[int]] = [[] for _ in range(inputs)]
    for node in range(inputs, inputs + draw(st.integers(0, 30))):
        near = st.integers(max(0, node - 4), node - 1)
        reads.append(draw(st.lists(st.one_of(near, st.integers(0, node - 1)), max_size=4, unique=True)))
    return reads, inputs


class TestLayout:
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(dags())
    def test_wires_run_down_past_every_box_and_lanes_are_not_shared(self, graph: tuple[list[list[int]], int]) -> None:
        reads, inputs = graph
        found = arrange(reads, inputs=inputs)
        boxes = list(zip(found.rows, found.columns, strict=True))
        assert len(set(boxes)) == len(boxes)
        wires = {(wire.source, wire.target): wire for wire in found.wires}
        assert set(wires) == {(source, node) for node, sources in enumerate(reads) for source in sources}
        assert len(wires) == len(found.wires)
        runs: dict[tuple[str, int, int], int] = {}
        for (source, target), wire in wires.items():
            between = range(found.rows[source] + 1, found.rows[target])
            assert found.rows[source] < found.rows[target]
            assert (wire.column is None and wire.lane is None) == (len(between) == 0)
            for row in between:
                if wire.column is not None:
                    assert (row, wire.column) not in boxes
                    assert runs.setdefault(("column", wire.column, row), source) == source
                else:
                    assert runs.setdefault(("lane", wire.lane or 0, row), source) == source

    def test_a_chain_is_straight(self) -> None:
        found = arrange([[], [0], [1], [2]], inputs=1)
        assert (found.rows, found.columns, found.lanes) == ((0, 1, 2, 3), (0, 0, 0, 0), 0)

    def test_a_shortcut_past_the_trunk_takes_a_lane(self) -> None:
        found = arrange([[], [0], [1], [0, 2]], inputs=1)
        assert found.columns == (0, 0, 0, 0)
        assert [(w.source, w.target, w.lane) for w in found.wires if w.lane is not None] == [(0, 3, 0)]

    def test_a_branch_keeps_a_column_until_it_joins(self) -> None:
        found = arrange([[], [0], [1], [2], [0], [3, 4]], inputs=1)
        assert found.columns == (0, 0, 0, 0, 1, 0)
        assert next(w for w in found.wires if w.source == 4).column == 1

    def test_what_reads_no_input_stands_above_its_reader(self) -> None:
        found = arrange([[], [0], [1], [2], [], [4], [3, 5]], inputs=1)
        assert found.rows == (0, 1, 2, 3, 2, 3, 4)

    def test_thousands_of_nodes_are_placed(self) -> None:
        reads: list[list[int]] = [[]] + [
            [k - 1, max(0, k - 5)] if k % 3 == 0 and k > 5 else [k - 1] for k in range(1, 6000)
        ]
        found: Layout = arrange(reads, inputs=1)
        assert all(a < b for a, b in pairwise(found.rows))
