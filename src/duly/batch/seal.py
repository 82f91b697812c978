"""The step ``write``: what was extracted becomes one file that is whole, on the disk and described.

Parts are laid behind each other in the order of the key, the last line is written, the whole is
digested, and last of all the manifest is written.  The invariant: the manifest stands only beside
what it describes; until it stands, the step begins again from the parts, which stay as they were.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from duly.batch.instance import file_name
from duly.batch.manifest import MANIFEST, Manifest, ManifestChunk, read_manifest, write_manifest
from duly.batch.spool import Chunk, SpoolFile, read_small, spool_errors, write_small
from duly.batch.steps import StepContext
from duly.errors import PermanentError, RetryableError
from duly.kernel import failpoints
from duly.rows import RowColumn

__all__ = ["EXTRACTED", "Extracted", "SealStep", "part_name"]

EXTRACTED = "extracted.json"
_READ_BYTES = 4 * 1024 * 1024


class Extracted(msgspec.Struct):
    """What the extraction left in the spool. parts: the chunks of each part, in order. sha256: of
    the file as it will be, where one attempt wrote all of it and so has seen every byte.
    """

    columns: list[RowColumn]
    parts: list[list[Chunk]]
    sha256: str = ""

    def store(self, spool: Path) -> None:
        """Durable when this returns."""
        write_small(spool / EXTRACTED, msgspec.json.encode(self))

    @classmethod
    def of(cls, spool: Path) -> Extracted:
        """Raises PermanentError (BATCH_NOT_EXTRACTED)."""
        data = read_small(spool / EXTRACTED)
        if data is None:
            raise PermanentError("nothing was extracted", code="BATCH_NOT_EXTRACTED")
        return msgspec.json.decode(data, type=cls)


def part_name(number: int) -> str:
    """The file of a part."""
    return f"part-{number:03}.data"


class SealStep:
    """As ``Step``. job: what ``write`` declares is asked of it."""

    name = "write"

    def __init__(self, job: Any) -> None:
        self._form = job.write

    async def run(self, context: StepContext) -> None:
        """Seal the file of this attempt. Idempotent: one that is sealed stays."""
        manifest = await asyncio.to_thread(self._sealed, context)
        failpoints.hit(failpoints.BATCH_SEALED)
        context.fact("sha256", manifest.sha256)
        if manifest.skipped:
            context.fact("skipped", len(manifest.skipped))
        await context.save(
            manifest.sha256.encode(), rows=manifest.rows, size_bytes=manifest.size_bytes
        )

    async def verify(self, context: StepContext) -> list[str]:
        """What is not as the manifest says, as text."""
        return await asyncio.to_thread(_differences, context.spool)

    def _sealed(self, context: StepContext) -> Manifest:
        spool = context.spool
        if (spool / MANIFEST).exists():
            return read_manifest(spool)
        extracted = Extracted.of(spool)
        name = file_name(self._form.name, context.params)
        encoder = self._form.encoder(extracted.columns, context.params)
        if hasattr(self._form, "assemble"):
            chunks = self._assembled(spool, extracted, encoder)
            path = spool / "sealed.data"
        else:
            path = spool / part_name(0)
            chunks = self._joined(spool, extracted, encoder)
        skipped = tuple(
            entry for part in extracted.parts for chunk in part for entry in chunk.skipped
        )
        places: list[ManifestChunk] = []
        offset = 0
        for chunk in chunks:
            if chunk.size_bytes:
                places.append(ManifestChunk(offset, chunk.size_bytes, chunk.rows, chunk.sha256))
            offset += chunk.size_bytes
        digest = extracted.sha256 or _digest(path, places)
        rows = sum(chunk.rows for chunk in chunks)
        manifest = Manifest(path, name, offset, digest, rows, tuple(places), skipped)
        write_manifest(manifest)
        return manifest

    def _joined(self, spool: Path, extracted: Extracted, encoder: Any) -> list[Chunk]:
        """Everything behind the first part, in its file."""
        chunks = list(extracted.parts[0])
        file = SpoolFile(spool / part_name(0))
        try:
            offset = sum(chunk.size_bytes for chunk in chunks)
            file.cut(offset)
            for chunk, data in self._rest(spool, extracted, encoder):
                file.write([data], offset)
                chunks.append(chunk)
                offset += len(data)
            file.sync()
        finally:
            file.close()
        return chunks

    def _rest(
        self, spool: Path, extracted: Extracted, encoder: Any
    ) -> Iterator[tuple[Chunk, bytes]]:
        rows = sum(chunk.rows for chunk in extracted.parts[0])
        for number, part in enumerate(extracted.parts[1:], 1):
            more = sum(chunk.rows for chunk in part)
            if rows and more and encoder.glue:
                yield _chunk(self._form.framed(encoder.glue), 0)
            rows += more
            yield from zip(part, _pieces(spool / part_name(number), part), strict=True)
        yield _chunk(self._form.framed(encoder.end(rows)), 0)

    def _assembled(self, spool: Path, extracted: Extracted, encoder: Any) -> list[Chunk]:
        """A file of another make than its parts."""
        target = spool / "sealed.data"
        pieces = (
            data
            for number, part in enumerate(extracted.parts)
            for data in _pieces(spool / part_name(number), part)
            if data
        )
        file = SpoolFile(target)
        try:
            file.cut(0)
            with spool_errors(target):
                self._form.assemble(encoder, pieces, target)
            file.sync()
        finally:
            file.close()
        rows = sum(chunk.rows for part in extracted.parts for chunk in part)
        found: list[Chunk] = []
        with spool_errors(target), target.open("rb") as whole:
            while data := whole.read(_READ_BYTES):
                found.append(_chunk(data, 0 if found else rows)[0])
        return found


def _chunk(data: bytes, rows: int) -> tuple[Chunk, bytes]:
    return Chunk(len(data), rows, sha256(data).hexdigest()), data


def _pieces(path: Path, chunks: list[Chunk]) -> Iterator[bytes]:
    """The chunks of a part. Raises RetryableError for one that is not as it was written."""
    with spool_errors(path), path.open("rb") as file:
        for chunk in chunks:
            data = file.read(chunk.size_bytes)
            if sha256(data).hexdigest() != chunk.sha256:
                raise RetryableError(f"{path.name} has changed", code="BATCH_SPOOL_CORRUPT")
            yield data


def _digest(path: Path, chunks: list[ManifestChunk]) -> str:
    """Of the whole file, read once; each chunk is compared on the way."""
    whole = sha256()
    with spool_errors(path), path.open("rb") as file:
        for chunk in chunks:
            data = file.read(chunk.size_bytes)
            if sha256(data).hexdigest() != chunk.sha256:
                raise RetryableError(f"{path.name} has changed", code="BATCH_SPOOL_CORRUPT")
            whole.update(data)
        if file.read(1):
            raise RetryableError(f"{path.name} is too long", code="BATCH_SPOOL_CORRUPT")
    return whole.hexdigest()


def _differences(spool: Path) -> list[str]:
    try:
        manifest = read_manifest(spool)
        if _digest(manifest.path, list(manifest.chunks)) != manifest.sha256:
            return [f"{manifest.name} is not what its manifest says"]
    except (PermanentError, RetryableError) as error:
        return [error.detail]
    return []
