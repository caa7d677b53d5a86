"""What a search leaves on disk: its trials in a database, and the record of the run beside it."""

from __future__ import annotations

from conet_onnx.records.run import ModelRecord, Run, read_run
from conet_onnx.records.trial import Trial

__all__ = ["ModelRecord", "Run", "Trial", "read_run"]
