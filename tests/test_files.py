"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from conet_onnx.errors import OutputError
from conet_onnx.files import atomic_write, sha256_of


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with atomic_write(target) as part:
        part.write_bytes(b"half")
        assert not target.exists()
    assert target.read_bytes() == b"half"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_durable_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    target, seen = tmp_path / "a.bin", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_size, target.exists())))
    with atomic_write(target, durable=durable) as part:
        part.write_bytes(b"half")
    assert seen == ([(4, False)] if durable else [])


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(target) as part:
        part.write_text(b"new")  # type: ignore[arg-type]  # fails on purpose, with the file open
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("place", ["missing/a.bin", "file/a.bin", "."])
def test_where_nothing_can_be_written_the_error_says_so(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="Cannot write"), atomic_write(tmp_path / place) as part:
        part.write_bytes(b"x")


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as part:
            part.write_bytes(b"x")
    finally:
        os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_the_digest_is_of_all_files_in_turn(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab")
    (tmp_path / "b").write_bytes(b"c")
    assert sha256_of([tmp_path / "a", tmp_path / "b"]) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, of "abc"
    )


def test_a_digest_of_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conet_onnx.files.BLOCK", 7)
    for size in (0, 6, 7, 8, 14, 1000):
        data = bytes(range(256)) * 4
        (tmp_path / "a").write_bytes(data[:size])
        assert sha256_of([tmp_path / "a"]) == hashlib.sha256(data[:size]).hexdigest()
