"""The shipped models are what models/README.md says, and the builders are the paper's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conet_onnx.analysis import analyze
from conet_onnx.data import Normalisation, load_data
from conet_onnx.evaluation import choose_normalisation, evaluate
from conet_onnx.files import sha256_of
from conet_onnx.loading import load
from models.resnet_cifar import BLOCKS, ResNet, resnet8, resnet20, resnet32, resnet56, resnet110
from tools.make_models import macs

MODELS = Path(__file__).parent.parent / "models"
ROWS = {
    cells[0]: cells[1:]
    for line in (MODELS / "README.md").read_text("utf-8").splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip(" `") for cell in line.strip("|").split("|")]]
}


def test_every_shipped_model_has_its_line() -> None:
    assert "digits_resnet8.onnx" in ROWS
    assert all((MODELS / name).is_file() for name in ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_the_file_is_the_one_that_is_described(name: str) -> None:
    assert sha256_of([MODELS / name]) == ROWS[name][3]


def test_the_digits_model_reaches_its_test_accuracy() -> None:
    found = evaluate(load(MODELS / "digits_resnet8.onnx"), load_data("digits"), provider="cpu", threads=1)
    assert found.samples == 359
    assert found.top1 >= 0.98
    assert round(found.top1, 4) >= float(ROWS["digits_resnet8.onnx"][0])


def test_its_normalisation_is_what_training_data_would_choose() -> None:
    graph = load(MODELS / "digits_resnet8.onnx")
    choice = choose_normalisation(graph, load_data("digits"), provider="cpu", threads=1)
    assert Normalisation.beside(graph.file) == choice.normalisation == Normalisation(scale=1 / 16)


def test_its_graph_keeps_torchs_names_norms_and_a_dynamic_batch() -> None:
    graph = load(MODELS / "digits_resnet8.onnx")
    model = resnet8(channels=1, shortcut="B")
    expected = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    assert set(graph.weights) == expected
    norms = [node for node in graph.nodes if node.op == "BatchNormalization"]
    assert len(norms) == 9
    assert not any(node.attributes.get("training_mode", 0) for node in norms)
    assert isinstance(graph.inputs[0].shape[0], str)


def test_its_params_and_macs_are_those_that_torch_and_analyze_count() -> None:
    model = resnet8(channels=1, shortcut="B").eval()
    kept = sum(value.numel() for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked"))
    counted = analyze(load(MODELS / "digits_resnet8.onnx")).as_json()["model"]
    described = [int(cell.replace(",", "")) for cell in ROWS["digits_resnet8.onnx"][1:3]]
    assert described == [kept, macs(model, (1, 8, 8))] == [counted["params"], counted["macs"]]


def test_the_file_and_torch_compute_the_same() -> None:
    import onnxruntime as ort

    graph = load(MODELS / "digits_resnet8.onnx")
    model = resnet8(channels=1, shortcut="B")
    weights = {name: torch.from_numpy(graph.array(name).copy()) for name in graph.weights}
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing)
    images = load_data("digits").split("validation").images[:] / np.float32(16)
    with torch.no_grad():
        ours = model.eval()(torch.from_numpy(images)).numpy()
    (theirs,) = ort.InferenceSession(graph.file, providers=["CPUExecutionProvider"]).run(None, {"image": images})
    assert np.abs(ours - theirs).max() < 1e-4


class TestBuilders:
    # He et al. (2016), table 6: layers and parameters of ResNet-20 to 110 with shortcuts A, in millions.
    @pytest.mark.parametrize(
        ("build", "depth", "millions"),
        [(resnet20, 20, 0.27), (resnet32, 32, 0.46), (resnet56, 56, 0.85), (resnet110, 110, 1.7)],
    )
    def test_sizes_are_the_papers(self, build: type[ResNet], depth: int, millions: float) -> None:
        model = build()
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        assert len(layers) == depth == 6 * BLOCKS[depth] + 2
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
            millions, abs=0.04 if depth > 56 else 0.006
        )

    def test_resnet20_costs_40_million_macs(self) -> None:
        assert macs(resnet20().eval(), (3, 32, 32)) == pytest.approx(40.6e6, rel=0.01)

    @pytest.mark.parametrize("shortcut", ["A", "B"])
    def test_widths_channels_and_classes_are_free(self, shortcut: str) -> None:
        model = resnet8(widths=(3, 5, 9), channels=2, classes=4, shortcut=shortcut).eval()
        assert model(torch.zeros(2, 2, 16, 16)).shape == (2, 4)
        assert next(m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)) == 3

    def test_a_zero_padded_shortcut_is_every_second_pixel_between_zeros(self) -> None:
        pad = resnet8(widths=(2, 5, 9)).layer2[0].downsample
        x = torch.randn(1, 2, 4, 4)
        y = pad(x)
        assert y.shape == (1, 5, 2, 2)
        assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
        assert not y[:, [0, 3, 4]].any()
        assert not list(pad.parameters())

    def test_senseless_networks_are_refused(self) -> None:
        with pytest.raises(ValueError, match="shortcut"):
            resnet8(shortcut="C")
        with pytest.raises(ValueError, match="not falling"):
            resnet8(widths=(4, 3, 5))
        with pytest.raises(ValueError, match="three"):
            resnet8(widths=(4, 4))
