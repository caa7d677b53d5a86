"""`python -m conet_onnx` is `conet-onnx`."""

from __future__ import annotations

import sys

from conet_onnx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
