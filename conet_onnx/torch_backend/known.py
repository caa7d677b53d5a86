"""Small integer tensors whose elements are known while lowering, or will be Python numbers at run time.

Shape arithmetic becomes plain Python in the generated code: `x.size(0)`, not tensors of one element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

__all__ = ["Array", "Known", "Scalar", "static"]

Array = np.ndarray[Any, Any]
Scalar = int | float | bool | fx.Node


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Elements (Python numbers, or fx nodes that make them) in the tensor's shape, and the tensor's element type."""

    elements: Array  # of objects
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, array: Array) -> Known:
        """All elements known while lowering."""
        elements = np.empty(array.shape, object)
        if array.size:  # a list of nothing has lost the other sizes
            elements[...] = array.tolist()
        return cls(elements, array.dtype)

    @property
    def array(self) -> Array | None:
        """The value, if every element is known while lowering."""
        return self.elements.astype(self.dtype) if all(map(static, self.elements.flat)) else None

    def map(self, function: Callable[[Array], Array]) -> Known:
        """The same elements, rearranged."""
        return Known(np.asarray(function(self.elements), object), self.dtype)


def static(element: Scalar) -> bool:
    """Whether a number is known while lowering."""
    return not isinstance(element, fx.Node)
