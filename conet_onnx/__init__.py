"""Better layer widths for the ONNX file that you deploy; the verbs below are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conet_onnx.analysis import analyze
    from conet_onnx.batches import freed
    from conet_onnx.finetuning import finetune
    from conet_onnx.loading import load
    from conet_onnx.metrics import score
    from conet_onnx.planning import plan
    from conet_onnx.rewriting import rewrite
    from conet_onnx.scoring import importance
    from conet_onnx.searching import Budget, search
    from conet_onnx.torch_backend import from_torch, to_torch
    from conet_onnx.transfer import transferred
    from conet_onnx.verification import verify

    __version__: str

__all__ = [
    "Budget",
    "analyze",
    "finetune",
    "freed",
    "from_torch",
    "importance",
    "load",
    "plan",
    "rewrite",
    "score",
    "search",
    "to_torch",
    "transferred",
    "verify",
]

_HOMES = {
    "Budget": "searching",
    "analyze": "analysis",
    "finetune": "finetuning",
    "freed": "batches",
    "from_torch": "torch_backend",
    "importance": "scoring",
    "load": "loading",
    "plan": "planning",
    "rewrite": "rewriting",
    "score": "metrics",
    "search": "searching",
    "to_torch": "torch_backend",
    "transferred": "transfer",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    """Import a verb from its module (PEP 562), so that `import conet_onnx` itself costs nothing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("conet-onnx")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
