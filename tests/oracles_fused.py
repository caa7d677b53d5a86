"""What the oracles know of fused operators and of attention: what they sum over, and how much they multiply."""

from __future__ import annotations

from math import prod

from conet_onnx.graph import Graph, Node

__all__ = ["fused_macs", "fused_sums"]

OWN = "com.microsoft."


def fused_sums(node: Node) -> tuple[tuple[int, int], ...]:
    """The inputs that a fused operator contracts with a weight of its own, and along which axis."""
    match node.operator.removeprefix(OWN) if node.domain else "":
        case "FusedConv":
            return ((0, 1),)
        case "NhwcConv" | "NhwcFusedConv" | "Attention":
            return ((0, -1),)
        case "FusedGemm":
            return ((0, 0 if node.attributes.get("transA") else 1),)
        case "FusedMatMul" | "TransposeMatMul":
            return ((0, -2 if node.attributes.get("transA") else -1),)
    return ()


def fused_macs(graph: Graph, node: Node) -> int | None:
    """Multiply-accumulates of a whole batch; None for an operator that is not one of these."""

    def sizes(name: str) -> list[int]:
        return [a for a, _ in graph.sizes(name) or ()]

    shapes = [sizes(name) if name else None for name in node.inputs] + [None] * 8
    x, w, v, *_ = shapes
    y = sizes(node.outputs[0])
    attributes = node.attributes
    op = node.operator.removeprefix(OWN)
    if node.domain and op in ("FusedConv", "NhwcConv", "NhwcFusedConv"):
        return prod(w) * prod(y) // w[0]
    if node.domain and op in ("FusedGemm", "FusedMatMul", "TransposeMatMul"):
        return prod(y) * x[fused_sums(node)[0][1]]
    if op == "CausalConvWithState":
        return prod(x) * w[2]
    if op == "LinearAttention":
        n, t, _ = x
        steps = 3 if "delta" in attributes.get("update_rule", "gated_delta") else 2
        heads = attributes["kv_num_heads"]
        return steps * n * t * heads * (w[2] // heads) * (v[2] // heads)
    if node.operator == OWN + "Attention":
        n, s, _ = x
        past = shapes[4][3] if shapes[4] else 0
        _, k, v_ = attributes.get("qkv_hidden_sizes", [w[1] // 3] * 3)
        return n * s * prod(w) + n * s * (s + past) * (k + v_)
    if op in ("Attention", "MultiHeadAttention"):
        heads = attributes.get("q_num_heads", attributes.get("num_heads", x[1]))
        past = shapes[6 if node.domain else 4]
        length = w[-2] + (past[2] if past else 0)
        q_size, v_size = (x[2] // heads if len(x) == 3 else x[3]), y[-1] // (heads if len(y) == 3 else 1)
        return x[0] * heads * x[-2] * length * (q_size + v_size)
    if op == "GroupQueryAttention":
        n, s, _ = x
        length = s + (shapes[3][2] if shapes[3] else 0)
        return 2 * n * s * length * y[2]
    return None
