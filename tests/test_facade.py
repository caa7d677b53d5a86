"""`import conet_onnx as co`: the contract's verbs, and nothing imported before it is needed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_support import save, small_model

import conet_onnx as co

VERBS = (
    *("load", "analyze", "freed", "plan", "rewrite", "transferred", "verify", "importance", "score"),
    *("to_torch", "from_torch", "search", "finetune"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_the_verbs_are_functions(verb: str) -> None:
    assert inspect.isfunction(getattr(co, verb))
    assert verb in co.__all__
    assert verb in dir(co)


def test_every_name_that_is_promised_is_there() -> None:
    assert set(co.__all__) == {*VERBS, "Budget"}
    assert inspect.isclass(co.Budget)


def test_submodules_do_not_shadow_the_verbs() -> None:
    program = (
        "import conet_onnx as co, pkgutil, importlib, inspect\n"
        "found = [m.name for m in pkgutil.walk_packages(co.__path__, 'conet_onnx.') if '__main__' not in m.name]\n"
        "[importlib.import_module(name) for name in found]\n"
        f"assert all(inspect.isfunction(getattr(co, verb)) for verb in {VERBS})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = co.nonsense  # type: ignore[attr-defined]  # that is the test


def test_the_version_is_the_installed_ones() -> None:
    from importlib.metadata import version

    assert co.__version__ == version("conet-onnx")


def test_a_model_is_resized_verified_and_saved(tmp_path: Path) -> None:
    model = co.load(save(small_model(), tmp_path / "model.onnx"))
    analysis = co.analyze(model)
    plan = co.plan(analysis, widths={"w0": 3}, scores=co.importance(model, "l2"))
    resized = co.rewrite(model, plan)
    co.verify(model, resized, plan)
    resized.save(tmp_path / "small.onnx")
    assert co.analyze(co.load(tmp_path / "small.onnx")).widths["w0"].size == 3


def test_a_model_goes_to_torch_and_back(tmp_path: Path) -> None:
    import torch

    model = co.load(save(small_model(), tmp_path / "model.onnx"))
    module = co.to_torch(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    back = co.from_torch(model, module)
    for name in ("c1.w", "c2.w", "fc.w"):
        assert np.array_equal(back.array(name), 2 * model.array(name))


def test_a_search_gives_a_smaller_model(tmp_path: Path) -> None:
    model = co.load(save(small_model(), tmp_path / "model.onnx"))
    result = co.search(
        model,
        data="digits",
        budget=co.Budget(macs=0.5),
        seed=0,
        trials=1,
        epochs_per_trial=1,
        epochs=0,
        threads=1,
        out=tmp_path / "run",
    )
    result.best.save(tmp_path / "best.onnx")
    best = co.analyze(co.load(tmp_path / "best.onnx")).costs.source
    assert best.macs <= 0.5 * co.analyze(model).costs.source.macs
