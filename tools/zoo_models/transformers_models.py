"""Small models of Hugging Face's transformers, built from their configurations with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tools.zoo_models.entry import Entry, from_torch

__all__ = ["entries"]

TOKENS = (2, 12)  # batch, sequence
ANY_LENGTH = ("bert", "bert for masked tokens", "distilbert", "roberta", "albert")
VOCABULARY = 100


def entries() -> list[Entry]:
    """Each by the dynamo exporter, which is torch's default, and by the older one."""
    any_length = [
        Entry(
            f"{name}, any length",
            "transformers",
            "torchscript",
            partial(from_torch, MODELS[name][0], "torchscript", names=MODELS[name][1], lengths=True),
            "transformer",
        )
        for name in ANY_LENGTH
    ]
    return any_length + [
        Entry(name, "transformers", exporter, partial(from_torch, make, exporter, opset=17, names=names), "transformer")
        for exporter in ("torchscript", "dynamo")
        for name, (make, names) in MODELS.items()
    ]


def _wrapped(model: Any, call: Callable[[Any, tuple[Any, ...]], Any], inputs: tuple[Any, ...]) -> Any:
    """The model as a function of plain tensors that returns plain tensors."""
    from torch import nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> Any:
            return call(self.model, given)

    return Plain(), inputs


def _small(config: Any, **more: Any) -> Any:
    """Configurations name the same sizes alike; eager attention is what exporters write out."""
    return config(attn_implementation="eager", **more)


def _tokens(count: int = TOKENS[1]) -> Any:
    import torch

    return torch.randint(3, VOCABULARY, (TOKENS[0], count))


SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}


def _encoder(config: str, model: str, **more: Any) -> Any:
    import torch
    import transformers

    settings = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, **SIZES, **more}
    built = getattr(transformers, model)(_small(getattr(transformers, config), **settings))
    ids = _tokens()
    mask = torch.ones_like(ids)
    return _wrapped(built, lambda m, x: m(input_ids=x[0], attention_mask=x[1]).logits, (ids, mask))


def _bert() -> Any:
    return _encoder("BertConfig", "BertForSequenceClassification")


def _bert_mlm() -> Any:
    return _encoder("BertConfig", "BertForMaskedLM")


def _roberta() -> Any:
    return _encoder("RobertaConfig", "RobertaForSequenceClassification", pad_token_id=1)


def _albert() -> Any:
    return _encoder("AlbertConfig", "AlbertForSequenceClassification", embedding_size=24, num_hidden_groups=1)


def _distilbert() -> Any:
    import transformers

    config = _small(
        transformers.DistilBertConfig,
        vocab_size=VOCABULARY,
        dim=48,
        n_layers=2,
        n_heads=4,
        hidden_dim=80,
        max_position_embeddings=40,
    )
    ids = _tokens()
    built = transformers.DistilBertForSequenceClassification(config)
    return _wrapped(built, lambda m, x: m(input_ids=x[0]).logits, (ids,))


def _gpt2() -> Any:
    import transformers

    config = _small(transformers.GPT2Config, vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=40)
    built = transformers.GPT2LMHeadModel(config)
    return _wrapped(built, lambda m, x: m(input_ids=x[0], use_cache=False).logits, (_tokens(),))


def _llama() -> Any:
    import transformers

    config = _small(
        transformers.LlamaConfig,
        vocab_size=VOCABULARY,
        max_position_embeddings=40,
        **SIZES,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    built = transformers.LlamaForCausalLM(config)
    return _wrapped(built, lambda m, x: m(input_ids=x[0], use_cache=False).logits, (_tokens(),))


def _t5() -> Any:
    import transformers

    config = _small(
        transformers.T5Config,
        vocab_size=VOCABULARY,
        d_model=48,
        d_kv=12,
        d_ff=80,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    built = transformers.T5ForConditionalGeneration(config)
    call = lambda m, x: m(input_ids=x[0], decoder_input_ids=x[1], use_cache=False).logits  # noqa: E731
    return _wrapped(built, call, (_tokens(), _tokens(7)))


def _whisper(part: str) -> Any:
    import torch
    import transformers

    config = _small(
        transformers.WhisperConfig,
        vocab_size=VOCABULARY,
        d_model=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=80,
        decoder_ffn_dim=80,
        num_mel_bins=20,
        max_source_positions=25,
        max_target_positions=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = transformers.WhisperModel(config)
    if part == "encoder":
        return _wrapped(model.encoder, lambda m, x: m(x[0]).last_hidden_state, (torch.randn(2, 20, 50),))
    call = lambda m, x: m(input_ids=x[0], encoder_hidden_states=x[1], use_cache=False).last_hidden_state  # noqa: E731
    return _wrapped(model.decoder, call, (_tokens(7), torch.randn(2, 25, 48)))


def _image(config: str, model: str, output: str, size: int = 64, **more: Any) -> Any:
    import torch
    import transformers

    built = getattr(transformers, model)(_small(getattr(transformers, config), **more))
    call = lambda m, x: getattr(m(pixel_values=x[0]), output)  # noqa: E731
    return _wrapped(built, call, (torch.randn(2, 3, size, size),))


def _vit() -> Any:
    return _image("ViTConfig", "ViTForImageClassification", "logits", image_size=64, patch_size=16, **SIZES)


def _detr() -> Any:
    return _image(
        "DetrConfig",
        "DetrForObjectDetection",
        "logits",
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=_backbone(),
        d_model=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=80,
        decoder_ffn_dim=80,
        num_queries=9,
    )


def _backbone() -> Any:
    import transformers

    sizes = {"embedding_size": 16, "hidden_sizes": [24, 32, 40, 48], "depths": [1, 1, 1, 1]}
    return transformers.ResNetConfig(**sizes, layer_type="basic", out_features=["stage4"])


def _segformer() -> Any:
    return _image(
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        "logits",
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 4],
        decoder_hidden_size=40,
    )


def _clip() -> Any:
    import torch
    import transformers

    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, **SIZES, "eos_token_id": 2, "bos_token_id": 1}
    vision = {"image_size": 64, "patch_size": 16, **SIZES}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    config._attn_implementation = "eager"
    built = transformers.CLIPModel(config)

    def call(model: Any, x: Any) -> Any:
        made = model(input_ids=x[0], pixel_values=x[1])
        return made.logits_per_image, made.text_embeds, made.image_embeds

    return _wrapped(built, call, (_tokens(), torch.randn(2, 3, 64, 64)))


def _wav2vec2() -> Any:
    import torch
    import transformers

    config = _small(
        transformers.Wav2Vec2Config,
        vocab_size=30,
        **SIZES,
        conv_dim=(16, 24, 32),
        conv_stride=(5, 2, 2),
        conv_kernel=(10, 3, 3),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    built = transformers.Wav2Vec2ForCTC(config)
    return _wrapped(built, lambda m, x: m(input_values=x[0]).logits, (torch.randn(2, 800),))


MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "bert": (_bert, ("ids", "mask")),
    "bert for masked tokens": (_bert_mlm, ("ids", "mask")),
    "distilbert": (_distilbert, ("ids",)),
    "roberta": (_roberta, ("ids", "mask")),
    "albert": (_albert, ("ids", "mask")),
    "gpt2": (_gpt2, ("ids",)),
    "llama": (_llama, ("ids",)),
    "t5": (_t5, ("ids", "decoder_ids")),
    "whisper encoder": (partial(_whisper, "encoder"), ("features",)),
    "whisper decoder": (partial(_whisper, "decoder"), ("ids", "encoded")),
    "vit": (_vit, ("pixels",)),
    "detr": (_detr, ("pixels",)),
    "segformer": (_segformer, ("pixels",)),
    "clip": (_clip, ("ids", "pixels")),
    "wav2vec2": (_wav2vec2, ("wave",)),
}
