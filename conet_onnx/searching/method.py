"""A method of search as a value: its constants, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any, Literal, Protocol, TypeVar, get_args, get_type_hints

from conet_onnx.errors import UsageError
from conet_onnx.searching.budget import Limits
from conet_onnx.searching.recipe import Recipe
from conet_onnx.searching.searcher import Probe, Searcher
from conet_onnx.searching.space import Priceable, WidthSpace

__all__ = ["Method", "configured", "options"]

WORDS = {"yes": True, "true": True, "no": False, "false": False}
LENGTHS = ("trials", "epochs_per_trial", "epochs")  # have flags of their own


class Method(Protocol):
    """A frozen dataclass per method: every constant is a field, with the published value, or ours, as its default."""

    @property
    def trials(self) -> int:
        """Sets of widths to try, unless the user says otherwise."""

    @property
    def epochs_per_trial(self) -> int:
        """Training of each."""

    @property
    def epochs(self) -> int:
        """Training of the chosen one."""

    @property
    def at_once(self) -> int | None:
        """How many sets of widths it can propose at a time; None: any number."""

    @property
    def needs_budget(self) -> bool:
        """Whether it makes no sense without one."""

    @property
    def multiple(self) -> Literal["auto", "none"]:
        """What widths are multiples of, unless the user says otherwise: of what the machine runs fast, or of the steps
        of its own `space`."""

    def space(self, analysis: Priceable, limits: Limits) -> WidthSpace:
        """The widths that it chooses from; `limits` may be none."""

    def searcher(
        self, space: WidthSpace, limits: Limits, *, trials: int, seed: int, probe: Probe | None = None
    ) -> Searcher:
        """What proposes them; `probe` is whom it may ask about models."""

    def recipe(self) -> Recipe:
        """How its models are trained, and what is measured of them."""


M = TypeVar("M", bound=Method)


def options(method: Method) -> dict[str, Any]:
    """A method's constants by name, without those that have a flag of their own."""
    given: Any = method
    return {one.name: getattr(method, one.name) for one in fields(given) if one.name not in LENGTHS}


def configured(method: M, given: Mapping[str, Any] | Iterable[str], *, name: str) -> M:
    """The method with other constants: a mapping, or the command line's NAME=VALUE. Raises UsageError for unknown ones
    and for values that are no such number."""
    known = options(method)
    hints = get_type_hints(type(method))
    changes = {}
    for key, value in _pairs(given):
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known) or 'none'}."
            raise UsageError(f"algorithm {name!r} has no option {key!r}: {hint}")
        if key in changes:
            raise UsageError(f"option {key!r} is given twice; keep one.")
        changes[key] = _value(key, value, hints[key])
    made: M = replace(method, **changes)  # type: ignore[type-var]  # a Protocol cannot say that it is a dataclass
    return made


def _pairs(given: Mapping[str, Any] | Iterable[str]) -> Iterable[tuple[str, Any]]:
    if isinstance(given, Mapping):
        yield from given.items()
        return
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"option {text!r}: expected NAME=VALUE.")
        yield key.replace("-", "_"), value


def _value(key: str, value: Any, kind: Any) -> Any:
    """A value of the field's type."""
    if words := get_args(kind):
        if value not in words:
            raise UsageError(f"option {key}={value}: it is one of {', '.join(map(str, words))}.")
        return value
    if kind is bool:
        if str(value).lower() not in WORDS:
            raise UsageError(f"option {key}={value}: it is yes or no.")
        return WORDS[str(value).lower()]
    try:
        made = kind(value)
    except (TypeError, ValueError):
        made = None
    if made is None or (kind is int and not isinstance(value, str) and made != value):
        raise UsageError(f"option {key}={value}: expected {'a whole number' if kind is int else 'a number'}.")
    return made
