"""Operators that have no rule, on purpose: what they read keeps its size, and why."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["WITHOUT"]

_DATA = "it picks or places elements by what is in the data"
_PACKED = "it keeps its batch, its experts or its cache in a layout of its own, which is not followed"
_BLOCKS = "its weight is packed into blocks of a few bits each, whose scales are not followed"
_INTEGERS = "it computes in integers, whose scales and zero points are not followed in one operator"
_DRAWS = "it runs a whole model, or draws from what that says"
_CHANCE = "its numbers are drawn by position"
_NUMBERS = "it makes numbers out of sizes"
_SIGNAL = "it transforms a signal along its positions"
_GEOMETRY = "it moves elements between positions"
_BODY = "it runs another graph, which is not looked into"
_SEQUENCE = "it holds tensors in a sequence or an optional"
_TEXT = "it works on text"
_LOSS = "it is a loss: its classes are an output's"


def _own(names: str, why: str) -> dict[str, str]:
    """Operators of onnxruntime's own domain."""
    return {f"com.microsoft.{name}": why for name in names.split()}


WITHOUT: Mapping[str, str] = {
    **dict.fromkeys(("Compress", "GatherElements", "GatherND", "NonMaxSuppression", "NonZero", "OneHot"), _DATA),
    **dict.fromkeys(("ReverseSequence", "Scatter", "ScatterElements", "ScatterND", "TensorScatter"), _DATA),
    **dict.fromkeys(("MaxUnpool", "Unique"), _DATA),
    **dict.fromkeys(("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"), _CHANCE),
    **dict.fromkeys(("RandomUniform", "RandomUniformLike"), _CHANCE),
    **dict.fromkeys(("Constant", "EyeLike", "Range", "Shape", "Size"), _NUMBERS),
    **dict.fromkeys(("BlackmanWindow", "DFT", "HammingWindow", "HannWindow", "MelWeightMatrix", "STFT"), _SIGNAL),
    **dict.fromkeys(("AffineGrid", "CenterCropPad", "Col2Im", "DeformConv", "Det", "GridSample"), _GEOMETRY),
    **dict.fromkeys(("ImageDecoder", "MaxRoiPool", "RoiAlign"), _GEOMETRY),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), _BODY),
    **dict.fromkeys(("ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement"), _SEQUENCE),
    **dict.fromkeys(("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"), _SEQUENCE),
    **dict.fromkeys(("SequenceInsert", "SequenceLength", "SplitToSequence"), _SEQUENCE),
    **dict.fromkeys(("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"), _TEXT),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _LOSS),
    "BitCast": "it reads the bits of its elements as other elements",
    **_own("DecoderAttention DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention LongformerAttention", _PACKED),
    **_own("MoE PackedAttention PackedMultiHeadAttention PagedAttention RemovePadding RestorePadding", _PACKED),
    **_own("QMoE SparseAttention", _PACKED),
    **_own("GatherBlockQuantized MatMulBnb4 MatMulFpQ4 MatMulNBits", _BLOCKS),
    **_own("DynamicQuantizeLSTM DynamicQuantizeMatMul MatMulIntegerToFloat QAttention", _INTEGERS),
    **_own("QEmbedLayerNormalization", _INTEGERS),
    **_own("QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool", _INTEGERS),
    **_own("QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere", _INTEGERS),
    **_own("BeamSearch GreedySearch Sampling WhisperBeamSearch", _DRAWS),
}
