"""How much of a model's cost each width answers for, and the rates that drop as much of the cost at each.

Network Adjustment (Chen et al., 2020, arXiv:2004.02767). F(c) is the cost as a function of the widths; a width c_i
answers for F_i = c_i · g_i, g_i = dF/dc_i, which counts its own layer and those that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conet_onnx.costs import Costs, Price
from conet_onnx.errors import UsageError

__all__ = ["LARGEST", "answered_for", "rates_of"]

Cost = Callable[[NDArray[np.int64]], NDArray[Any]]  # [trials, widths in the order of Costs.row] -> [trials]

LARGEST = 0.95  # the largest rate: at 1 nothing is left, and what is left is multiplied by 1/(1-p)


def answered_for(
    costs: Costs, widths: Mapping[str, int], *, cost: Cost | None = None, steps: Mapping[str, int] | None = None
) -> dict[str, float]:
    """F_i = c_i · dF/dc_i of each of some widths, where they have these sizes and all others their own.

    F is the MACs at batch one, or a `cost` of your own (measured latency, say). The derivative is the central
    difference of one channel more and one less, (F(c_i + 1) - F(c_i - 1)) / 2: of MACs, which hold no width more than
    twice in a product, that is exact. Of a width of 1 a row with 0 channels is priced. A cost that rises in `steps` of
    some channels is looked at one step above and one below, or above alone where there is none below. Raises UsageError
    for an unknown id and for a size below 1.
    """
    for name, size in widths.items():
        if size < 1:
            raise UsageError(f"width {name!r} has {size} channels: expected at least one.")
    row = costs.row(widths)
    own = {name: (steps or {}).get(name, 1) for name in widths}
    up = np.array(
        [costs.row({**widths, name: size + own[name]}) - row for name, size in widths.items()], dtype=np.int64
    )
    if not len(up):
        return {}
    down = np.array([own[name] == 1 or size > own[name] for name, size in widths.items()])
    price = cost or (lambda rows: costs.price_many(rows)[:, Price._fields.index("macs")])
    rows = np.concatenate([row + up, row - up * down[:, None]])
    priced = np.asarray(price(rows), dtype=np.float64)
    slopes = (priced[: len(up)] - priced[len(up) :]) / ((1 + down) * np.array([*own.values()]))
    return {name: float(size * slope) for (name, size), slope in zip(widths.items(), slopes, strict=True)}


def rates_of(
    costs: Costs,
    widths: Mapping[str, int],
    p0: float,
    *,
    cost: Cost | None = None,
    steps: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """The rate p_i = p0 · mean(F) / F_i at which each of some widths is dropped, so that all lose as much of the cost.

    F_i is what `answered_for` says; the mean is that over these widths. Rates are at most LARGEST, which is also that
    of a width that costs nothing. p0: 0.05 on CIFAR, 0.2 on ImageNet in the paper. Raises UsageError for a p0 that is
    not between 0 and 1, and as `answered_for` does.
    """
    if not 0 <= p0 < 1:
        raise UsageError(f"p0 = {p0}: a rate of dropping lies between 0 and 1.")
    parts = answered_for(costs, widths, cost=cost, steps=steps)
    mean = sum(parts.values()) / max(len(parts), 1)
    return {n: min(p0 * mean / part, LARGEST) if part > 0 else LARGEST * (p0 > 0) for n, part in parts.items()}
