"""Random ONNX graphs whose signal is alive: everything that the rules understand, and some that they must freeze."""

from __future__ import annotations

from strategies.builder import INT_MAX, Builder
from strategies.grammar import BLOCKS, GRAMMARS, graphs, model_of, random_model

__all__ = ["BLOCKS", "GRAMMARS", "INT_MAX", "Builder", "graphs", "model_of", "random_model"]
