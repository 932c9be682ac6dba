"""The files of copied stores: which they are, what is in them, and copies of copies."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["digest_of", "files_of", "link_tree"]

_CHUNK_BYTES = 1 << 20


def files_of(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of the partitions in a snapshot that RocksDB reads, by their path in it."""
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        if path.is_file() and relative.parts[0].isdigit() and not path.name.startswith("LOG"):
            yield str(relative), path


def digest_of(path: Path) -> str:
    """Give a file's BLAKE2b digest, as hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def link_tree(source: Path, target: Path) -> None:
    """Copy a store's files: tables, which never change, by hard link where that can be; the rest for real."""
    target.mkdir()
    for path in source.iterdir():
        if path.name.startswith("LOG"):
            continue  # RocksDB's diary
        if path.suffix == ".sst":
            try:
                os.link(path, target / path.name)
                continue
            except OSError:
                pass  # another file system
        shutil.copyfile(path, target / path.name)
