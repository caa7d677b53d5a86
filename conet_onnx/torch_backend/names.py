"""Name weights in Python as they are named in ONNX, and back."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn

__all__ = ["Names", "identifier"]

# What a module already has: a weight called "forward" must not replace it.
_TAKEN = (
    frozenset(dir(fx.GraphModule))
    | frozenset(vars(nn.Module()))
    | {"shape_env", "initializer_names", "untrained_outputs", "untrained_weights"}
)


@dataclass(frozen=True, slots=True)
class Names:
    """A one-to-one mapping from initializer names to attribute names, in the order of the initializers."""

    attributes: Mapping[str, str]  # initializer -> attribute

    @classmethod
    def of(cls, initializers: Iterable[str]) -> Names:
        """Readable attribute names: `layer1.0.conv1.weight` becomes `layer1_0_conv1_weight`; a clash gets a number."""
        found: dict[str, str] = {}
        used = set(_TAKEN)
        for name in dict.fromkeys(initializers):
            base = identifier(name)
            attribute, count = base, 0
            while attribute in used:
                count += 1
                attribute = f"{base}_{count}"
            used.add(attribute)
            found[name] = attribute
        return cls(found)

    @property
    def initializers(self) -> dict[str, str]:
        """The way back: attribute -> initializer."""
        return {attribute: name for name, attribute in self.attributes.items()}

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Pairs (initializer, attribute)."""
        return iter(self.attributes.items())

    def __len__(self) -> int:
        return len(self.attributes)


def identifier(name: str) -> str:
    """The nearest Python identifier that can be a parameter's name: "a.b/c:0" is a_b_c_0, "1" is w_1."""
    plain = re.sub(r"[^0-9A-Za-z_]+", "_", name).strip("_")
    taken = keyword.iskeyword(plain) or plain == "self"  # fx gives local variables these names
    return plain if plain.isidentifier() and not taken else f"w_{plain}"
