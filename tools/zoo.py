"""Resize every model of the zoo every way, hold each to the laws, and write docs/coverage.md.

python tools/zoo.py                                   # what has no record yet, then the table
python tools/zoo.py --only 'torchvision*' --minutes 30
python tools/zoo.py --only '*swin_t*' --again
python tools/zoo.py --training                        # the torch backend on each of them
python tools/zoo.py --list

Each model is built in one process and examined in another; what was found is a file in tools/results/zoo, so that a
run that was stopped goes on where it was. Needs requirements/zoo.txt (`pip install -r requirements/zoo.txt`, beside
run.txt and dev.txt); a model that cannot be built is reported as not built.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tools.zoo_models import Entry, NotBuilt, entries  # noqa: E402 - found through the line above

FOLDER = ROOT / "runs" / "zoo"  # files that are being examined
RECORDS = ROOT / "tools" / "results" / "zoo"
TRAINING = ROOT / "tools" / "results" / "zoo_training"
BUILDING, EXAMINING = 900, 1800  # seconds that one model may take
MOST_MEMORY = 18 * 2**30  # bytes: above, a model fails alone instead of the machine
SETTINGS = {  # glibc gives large blocks back at once, and to get them again takes longer than all the rest
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


def main() -> int:
    """1 if a model that was tried has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="family, name or exporter, as in a shell")
    parser.add_argument("--minutes", type=float, default=None, help="begin no model after so many")
    parser.add_argument("--again", action="store_true", help="also those that have a record already")
    parser.add_argument("--failed", action="store_true", help="again, those whose record says that they failed")
    parser.add_argument("--list", action="store_true", help="only name them, with what is recorded")
    parser.add_argument("--table", type=Path, default=None, metavar="F", help="write the table here (docs/coverage.md)")
    parser.add_argument("--training", action="store_true", help="lower to torch instead, and compare outputs")
    parser.add_argument("--keep", action="store_true", help="keep the ONNX files in runs/zoo")
    options = parser.parse_args()
    wanted = [e for e in entries() if fnmatch.fnmatch(f"{e.family} {e.name} {e.exporter}", f"*{options.only}*")]
    records = TRAINING if options.training else RECORDS
    for folder in (FOLDER, records):
        folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    if options.list:
        for entry in wanted:
            print(
                f"{_recorded(entry, records).get('verdict', '-'):10} {entry.family:28} {entry.exporter:12} {entry.name}"
            )
        return 0
    if not SETTINGS.items() <= os.environ.items():  # they are read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})
    _import_all()
    began = time.monotonic()
    for k, entry in enumerate(wanted):
        record = _recorded(entry, records)
        due = options.again or not record or (options.failed and record["verdict"] == "failed")
        if due and (options.minutes is None or time.monotonic() - began < options.minutes * 60):
            record = _one(entry, records, keep=options.keep)
            seconds = time.monotonic() - began
            print(f"[{k + 1}/{len(wanted)}, {seconds:.0f} s] {entry.family} {entry.name}: {_line(record)}", flush=True)
        failed += record.get("verdict") == "failed"
    if options.table:
        from tools.zoo_table import write_table

        write_table(
            options.table, [(entry, _recorded(entry, RECORDS), _recorded(entry, TRAINING)) for entry in entries()]
        )
    return int(failed > 0)


def _recorded(entry: Entry, records: Path) -> dict[str, Any]:
    path = records / f"{entry.key}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _one(entry: Entry, records: Path, *, keep: bool) -> dict[str, Any]:
    """Build a model and examine it, each in a process of its own; the record is written whole."""
    file, record_file = FOLDER / f"{entry.key}.onnx", records / f"{entry.key}.json"
    record: dict[str, Any]
    code, said = _run(lambda: _build(entry, file), BUILDING)
    if code:
        record = {"verdict": "not built", "message": said if code == 3 else f"the builder stopped: {said}"}
    else:
        part = file.with_suffix(".part")
        code, said = _run(lambda: _examine(file, part, training=records == TRAINING), EXAMINING)
        record = json.loads(part.read_text()) if code == 0 else {"verdict": "failed", "message": f"crashed: {said}"}
        part.unlink(missing_ok=True)
    if not keep:
        for made in FOLDER.glob(f"{entry.key}.onnx*"):
            made.unlink()
        for left in FOLDER.glob(f"{entry.key}.half-*"):  # of a process that was stopped
            shutil.rmtree(left, ignore_errors=True)
    record |= {"name": entry.name, "family": entry.family, "exporter": entry.exporter, "kind": entry.kind}
    record["date"] = datetime.now(UTC).date().isoformat()
    waiting = file.with_suffix(".new")
    waiting.write_text(json.dumps(record, indent=1))
    waiting.replace(record_file)
    return record


def _run(work: Callable[[], int], limit: float) -> tuple[int, str]:
    """Do it in a process of its own, forked: libraries are imported once. Its exit code, and the last line it said."""
    with tempfile.TemporaryFile("w+") as said:
        process = multiprocessing.get_context("fork").Process(target=_quietly, args=(work, said.fileno()))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            return 1, f"took longer than {limit:.0f} s"
        said.seek(0)
        lines = [line for line in said.read().splitlines() if line.strip()] or [f"exit code {process.exitcode}"]
    return process.exitcode or 0, lines[-1][:300]


def _quietly(work: Callable[[], int], output: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(work())


def _import_all() -> None:
    """What every model needs; nothing is computed, since threads would not outlive a fork."""
    import onnxruntime  # noqa: F401
    import torch  # noqa: F401

    from tools.torchvision_schemas import define_missing_schemas

    define_missing_schemas()
    with contextlib.suppress(ImportError):
        import timm  # noqa: F401
    with contextlib.suppress(ImportError):
        import transformers  # noqa: F401
    import tools.zoo_laws  # noqa: F401


def _examine(file: Path, record: Path, *, training: bool) -> int:
    if training:
        from tools.zoo_training import examine
    else:
        from tools.zoo_laws import examine

    record.write_text(json.dumps(examine(file)))
    return 0


def _build(entry: Entry, file: Path) -> int:
    import onnx

    try:
        model = entry.build()
    except NotBuilt as reason:
        print(reason, file=sys.stderr)
        return 3
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) < 2**31 - 2**26:  # of all, it cannot be asked
        onnx.save(model, file)
    else:
        onnx.save(model, file, save_as_external_data=True, location=f"{file.name}.data")
    return 0


def _line(record: dict[str, Any]) -> str:
    if "trained" in record:
        worst, trained = record["worst"], record["trained"]
        return f"{record['verdict']}, worst {worst:.1e}, gradients in {trained:.1%} {record.get('message', '')}"
    if "widths" not in record:
        return f"{record['verdict']}: {record.get('message', '')}"
    return (
        f"{record['verdict']}, {record['widths']} widths ({record['exact']} exact), {record['params']:.1%} of params, "
        f"{record['macs']:.1%} of MACs, worst {record.get('worst', float('nan')):.1e}, "
        f"shapes {record['seconds']['shapes']:.2f} s, analysis {record['seconds']['analysis']:.2f} s"
        + (f": {record['message']}" if record.get("message") else "")
    )


if __name__ == "__main__":
    sys.exit(main())
