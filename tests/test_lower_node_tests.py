"""The node tests that ship in the onnx package, on every operator that is lowered."""

from __future__ import annotations

import functools
import warnings
from importlib import metadata

import pytest

from tools.node_tests import APART, FAILED, PAGE, Verdict, page, verdicts


@functools.cache
def found() -> tuple[Verdict, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests overflow on purpose
        return tuple(verdicts())


def test_no_lowered_operator_is_wrong() -> None:
    assert [verdict for verdict in found() if verdict.verdict == FAILED] == []
    assert sum(verdict.verdict != APART for verdict in found()) > 700


def test_the_page_says_what_came_of_them() -> None:
    known = PAGE.read_text()
    if f"onnx {metadata.version('onnx')}," not in known:
        pytest.skip("the page is of another release of onnx")
    assert page(found()) == known, "run tools/node_tests.py and commit docs/lowering.md"
