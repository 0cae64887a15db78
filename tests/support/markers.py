"""A search for texts through every byte of a folder, what is packed in Parquet files included."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pyarrow import parquet

__all__ = ["find_markers"]


def find_markers(folder: Path, markers: Iterable[bytes]) -> list[str]:
    """Each file below ``folder`` with a marker in its bytes, its path or a value of its columns; sorted."""
    wanted = [*markers]
    found = set()
    for file in folder.rglob("*"):
        content = str(file.relative_to(folder)).encode(errors="surrogateescape")
        if file.is_file():
            content += file.read_bytes()
        if file.suffix == ".parquet":
            # Values as they are, and the footer, which has the least and greatest of each column.
            content += repr(parquet.read_table(file, partitioning=None).to_pylist()).encode()
            content += repr(parquet.read_metadata(file).to_dict()).encode()
        found |= {f"{file.relative_to(folder)}: {marker!r}" for marker in wanted if marker in content}
    return sorted(found)
