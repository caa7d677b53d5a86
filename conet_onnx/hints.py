"""Which change to a model would free what is frozen: a hint for each kind of reason."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["HINTS", "hint"]

_STATIC = (
    "Export the model with these numbers constant (static shapes, or --input-shape with a simplifier such as onnxsim)"
)
_VALID = "This is a fault of the model: export it again, and check it with onnx.checker and strict shape inference."
_NEWER = "Convert the model to a newer opset (onnx.version_converter), which writes this another way."

HINTS: Mapping[str, str] = {
    # The model's border
    "input": "Nothing but other data, which the callers decide. A layer with weights after the input frees what "
    "comes behind it.",
    "output": "Nothing but another task: the callers read it. A layer with weights before the output frees what "
    "comes before it.",
    "spatial": "It is the extent of a kernel or of an image, and no number of channels: nothing to free.",
    "asked": "Leave out the --freeze that names it.",
    "not made": "Where it counts channels, make them by a convolution or a matrix product. Extents and positions "
    "are nothing to free.",
    # What a node does
    "activations": "Multiply by a weight in place of one of the two: only a sum over a weight can be rescaled.",
    "sum": "Take the mean, or sum by a MatMul with a weight of ones: only a sum over a weight can be rescaled.",
    "norm": "Use a normalisation that averages over channels (LayerNormalization, RMSNormalization, "
    "GroupNormalization).",
    "neighbours": "Use a normalisation that does not look at neighbouring channels, such as BatchNormalization.",
    "per activation": "Normalise by channel: BatchNormalization with spatial = 1, the default, and opset 9 or later.",
    "softmax": "Put the softmax along another axis, or a layer with weights between it and this axis.",
    "positions": "Take the node out of the model (number or compare positions in your own code), or let it work along "
    "another axis.",
    "picked": "What is looked up by number (a vocabulary, positions) is no channel. To pick channels, Split or Slice.",
    "strided": "Slice with step 1; every n-th channel can be had by a Reshape to rows of n and a slice of those.",
    "padding": "Pad with zeros and do not crop: channels that are cut off can be left out of the weights instead.",
    "steps": "It counts the steps of a sequence, and no channels: nothing to free.",
    "pairs": "Nothing but another embedding of positions: what is turned in pairs stays in pairs.",
    "activation": "Let the node end in an activation that treats every element by itself, or export without fusing.",
    "cache": "Export the model without a cache of past keys and values: what is given away must keep its size.",
    "packed": "Give queries, keys and values as three tensors.",
    "shared heads": "Export attention as plain operators, where it can be seen which queries share a key.",
    "layout": "Export it as plain operators: only the usual layout, channels first and one state, is followed.",
    "transposed batch": "Transpose in a node of its own in place of the fused one.",
    "scales": "Quantise with one scale for each tensor, or one for each output channel of a weight.",
    "blocks": "Quantise with one scale for each channel, not for each block of channels.",
    "sparse": "Store the weight densely: positions of a sparse one are not followed.",
    "squeeze": "Name the axes of the Squeeze: export with squeeze(dim) instead of squeeze().",
    "indices": "Leave out the second output of the pool, the indices.",
    "crop": "Crop with Slice, whose bounds are constants.",
    "resize axes": "Give Resize its scales for all axes, as it has them in opset 17 and earlier.",
    "equation": "Write it as MatMul, or as an Einsum of two tensors that has a letter for each axis and repeats none.",
    "misaligned": "Regroup in blocks that nest: from the left, the larger size must be a multiple of the smaller.",
    "fixed": "One of the sides has a size that nothing makes, such as a constant: make it by a layer, or let it "
    "broadcast.",
    "tied": "Give each of the nodes a copy of the weight of its own.",
    # What is not followed
    "unknown op": "Export it as operators that are followed (no fusing, another opset), or put a layer with weights "
    "between it and this axis.",
    "control flow": "Trace the model instead of scripting it, so that loops and branches are unrolled.",
    "computed": f"{_STATIC}: a number that is computed from this size is used where it cannot be followed.",
    "computed axes": f"{_STATIC}.",
    "computed bounds": f"{_STATIC}.",
    "computed pads": f"{_STATIC}.",
    "computed repeats": f"{_STATIC}.",
    "computed scales": f"{_STATIC}.",
    "computed sizes": f"{_STATIC}.",
    "computed split": f"{_STATIC}.",
    "computed target": f"{_STATIC}.",
    "dynamic": "Export the model with a fixed number of channels; only batch and extents may follow the input.",
    "unknown shape": "Give --input-shape, or infer shapes in the file first (onnx.shape_inference, or onnxruntime's "
    "symbolic one).",
    "old broadcast": _NEWER,
    # What contradicts itself
    "bad groups": _VALID,
    "bad heads": _VALID,
    "bad size": _VALID,
    "conflict": _VALID,
    "empty": _VALID,
    "malformed": _VALID,
    "rank": _VALID,
    "sizes": _VALID,
}

_NONE = "No change is known that would free it; the reason names the node to look at."


def hint(kind: str) -> str:
    """Which change would free an axis that is frozen for a reason of this kind."""
    return HINTS.get(kind, _NONE)
