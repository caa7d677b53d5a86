"""The table on disk: what is written is read, tables of one host merge, others are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conet_onnx.errors import DataError, OutputError, UsageError
from conet_onnx.latency.table import FORMAT, Anchor, Anchors, Entry, Host, Point, Table, merged

HERE = Host("a processor", 8, "cpu", 1, "1.31.0")


def table(host: Host = HERE, *, seconds: float = 1e-3, runs: int = 9, **kinds: Entry) -> Table:
    known = {"conv": Entry("Conv", (("1", "a"), ("b", "a")), {(16, 32): Point(seconds, 0.02, runs)}, (16, 16)), **kinds}
    models = {"sha": Anchors("m.onnx", 5e-3, {"w0": 16}, (Anchor((8,), 0.5, 0.49, 0.51),))}
    return Table(host, 2e-6, known, models)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = table()
    made.save(tmp_path / "t.json")
    assert Table.read(tmp_path / "t.json") == made
    document = json.loads((tmp_path / "t.json").read_text())
    assert document["format"] == FORMAT
    assert document["threads"] == 1
    assert document["onnxruntime"] == "1.31.0"
    assert document["kinds"]["conv"]["points"] == [[[16, 32], 1000.0, 0.02, 9]]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "conet-onnx-profile/2"}', '{"format": "conet-onnx-profile/1"}', "\xff"]
)
def test_what_is_no_table_is_a_data_error_that_says_what_makes_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"conet-onnx profile"):
        Table.read(tmp_path / "t.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Cannot read"):
        Table.read(tmp_path / "t.json")


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        table().save(tmp_path / "nowhere" / "t.json")


def test_merging_keeps_all_points_and_of_equal_ones_that_of_more_runs() -> None:
    other = table(seconds=2e-3, runs=20, gemm=Entry("Gemm", (), {(): Point(1e-5, 0, 7)}))
    for both in (merged([table(), other]), merged([other, table()])):
        assert both.kinds["conv"].points == {(16, 32): Point(2e-3, 0.02, 20)}
        assert set(both.kinds) == {"conv", "gemm"}
    wider = replace(table(), kinds={"conv": replace(table().kinds["conv"], points={(32, 32): Point(9e-3, 0.1, 7)})})
    assert set(merged([table(), wider]).kinds["conv"].points) == {(16, 32), (32, 32)}


def test_merging_keeps_the_anchors_of_both() -> None:
    other = table()
    other = replace(other, models={"sha": replace(other.models["sha"], measured=(Anchor((4,), 0.3, 0.29, 0.31),))})
    assert {one.widths for one in merged([table(), other]).models["sha"].measured} == {(8,), (4,)}


@pytest.mark.parametrize(
    "other", [{"processor": "b"}, {"cores": 2}, {"provider": "cuda"}, {"threads": None}, {"onnxruntime": "1.30.0"}]
)
def test_other_conditions_do_not_merge_and_the_error_says_which(other: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(other))):
        merged([table(), table(replace(HERE, **other))])


def test_it_is_used_here_in_silence_elsewhere_with_a_word_and_for_other_threads_not_at_all() -> None:
    here = Host.here("cpu", 1)
    assert table(here).check("cpu", 1) == []
    (line,) = table(replace(here, onnxruntime="0.1")).check("cpu", 1)
    assert "onnxruntime 0.1" in line
    with pytest.raises(UsageError, match=r"threads 1, not as many as there are.*--threads 1"):
        table(here).check("cpu", None)
    with pytest.raises(UsageError, match="provider cpu, not cuda"):
        table(here).check("cuda", 1)
