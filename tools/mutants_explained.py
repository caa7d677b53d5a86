"""Why some broken rules pass every test, by patterns as in a shell: what they change changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["EXPLAINED"]

EXPLAINED: Mapping[str, str] = {}
