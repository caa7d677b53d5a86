"""torchvision's own networks, and what is changed in them for small images.

At sizes up to SMALL pixels the networks keep more of their resolution, as in the CIFAR experiments of CONETv2
(Hosseini et al., 2021), whose public code builds neither ResNeXt nor MnasNet: each function says which layers change.
torchvision is imported when one is built.
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["SMALL", "mnasnet", "mobilenet_v2", "resnet18", "resnet34", "resnext50", "shufflenet_v2", "squeezenet"]

SMALL = 64
SHUFFLENET = {0.5: (24, 48, 96, 192, 1024), 1.0: (24, 116, 232, 464, 1024)}  # Ma et al. (2018), table 5
SHUFFLENET |= {1.5: (24, 176, 352, 704, 1024), 2.0: (24, 244, 488, 976, 2048)}


def resnet18(*, classes: int = 1000, size: int = 224) -> nn.Module:
    """He et al. (2016), table 1: 11.7M parameters, 1.8G MACs. Small: a 3x3 stem at stride 1, no max-pooling."""
    return _resnet("resnet18", classes, size)


def resnet34(*, classes: int = 1000, size: int = 224) -> nn.Module:
    """He et al. (2016), table 1: 21.8M parameters, 3.6G MACs (21.3M for 100 classes). Small: as resnet18."""
    return _resnet("resnet34", classes, size)


def resnext50(*, classes: int = 1000, size: int = 224, width: float = 1.0) -> nn.Module:
    """Xie et al. (2017), ResNeXt-50 (32x4d): 25.0M parameters, 4.2G MACs. Small: as resnet18.

    `width` scales the channels within blocks, 4 a group, to a whole number.
    """
    return _resnet("resnext50_32x4d", classes, size, width_per_group=max(1, round(4 * width)))


def mobilenet_v2(*, classes: int = 1000, size: int = 224, width: float = 1.0) -> nn.Module:
    """Sandler et al. (2018), table 4: 3.4M parameters, 0.3G MACs. Small: stride 1 in the stem and in the first 24."""
    model = _models().mobilenet_v2(num_classes=classes, width_mult=width)
    if size <= SMALL:
        _at_stride_1(model.features[0][0], model.features[2].conv[1][0])
    return model


def shufflenet_v2(*, classes: int = 1000, size: int = 224, width: float = 1.0) -> nn.Module:
    """Ma et al. (2018), table 5: 2.3M parameters, 0.146G MACs. Small: stride 1 in the stem; the max-pooling stays.

    `width` is 0.5, 1, 1.5 or 2. Raises ValueError for another.
    """
    if width not in SHUFFLENET:
        raise ValueError(f"width {width:g}; ShuffleNetV2 has {', '.join(f'{known:g}' for known in SHUFFLENET)}.")
    model = _models().ShuffleNetV2([4, 8, 4], list(SHUFFLENET[width]), num_classes=classes)
    if size <= SMALL:
        _at_stride_1(model.conv1[0])
    return model


def squeezenet(*, classes: int = 1000, size: int = 224) -> nn.Module:
    """Iandola et al. (2016), SqueezeNet 1.0: 1.25M parameters. Small: a 3x3 stem at stride 1."""
    model = _models().squeezenet1_0(num_classes=classes)
    if size <= SMALL:
        model.features[0] = nn.Conv2d(3, 96, 3, 1, 1)
        nn.init.kaiming_uniform_(model.features[0].weight)
        nn.init.zeros_(model.features[0].bias)
    return model


def mnasnet(*, classes: int = 1000, size: int = 224, width: float = 1.0) -> nn.Module:
    """Tan et al. (2019), as torchvision's mnasnet1_0 (without squeeze-and-excite): 4.4M parameters, 0.3G MACs.

    Small: stride 1 in the stem and in the first stack, as in MobileNetV2.
    """
    model = _models().MNASNet(width, num_classes=classes)
    if size <= SMALL:
        _at_stride_1(model.layers[0], model.layers[8][0].layers[3])
    return model


def _models() -> Any:
    from torchvision import models

    return models


def _resnet(name: str, classes: int, size: int, **settings: int) -> nn.Module:
    model = _models().get_model(name, weights=None, num_classes=classes, **settings)
    if size <= SMALL:
        model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def _at_stride_1(*convolutions: nn.Conv2d) -> None:
    for convolution in convolutions:
        convolution.stride = (1, 1)
