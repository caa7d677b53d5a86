"""Write files whole or not at all."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conet_onnx.errors import OutputError

__all__ = ["atomic_write", "sha256_of"]

BLOCK = 1 << 24  # bytes hashed at once; a thread beside Python code waits for its turn before each


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it into place on success, remove it on any failure.

    Where it is `durable`, it is on the disk before its name is, so that a power cut leaves one file or the other too.
    A link stays one: the file that it leads to is replaced. Raises OutputError where the folder is missing, not
    writable, or full, and for what is no ordinary file: a rename would replace a device or a pipe itself.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"Cannot write {path}: it is a folder. Name a file.")
    if target.exists() and not target.is_file():
        raise OutputError(f"Cannot write {path}: it is no ordinary file. Name another.")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise _explain(path, error) from error
    os.close(handle)
    part = Path(name)
    try:
        try:
            yield part
            _finish(part, durable=durable)
            os.replace(part, target)
        except OSError as error:
            raise _explain(path, error) from error
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def sha256_of(paths: Iterable[str | os.PathLike[str]]) -> str:
    """The hexadecimal SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb", buffering=0) as stream:
            # not a bytearray: to fill that with zeros would keep all other threads waiting
            block = memoryview(mmap.mmap(-1, min(BLOCK, os.fstat(stream.fileno()).st_size + 1)))
            while read := stream.readinto(block):
                digest.update(block[:read])
    return digest.hexdigest()


def _finish(part: Path, *, durable: bool) -> None:
    """Give the permissions that an ordinary new file would have (mkstemp gives 0600), and flush to disk if asked."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(part, 0o666 & ~umask)
    if durable:
        with open(part, "rb+") as stream:
            os.fsync(stream.fileno())


def _explain(path: str | os.PathLike[str], error: OSError) -> OutputError:
    return OutputError(f"Cannot write {path}: {error.strerror or error}. Nothing was left there; choose another place.")
