"""Why some broken rules pass every test, by patterns as in a shell: what they change changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["EXPLAINED"]

_BOTH = (
    "both of its sums make the hidden size, one as what comes in and one from step to step: each says it for the other"
)
_VALUES = "the projection of values makes the heads too, and the size of a head is frozen"
_CONSTANT_MAP = (
    "says where to rescale where the map is a weight and the kernel is computed; no kernel for CPUs shows that it is "
    "right, and Conv, which says the same, is held to it"
)
_AXES = "says that axes are accounted for: no size is ever read from them, and where they are computed, Pad is refused"

EXPLAINED: Mapping[str, str] = {
    "GRU@7 contracts [01] makes 0 left out": _BOTH,
    "LSTM@7 contracts [01] makes 0 left out": _BOTH,
    "RNN@7 contracts [01] makes 0 left out": _BOTH,
    "com.microsoft.Attention@0 contracts [01] makes 0 left out": _VALUES,
    "com.microsoft.NhwcConv@0 contracts 0 side 0 *": _CONSTANT_MAP,
    "com.microsoft.NhwcFusedConv@0 contracts 0 side 0 *": _CONSTANT_MAP,
    "Pad@2 sees without 3": _AXES,
}
