"""Make `tools` and `models` importable from tests; nothing heavy is imported here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
