"""The reference networks of models/, with few blocks and channels: as `python -m models.export` writes them."""

from __future__ import annotations

import onnx
import torch
from torch import nn

from models.darts_cifar import Darts
from models.densenet_cifar import DenseNet
from models.exporting import exported
from models.pyramidnet_cifar import PyramidNet
from models.resnet_cifar import ResNet
from tools.torchvision_schemas import define_missing_schemas
from tools.zoo_models.entry import enliven

define_missing_schemas()

from torchvision.models import MNASNet, mobilenetv2, resnet, squeezenet  # noqa: E402 - after the schemas

__all__ = ["MODELS", "made"]

CLASSES = 5
SIZE = 32


def made(name: str) -> onnx.ModelProto:
    """The network, alive, with its norms folded."""
    torch.manual_seed(0)
    model = MODELS[name]()
    enliven(model, (torch.randn(2, 3, SIZE, SIZE),))
    return exported(model, (3, SIZE, SIZE))


def resnet_cifar() -> nn.Module:
    """Shortcuts of 4 channels become 2 + 4 + 2, and those 3 + 8 + 3."""
    return ResNet(2, widths=(4, 8, 14), classes=CLASSES)


def resnet_padded() -> nn.Module:
    """The sum of blocks of 6, 4, 12, 9, 9 and 15 channels after a stem of 4, each aligned at its last channel."""
    return ResNet(2, widths=(5, 6, 7, 4, 4, 12, 5, 9, 6, 9, 9, 15), stem=4, classes=CLASSES, shortcut="pad")


def plain() -> nn.Module:
    return ResNet(2, widths=(4, 6, 10), classes=CLASSES, shortcut="none")


def densenet_cifar() -> nn.Module:
    return DenseNet(2, growth=3, stem=4, classes=CLASSES)


def pyramid_net() -> nn.Module:
    """Widths 6, 8, 11, 13, 15, 18 after a stem of 4."""
    return PyramidNet(2, alpha=14, stem=4, classes=CLASSES)


def darts() -> nn.Module:
    """A cell of each kind: normal, reducing, normal after reducing, reducing, normal."""
    return Darts(5, channels=4, classes=CLASSES)


def resnet_basic() -> nn.Module:
    """ResNet-18's and 34's blocks: a stage of two, and one of one."""
    return resnet.ResNet(resnet.BasicBlock, [2, 1, 1, 1], num_classes=CLASSES)


def resnext() -> nn.Module:
    return resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1], num_classes=CLASSES, groups=4, width_per_group=2)


def mobilenet_v2() -> nn.Module:
    """Expansion 1 once, then 3; a stage with a residual, one without, one with two."""
    setting = [[1, 16, 1, 1], [3, 24, 2, 2], [3, 32, 1, 1], [3, 40, 3, 2]]
    return mobilenetv2.MobileNetV2(CLASSES, inverted_residual_setting=setting)


def squeeze_net() -> nn.Module:
    return squeezenet.SqueezeNet("1_0", num_classes=CLASSES)


def mnas_net() -> nn.Module:
    return MNASNet(0.1, num_classes=CLASSES)


MODELS = {
    "resnet_cifar": resnet_cifar,
    "resnet_padded": resnet_padded,
    "plain": plain,
    "densenet_cifar": densenet_cifar,
    "pyramid_net": pyramid_net,
    "darts": darts,
    "resnet_basic": resnet_basic,
    "resnext": resnext,
    "mobilenet_v2": mobilenet_v2,
    "squeeze_net": squeeze_net,
    "mnas_net": mnas_net,
}
