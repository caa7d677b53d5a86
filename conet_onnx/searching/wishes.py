"""What a user asks of a search, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from conet_onnx.errors import UsageError
from conet_onnx.planning import check_transfer
from conet_onnx.searching.method import Method
from conet_onnx.searching.recipe import Recipe
from conet_onnx.torch_backend.settings import Settings
from conet_onnx.torch_backend.train import fabric_of

__all__ = ["PRECISION", "check", "recipe_of"]

BACKENDS = ("torch",)
PRECISION = "32-true"


def recipe_of(
    method: Method,
    final: Literal["inherit", "fresh"] | None,
    transfer: str | None,
    varied: Mapping[str, Any],
) -> Recipe:
    """The method's, with what the user wants otherwise."""
    recipe = method.recipe()
    if final not in (None, "inherit", "fresh"):
        raise UsageError(f"final={final!r}: the last training goes on (inherit) or begins anew (fresh).")
    if transfer is not None:
        check_transfer(transfer)
    made = replace(
        recipe,
        final=final or recipe.final,
        transfer=transfer or recipe.transfer,
        training={**recipe.training, **varied},
        final_training={**recipe.final_training, **varied},
    )
    for training in (made.training, made.final_training):
        settings = Settings(epochs=0, **training)  # what makes no sense is said before anything is read
        if "precision" in varied:
            fabric_of(settings)
    return made


def check(backend: str, at_least_one: Mapping[str, int], epochs: int, time_limit: float | None) -> None:
    """Raise UsageError for a backend that there is not, and for numbers that make no sense."""
    if backend not in BACKENDS:
        raise UsageError(f"no backend {backend!r}: there is {', '.join(BACKENDS)}.")
    for name, count in (*at_least_one.items(), ("epochs", epochs)):
        if count < (name in at_least_one):
            raise UsageError(f"{name}={count}: expected at least {int(name in at_least_one)}.")
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"time_limit={time_limit}: expected seconds, more than 0.")
