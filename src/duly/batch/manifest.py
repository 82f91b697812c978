"""What a sealed file is: its name, size, digest, and the chunks it was made of.

The invariant: a manifest stands only beside a file that is whole and on the disk, and says what is
in it byte by byte; it is replaced as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from duly.batch.spool import read_small, write_small
from duly.errors import PermanentError

__all__ = ["MANIFEST", "Manifest", "ManifestChunk", "read_manifest", "write_manifest"]

MANIFEST = "manifest.json"


class ManifestChunk(msgspec.Struct, frozen=True):
    """A piece of the file. offset: of its first byte. rows: in it."""

    offset: int
    size_bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A sealed file. path: where it lies now. name: what it is called where it is delivered.
    sha256: of the whole, in hexadecimal. rows: in it; skipped: rows left out, as (key, error).
    """

    path: Path
    name: str
    size_bytes: int
    sha256: str
    rows: int
    chunks: tuple[ManifestChunk, ...]
    skipped: tuple[tuple[str, str], ...] = ()


class _Stored(msgspec.Struct):
    file: str
    name: str
    size_bytes: int
    sha256: str
    rows: int
    chunks: list[ManifestChunk]
    skipped: list[tuple[str, str]]


def write_manifest(manifest: Manifest) -> None:
    """Store a manifest beside its file, durable when this returns."""
    stored = _Stored(
        manifest.path.name,
        manifest.name,
        manifest.size_bytes,
        manifest.sha256,
        manifest.rows,
        list(manifest.chunks),
        list(manifest.skipped),
    )
    write_small(manifest.path.parent / MANIFEST, msgspec.json.encode(stored) + b"\n")


def read_manifest(spool: Path) -> Manifest:
    """The manifest of a spool. Raises PermanentError (BATCH_NO_MANIFEST): nothing is sealed."""
    data = read_small(spool / MANIFEST)
    try:
        stored = msgspec.json.decode(data or b"", type=_Stored)
    except msgspec.DecodeError as error:
        text = f"{spool.name} holds no sealed file"
        raise PermanentError(text, code="BATCH_NO_MANIFEST") from error
    return Manifest(
        spool / stored.file,
        stored.name,
        stored.size_bytes,
        stored.sha256,
        stored.rows,
        tuple(stored.chunks),
        tuple(stored.skipped),
    )
