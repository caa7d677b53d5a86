"""Check the laws of resizing on random graphs for as long as one likes; each failure prints the line that repeats it.

python tools/fuzz.py                       # until Ctrl-C
python tools/fuzz.py --from 1000 --count 500 --grammar mixed
python tools/fuzz.py --seed 1234 --save broken.onnx
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests"), str(Path(__file__).resolve().parent.parent)]

import onnx  # noqa: E402 - the tests' folder must be on the path first
import oracles  # noqa: E402 - found through the line above
import strategies  # noqa: E402 - found through the line above


def main() -> int:
    """The number of failures, at most 1, is the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="start", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=None, help="how many; without it, until interrupted")
    parser.add_argument("--seed", type=int, default=None, help="only this one, with the traceback")
    parser.add_argument("--steps", type=int, default=None, help="steps of each graph; random by default")
    parser.add_argument(
        "--grammar", choices=strategies.GRAMMARS, default="maps", help="mixed: attention, words, recurrent layers too"
    )
    parser.add_argument("--save", type=Path, default=None, help="with --seed: write the model here")
    options = parser.parse_args()
    if options.seed is not None:
        model = strategies.random_model(random.Random(options.seed), options.steps, options.grammar)
        if options.save is not None:
            onnx.save(model, options.save)
        print(oracles.keep_all_laws(model, options.seed))
        return 0
    seeds = (
        itertools.count(options.start) if options.count is None else range(options.start, options.start + options.count)
    )
    found: Counter[str] = Counter()
    began = time.perf_counter()
    try:
        for seed in seeds:
            found["graphs"] += 1
            _one(seed, options.steps, options.grammar, found)
            if found["graphs"] % 100 == 0:
                print(f"{dict(found)} in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    print(f"{dict(found)} in {time.perf_counter() - began:.0f} s")
    return int(found["failures"] > 0)


def _one(seed: int, steps: int | None, grammar: str, found: Counter[str]) -> None:
    try:
        verdict = oracles.keep_all_laws(strategies.random_model(random.Random(seed), steps, grammar), seed)
    except Exception as error:  # whatever goes wrong on a valid model is a finding
        found["failures"] += 1
        more = (f" --grammar {grammar}" if grammar != "maps" else "") + (
            f" --steps {steps}" if steps is not None else ""
        )
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(f"python tools/fuzz.py --seed {seed}{more}   # {reason}", flush=True)
        return
    found["alive"] += verdict.moved > 1e-3
    found["with widths"] += verdict.widths > 0


if __name__ == "__main__":
    sys.exit(main())
