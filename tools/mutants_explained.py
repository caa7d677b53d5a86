"""Why some broken rules pass every test, by patterns as in a shell: what they change changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["EXPLAINED"]

_BOTH = "the sum over what comes in makes the hidden size, and so does the sum from step to step"
_VALUES = "the projection of values makes the heads too, and the size of a head is frozen"
_AXES = "says that axes are accounted for: no size is ever read from them, and where they are computed, Pad is refused"
_STEPS = (
    "axes and steps that are computed from static sizes stay what they are, accounted for or not; others are refused"
)

EXPLAINED: Mapping[str, str] = {
    "GRU@7 contracts [01] makes 0 left out": _BOTH,
    "LSTM@7 contracts [01] makes 0 left out": _BOTH,
    "RNN@7 contracts [01] makes 0 left out": _BOTH,
    "com.microsoft.Attention@0 contracts [01] makes 0 left out": _VALUES,
    "Pad@2 sees without 3": _AXES,
    "Slice@1 sees without [34]": _STEPS,
}
