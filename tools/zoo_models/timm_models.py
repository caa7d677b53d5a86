"""Networks of timm, family by family, with random weights."""

from __future__ import annotations

from functools import partial
from typing import Any

from tools.zoo_models.entry import Entry, from_torch, share

__all__ = ["entries"]

CNNS = """
resnet18 resnet26d resnet50 resnetv2_50 resnext26ts wide_resnet50_2 resnetblur50 seresnet33ts seresnet50 skresnet18
skresnext50_32x4d ecaresnet26t ecaresnet50t resnest14d resnest26d gernet_s cspresnet50 cspresnext50 cspdarknet53
darknet53 hrnet_w18_small dla34 dla46x_c dla60_res2net res2net50_26w_4s res2next50 ghostnet_100 ghostnetv2_100
repvgg_a0 repvit_m0_9 mobileone_s0 mobilenetv2_100 mobilenetv3_large_100 mobilenetv4_conv_small
mobilenetv4_hybrid_medium efficientnet_b0 efficientnetv2_rw_t tf_efficientnet_lite0 mixnet_s fbnetc_100 mnasnet_100
lcnet_050 tinynet_e hardcorenas_a densenet121 densenetblur121d dpn48b dpn68 inception_v3 inception_v4
inception_resnet_v2 inception_next_tiny xception41 xception41p regnetx_002 regnety_002 regnetz_005 rexnet_100
selecsls42 tresnet_m vovnet39a ese_vovnet19b_dw convnext_atto convnext_tiny convnextv2_atto nf_resnet50 nf_regnet_b0
nfnet_l0 dm_nfnet_f0 bat_resnext26ts lambda_resnet26t halonet26t botnet26t_256 gcresnet33ts rdnet_tiny starnet_s1
fasternet_t0 edgenext_xx_small hgnet_tiny hgnetv2_b0 vgg11_bn legacy_senet154
""".split()  # noqa: SIM905  (a hundred quoted names are harder to read)

TRANSFORMERS = """
vit_tiny_patch16_224 vit_small_patch32_224 deit_tiny_patch16_224 deit3_small_patch16_224 cait_xxs24_224
xcit_nano_12_p16_224 levit_128s twins_pcpvt_small twins_svt_small pvt_v2_b0 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224 beit_base_patch16_224 beitv2_base_patch16_224 eva02_tiny_patch14_224
mixer_s32_224 resmlp_12_224 gmlp_ti16_224 focalnet_tiny_srf davit_tiny volo_d1_224 crossvit_tiny_240 pit_ti_224
pit_s_distilled_224 tnt_s_legacy_patch16_224 poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18
coatnet_0_rw_224 coatnet_nano_rw_224 coatnext_nano_rw_224 maxvit_nano_rw_256 maxvit_tiny_tf_224
maxxvit_rmlp_nano_rw_256 mobilevit_xxs mobilevitv2_050 efficientformer_l1 efficientformerv2_s0 efficientvit_b0
efficientvit_m0 fastvit_t8 gcvit_xxtiny hiera_tiny_224 mvitv2_tiny nest_tiny_jx visformer_tiny convit_tiny
sequencer2d_s tiny_vit_5m_224 samvit_base_patch16_224 naflexvit_base_patch16_gap swiftformer_xs shvit_s1
vitamin_small_224
""".split()  # noqa: SIM905  (a hundred quoted names are harder to read)

OTHERWISE = {"volo_d1_224": "transformer", "halonet26t": "cnn"}

INPUT = 96  # height and width of the images for convolutional networks, where they do not insist on their own


def entries() -> list[Entry]:
    """One entry a model, by the TorchScript exporter; its operator sets in turn. What that cannot export, by the other
    one too."""
    opsets = share([*CNNS, *TRANSFORMERS])
    made = [
        Entry(
            name,
            "timm",
            "torchscript",
            partial(_build, name, kind, "torchscript", max(14, opsets[name]) if kind[0] == "t" else opsets[name]),
            kind,
        )
        for names, kind in ((CNNS, "cnn"), (TRANSFORMERS, "transformer"))
        for name in names
    ]
    return made + [
        Entry(name, "timm", "dynamo", partial(_build, name, kind, "dynamo", 18), kind)
        for name, kind in OTHERWISE.items()
    ]


def _build(name: str, kind: str, exporter: str, opset: int) -> Any:
    return from_torch(partial(_make, name, kind), exporter, opset=opset)


def _make(name: str, kind: str) -> tuple[Any, tuple[Any, ...]]:
    import timm
    import torch
    from timm.layers import set_exportable

    set_exportable(True)
    with torch.no_grad():
        model = timm.create_model(name, pretrained=False)
        if not getattr(model, "num_classes", 1):  # a trunk alone, whose channels are the output
            model = timm.create_model(name, pretrained=False, num_classes=10)
    own = model.default_cfg["input_size"][1:]
    insists = name.startswith(("halonet", "lambda", "bat_", "vgg"))
    fixed = kind == "transformer" or insists or model.default_cfg.get("fixed_input_size")
    height, width = own if fixed or own[0] < INPUT else (INPUT, INPUT)
    return model, (torch.randn(2, 3, height, width),)
