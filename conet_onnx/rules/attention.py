"""Attention as one operator, ONNX's and onnxruntime's, and what comes with it.

Heads are outermost in a hidden axis: it is h·d, and h is a width. Queries and keys are multiplied over d, between two
activations, and the scores are scaled by 1/sqrt(d): d keeps its size. The values' d_v is a size of its own. Where
several queries share a key, the queries' heads are kv·g: head q reads the keys of head q // g.
"""

from __future__ import annotations

from dataclasses import dataclass

from conet_onnx.contrib import DOMAIN
from conet_onnx.dims import ONE, Axis, Segment, axis, product, total
from conet_onnx.rules.registry import Contraction, Facts, Op, Opaque, Operand, Shape, Site, fixed, rule
from conet_onnx.solving import Reason

__all__ = ["attention", "group_query_attention", "multi_head_attention", "packed_attention", "rotary_embedding"]

Equal = tuple[Axis | Segment, Axis | Segment]
Kept = tuple[Segment, Reason]


@dataclass(frozen=True, slots=True)
class Heads:
    """The sizes inside of an attention: kv heads of keys and values, each for g of queries, of sizes d and d_v."""

    kv: Segment
    g: Segment
    d: Segment
    d_v: Segment

    @property
    def queries(self) -> Segment:
        """How many heads of queries there are."""
        return product(self.kv, self.g)


def _heads(op: Op, queries: int, shared: int, d: int, d_v: int, *, tied: bool = False) -> Heads:
    """Fresh sizes; with `tied`, heads of values are as large as those of keys for good."""
    if min(queries, shared, d, d_v) < 1 or queries % shared:
        raise Opaque("bad heads", f"{op.node} has {queries} heads of queries for {shared} of keys")
    kv, g = (product(op.fresh(name, (n, n))) for name, n in (("h", shared), ("g", queries // shared)))
    d_k = product(op.fresh("d", (d, d)))
    return Heads(kv, g, d_k, d_k if tied else product(op.fresh("d_v", (d_v, d_v))))


def _count(op: Op, name: str) -> int:
    """An attribute that must be there and positive."""
    value = op.attribute(name, 0)
    if not isinstance(value, int) or value < 1:
        raise Opaque("bad heads", f"{op.node} lacks a positive {name}")
    return value


def _static(op: Op, segment: Segment) -> int:
    if segment.size[0] != segment.size[1]:
        raise Opaque("dynamic", f"{op.node} has heads that follow a symbolic size")
    return segment.size[0]


def _part(op: Op, hidden: Segment, heads: int) -> int:
    """The size of a head."""
    size = _static(op, hidden)
    if size % heads:
        raise Opaque("bad heads", f"{op.node} has {heads} heads in a hidden size of {size}")
    return size // heads


def _site(name: str, size: Segment) -> tuple[Site, ...]:
    return (Site(f"attribute:{name}", 0, axis(size), size.size[0]),) if size.factors else ()


def _kept(op: Op, heads: Heads, *positions: Segment) -> tuple[Kept, ...]:
    """What an attention never changes: the size of a head, and the positions that it weighs."""
    detail = f"{op.node} sums over the size of a head between two activations: there is no weight to rescale"
    along = Reason("positions", op.node.name, f"{op.node} weighs the positions along it against each other")
    return ((heads.d, Reason("activations", op.node.name, detail)), *((p, along) for p in positions))


def _products(batch: Segment, heads: Heads, queries: Segment, keys: Segment) -> tuple[Contraction, ...]:
    """Queries by keys, and weights by values: sums over a head's size and over positions, and neither changes."""
    return tuple(
        Contraction(operands=(), produces=(), macs=product(batch, heads.queries, queries, keys, size))
        for size in (heads.d, heads.d_v)
    )


def _longer(op: Op, past: Shape | None, place: int, keys: Segment) -> Segment:
    """The positions of the keys, behind those of the past: they keep their number, or follow a symbolic size."""
    if past is None:
        return keys
    (a, b), (m, n) = past[place].size, keys.size
    return fixed(f"{op.node.name}.all", ((a + m, b + n),))[0]


def _bias(op: Op, bias: Shape, batch: Segment, heads: Segment) -> tuple[list[Equal], tuple[Kept, ...]]:
    """What is added to the scores, or hides some: broadcast to (N, h, S, T); its positions stay as they are."""
    reason = Reason("positions", op.node.name, f"{op.node} adds it to scores by position")
    places = dict(zip(range(-len(bias), 0), bias, strict=True))
    meet = ((places.get(-4), batch), (places.get(-3), heads))
    equal: list[Equal] = [(own, other) for own, other in meet if own is not None and own.size != (1, 1)]
    return equal, tuple((places[k], reason) for k in (-2, -1) if k in places)


def _masked(op: Op, mask: Shape | None, *batch: Segment) -> tuple[Kept, ...]:
    """What says which positions count: nothing in it changes, nor does the batch that it may be of."""
    reason = Reason("positions", op.node.name, f"{op.node} hides positions by it")
    return () if mask is None else tuple((segment, reason) for segment in (*mask, *batch))


@rule("Attention", since=23)
def attention(
    op: Op,
    q: Shape,
    k: Shape,
    v: Shape,
    mask: Shape | None = None,
    past_k: Shape | None = None,
    past_v: Shape | None = None,
    lengths: Shape | None = None,
) -> Facts:
    """ONNX Attention: Q (N, S, h·d) or (N, h, S, d), K (N, T, kv·d) or (N, kv, T, d), V alike with d_v."""
    flat = len(q) == 3
    if {len(q), len(k), len(v)} != {3 if flat else 4}:
        raise Opaque("rank", f"{op.node} reads queries, keys and values of different ranks")
    n_q, n_kv = (
        (_count(op, "q_num_heads"), _count(op, "kv_num_heads")) if flat else (_static(op, q[1]), _static(op, k[1]))
    )
    size, value = (_part(op, q[2], n_q), _part(op, v[2], n_kv)) if flat else (_static(op, q[3]), _static(op, v[3]))
    heads = _heads(op, n_q, n_kv, size, value)
    batch, s, t = q[0], q[-2], k[-2]
    equal: list[Equal] = [(batch, k[0]), (batch, v[0]), (t, v[-2])]
    if flat:
        equal += [(q[2], product(heads.queries, heads.d))]
        equal += [(k[2], product(heads.kv, heads.d)), (v[2], product(heads.kv, heads.d_v))]
    else:
        equal += [(q[1], heads.queries), (q[3], heads.d), (k[1], heads.kv), (k[3], heads.d)]
        equal += [(v[1], heads.kv), (v[3], heads.d_v)]
    every = _longer(op, past_k, 2, t)
    caches = _caches(op, heads, batch, past_k, past_v, equal)
    added, kept = ([], ()) if mask is None else _bias(op, mask, batch, heads.queries)
    y = (batch, s, product(heads.queries, heads.d_v)) if flat else (batch, heads.queries, s, heads.d_v)
    present = tuple((batch, heads.kv, every, d) for d in (heads.d, heads.d_v))
    return Facts(
        outputs=(y, *present, (batch, heads.queries, s, every))[: len(op.node.outputs)],
        equal=(*equal, *added),
        contracts=_products(batch, heads, s, every),
        sites=(*_site("q_num_heads", heads.queries), *_site("kv_num_heads", heads.kv)) if flat else (),
        frozen=(*_kept(op, heads, s, t, every), *kept, *caches, *_masked(op, lengths, batch)),
    )


def _caches(
    op: Op, heads: Heads, batch: Segment, past_k: Shape | None, past_v: Shape | None, equal: list[Equal]
) -> tuple[Kept, ...]:
    """Keys and values of the past, each (N, kv, P, d): adds to the equations, and returns what must not change."""
    if (past_k is None) != (past_v is None):
        raise Opaque("cache", f"{op.node} has past keys without values, or the other way round")
    for past, d in ((past_k, heads.d), (past_v, heads.d_v)):
        if past is not None:
            equal += [(past[0], batch), (past[1], heads.kv), (past[3], d)]
    reason = Reason("positions", op.node.name, f"{op.node} adds positions behind it")
    return tuple((past[2], reason) for past in (past_k, past_v) if past is not None)


@rule("MultiHeadAttention", domain=DOMAIN)
def multi_head_attention(
    op: Op,
    q: Shape,
    k: Shape | None = None,
    v: Shape | None = None,
    bias: Shape | None = None,
    padding: Shape | None = None,
    added: Shape | None = None,
    past_k: Shape | None = None,
    past_v: Shape | None = None,
    *shared: Shape | None,
) -> Facts:
    """com.microsoft MultiHeadAttention: query (N, S, h·d), key (N, T, h·d) or (N, h, T, d), value alike with d_v.

    The bias is that of the three projections, one behind the other.
    """
    if k is None or v is None or len(q) != 3 or len(k) not in (3, 4) or len(k) != len(v):
        raise Opaque("packed", f"{op.node} reads queries, keys and values packed into one tensor")
    if any(s is not None for s in shared):
        raise Opaque("cache", f"{op.node} keeps past and present keys in one buffer")
    n = _count(op, "num_heads")
    value = _part(op, v[2], n) if len(v) == 3 else _static(op, v[3])
    size, tied = _part(op, q[2], n), past_k is not None or len(k) == 4  # the kernel's own condition
    if tied and size != value:
        raise Opaque("cache", f"{op.node} has keys and values of different sizes, and a cache of them")
    heads = _heads(op, n, n, size, value, tied=tied)
    batch, s, t = q[0], q[1], k[-2] if len(k) == 4 else k[1]
    keys, values = product(heads.kv, heads.d), product(heads.kv, heads.d_v)
    equal: list[Equal] = [(batch, k[0]), (batch, v[0]), (t, v[-2]), (q[2], keys)]
    if len(k) == 3:
        equal += [(k[2], keys), (v[2], values)]
    else:
        equal += [(k[1], heads.kv), (k[3], heads.d), (v[1], heads.kv), (v[3], heads.d_v)]
    equal += [] if bias is None else [(bias[0], total((keys, keys, values)))]
    caches = _caches(op, heads, batch, past_k, past_v, equal)
    every = _longer(op, past_k, 2, t)
    more, kept = ([], ()) if added is None else _bias(op, added, batch, heads.kv)
    present = tuple((batch, heads.kv, every, d) for d in (heads.d, heads.d_v))
    return Facts(
        outputs=((batch, s, values), *present, (batch, heads.kv, s, every))[: len(op.node.outputs)],
        equal=(*equal, *more),
        contracts=_products(batch, heads, s, every),
        sites=_site("num_heads", heads.kv),
        frozen=(*_kept(op, heads, s, t, every), *kept, *caches, *_masked(op, padding, batch)),
    )


@rule("Attention", domain=DOMAIN)
def packed_attention(
    op: Op,
    x: Shape,
    w: Shape,
    b: Shape | None = None,
    mask: Shape | None = None,
    past: Shape | None = None,
    added: Shape | None = None,
    shared: Shape | None = None,
) -> Facts:
    """com.microsoft Attention: x (N, S, c) by weights (c, h·d + h·d + h·d_v); past (2, N, h, P, d).

    Without qkv_hidden_sizes the three are equally long; they are given once they differ.
    """
    if op.attribute("do_rotary", 0) or op.attribute("past_present_share_buffer", 0) or shared is not None:
        raise Opaque("cache", f"{op.node} turns its queries or keeps past and present keys in one buffer")
    n, said = _count(op, "num_heads"), op.attribute("qkv_hidden_sizes")
    q, k, v = said or (_part(op, w[1], 3),) * 3
    if q != k or q % n or v % n or q + k + v != w[1].size[0]:
        raise Opaque("bad heads", f"{op.node} has projections of {q}, {k} and {v} for {n} heads")
    cached = past is not None or len([name for name in op.node.outputs if name]) > 1
    if cached and q != v:
        raise Opaque("cache", f"{op.node} has a cache of keys and values of different sizes")
    heads = _heads(op, n, n, q // n, v // n, tied=cached)
    keys, values = product(heads.kv, heads.d), product(heads.kv, heads.d_v)
    both = total((keys, keys, values))
    equal: list[Equal] = [(x[2], w[0]), (w[1], both), *([] if b is None else [(b[0], both)])]
    every = _longer(op, past, 3, x[1])
    if past is not None:
        equal += [(past[0], product(2)), (past[1], x[0]), (past[2], heads.kv), (past[4], heads.d)]
    more, kept = ([], ()) if added is None else _bias(op, added, x[0], heads.kv)
    projections = tuple(
        Contraction(
            operands=(Operand(0, 2, ONE, x[2]), Operand(1, 0, ONE, w[0])),
            produces=(made,),
            macs=product(x[0], x[1], x[2], made),
        )
        for made in (keys, keys, values)
    )
    lengths = ((keys, q), (keys, k), (values, v)) if said is not None or not cached else ()
    sizes = tuple(Site("attribute:qkv_hidden_sizes", n, axis(size), now) for n, (size, now) in enumerate(lengths))
    present = (product(2), x[0], heads.kv, every, heads.d)
    behind = () if past is None else _masked(op, past[3:4])
    return Facts(
        outputs=((x[0], x[1], values), present)[: len(op.node.outputs)],
        equal=(*equal, *more),
        contracts=(*projections, *_products(x[0], heads, x[1], every)),
        sites=(*_site("num_heads", heads.kv), *sizes),
        frozen=(*_kept(op, heads, x[1], every), *kept, *behind, *_masked(op, mask, x[0])),
    )


@rule("GroupQueryAttention", domain=DOMAIN)
def group_query_attention(
    op: Op,
    q: Shape,
    k: Shape | None = None,
    v: Shape | None = None,
    past_k: Shape | None = None,
    past_v: Shape | None = None,
    *others: Shape | None,
) -> Facts:
    """com.microsoft GroupQueryAttention: query (N, S, kv·g·d), key and value (N, T, kv·d), or all behind each other.

    Others: lengths, cosines and sines by position, positions, what is added to scores or to each head's sum of
    weights, scales of a quantised cache, and scales of each head's queries and keys. How long the caches become is in
    the data.
    """
    lengths, whole, cosines, sines, places, added, sink, k_scale, v_scale, q_norm, k_norm = (*others, *[None] * 11)[:11]
    if (k is None) != (v is None) or k_scale is not None or v_scale is not None:
        raise Opaque("cache", f"{op.node} keeps its past quantised, or packs its keys alone")
    n_q, n_kv = _count(op, "num_heads"), _count(op, "kv_num_heads")
    size = _part(op, q[2], n_q + 2 * n_kv) if k is None else _part(op, k[2], n_kv)
    heads = _heads(op, n_q, n_kv, size, size, tied=True)
    queries, keys = product(heads.queries, heads.d), product(heads.kv, heads.d)
    batch, s, t = q[0], q[1], q[1] if k is None else k[1]
    equal: list[Equal] = []
    if k is None or v is None:
        equal += [(q[2], total((queries, keys, keys)))]
    else:
        equal += [(batch, k[0]), (batch, v[0]), (t, v[1]), (q[2], queries), (k[2], keys), (v[2], keys)]
    equal += [(norm[0], heads.d) for norm in (q_norm, k_norm) if norm is not None]
    equal += [] if sink is None else [(sink[0], heads.queries)]
    caches = _caches(op, heads, batch, past_k, past_v, equal)
    more, kept = ([], ()) if added is None else _bias(op, added, batch, heads.queries)
    leaving = Reason("cache", op.node.name, f"{op.node} gives its keys and values away, for as long as the data says")
    given = tuple(bool(name) for name in (*op.node.outputs, "", "", ""))[1:4]
    every = _longer(op, past_k, 2, t)
    return Facts(
        outputs=((batch, s, queries),),
        equal=(*equal, *more),
        contracts=_products(batch, heads, s, every),
        sites=(*_site("num_heads", heads.queries), *_site("kv_num_heads", heads.kv)),
        frozen=(
            *_kept(op, heads, s, t, every),
            *kept,
            *caches,
            *(m for mask in (lengths, places) for m in _masked(op, mask, batch)),
            *(m for mask in (whole, cosines, sines) for m in _masked(op, mask)),
            *(((heads.kv, leaving),) if any(given) else ()),
            *(((heads.g, leaving),) if given[2] else ()),
        ),
    )


@rule("RotaryEmbedding", since=23)
def rotary_embedding(op: Op, x: Shape, cosines: Shape, sines: Shape, places: Shape | None = None) -> Facts:
    """ONNX RotaryEmbedding: X (N, S, h·d) or (N, h, S, d); the numbers of a head are turned in pairs, by position."""
    heads = _static(op, x[1]) if len(x) == 4 else _count(op, "num_heads")
    return _rotated(op, x, heads, (cosines, sines, places or ()))


@rule("RotaryEmbedding", domain=DOMAIN)
def rotary_embedding_by_place(op: Op, x: Shape, places: Shape, cosines: Shape, sines: Shape) -> Facts:
    """com.microsoft RotaryEmbedding: as ONNX's; the tables say how large a head is, unless they are for a part."""
    if len(x) == 4:
        heads = _static(op, x[1])
    elif op.attribute("rotary_embedding_dim", 0):
        heads = _count(op, "num_heads")
    else:
        size = 2 * _static(op, cosines[1])
        heads = _static(op, x[2]) // size if size and _static(op, x[2]) % size == 0 else 0
    return _rotated(op, x, heads, (cosines, sines, places))


def _rotated(op: Op, x: Shape, heads: int, tables: tuple[Shape, ...]) -> Facts:
    said = op.attribute("num_heads", 0)
    if heads < 1 or said not in (0, heads):
        raise Opaque("bad heads", f"{op.node} says that it has {said} heads, and its inputs say otherwise")
    h = product(op.fresh("h", (heads, heads)))
    flat = len(x) == 3
    size = _part(op, x[2], heads) if flat else _static(op, x[3])
    d = product(op.fresh("d", (size, size)))
    pairs = Reason("pairs", op.node.name, f"{op.node} turns the numbers of a head in pairs")
    along = Reason("positions", op.node.name, f"{op.node} turns by position")
    each = x[:1] if len(tables[2]) > 1 or len(tables[0]) > 2 else ()  # every sample has positions or tables of its own
    return Facts(
        outputs=(x,),
        equal=((x[2], product(h, d)),) if flat else ((x[1], h), (x[3], d)),
        sites=_site("num_heads", h) if said else (),
        frozen=((d, pairs), (x[1] if flat else x[2], along), *((s, along) for table in (*tables, each) for s in table)),
    )
