"""`report`: rebuild the page of a search from its record."""

from __future__ import annotations

import click

from conet_onnx.cli.command import Command
from conet_onnx.cli.output import Bar, says

__all__ = ["report"]


@click.command(cls=Command)
@click.argument("directory", metavar="DIR")
def report(directory: str) -> None:
    """Rebuild DIR/report.html from a search's record, finished or not. Takes about a second."""
    with Bar() as bar:
        bar.at(0.0, f"Drawing the report of {directory}")
        from conet_onnx.report import write_report

        written = write_report(directory)
    says(f"Written: {written}")
    says()
    says("What next")
    says(f"  open {written} in a browser; it needs no network")
