"""The report says what the record says, stands alone, and survives hostile names and unfinished runs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conet_onnx.errors import OutputError, UsageError
from conet_onnx.records.run import ModelRecord, Run, write_run
from conet_onnx.records.study import TrialStudy
from conet_onnx.records.trial import Trial
from conet_onnx.report import plots, write_report
from conet_onnx.report.facts import changes, finished, fits, front, leader, score
from conet_onnx.report.html import render
from conet_onnx.report.palette import LIGHT, swaps
from conet_onnx.report.wording import duration, points, quantity, ratio

SIZES = {"w0": 16, "w1": 32, "w2": 64}
SOURCE = ModelRecord("models/net.onnx", 78042, 12533760, 312168, 0.15123, {"top1": 0.98889}, {"top1": 0.98611})
BEST = ModelRecord(
    "run/best.onnx",
    35182,
    5650123,
    140728,
    0.09211,
    {"top1": 0.98651},
    {"top1": 0.98333},
    {"w0": 16, "w1": 20, "w2": 70},
    1,
)
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=https://example.org/x onerror=alert(2)>",
    "a&amp;b\"'<b>bold</b>$x$ %{y} <!--",
)


def trial(number: int, **facts: Any) -> Trial:
    defaults: dict[str, Any] = {
        "widths": {"w0": 16, "w1": 32 - number, "w2": 64},
        "params": 40000 + number,
        "macs": 6000000 + number,
        "bytes": 160000,
        "parent": number - 1 if number else None,
        "reason": f"w1 {33 - number}→{32 - number}",
        "state": "complete",
        "validation": {"top1": 0.97 + number / 1000, "loss": 0.1},
        "objective": 0.1 - number / 100,
        "accepted": number % 2 == 0,
        "seconds": 4.0,
    }
    return Trial(number, **(defaults | facts))


FAILED = {"state": "failed", "validation": {}, "objective": math.nan, "accepted": False}
RUNNING = FAILED | {"state": "running"}


def run(*trials: Trial, best: ModelRecord | None = None, names: tuple[str, ...] = ("stem", "body", "head")) -> Run:
    return Run(
        directory=Path("run"),
        source=SOURCE,
        widths={width: {"name": name, "size": SIZES[width]} for width, name in zip(SIZES, names, strict=True)},
        settings={"algorithm": "anneal", "data": "digits", "seed": 0, "nested": {"mean": [0.5]}},
        budget={"macs": 6266880.0},
        trials=trials,
        best=best,
        seconds={"total": 151.2, "training": 110.0} if best else {},
        latency={"p50": 0.62, "low": 0.58, "high": 0.66} if best else {},
    )


RUNS = {
    "finished": run(trial(0), trial(1), trial(2, **FAILED), trial(3), best=BEST),
    "in progress": run(trial(0), trial(1), trial(2, **RUNNING)),
    "one trial": run(trial(0), best=replace(BEST, trial=0)),
    "no trial": run(),
    "only failures": run(trial(0, **FAILED), trial(1, **FAILED)),
    "nothing within the budget": run(trial(0, macs=7000000)),
    "the source itself is best": run(trial(0), best=replace(SOURCE, file="run/best.onnx")),
    "no test split": replace(run(trial(0), best=replace(BEST, test=None)), source=replace(SOURCE, test=None)),
    "nothing measured": replace(run(), source=replace(SOURCE, validation={}, test=None, latency_ms=None)),
    "infinite loss": run(trial(0, validation={"top1": 0.1, "loss": math.inf}, objective=math.inf), trial(1)),
    "no resizable width": replace(run(trial(0, widths={})), widths={}),
    "hostile names": run(*(trial(n, reason=HOSTILE[0]) for n in range(6)), best=BEST, names=HOSTILE),
    "many": run(*(trial(n, macs=6000000 - 1000 * n) for n in range(30)), best=BEST),
}

whole_runs = pytest.mark.parametrize("given_run", RUNS.values(), ids=RUNS)


class Page(HTMLParser):
    """Tags with their attributes, and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "": []}
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.texts:
            self._inside = tag
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside][-1] += data
        else:
            self.texts[""].append(data)

    @property
    def prose(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts[""]))

    @property
    def figures(self) -> dict[str, plots.Figure]:
        return {name: json.loads(text) for name, text in json.loads(self.texts["script"][0])["figures"].items()}

    @property
    def numbers(self) -> list[str]:
        return [attributes["value"] or "" for tag, attributes in self.tags if tag == "data"]


def drawn(given_run: Run) -> Iterator[plots.Figure]:
    yield from Page(render(given_run)).figures.values()


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value with the name of what holds it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, key)
    else:
        yield key, value


class TestThePage:
    @whole_runs
    def test_nothing_is_loaded_from_anywhere(self, given_run: Run) -> None:
        parsed = Page(render(given_run))
        for tag, attributes in parsed.tags:
            assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "a")
            assert not {"src", "href", "srcset", "action", "data", "style"} & set(attributes)
        assert "@import" not in parsed.texts["style"][0]
        assert "url(" not in parsed.texts["style"][0]

    def test_browsers_are_told_to_refuse_the_network(self) -> None:
        policy = next(a["content"] for t, a in Page(render(RUNS["finished"])).tags if "http-equiv" in a)
        assert policy is not None
        assert policy.startswith("default-src 'none';")
        assert "http" not in policy

    @whole_runs
    def test_there_are_three_scripts_and_plotly_is_one_of_them(self, given_run: Run) -> None:
        from plotly.offline import get_plotlyjs

        parsed = Page(render(given_run))
        assert len(parsed.texts["script"]) == 3
        assert parsed.texts["script"][1] == get_plotlyjs()

    @whole_runs
    def test_a_figure_has_its_place_and_a_place_its_figure(self, given_run: Run) -> None:
        parsed = Page(render(given_run))
        assert [a["id"] for tag, a in parsed.tags if tag == "div" and "id" in a] == list(parsed.figures)

    @whole_runs
    def test_the_same_run_gives_the_same_bytes(self, given_run: Run) -> None:
        assert render(given_run) == render(replace(given_run))

    def test_importing_it_leaves_plotly_alone(self) -> None:
        code = "import sys, conet_onnx.report.plots; sys.exit(any(m in sys.modules for m in ('plotly', 'optuna')))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestNames:
    def test_a_layer_cannot_become_markup(self) -> None:
        parsed = Page(render(RUNS["hostile names"]))
        plain = Page(render(run(*RUNS["many"].trials[:6], best=BEST)))
        assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in plain.tags]
        assert not set("<>&") & set(parsed.texts["script"][0])

    def test_a_layer_is_shown_by_its_own_name(self) -> None:
        text = render(RUNS["hostile names"])
        assert HOSTILE[0] in Page(text).prose  # the reasons of the trials
        rows = Page(text).figures["widths"]["layout"]["yaxis"]["categoryarray"]
        assert [row.partition(" · ")[2] for row in rows] == [
            name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")
            for name in HOSTILE
        ]

    def test_files_and_settings_are_escaped(self) -> None:
        bad = replace(
            RUNS["finished"],
            source=replace(SOURCE, file="models/<i>net&.onnx"),
            settings={"<i>key": "<i>value", "data": "<i>digits"},
        )
        parsed = Page(render(bad))
        assert "i" not in {tag for tag, _ in parsed.tags}
        assert "Width search of <i>net&.onnx" in parsed.prose
        for shown in ("<i>key", "<i>value", "on <i>digits"):
            assert shown in parsed.prose

    def test_equal_and_long_names_keep_their_own_rows(self) -> None:
        alike = run(trial(0), trial(1), best=BEST, names=("x" * 90, "x" * 90, "x" * 90))
        rows = plots.side_by_side(alike)["layout"]["yaxis"]
        assert len(set(rows["categoryarray"])) == 3
        assert all(len(text) <= plots.LABEL for text in rows["ticktext"])


scored = st.lists(st.tuples(st.integers(1, 6), st.sampled_from([0.0, 0.5, 0.6, 0.7, None])), max_size=12)


def scored_run(pairs: list[tuple[int, float | None]]) -> Run:
    """Trials of these MACs and accuracies; None is a failure."""
    return run(
        *(
            trial(n, macs=macs, validation={"top1": top1}, objective=1 - top1)
            if top1 is not None
            else trial(n, macs=macs, **FAILED)
            for n, (macs, top1) in enumerate(pairs)
        )
    )


class TestTheFront:
    @given(scored)
    def test_nobody_dominates_a_member_and_somebody_everyone_else(self, pairs: list[tuple[int, float | None]]) -> None:
        searched = scored_run(pairs)
        members = front(searched)

        def dominates(a: Trial, b: Trial) -> bool:
            mine, other = (a.macs, -score(a).rank), (b.macs, -score(b).rank)
            return mine[0] <= other[0] and mine[1] <= other[1] and mine != other

        for one in finished(searched):
            assert any(dominates(other, one) for other in finished(searched)) == (one not in members)

    @given(scored)
    def test_every_finished_trial_is_drawn_once(self, pairs: list[tuple[int, float | None]]) -> None:
        searched = scored_run(pairs)
        traces = plots.accuracy_against_macs(searched)["data"]
        places = [
            place
            for trace in traces
            if trace["name"] in ("accepted", "rejected", "Pareto front")
            for place in zip(trace["x"], trace["y"], strict=True)
        ]
        assert sorted(places) == sorted((t.macs, 100 * t.validation["top1"]) for t in finished(searched))

    @given(scored, st.integers(1, 6))
    def test_the_leader_of_an_unfinished_run_has_the_lowest_objective_within_the_budget(
        self, pairs: list[tuple[int, float | None]], limit: int
    ) -> None:
        searched = replace(scored_run(pairs), budget={"macs": limit})
        ahead = leader(searched)
        allowed = [t for t in finished(searched) if t.macs <= limit]
        assert (ahead is None) == (not allowed)
        if ahead is not None:
            assert fits(ahead, searched.budget)
            assert ahead == min(allowed, key=lambda t: (t.objective, t.number))

    def test_a_far_source_is_noted_at_the_edge_of_the_view(self) -> None:
        layout = plots.accuracy_against_macs(RUNS["many"])["layout"]
        assert layout["xaxis"]["range"][1] < SOURCE.macs
        assert any("98.89% at 12.53 M" in note["text"] for note in layout["annotations"])
        assert "range" not in plots.accuracy_against_macs(RUNS["one trial"])["layout"]["xaxis"]


class TestNumbers:
    def test_the_table_holds_the_records_numbers(self) -> None:
        numbers = Page(render(RUNS["finished"])).numbers[:12]
        pairs = [
            (SOURCE.test, BEST.test),
            (SOURCE.validation, BEST.validation),
        ]
        expected: list[float] = [(side or {})["top1"] for pair in pairs for side in pair]
        for source, best in zip(
            (SOURCE.macs, SOURCE.params, SOURCE.bytes, SOURCE.latency_ms),
            (BEST.macs, BEST.params, BEST.bytes, BEST.latency_ms),
            strict=True,
        ):
            assert source is not None and best is not None  # noqa: PT018 (for the type checker)
            expected += [source, best]
        assert [float(number) for number in numbers] == expected

    def test_the_latency_ratio_is_the_one_that_was_measured_in_turns(self) -> None:
        assert "×0.62 (0.58–0.66)" in Page(render(RUNS["finished"])).prose
        assert "×0.61" in Page(render(replace(RUNS["finished"], latency={}))).prose

    def test_the_sentences_say_what_was_asked_and_what_came_out(self) -> None:
        prose = Page(render(RUNS["finished"])).prose
        assert "the 3 widths of this network that need at most 6.267 M MACs (×0.50 of the source)" in prose
        assert "Searched by anneal on digits with seed 0." in prose
        assert "the best of 4 trials is trial 1, with 98.33% test accuracy against the source's 98.61%" in prose
        assert "(−0.28 points), ×0.45 of its MACs, ×0.45 of its parameters and ×0.62 of its latency." in prose
        assert "1 trial failed: 2." in prose

    def test_how_many_jobs_ran_is_said_where_it_was_not_one(self) -> None:
        one = RUNS["finished"]
        many = replace(one, settings={**one.settings, "jobs": 4, "workers": 2})
        assert "on digits with seed 0, 4 trials at a time in 2 processes." in Page(render(many)).prose
        shared = replace(many, settings={**many.settings, "workers": 1, "storage": "sqlite:///x.db"})
        assert "4 trials at a time in one process of this host." in Page(render(shared)).prose

    def test_bytes_are_told_where_they_were_asked_for(self) -> None:
        asked = replace(RUNS["finished"], budget={"bytes": 156084.0})
        prose = Page(render(asked)).prose
        assert "at most 156.1 kB of weights (×0.50 of the source)" in prose
        assert "×0.45 of its bytes" in prose
        assert "of its bytes" not in Page(render(RUNS["finished"])).prose

    def test_without_a_test_split_the_sentences_are_of_the_validation_split(self) -> None:
        prose = Page(render(RUNS["no test split"])).prose
        assert "98.65% validation accuracy against the source's 98.89%" in prose
        assert "no test data was used" in prose
        assert "no test data was used" not in Page(render(RUNS["finished"])).prose

    def test_a_missed_budget_is_said(self) -> None:
        warning = "The best model does not meet the budget."
        assert warning in Page(render(RUNS["the source itself is best"])).prose
        assert warning not in Page(render(RUNS["finished"])).prose

    def test_an_unfinished_run_says_who_leads(self) -> None:
        prose = Page(render(RUNS["in progress"])).prose
        assert "So far: 2 trials finished; the search is not" in prose
        assert "Trial 1 leads: 97.10% validation accuracy with ×0.48 of the source's MACs." in prose
        assert "no trial has begun" in Page(render(RUNS["no trial"])).prose
        assert "no trial has finished yet" in Page(render(RUNS["only failures"])).prose
        assert "None of them meets the budget" in Page(render(RUNS["nothing within the budget"])).prose

    def test_every_trial_has_a_row_with_its_fate(self) -> None:
        prose = Page(render(RUNS["finished"])).prose
        for row in ("0 accepted source", "1 rejected 0", "2 failed 1", "3 rejected 2"):
            assert row.replace(" ", "") in prose.replace(" ", "")

    def test_changes_are_counted_from_the_parent(self) -> None:
        assert changes(RUNS["finished"], RUNS["finished"].trials[1]) == (("w1", 32, 31),)
        assert changes(RUNS["finished"], RUNS["finished"].trials[3]) == (("w1", 30, 29),)
        assert changes(RUNS["finished"], trial(5, parent=None)) == (("w1", 32, 27),)

    def test_numbers_read_well(self) -> None:
        assert quantity(78042, "params") == "78,042"
        assert quantity(12533760, "macs") == "12.53 M"
        assert quantity(312168, "bytes") == "312.2 kB"
        assert quantity(999, "bytes") == "999 B"
        assert quantity(0.15123, "latency") == "0.151 ms"
        assert (points(-0.00278), points(0.001), points(0.00001)) == ("−0.28 points", "+0.10 points", "±0.00 points")
        assert (ratio(0.49), ratio(1 / 300), ratio(2)) == ("×0.49", "×0.0033", "×2.00")
        assert [duration(s) for s in (0.42, 41, 151.2, 7530)] == ["0.4 s", "41 s", "2 min 31 s", "2 h 05 min"]


class TestFigures:
    @whole_runs
    def test_plotly_knows_every_property(self, given_run: Run) -> None:
        import plotly.graph_objects as go

        for figure in drawn(given_run):
            go.Figure(figure)

    @whole_runs
    def test_every_colour_has_a_counterpart_in_the_dark(self, given_run: Run) -> None:
        known = {*swaps(), "rgba(0,0,0,0)"}
        for figure in drawn(given_run):
            used = {value for key, value in leaves(figure) if key.endswith("color")}
            scales = {value for key, value in leaves(figure) if key == "colorscale" and isinstance(value, str)}
            assert used | scales <= known

    def test_daylight_colours_differ_so_that_each_has_one_counterpart(self) -> None:
        assert len(swaps()) == len(LIGHT.__slots__)

    def test_a_row_shows_the_width_that_its_label_names(self) -> None:
        figure = plots.side_by_side(RUNS["finished"])
        labels = ["w0 · stem", "w1 · body", "w2 · head"]
        for axis in ("yaxis", "yaxis2"):
            assert figure["layout"][axis]["categoryarray"] == labels
            assert figure["layout"][axis]["range"] == figure["layout"]["yaxis"]["range"]
        assert figure["layout"]["yaxis2"]["ticktext"] == ["16", "32 → 20", "64 → 70"]
        traces = {trace["name"]: dict(zip(trace["y"], trace["x"], strict=True)) for trace in figure["data"]}
        assert traces["source"] == dict(zip(labels, SIZES.values(), strict=True))
        assert traces["best"] == dict(zip(labels, BEST.widths.values(), strict=True))
        assert set(traces["narrower"]) == {"w1 · body"}
        assert set(traces["wider"]) == {"w2 · head"}

    def test_the_map_holds_every_width_of_every_trial(self) -> None:
        heat, *strip = plots.movement(RUNS["finished"])["data"]
        assert heat["x"] == [0, 1, 2, 3]
        assert heat["customdata"] == [[16] * 4, [32, 31, 30, 29], [64] * 4]
        assert heat["z"] == [[0] * 4, [round(math.log2(width / 32), 4) for width in (32, 31, 30, 29)], [0] * 4]
        assert {trace["name"]: trace["x"] for trace in strip} == {"accepted": [0], "rejected": [1, 3], "failed": [2]}

    def test_the_course_shows_finished_trials_and_the_lowest_objective(self) -> None:
        traces = {(t["name"], t["yaxis"]): t for t in plots.progress(RUNS["finished"])["data"]}
        assert traces["rejected", "y"]["x"] == [1, 3]
        assert traces["lowest objective so far", "y2"]["y"] == pytest.approx([0.1, 0.09, 0.07])

    def test_hovering_says_what_changed_and_what_it_cost(self) -> None:
        texts = [text for trace in plots.accuracy_against_macs(RUNS["finished"])["data"] for text in trace["hovertext"]]
        told = next(text for text in texts if "trial 1<" in text)
        for words in ("w1 · body: 32 → 31", "40,001 params", "6 M MACs", "accuracy 97.10%", "loss 0.1"):
            assert words in told


class TestWriting:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        searched = replace(RUNS["finished"], directory=tmp_path, best=replace(BEST, file=str(tmp_path / "best.onnx")))
        study = TrialStudy(tmp_path / "trials.db")
        for told in searched.trials:
            study.begin(told)
            study.note(told)
            study.finish(told)
        study.close()
        write_run(searched)
        return tmp_path

    def test_it_is_made_of_the_record_in_the_folder(self, folder: Path) -> None:
        written = write_report(folder)
        assert written == folder / "report.html"
        expected = replace(RUNS["finished"], directory=folder, best=replace(BEST, file=str(folder / "best.onnx")))
        assert written.read_text(encoding="utf-8") == render(expected)

    def test_the_best_file_is_named_from_the_folder_so_that_it_can_move(self, folder: Path) -> None:
        text = write_report(folder).read_text(encoding="utf-8")
        assert str(folder) not in text
        assert "<code>best.onnx</code>" in text

    def test_it_appears_whole_or_not_at_all(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_report(folder)
        before = (folder / "report.html").read_bytes()
        files = sorted(folder.iterdir())

        def full(self: Path, *_: Any, **__: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(OutputError):
            write_report(folder)
        assert (folder / "report.html").read_bytes() == before
        assert sorted(folder.iterdir()) == files

    def test_a_folder_without_a_search_is_a_usage_error(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError):
            write_report(tmp_path)
        assert not list(tmp_path.iterdir())
