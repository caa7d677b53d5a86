"""The models that tools/zoo.py tries: how each is built and exported, family by family."""

from __future__ import annotations

from tools.zoo_models.entry import Entry, NotBuilt

__all__ = ["Entry", "NotBuilt", "entries"]


def entries() -> list[Entry]:
    """All of them, in the order of the table."""
    from tools.zoo_models import hand_made, timm_models, torchvision_models, transformers_models

    return [
        *torchvision_models.entries(),
        *timm_models.entries(),
        *transformers_models.entries(),
        *hand_made.entries(),
    ]
