"""What a search writes into: its folder, which it makes or goes on with, and the names in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from conet_onnx.errors import OutputError, UsageError
from conet_onnx.files import atomic_write
from conet_onnx.records.run import RUN_FILE, TRIALS_FILE
from conet_onnx.records.study import LOCK_FILE, STUDY_FILE
from conet_onnx.searching.timing import TABLE_FILE

__all__ = ["FOLDERS", "REPORT_FILE", "SAID_FILE", "check_folder", "copy_file", "make_folder"]

FOLDERS = ("weights", "plans", "pareto", "measures")
REPORT_FILE = "report.html"
SAID_FILE = ".said.npy"  # what the source says of the training data, while several processes need it


def check_folder(folder: Path, *, resume: bool, shared: bool) -> None:
    """Raise UsageError for a folder that is there and not to be gone on with, and for one that holds no search."""
    if not folder.exists():
        return
    holds = (STUDY_FILE, RUN_FILE) if shared else (TRIALS_FILE,)
    if not resume and not (shared and (folder / STUDY_FILE).exists()):
        raise UsageError(f"{folder} exists: go on with what is there (--resume), or choose another --out.")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: there is nothing to resume.")
    known = {LOCK_FILE, STUDY_FILE, TABLE_FILE, *FOLDERS}
    if not any((folder / name).exists() for name in holds) and {entry.name for entry in folder.iterdir()} - known:
        raise UsageError(f"{folder} does not hold a search: there is nothing to resume. Choose another --out.")


def make_folder(folder: Path, *, resume: bool) -> None:
    """Make it, and the folders in it. Raises UsageError where another process has just done so, OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=resume)
        for name in FOLDERS:
            (folder / name).mkdir(exist_ok=True)
    except FileExistsError as error:  # made by another process since the check
        raise UsageError(f"{folder} exists: choose another --out.") from error
    except OSError as error:
        raise OutputError(f"Cannot write in {folder}: {error.strerror or error}. Choose another --out.") from error


def copy_file(source: Path, target: Path) -> None:
    """Whole or not at all."""
    with atomic_write(target) as part:
        shutil.copyfile(source, part)
