"""The report of a search: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

from conet_onnx.report.html import write_report

__all__ = ["write_report"]
