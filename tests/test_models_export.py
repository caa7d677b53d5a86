"""The reference networks are the papers', and their files are torch's networks under torch's names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conet_onnx.analysis import analyze
from conet_onnx.errors import ModelError
from conet_onnx.graph import Graph
from conet_onnx.loading import load
from models import export
from models.catalogue import NETWORKS, built
from models.darts_cifar import DARTS_V2, Darts, Genotype, darts20
from models.densenet_cifar import densenet40
from models.exporting import exported, save
from models.pyramidnet_cifar import PyramidNet, pyramidnet20
from models.resnet_cifar import ResNet, resnet20
from tools.make_models import macs
from tools.torchvision_schemas import define_missing_schemas

define_missing_schemas()

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = {
    cells[0]: cells[1:]
    for line in (Path(export.__file__).parent / "README.md").read_text("utf-8").splitlines()
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    if cells[0] in NETWORKS
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@functools.cache
def on_paper(name: str, **settings: Any) -> tuple[int, int]:
    """Parameters and MACs, without computing anything."""
    with torch.device("meta"):
        model, shape = built(name, **settings)
        return parameters(model), macs(model.eval(), shape)


def run(model: onnx.ModelProto, images: torch.Tensor) -> np.ndarray[Any, Any]:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images.numpy()})[0])


def lively(model: nn.Module) -> nn.Module:
    """Norms that change what they are given."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.eps = 0.05
    return model


class TestSizes:
    """As the papers print them, in millions and thousands of millions. (MobileNetV2's 3.4 is 3.50 in torchvision.)"""

    @pytest.mark.parametrize(
        ("name", "settings", "millions", "within"),
        [
            ("resnet20", {}, 0.27, 0.005),  # He et al. (2016), table 6
            ("resnet32", {}, 0.46, 0.005),
            ("resnet56", {}, 0.85, 0.005),
            ("resnet110", {}, 1.7, 0.05),
            ("densenet40", {}, 1.0, 0.05),  # Huang et al. (2017), table 2
            ("darts20", {}, 3.3, 0.05),  # Liu et al. (2019), table 1
            ("resnet34", {"classes": 100}, 21.3, 0.05),
            ("resnet18", {}, 11.7, 0.05),
            ("resnext50", {"classes": 1000, "size": 224}, 25.0, 0.05),  # Xie et al. (2017), table 1
            ("mobilenet_v2", {"classes": 1000, "size": 224}, 3.4, 0.15),  # Sandler et al. (2018), table 4
            ("shufflenet_v2", {"classes": 1000, "size": 224}, 2.3, 0.05),  # Ma et al. (2018), table 5
            ("squeezenet", {"classes": 1000, "size": 224}, 1.25, 0.005),  # Iandola et al. (2016), table 1
        ],
    )
    def test_parameters_are_the_papers(
        self, name: str, settings: dict[str, int], millions: float, within: float
    ) -> None:
        assert on_paper(name, **settings)[0] / 1e6 == pytest.approx(millions, abs=within)

    @pytest.mark.parametrize(
        ("name", "settings", "gigas", "within"),
        [
            ("resnet18", {}, 1.81, 0.01),  # Chen et al. (2020)
            ("resnet34", {"classes": 1000, "size": 224}, 3.66, 0.06),  # He et al. (2016), table 1: 3.6
            ("resnext50", {"classes": 1000, "size": 224}, 4.2, 0.06),
            ("mobilenet_v2", {"classes": 1000, "size": 224}, 0.300, 0.005),
            ("shufflenet_v2", {"classes": 1000, "size": 224}, 0.146, 0.003),
            ("mnasnet", {}, 0.315, 0.005),  # Tan et al. (2019), without squeeze-and-excite
            ("resnet20", {}, 0.0406, 0.0001),
            ("resnet20-padded", {}, 0.0406, 0.0001),  # Chen et al. (2020): 40M
        ],
    )
    def test_macs_are_the_papers(self, name: str, settings: dict[str, int], gigas: float, within: float) -> None:
        assert on_paper(name, **settings)[1] / 1e9 == pytest.approx(gigas, abs=within)

    # Han et al. (2017), of depth 110.
    @pytest.mark.parametrize(("alpha", "millions"), [(48, 1.7), (84, 3.8), (270, 28.3)])
    def test_pyramids_grow_to_the_papers_sizes(self, alpha: float, millions: float) -> None:
        with torch.device("meta"):
            assert parameters(PyramidNet(18, alpha=alpha)) / 1e6 == pytest.approx(millions, rel=0.025)

    @pytest.mark.parametrize(("name", "depth"), [("plain20", 20), ("pyramidnet20", 20), ("densenet40", 40)])
    def test_a_name_counts_the_layers(self, name: str, depth: int) -> None:
        model, _ = built(name)
        assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == depth

    @pytest.mark.parametrize("name", NETWORKS)
    def test_the_table_has_torchs_parameters_and_macs(self, name: str) -> None:
        paper, images, params, counted, _, share = ROWS[name]
        network = NETWORKS[name]
        assert (paper, images) == (network.paper, f"{network.size}x{network.size}, {network.classes}")
        assert tuple(int(cell.replace(",", "")) for cell in (params, counted)) == on_paper(name)
        assert 99 < float(share.removesuffix("%")) <= 100

    @pytest.mark.parametrize("name", ["plain20", "resnet20-padded", "pyramidnet20", "squeezenet"])
    def test_the_table_has_the_widths_that_analyze_finds(self, name: str) -> None:
        model, shape = built(name)
        found = analyze(Graph(exported(model, shape)))
        assert ROWS[name][4:] == [str(len(found.widths)), f"{found.costs.coverage.params:.1%}"]

    def test_every_network_has_its_line_and_no_other(self) -> None:
        assert list(ROWS) == list(NETWORKS)

    @pytest.mark.parametrize("times", [2, 4])
    def test_times_is_of_every_width(self, times: int) -> None:
        wide, _ = built(f"resnet20-{times}x")
        narrow, _ = built("resnet20")
        pairs = list(zip(wide.parameters(), narrow.parameters(), strict=True))
        assert all(w.shape[0] == times * n.shape[0] for w, n in pairs[:-2])
        again, _ = built("resnet20", width=times)
        assert [p.shape for p in again.parameters()] == [w.shape for w, _ in pairs]


class TestArchitectures:
    def test_a_plain_network_adds_nothing(self) -> None:
        model, shape = built("plain20", size=8)
        assert not [node for node in exported(model, shape).graph.node if node.op_type == "Add"]

    def test_a_narrow_block_adds_to_the_last_channels_and_a_wide_one_puts_its_own_in_front(self) -> None:
        model = ResNet(1, widths=(4, 3, 4, 7, 4, 7), stem=5, shortcut="pad").eval()
        first, second = model.layer1[0], model.layer2[0]
        x = torch.rand(2, 5, 8, 8)
        y = first(x)  # three channels onto five
        assert torch.equal(y[:, :2], x[:, :2])
        assert not torch.equal(y[:, 2:], x[:, 2:])
        nn.init.zeros_(second.bn2.weight)  # seven channels; the shortcut alone
        assert torch.allclose(second(y), F.pad(F.avg_pool2d(y, 2), (0, 0, 0, 0, 2, 0)))
        assert model.fc.in_features == 7

    def test_three_widths_of_a_padded_network_are_those_of_its_stages(self) -> None:
        short = ResNet(2, widths=(4, 6, 8), shortcut="pad")
        spelt = ResNet(2, widths=[4] * 4 + [6] * 4 + [8] * 4, stem=4, shortcut="pad")
        assert [p.shape for p in short.parameters()] == [p.shape for p in spelt.parameters()]
        assert ResNet(1, widths=[9] * 6, shortcut="pad").conv1.out_channels == 16  # the published stem

    def test_widths_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(ValueError, match="three, one for each stage or 12"):
            ResNet(2, widths=(4, 5, 6, 7), shortcut="pad")
        with pytest.raises(ValueError, match="three, one for each stage"):
            ResNet(1, widths=(4,) * 6, shortcut="A")
        with pytest.raises(ValueError, match="alpha"):
            PyramidNet(1, alpha=-3)
        with pytest.raises(ValueError, match="operation"):
            Darts(1, channels=2, genotype=Genotype((("conv", 0), ("conv", 1)), (("conv", 0), ("conv", 1))))

    def test_a_pyramid_grows_by_the_same_step(self) -> None:
        model = pyramidnet20(alpha=18)
        assert [block.conv2.out_channels for block in model.blocks] == list(range(18, 36, 2))
        assert [block.conv1.stride[0] for block in model.blocks] == [1, 1, 1, 2, 1, 1, 2, 1, 1]

    def test_a_dense_layer_keeps_its_input_in_front(self) -> None:
        layer = densenet40().block1[2].eval()
        x = torch.rand(1, 16 + 24, 4, 4)
        y = layer(x)
        assert y.shape[1] == 16 + 36
        assert torch.equal(y[:, :40], x)

    def test_darts_reduces_at_a_third_and_two_thirds(self) -> None:
        with torch.device("meta"):
            cells = darts20().cells
        widths = [cell.fit1.conv.out_channels for cell in cells]
        assert widths == [36] * 6 + [72] * 7 + [144] * 7
        assert [k for k, cell in enumerate(cells) if hasattr(cell.fit0, "conv1")] == [7, 14]
        assert all(cell.fit1.conv.in_channels == 4 * widths[k] for k, cell in enumerate(cells[1:]))
        assert {len(DARTS_V2.normal), len(DARTS_V2.reduce)} == {8}

    @pytest.mark.parametrize(
        ("name", "small", "large"),
        [
            ("resnet18", 4, 7),
            ("resnet34", 4, 7),
            ("resnext50", 4, 7),
            ("mobilenet_v2", 4, 7),
            ("shufflenet_v2", 2, 7),
            ("squeezenet", 4, 13),
            ("mnasnet", 4, 7),
        ],
    )
    def test_small_images_keep_more_of_their_resolution(self, name: str, small: int, large: int) -> None:
        assert self.last_side(name, 32) == small
        assert self.last_side(name, 224) == large

    def last_side(self, name: str, size: int) -> int:
        """The height of what the last convolution makes."""
        seen: list[int] = []
        with torch.device("meta"):
            model, shape = built(name, size=size)
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(lambda _module, _inputs, y: seen.append(y.shape[2]))
            model.eval()(torch.zeros(1, *shape))
        return seen[-1]


class TestExport:
    @pytest.mark.parametrize(
        "model",
        [
            ResNet(1, widths=(4, 3, 4, 7, 4, 9), stem=5, shortcut="pad"),
            ResNet(1, widths=(4, 6, 9), shortcut="A"),
            PyramidNet(1, alpha=7, stem=4),
            Darts(4, channels=4),
        ],
        ids=["padded", "A", "pyramid", "darts"],
    )
    def test_the_file_computes_what_torch_does_for_any_batch_and_keeps_torchs_names(self, model: nn.Module) -> None:
        state = {n: v.clone() for n, v in lively(model).train().state_dict().items()}
        kept, folded = exported(model, (3, 16, 16), keep_norms=True), exported(model, (3, 16, 16))
        assert model.training
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        images = torch.randn(3, 3, 16, 16)
        with torch.no_grad():
            wanted = model.eval()(images).numpy()
        for made in (kept, folded):
            onnx.checker.check_model(made, full_check=True)
            np.testing.assert_allclose(run(made, images), wanted, atol=1e-4 * np.abs(wanted).max())
            assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        named = {name for name in state if not name.endswith("num_batches_tracked")}
        assert {weight.name for weight in kept.graph.initializer} == named
        left = {weight.name for weight in folded.graph.initializer}
        assert {name for name in left if name not in named} <= {
            f"{name}.bias" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
        }
        self.assert_nothing_is_computed_of_constants(kept)
        self.assert_nothing_is_computed_of_constants(folded)

    def assert_nothing_is_computed_of_constants(self, model: onnx.ModelProto) -> None:
        constants = {weight.name for weight in model.graph.initializer}
        constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
        read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
        for node in model.graph.node:
            assert node.op_type == "Constant" or not set(node.input) <= constants, node.name
            assert read & set(node.output), f"nobody reads {node.name}"
        assert {weight.name for weight in model.graph.initializer} <= read

    def test_a_norm_stays_where_its_convolution_has_another_reader_or_there_is_none(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
                self.read_twice, self.alone, self.last = (nn.BatchNorm2d(4) for _ in range(3))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.first(x)
                x = self.alone(F.relu(x + self.read_twice(x)))
                return self.last(self.second(x)).mean((2, 3))

        model = lively(Two()).eval()
        made = exported(model, (3, 6, 6))
        norms = [node.input[1] for node in made.graph.node if node.op_type == "BatchNormalization"]
        assert norms == ["read_twice.weight", "alone.weight"]
        images = torch.randn(5, 3, 6, 6)
        with torch.no_grad():
            np.testing.assert_allclose(run(made, images), model(images).numpy(), atol=1e-5)

    def test_a_batch_that_cannot_be_freed_is_said(self) -> None:
        class Across(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(12, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = self.fc(torch.flatten(x, 1))
                return y - y.mean(0, keepdim=True)

        with pytest.raises(ModelError, match="batch of 2"):
            exported(Across(), (3, 2, 2))

    def test_equal_weights_are_each_their_own(self) -> None:
        made = exported(resnet20(widths=(2, 3, 4), shortcut="B"), (3, 8, 8), keep_norms=True)
        assert not [node for node in made.graph.node if node.op_type == "Identity"]

    def test_costs_are_those_that_hooks_count(self, tmp_path: Path) -> None:
        for shortcut, millions in (("A", 40.55), ("B", 40.81)):  # usually told as 41 and 40.8
            model = resnet20(shortcut=shortcut)
            priced = analyze(save(model, (3, 32, 32), tmp_path / "resnet20.onnx")).costs.price({})
            assert priced.macs == macs(model.eval(), (3, 32, 32))
            assert priced.macs / 1e6 == pytest.approx(millions, abs=0.005)

    def test_the_shipped_models_graph_is_what_this_export_makes(self, tmp_path: Path) -> None:
        shipped = load(Path(export.__file__).parent / "digits_resnet8.onnx")
        model = ResNet(1, channels=1, shortcut="B")
        arrays = {name: torch.from_numpy(shipped.array(name).copy()) for name in shipped.weights}
        model.load_state_dict(arrays, strict=False)
        again = save(model, (1, 8, 8), tmp_path / "again.onnx", keep_norms=True)
        assert [(n.op, n.inputs, n.outputs) for n in again.nodes] == [
            (n.op, n.inputs, n.outputs) for n in shipped.nodes
        ]
        assert all(np.array_equal(again.array(name), shipped.array(name)) for name in shipped.weights)


class TestCommand:
    def test_it_writes_the_file_and_says_what_it_is(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "dense.onnx"
        words = ["densenet40", "-o", str(file), "--classes", "7", "--size", "8", "--width", "0.25", "--opset", "17"]
        assert export.main(words) == 0
        printed = capsys.readouterr().out.splitlines()
        graph = load(file)
        found = analyze(graph)
        assert graph.inputs[0].shape == ("batch", 3, 8, 8)
        assert graph.outputs[0].shape[1] == 7
        assert found.as_json()["model"]["opset"] == 17
        assert "opset 17, images 3x8x8, random weights of seed 0, BatchNormalization folded" in printed[0]
        assert f"{len(found.widths)} width groups" in printed[1]
        assert printed[-1] == f"Next: conet-onnx analyze {file}"

    def test_the_seed_decides_the_weights(self, tmp_path: Path) -> None:
        made = {}
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            file = tmp_path / f"{name}.onnx"
            assert export.main(["resnet20-padded", "-o", str(file), "--size", "8", "--seed", str(seed)]) == 0
            made[name] = file.read_bytes()
        assert made["a"] == made["b"] != made["c"]

    def test_norms_are_kept_on_request(self, tmp_path: Path) -> None:
        words = ["plain20", "-o", str(tmp_path / "p.onnx"), "--size", "8"]
        for more, many in (([], 0), (["--train-bn"], 19)):
            assert export.main(words + more) == 0
            norms = [node for node in load(tmp_path / "p.onnx").nodes if node.op == "BatchNormalization"]
            assert len(norms) == many
            assert not any(node.attributes.get("training_mode", 0) for node in norms)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["resnet2O"], "There is no network 'resnet2O'. Did you mean resnet"),
            (["transformer"], "There are resnet20, "),
            (["darts7", "--size", "30"], "darts7: images of 30 pixels; expected a size from 8 that divides by 4."),
            (["resnet20", "--size", "4"], "expected a size from 8."),
            (["resnet20", "--classes", "0"], "expected at least one"),
            (["resnet34", "--width", "2"], "its paper has one width"),
            (["resnet20", "--width", "-1"], "expected a positive multiplier"),
            (["shufflenet_v2", "--width", "3"], "ShuffleNetV2 has 0.5, 1, 1.5, 2"),
        ],
    )
    def test_what_cannot_be_is_refused_with_what_can(
        self, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert export.main([*words, "-o", str(tmp_path / "out.onnx")]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert said in captured.err
        assert not captured.out
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_is_not_there_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert export.main(["resnet20", "-o", str(tmp_path / "no" / "out.onnx"), "--size", "8"]) == 2
        assert "Cannot write" in capsys.readouterr().err

    def test_torchvision_that_does_not_load_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse() -> None:
            raise RuntimeError("operator torchvision::nms does not exist")

        monkeypatch.setattr("models.torchvision_networks._models", refuse)
        assert export.main(["squeezenet", "-o", str(tmp_path / "out.onnx")]) == 2
        assert "squeezenet cannot be built here" in capsys.readouterr().err

    def test_the_list_names_every_network(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert export.main(["--list"]) == 0
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert listed == list(NETWORKS)

    def test_a_name_and_a_file_are_needed(self, capsys: pytest.CaptureFixture[str]) -> None:
        for words in ([], ["resnet20"]):
            with pytest.raises(SystemExit) as stopped:
                export.main(words)
            assert stopped.value.code == 2
        assert "--list" in capsys.readouterr().err
