"""The random models themselves: of maps alone, or of maps and sequences, in which every block has its place."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import onnx
from hypothesis import strategies as st

from strategies import attending, blocks, images, tokens
from strategies.tokens import MixedNetwork

__all__ = ["BLOCKS", "GRAMMARS", "graphs", "model_of", "random_model"]

GRAMMARS = ("maps", "mixed")
OF_MAPS = [*blocks.STEPS, *tokens.FROM_MAPS]
OF_TOKENS = [*tokens.STEPS, *attending.STEPS]
BLOCKS: tuple[Callable[..., Any], ...] = tuple(step for step, _ in (*OF_MAPS, *OF_TOKENS))


def graphs(grammar: str = "maps") -> st.SearchStrategy[onnx.ModelProto]:
    """Random models; a smaller failing one has fewer and plainer nodes."""
    return st.builds(partial(random_model, grammar=grammar), st.randoms(use_true_random=False))


def random_model(chance: random.Random, steps: int | None = None, grammar: str = "maps") -> onnx.ModelProto:
    """One model with one or two inputs, a few dozen nodes and tiny tensors.

    Grammar "maps" has convolutions and all that cuts and joins channels; "mixed" has words and images, attention,
    normalisations, recurrent layers and channels last as well.
    """
    if grammar == "maps":
        return images.Network(chance, steps).build()
    return MixedNetwork(chance, steps, [*images.STEPS, *OF_MAPS], OF_TOKENS).build()


def model_of(block: Callable[..., Any], chance: random.Random) -> onnx.ModelProto:
    """One model that has this block at least once, and little beside it."""
    maps = [(step, 1.0) for step, _ in OF_MAPS if step is block] or OF_MAPS[-1:]
    on_tokens = [*((step, 1.0) for step, _ in OF_TOKENS if step is block), (tokens.feed_forward, 0.4)]
    while True:
        network = MixedNetwork(chance, 4, maps, on_tokens)
        model = network.build()
        if block in network.taken:
            return model
