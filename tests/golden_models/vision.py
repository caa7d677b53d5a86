"""torchvision's networks, as small as their constructors allow: the structure is that of the large ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tools.torchvision_schemas import define_missing_schemas

define_missing_schemas()

from torchvision.models import (  # noqa: E402 - after the schemas
    GoogLeNet,
    convnext,
    densenet,
    maxvit,
    regnet,
    shufflenetv2,
    swin_transformer,
    vision_transformer,
)

__all__ = ["MODELS"]

Made = tuple[nn.Module, tuple[Any, ...]]
CLASSES = 5


def image(side: int) -> tuple[Any, ...]:
    return (torch.randn(2, 3, side, side),)


def swin_v2() -> Made:
    """Windows, rolls and cosine attention with a position bias that a small network makes."""
    model = swin_transformer.SwinTransformer(
        patch_size=[2, 2],
        embed_dim=8,
        depths=[2, 1],
        num_heads=[2, 2],
        window_size=[4, 4],
        mlp_ratio=2,
        stochastic_depth_prob=0,
        num_classes=CLASSES,
        block=swin_transformer.SwinTransformerBlockV2,
        downsample_layer=swin_transformer.PatchMergingV2,
    )
    return model, image(16)


def max_vit() -> Made:
    """Inverted bottlenecks, then attention within windows and across a grid."""
    model = maxvit.MaxVit(
        input_size=(32, 32),
        stem_channels=8,
        partition_size=2,
        block_channels=[8, 12],
        block_layers=[1, 1],
        head_dim=4,
        stochastic_depth_prob=0,
        mlp_ratio=2,
        expansion_ratio=2,
        num_classes=CLASSES,
    )
    return model, image(32)


def vit() -> Made:
    model = vision_transformer.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=20, num_classes=CLASSES
    )
    return model, image(16)


def conv_next() -> Made:
    blocks = [convnext.CNBlockConfig(8, 12, 2), convnext.CNBlockConfig(12, None, 1)]
    return convnext.ConvNeXt(blocks, num_classes=CLASSES), image(32)


def shuffle_net() -> Made:
    return shufflenetv2.ShuffleNetV2([2, 3, 2], [8, 12, 16, 24, 32], num_classes=CLASSES), image(64)


def dense_net() -> Made:
    model = densenet.DenseNet(
        growth_rate=4, block_config=(2, 3, 2, 2), num_init_features=8, bn_size=2, num_classes=CLASSES
    )
    return model, image(64)


def reg_net() -> Made:
    """Grouped convolutions with squeeze-and-excite."""
    blocks = regnet.BlockParams(
        depths=[1, 2], widths=[8, 16], group_widths=[4, 4], bottleneck_multipliers=[1, 1], strides=[2, 2], se_ratio=0.25
    )
    return regnet.RegNet(blocks, num_classes=CLASSES, stem_width=8), image(32)


def goog_le_net() -> Made:
    return GoogLeNet(num_classes=CLASSES, aux_logits=False, init_weights=False), image(32)


MODELS = {
    "swin_v2": swin_v2,
    "max_vit": max_vit,
    "vit": vit,
    "conv_next": conv_next,
    "shuffle_net": shuffle_net,
    "dense_net": dense_net,
    "reg_net": reg_net,
    "goog_le_net": goog_le_net,
}
