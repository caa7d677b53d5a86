"""The width groups of hard models stay as they were reviewed, and those models keep all laws.

Each file in tests/golden says which axes of which weights change together. Where a change is meant, review what
`python tools/make_golden.py && git diff tests/golden` shows, group by group, and commit it.
"""

from __future__ import annotations

import difflib
import json

import oracles
import pytest
from golden_models import FOLDER, GOLDEN, analysis_of, model_of, text_of, versions_of

LARGEST = 30_000  # bytes of a file that somebody reads


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", GOLDEN)
def test_groups_are_as_they_were_reviewed(name):
    known = (FOLDER / f"{name}.json").read_text()
    made_with = json.loads(known)["made with"]
    if (here := versions_of(name)) != made_with:
        pytest.skip(f"the file is of {made_with}, here is {here}: nodes and tensors may be called otherwise")
    lines = difflib.unified_diff(known.splitlines(), text_of(name).splitlines(), "reviewed", "now", lineterm="", n=1)
    changed = "\n".join(lines)
    assert not changed, f"{name}: run tools/make_golden.py {name}, review each group, commit\n{changed}"
    assert len(known) < LARGEST


@pytest.mark.parametrize("name", [name for name, golden in GOLDEN.items() if golden.laws])
def test_golden_models_keep_all_laws(name):
    verdict = oracles.keep_all_laws(model_of(name))
    assert verdict.compared > 3
    if any(width.exact and width.size > 1 for width in analysis_of(name).widths.values()):
        assert verdict.moved > 1e-3


def test_there_is_a_file_for_each_model_and_no_other():
    assert sorted(file.stem for file in FOLDER.iterdir()) == sorted(GOLDEN)
