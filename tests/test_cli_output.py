"""Numbers, tables, JSON and the bar."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from conet_onnx.cli import output
from conet_onnx.cli.output import Bar, count, duration, share, size
from conet_onnx.errors import OutputError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (999, "999"), (9999, "9,999"), (12_345, "12.3 k"), (1_234_567, "1.23 M"), (4.1e9, "4.1 G")],
)
def test_counts_are_short(number: float, expected: str) -> None:
    assert count(number) == expected


@pytest.mark.parametrize(
    ("number", "expected"), [(12, "12 B"), (1500, "1.5 kB"), (4_096_000, "4.1 MB"), (2.5e9, "2.5 GB")]
)
def test_bytes_are_in_powers_of_ten(number: float, expected: str) -> None:
    assert size(number) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (130, "2 min 10 s"), (7265, "2 h 1 min")],
)
def test_durations_are_for_people(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_a_share_of_nothing_is_no_number() -> None:
    assert (share(1, 4), share(0, 0)) == ("25.0%", "-")


def test_what_json_cannot_say_is_null(tmp_path: Path) -> None:
    output.write(str(tmp_path / "out.json"), {"loss": float("nan"), "rest": [(1.0, float("inf"))]})
    assert json.loads((tmp_path / "out.json").read_text()) == {"loss": None, "rest": [[1.0, None]]}


def test_json_to_a_file_ends_with_a_line(tmp_path: Path) -> None:
    output.write(str(tmp_path / "out.json"), {"ä": 1})
    assert (tmp_path / "out.json").read_text(encoding="utf-8").endswith("}\n")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == {"ä": 1}


def test_what_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    output.check_writable(None, "-", str(tmp_path / "new"))
    with pytest.raises(OutputError, match="there is no folder"):
        output.check_writable(str(tmp_path / "no" / "new"))
    with pytest.raises(OutputError, match="it is a folder"):
        output.check_writable(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="no ordinary file"):
        output.check_writable(str(tmp_path / "pipe"))


def shown(stream: Terminal, word: str) -> None:
    """Wait until a bar has drawn it: it is drawn by a thread, which a busy machine may keep waiting."""
    until = time.monotonic() + 10
    while word not in stream.getvalue() and time.monotonic() < until:
        time.sleep(0.05)


class TestBar:
    def test_on_a_terminal_it_says_what_is_done_and_how_long_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with Bar(2, patience=0.0) as bar:
            bar.step("Reading")
            shown(stream, "Reading")
            bar.at(1, "Training", left=130)
            shown(stream, "Training")
        text = stream.getvalue()
        assert "Reading" in text
        assert "Training" in text
        assert "50%" in text
        assert "2 min 10 s left" in text

    @pytest.mark.parametrize("wanted", [True, False])
    def test_it_is_coloured_unless_that_is_not_wanted(self, monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        if not wanted:
            monkeypatch.setenv("NO_COLOR", "1")
        with Bar(2, patience=0.0) as bar:
            bar.at(1, "Training")
            time.sleep(0.3)
        assert bool(re.search(r"\x1b\[[0-9;]*(3|9)[0-9][0-9;]*m", stream.getvalue())) == wanted

    def test_what_is_soon_done_needs_no_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        with Bar(2) as bar:
            bar.step("Reading")
        time.sleep(0.05)
        assert stream.getvalue() == ""
        assert not bar.drawn

    def test_where_there_is_no_terminal_there_is_no_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        with Bar(2, patience=0.0) as bar:
            bar.step("Reading")
            time.sleep(0.1)
            bar.log("a line")
        assert stream.getvalue() == "a line\n"

    def test_lines_are_told_above_a_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with Bar(1, patience=0.0) as bar:
            time.sleep(0.3)
            assert bar.drawn
            bar.log("a [bold]line[/bold]")
        assert "a [bold]line[/bold]" in stream.getvalue()
