"""Write the golden files anew: what the width groups of the models in tests/golden_models are now.

python tools/make_golden.py                 # all
python tools/make_golden.py bert swin_v2    # these
git diff tests/golden                       # review every group that has changed before it is committed
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests"), str(Path(__file__).resolve().parent.parent)]

from golden_models import FOLDER, GOLDEN, text_of  # noqa: E402 - the tests' folder must be on the path first


def main() -> None:
    """Say which files have changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GOLDEN)}")
    names = parser.parse_args().names or list(GOLDEN)
    if unknown := [name for name in names if name not in GOLDEN]:
        parser.error(f"no such model: {', '.join(unknown)}")
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        began = time.perf_counter()
        file, text = FOLDER / f"{name}.json", text_of(name)
        same = file.exists() and file.read_text() == text
        file.write_text(text)
        seconds = time.perf_counter() - began
        print(f"{name}: {'as it was' if same else 'written'}, {len(text)} bytes, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
