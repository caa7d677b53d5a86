"""What each operator says about the axes of its inputs and outputs: one small pure function per family."""

from conet_onnx.rules import (
    attention,
    contract,
    elementwise,
    fused,
    join,
    normalize,
    permute,
    pick,
    quantise,
    recurrent,
    reduce,
    reshape,
    stateful,
    window,
)
from conet_onnx.rules.registry import (
    RULES,
    Contraction,
    Facts,
    Op,
    Opaque,
    Operand,
    Rule,
    Shape,
    Site,
    each,
    find_rule,
    fixed,
)
from conet_onnx.rules.unknown import WITHOUT

__all__ = [
    "RULES",
    "WITHOUT",
    "Contraction",
    "Facts",
    "Op",
    "Opaque",
    "Operand",
    "Rule",
    "Shape",
    "Site",
    "each",
    "find_rule",
    "fixed",
]

FAMILIES = (
    attention,
    contract,
    elementwise,
    fused,
    join,
    normalize,
    permute,
    pick,
    quantise,
    recurrent,
    reduce,
    reshape,
    stateful,
    window,
)
