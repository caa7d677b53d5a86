"""Blocks of known networks over maps [N, C, H, W]: normalisations, channels last, dense blocks, pixel shuffles."""

from __future__ import annotations

import numpy as np

from strategies.images import Network, Step

__all__ = ["STEPS", "calm", "normalised"]


def calm(net: Network, x: str, axes: list[int], *, centred: bool = True) -> str:
    """x over its root mean square along some axes, less its mean there if centred, in elementary operators."""
    b, chance = net.b, net.chance
    shape = b.shapes[x]
    if centred:
        x = b.node("Sub", [x, b.mean(x, axes)], shape)
    if chance.random() < 0.5:
        square = b.node("Mul", [x, x], shape)
    else:
        square = b.node("Pow", [x, b.weight(np.array(2, np.float32))], shape)
    variance = b.mean(square, axes)
    small = b.shapes[variance]
    root = b.node("Sqrt", [b.node("Add", [variance, b.weight(np.array(0.1, np.float32))], small)], small)
    if chance.random() < 0.5:
        return b.node("Div", [x, root], shape)
    return b.node("Mul", [x, b.node("Reciprocal", [root], small)], shape)


def normalised(net: Network, x: str) -> str:
    """LayerNorm or RMSNorm over the last axis: as one operator where there is one, or in elementary ones."""
    b, chance = net.b, net.chance
    shape = b.shapes[x]
    c = shape[-1]
    if b.opset >= 17 and chance.random() < 0.5:
        inputs = [x, net.vector(c), *([net.vector(c)] if chance.random() < 0.7 else [])]
        return b.node("LayerNormalization", inputs, shape, axis=chance.choice((-1, len(shape) - 1)), epsilon=0.1)
    centred = chance.random() < 0.5
    y = b.node("Mul", [calm(net, x, [len(shape) - 1], centred=centred), net.vector(c)], shape)
    return b.node("Add", [y, net.vector(c)], shape) if centred else y


def group_norm(net: Network, x: str) -> str:
    """As one operator, as exporters write it (around InstanceNormalization), or in elementary operators."""
    b, chance = net.b, net.chance
    n, c, h, w = b.shapes[x]
    groups = chance.choice(net.divisors(c))
    if b.opset >= 21 and chance.random() < 0.6:
        inputs = [x, net.vector(c), net.vector(c)]
        return b.node("GroupNormalization", inputs, (n, c, h, w), num_groups=groups, epsilon=0.1)
    if chance.random() < 0.6:
        apart = b.view(x, (n, groups, c // groups * h * w), {0: 0})
        ones, zeros = b.weight(np.ones(groups, np.float32)), b.weight(np.zeros(groups, np.float32))
        y = b.node("InstanceNormalization", [apart, ones, zeros], b.shapes[apart], epsilon=0.1)
    else:
        flat = chance.random() < 0.5
        y = b.view(x, (n, groups, c // groups * h * w) if flat else (n, groups, c // groups, h, w), {0: 0})
        y = calm(net, y, [2] if flat else [2, 3, 4])
    y = b.node("Mul", [b.view(y, (n, c, h, w), {0: 0}), b.unsqueeze(net.vector(c), [1, 2])], (n, c, h, w))
    return b.node("Add", [y, b.weight(b.floats(c, 1, 1, scale=0.3))], (n, c, h, w))


def channels_last(net: Network, x: str) -> str:
    """As converters from TensorFlow write it: Transposes on either side of each convolution, and of its kernel."""
    b, chance = net.b, net.chance
    y = b.transpose(x, (0, 2, 3, 1))
    for _ in range(chance.randrange(1, 3)):
        n, h, w, c = b.shapes[y]
        way = chance.randrange(4)
        if way < 2:
            depthwise, kernel = way == 1, chance.choice((1, 3))
            o = c if depthwise else chance.randrange(2, 7)
            stored = b.floats(kernel, kernel, c, 1 if depthwise else o, scale=1 / kernel)
            order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
            turned = b.transpose(b.weight(stored), order)
            first = b.conv(
                b.transpose(y, (0, 3, 1, 2)), o, kernel=kernel, group=c if depthwise else 1, bias=False, weight=turned
            )
            y = b.node("Add", [b.transpose(first, (0, 2, 3, 1)), net.vector(o)], (n, h, w, o))
        elif way == 2:
            y = normalised(net, y)
        else:
            pooled = b.mean(y, [1, 2], keep=False)
            gate = b.node("Sigmoid", [net.dense(pooled, c)], (n, c))
            y = b.node("Mul", [y, b.view(gate, (n, 1, 1, c), {0: 0})], (n, h, w, c))
        y = b.node("Relu", [y], b.shapes[y]) if chance.random() < 0.5 else y
    return b.transpose(y, (0, 3, 1, 2))


def dense_block(net: Network, x: str) -> str:
    """Each layer reads all before it: side by side at once, or one more at a time."""
    b, chance = net.b, net.chance
    n, c, h, w = b.shapes[x]
    parts, whole, growth = [x], x, chance.randrange(1, 4)
    for _ in range(chance.randrange(2, 5)):
        y = net.norm(whole) if chance.random() < 0.5 else whole
        y = b.conv(b.node("Relu", [y], b.shapes[y]), growth, kernel=chance.choice((1, 3)))
        parts.append(y)
        c += growth
        latest = parts if chance.random() < 0.5 else [whole, y]
        whole = b.node("Concat", latest, (n, c, h, w), axis=1)
    return net.convolve(whole) if c > 10 or chance.random() < 0.5 else whole


def padded_shortcut(net: Network, x: str) -> str:
    """ResNet's shortcut without weights: every second place, and zeros for the channels that are new."""
    b, chance = net.b, net.chance
    n, c, h, w = b.shapes[x]
    low, high = chance.choice(((0, c), (c // 2, c - c // 2), (1, 1)))
    short = x
    if min(h, w) > 2 and chance.random() < 0.5:
        steps = [b.integers(v) for v in ([0, 0], [h, w], [2, 3], [2, 2])]
        h, w = (h + 1) // 2, (w + 1) // 2
        short = b.node("Slice", [x, *steps], (n, c, h, w))
    short = b.pad(short, 1, low, high)
    stride = {"strides": [2, 2]} if b.shapes[x][2] != h else {}
    weight = b.weight(b.floats(low + c + high, c, 3, 3, scale=0.3))
    made = b.node("Conv", [x, weight], (n, low + c + high, h, w), pads=[1] * 4, **stride)
    return b.node("Relu", [b.node("Add", [made, short], b.shapes[made])], b.shapes[made])


def pixel_shuffle(net: Network, x: str) -> str | None:
    """Channels become places: DepthToSpace in both orders, or as a Reshape between two; or places become channels."""
    b, chance = net.b, net.chance
    n, c, h, w = b.shapes[x]
    if h % 2 == w % 2 == 0 and c <= 6 and chance.random() < 0.5:
        return b.node("SpaceToDepth", [x], (n, 4 * c, h // 2, w // 2), blocksize=2)
    if h * w > 16:
        return None
    o = chance.randrange(1, 4)
    wide = b.conv(x, 4 * o)
    if chance.random() < 0.6:
        return b.node("DepthToSpace", [wide], (n, o, 2 * h, 2 * w), blocksize=2, mode=chance.choice(("DCR", "CRD")))
    apart = b.transpose(b.view(wide, (n, o, 2, 2, h, w), {0: 0}), (0, 1, 4, 2, 5, 3))
    return b.view(apart, (n, o, 2 * h, 2 * w), {0: 0})


def siamese(net: Network, x: str) -> str:
    """One weight read by two layers, whose results meet."""
    b, chance = net.b, net.chance
    n, c, h, w = b.shapes[x]
    near = net.like(x, channels=True)
    other = chance.choice(near) if near and chance.random() < 0.7 else b.node("Tanh", [x], b.shapes[x])
    o = chance.randrange(2, 7)
    weight = b.disguised(b.floats(o, c, 1, 1, scale=1 / np.sqrt(c)))
    both = [b.conv(y, o, bias=net.vector(o) if chance.random() < 0.5 else False, weight=weight) for y in (x, other)]
    if chance.random() < 0.3:
        return b.node("Concat", both, (n, 2 * o, h, w), axis=1)
    return b.node(chance.choice(("Sub", "Add", "Mul")), both, (n, o, h, w))


STEPS: list[tuple[Step, float]] = [
    (group_norm, 3),
    (channels_last, 3),
    (dense_block, 2.5),
    (padded_shortcut, 2.5),
    (pixel_shuffle, 3),
    (siamese, 2),
]
