"""AdaS: each layer's learning rate follows what its weights gained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import conet_onnx as co
from conet_onnx.data import load_data
from conet_onnx.graph import Graph
from conet_onnx.metrics import score
from conet_onnx.torch_backend.adas import LOWEST, Adas
from conet_onnx.torch_backend.course import Course, optimizer
from conet_onnx.torch_backend.learner import Learner
from conet_onnx.torch_backend.settings import Settings
from conet_onnx.torch_backend.train import fit

MODEL = Path(__file__).parent.parent / "models" / "digits_resnet8.onnx"
SETTINGS = Settings(epochs=4, schedule="adas", lr=0.03, warmup=0.0)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source() -> Graph:
    return co.load(MODEL)


def made(source: Graph) -> tuple[Adas, Learner, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    learner = Learner(source, torch.device("cpu"))
    learner.keep(learner.outputs)
    adas = Adas(learner, learner.module.parameters())
    chosen = optimizer(adas.parts, SETTINGS)
    return adas, learner, chosen, Course.of(640, None, SETTINGS).scheduler(chosen, SETTINGS)


def test_every_parameter_is_in_one_part(source: Graph) -> None:
    adas, learner, _, _ = made(source)
    found = [id(one) for part in adas.parts for one in part]
    assert len(found) == len(set(found))
    assert set(found) == {id(one) for one in learner.module.parameters() if one.requires_grad}


def test_a_norm_belongs_to_the_layer_before_it(source: Graph) -> None:
    adas, learner, _, _ = made(source)
    names = {id(one): name for name, one in learner.parameters().items()}
    parts = [[names[id(one)] for one in part] for part in adas.parts]
    assert parts[-1] == []
    assert len(parts) - 1 == len(score(source))
    for weight, *others in parts[:-1]:
        assert len(source.weights[weight].dims) > 1
        assert all(len(source.weights[name].dims) == 1 for name in others)
        sizes = {source.weights[name].dims[0] for name in others}
        assert sizes <= {source.weights[weight].dims[0]}


def test_rates_follow_the_gains(source: Graph) -> None:
    """rate = beta · rate + gain - gain before, computed here again, layer by layer, for three epochs."""
    adas, learner, chosen, scheduler = made(source)
    names = [part[0] for part in adas.parts[:-1]]
    by_id = {id(one): name for name, one in learner.parameters().items()}
    layers = [by_id[id(one)] for one in names]
    rng = np.random.default_rng(0)
    expected = dict.fromkeys(layers, 0.03)
    before: dict[str, float] = {}
    for epoch in range(3):
        now = {name: float(rng.uniform(0, 0.2)) for name in layers}
        adas.follow(before, now, 0.8, scheduler)
        if epoch:
            expected = {n: max(0.8 * rate + now[n] - before[n], LOWEST) for n, rate in expected.items()}
        before = now
        chosen.step()
        scheduler.step()
        for group in chosen.param_groups:
            if group["params"] and id(group["params"][0]) in by_id:
                part = next(k for k, part in enumerate(adas.parts) if any(group["params"][0] is one for one in part))
                assert group["lr"] == pytest.approx(expected[layers[part]])
    assert any(rate == LOWEST for rate in expected.values()) or min(expected.values()) > 0


def test_gains_are_those_of_the_metric(source: Graph) -> None:
    adas, learner, _, _ = made(source)
    weights = {name: one.detach().numpy() for name, one in learner.parameters().items()}
    expected = {layer.tensor: (layer.ins.gain + layer.outs.gain) / 2 for layer in score(source)}
    assert adas.gains(weights) == pytest.approx(expected)


def test_a_training_has_it(source: Graph) -> None:
    data = load_data("digits").split("train").take(np.arange(256))
    settings = {"batch": 64, "seed": 3, "threads": 1, "distill": 0.0, "lr": 0.03, "warmup": 0.0}
    plain = fit(source, data, epochs=3, schedule="constant", **settings)
    adapted = fit(source, data, epochs=3, schedule="adas", **settings)
    losses = [[epoch["loss"] for epoch in made.history] for made in (plain, adapted)]
    assert losses[0][:2] == losses[1][:2]  # rates change when the second epoch has ended
    assert losses[0][2] != losses[1][2]
