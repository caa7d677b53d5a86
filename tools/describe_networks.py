"""Build and analyse every reference network, and write what they are into the table of models/README.md.

python tools/describe_networks.py                  # all; some minutes
python tools/describe_networks.py darts7 darts20   # these lines anew
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.torchvision_schemas import define_missing_schemas  # noqa: E402 - found through the line above

define_missing_schemas()

from conet_onnx.analysis import analyze  # noqa: E402 - found through the path above
from conet_onnx.files import atomic_write  # noqa: E402 - found through the path above
from models.catalogue import NETWORKS, built  # noqa: E402 - found through the path above
from models.exporting import save  # noqa: E402 - found through the path above

README = ROOT / "models" / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    names = parser.parse_args().names or list(NETWORKS)
    if unknown := [name for name in names if name not in NETWORKS]:
        parser.error(f"no such network: {', '.join(unknown)}")
    text = README.read_text("utf-8")
    for name in names:
        line = row(name)
        print(line, flush=True)
        text, count = re.subn(rf"^\| {re.escape(name)} \|.*$", line, text, flags=re.MULTILINE)
        if count != 1:
            raise SystemExit(f"{README}: expected one table line for {name}, found {count}.")
    with atomic_write(README) as part:
        part.write_text(text, "utf-8")


def row(name: str) -> str:
    """The network's line: torch's trained parameters, and what `analyze` says of the exported file."""
    torch.manual_seed(0)
    model, shape = built(name)
    with tempfile.TemporaryDirectory() as folder:
        analysis = analyze(save(model, shape, Path(folder) / "model.onnx"))
    network = NETWORKS[name]
    params = sum(parameter.numel() for parameter in model.parameters())
    cells = (name, network.paper, f"{network.size}x{network.size}, {network.classes}", f"{params:,}")
    cells += (f"{analysis.costs.price({}).macs:,}", str(len(analysis.widths)), f"{analysis.costs.coverage.params:.1%}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
