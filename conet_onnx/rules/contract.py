"""Operators that sum products over an axis: convolutions and matrix products."""

from __future__ import annotations

from dataclasses import replace

from conet_onnx.dims import ONE, Axis, Segment, axis, product
from conet_onnx.rules.elementwise import joined
from conet_onnx.rules.registry import Contraction, Facts, Op, Opaque, Operand, Shape, Site, fixed, rule, spatial
from conet_onnx.solving import Reason

__all__ = ["conv", "conv_transpose", "einsum", "gemm", "matmul", "matrix_product"]

LAYER = ((0, 1), (2,))  # the product, and what is added to it
Equal = tuple[tuple[Axis | Segment, Axis | Segment], ...]


def _split(op: Op, channels: int, name: str, groups: int) -> Segment:
    if channels % groups:
        raise Opaque("bad groups", f"{op.node} has {channels} channels in {groups} groups")
    return product(op.fresh(name, (channels // groups,) * 2))


def _static(op: Op, segment: Segment) -> int:
    if segment.size[0] != segment.size[1]:
        raise Opaque("dynamic", f"{op.node} has channels that follow a symbolic size")
    return segment.size[0]


@rule("Conv")
def conv(op: Op, x: Shape, w: Shape, b: Shape | None = None) -> Facts:
    """ONNX Conv: X (N, g·i, ...), W (g·o, i, ...), Y (N, g·o, ...). Depthwise is i = 1."""
    groups = op.attribute("group", 1)
    g = product(op.fresh("g", (groups, groups)))
    i = product(op.fresh("i", w[1].size))
    o = _split(op, _static(op, w[0]), "o", groups)
    places = fixed(op.node.name, op.sizes()[2:])
    return _grouped(op, x, w, b, g, i, o, weight=(product(g, o), i), side=Operand(1, 1, ONE, i), places=places)


@rule("ConvTranspose")
def conv_transpose(op: Op, x: Shape, w: Shape, b: Shape | None = None) -> Facts:
    """ONNX ConvTranspose: X (N, g·i, ...), W (g·i, o, ...), Y (N, g·o, ...)."""
    groups = op.attribute("group", 1)
    g = product(op.fresh("g", (groups, groups)))
    i = _split(op, _static(op, w[0]), "i", groups)
    o = product(op.fresh("o", w[1].size))
    places = fixed(op.node.name, tuple(s.size for s in x[2:]))
    return _grouped(op, x, w, b, g, i, o, weight=(product(g, i), o), side=Operand(1, 0, g, i), places=places)


def _grouped(
    op: Op,
    x: Shape,
    w: Shape,
    b: Shape | None,
    g: Segment,
    i: Segment,
    o: Segment,
    *,
    weight: tuple[Segment, Segment],
    side: Operand,
    places: Shape,
) -> Facts:
    """A convolution of g groups of i input and o output channels; the kernel is applied at so many places."""
    y = (x[0], product(g, o), *fixed(op.node.name, op.sizes()[2:]))
    equal: Equal = ((x[1], product(g, i)), *zip(w[:2], weight, strict=True))
    macs = product(x[0], g, o, *places, i, *w[2:])
    return Facts(
        outputs=(y,),
        equal=equal if b is None else (*equal, (b[0], product(g, o))),
        contracts=(Contraction(operands=(Operand(0, 1, g, i), side), produces=(o,), macs=macs),),
        sites=(Site("attribute:group", 0, axis(g), g.size[0]),) if g.factors else (),
        frozen=spatial(op, x[2:]) + spatial(op, w[2:]),
        terms=LAYER,
    )


@rule("Gemm")
def gemm(op: Op, a: Shape, b: Shape, c: Shape | None = None) -> Facts:
    """ONNX Gemm: Y = alpha·A'·B' + beta·C, A' (M, K), B' (K, N), C broadcast to (M, N)."""
    if op.node.since < 7 and c is not None and not op.attribute("broadcast", 0) and len(c) != 2:
        raise Opaque("old broadcast", f"{op.node} has an unusual C (opset below 7)")
    return replace(matrix_product(op, a, b, c), terms=LAYER)


def matrix_product(op: Op, a: Shape, b: Shape, c: Shape | None) -> Facts:
    """Two matrices, each of them transposed where an attribute says so, and what is added to the product."""
    ka, kb = (0 if op.attribute("transA", 0) else 1), (1 if op.attribute("transB", 0) else 0)
    y = (a[1 - ka], b[1 - kb])
    _, bias = joined((y, c)) if c is not None else ((), ())
    contraction = Contraction(
        operands=(Operand(0, ka, ONE, a[ka]), Operand(1, kb, ONE, b[kb])),
        produces=y,
        macs=product(*y, a[ka]),
    )
    return Facts(outputs=(y,), equal=((a[ka], b[kb]), *bias), contracts=(contraction,))


@rule("MatMul")
def matmul(op: Op, a: Shape, b: Shape) -> Facts:
    """ONNX MatMul (numpy.matmul): A (..., M, K), B (..., K, N); outer axes broadcast; a vector loses its axis."""
    ka, kb = len(a) - 1, max(len(b) - 2, 0)
    outer, equal = joined((a[:-2], b[:-2]))
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    contraction = Contraction(
        operands=(Operand(0, ka, ONE, a[ka]), Operand(1, kb, ONE, b[kb])),
        produces=(*rows, *columns),
        macs=product(*outer, *rows, *columns, a[ka]),
    )
    y = (*outer, *rows, *columns)
    return Facts(outputs=(y,), equal=((a[ka], b[kb]), *equal), contracts=(contraction,), terms=((0, 1),))


@rule("Einsum")
def einsum(op: Op, *operands: Shape) -> Facts:
    """ONNX Einsum of two operands: equal letters are equal axes; one that the output lacks is summed over."""
    inputs, arrow, output = str(op.attribute("equation", "")).replace(" ", "").partition("->")
    terms = inputs.split(",")
    plain = arrow and "." not in inputs and all(len(set(term)) == len(term) for term in (*terms, output))
    if not plain or len(terms) != 2 or [len(t) for t in terms] != [len(s) for s in operands]:
        raise Opaque("equation", f"{op.node} is more than a product of two tensors with a letter for each axis")
    axes: dict[str, Segment] = {}
    equal: list[tuple[Axis | Segment, Axis | Segment]] = []
    for term, shape in zip(terms, operands, strict=True):
        for letter, segment in zip(term, shape, strict=True):
            equal.append((axes.setdefault(letter, segment), segment))
    summed = [letter for letter in axes if letter not in output]
    contracted = next((letter for letter in summed if all(letter in term for term in terms)), "")
    reason = Reason("sum", op.node.name, f"{op.node} sums over it: there is no weight to rescale")
    contractions: tuple[Contraction, ...] = ()
    if contracted:
        sides = [Operand(k, t.index(contracted), ONE, operands[k][t.index(contracted)]) for k, t in enumerate(terms)]
        produces = tuple(axes[letter] for letter in output if sum(letter in term for term in terms) == 1)
        contractions = (Contraction(operands=tuple(sides), produces=produces, macs=product(*axes.values())),)
    return Facts(
        outputs=(tuple(axes[letter] for letter in output),),
        equal=tuple(equal),
        contracts=contractions,
        frozen=tuple((axes[letter], reason) for letter in summed if letter != contracted),
        terms=((0, 1),),
    )
