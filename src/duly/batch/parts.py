"""One part of an extraction: a range of the key becomes chunks of a file, each stored once.

    read -> (process) -> encode -> write -> fdatasync -> checkpoint
     next chunk meanwhile

The invariants: a checkpoint is saved only behind the sync of all it speaks of; a chunk ends where
its rows say, not when somebody wants to stop, so that whoever goes on makes the same chunks; and
what another attempt left is used only as far as its digests hold.  Which parts there are, and who
reads them, is the business of ``extraction`` and ``sharing``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from duly.batch.formats.text import RowRefusedError
from duly.batch.plan import Part, Plan, from_key, list_path, to_key
from duly.batch.process import Process, RowSet, as_process
from duly.batch.seal import part_name
from duly.batch.spool import Chunk, SpoolFile, adopt, verified
from duly.batch.steps import StopAtCheckpoint
from duly.errors import ConfigurationError, PermanentError
from duly.kernel import failpoints
from duly.rows import Block, Reading, RowColumn, RowQuery

__all__ = ["WORKERS", "PartReading", "PartWork", "Recipe", "chosen", "taken_up", "to_its_end"]

WORKERS = 4
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """What a job reads, and what it makes of it."""

    declared: Any
    form: Any
    process: Process | None
    source: Any
    query: RowQuery
    params: Mapping[str, object]

    @classmethod
    def of(cls, job: Any, params: Mapping[str, object]) -> Recipe:
        """Of a job's read, process, write and places."""
        read = job.read
        query = RowQuery(read.text, read.key_columns(), params, read.row_bytes_max)
        source = job.places.row_source(read.database)
        return cls(read, job.write, as_process(job.process), source, query, params)

    def work(self, plan: Plan, number: int, *, part: Part, whole: Any = None) -> PartWork:
        """Who writes a part. whole: the digest of the file, where this is all of it."""
        columns = chosen(plan.columns, self.form.columns, self.process)
        encoder = self.form.encoder(columns, self.params)
        return PartWork(self.form, encoder, part=part, number=number, whole=whole)


class PartReading:
    """Reads parts of a plan into files of one folder. skipped: how many rows of the run were left
    out so far. whole: the digest of the file, where there is one part.
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        *,
        spool: Path,
        stopping: Callable[[], bool],
        skipped: Callable[[], int],
        whole: Any = None,
    ) -> None:
        self.recipe, self.plan, self.spool = recipe, plan, spool
        self._stopping, self._skipped, self._whole = stopping, skipped, whole
        self._query = recipe.query
        if plan.stage:
            text = f"SELECT * FROM {plan.stage}"  # noqa: S608  # a name of our own making
            self._query = replace(self._query, text=text, params={})

    async def run(
        self,
        number: int,
        part: Part,
        *,
        save: Callable[[], Awaitable[None]],
        moment: str = "",
    ) -> None:
        """Read a part to its end; ``save`` is awaited behind each chunk. Raises StopAtCheckpoint,
        and what the port and ``save`` raise.
        """
        work = self.recipe.work(self.plan, number, part=part, whole=self._whole)
        file = SpoolFile(self.spool / part_name(number))
        reader = await asyncio.to_thread(self.recipe.source.open, moment=moment)
        try:
            self._same_columns(await asyncio.to_thread(reader.columns, self._query))
            blocks = reader.read(self._query, self._reading(part))
            with closing(file):
                file.cut(part.size_bytes)
                await self._chunks(work, file=file, blocks=blocks, save=save)
        finally:
            await asyncio.to_thread(reader.close)
        part.done = True
        await save()

    async def _chunks(
        self,
        work: PartWork,
        *,
        file: SpoolFile,
        blocks: Iterator[Block],
        save: Callable[[], Awaitable[None]],
    ) -> None:
        """Store block after block; the next one is read meanwhile."""
        part = work.part
        coming = asyncio.create_task(asyncio.to_thread(next, blocks, None))
        try:
            if work.number == 0 and not part.tail and not part.listed:
                part.add(await to_its_end(work.write_first, file))
            while (block := await asyncio.shield(coming)) is not None:
                coming = asyncio.create_task(asyncio.to_thread(next, blocks, None))
                chunk = await to_its_end(work.write, file, block, self._ready())
                part.add(chunk)
                await save()
                failpoints.hit(failpoints.BATCH_CHECKPOINT_SAVED)
                if self._stopping():
                    raise StopAtCheckpoint
        finally:
            await asyncio.wait({coming})  # its thread has the connection
            coming.exception()
            blocks.close()  # type: ignore[attr-defined]  # a generator, as the port says

    def _ready(self) -> Callable[[Block], RowSet]:
        """Makes the rows of a block ready."""
        process, columns = self.recipe.process, self.plan.columns
        names = [column.name for column in columns]
        wanted = [one.name for one in chosen(columns, self.recipe.form.columns, process)]
        places = [names.index(column.name) for column in self.recipe.query.key]
        left = (process.skip_max if process else 0) - self._skipped()

        def ready(block: Block) -> RowSet:
            read: list[Sequence[Any]] = list(block.values)
            rows = RowSet(read, list(read), places, left, [])
            if process is not None:
                rows.process(process, names, wanted)
            elif wanted != names:
                cut = [names.index(name) for name in wanted]
                rows.rows = [tuple(row[place] for place in cut) for row in rows.rows]
            return rows

        return ready

    def _reading(self, part: Part) -> Reading:
        recipe, plan, form = self.recipe, self.plan, self.recipe.form
        names = [column.name for column in plan.columns]
        plain = recipe.process is None and tuple(form.columns) in ((), tuple(names))
        shape = form.csv_shape()
        reading = Reading(
            form="values" if recipe.process or form.wants_values() else "text",
            after=from_key(part.last if part.last is not None else part.after),
            until=from_key(part.until),
            block_bytes=max(1024, recipe.declared.chunk_bytes // min(WORKERS, len(plan.parts))),
        )
        if plain and shape is not None and recipe.source.features.csv:
            return replace(reading, form="csv", csv=shape)
        return reading

    def _same_columns(self, columns: Any) -> None:
        if list(columns) != self.plan.columns:
            text = "the query gives other columns than when the run began"
            raise PermanentError(text, code="BATCH_COLUMNS_CHANGED")


class PartWork:
    """Writes the chunks of one part. It is called by one thread at a time."""

    def __init__(self, form: Any, encoder: Any, *, part: Part, number: int, whole: Any) -> None:
        self.number = number
        self._form = form
        self._encoder = encoder
        self.part = part
        self._whole = whole

    def write_first(self, file: SpoolFile) -> Chunk:
        """What stands before all rows."""
        return self._put(file, [self._encoder.begin()], Chunk(0, 0, ""))

    def write(self, file: SpoolFile, block: Block, ready: Callable[[Block], RowSet]) -> Chunk:
        """One chunk, on the disk when this returns."""
        if block.data:
            pieces, count, skipped = list(block.data), block.rows, []
        else:
            rows = ready(block)
            pieces, count, skipped = [self._encoded(rows)], len(rows.rows), rows.skipped
        if count and self.part.rows:
            pieces.insert(0, self._encoder.glue)
        return self._put(file, pieces, Chunk(0, count, "", to_key(block.last), skipped))

    def _encoded(self, rows: RowSet) -> bytes:
        while rows.rows:
            try:
                return bytes(self._encoder.rows(rows.rows))
            except RowRefusedError as refused:
                rows.drop(refused.index, refused.text)
        return b""

    def _put(self, file: SpoolFile, pieces: list[bytes], chunk: Chunk) -> Chunk:
        """Pieces are not joined without need: a chunk is a large part of the memory there is."""
        if self._form.compress:
            pieces = [self._form.framed(b"".join(pieces))]
        file.write(pieces, self.part.size_bytes)
        digest, size = sha256(), 0
        for piece in pieces:
            size += len(piece)
            digest.update(piece)
            if self._whole is not None:
                self._whole.update(piece)
        failpoints.hit(failpoints.BATCH_CHUNK_WRITTEN)
        file.sync()
        failpoints.hit(failpoints.BATCH_CHUNK_SYNCED)
        return msgspec.structs.replace(chunk, size_bytes=size, sha256=digest.hexdigest())


async def to_its_end(function: Callable[..., T], *arguments: Any) -> T:
    """In a thread; who is cancelled waits for it, because it writes into a file that is open."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    finally:
        if not task.done():
            await asyncio.wait({task})


def chosen(columns: list[RowColumn], wanted: Any, process: Any) -> list[RowColumn]:
    """The columns that are written, in their order. Raises ConfigurationError."""
    if not wanted:
        return columns
    found = {column.name: column for column in columns}
    missing = [name for name in wanted if name not in found]
    if missing and process is None:
        text = f"the file wants the column {missing[0]!r}, which the query does not give"
        raise ConfigurationError(text, code="BATCH_COLUMNS")
    return [found.get(name, RowColumn(name)) for name in wanted]


def taken_up(part: Part, number: int, *, source: Path, own: Path) -> Part | None:
    """A part as far as its chunks, which lie in ``source``, are in a file of ``own`` when this
    returns; None where not even the first is.
    """
    chunks = part.chunks(list_path(source, number))
    if source == own:
        count = verified(own / part_name(number), chunks)
    else:
        with closing(SpoolFile(own / part_name(number))) as file:
            count = adopt(source / part_name(number), file, chunks)
    if count == 0 and (chunks or part.rows):
        return None
    kept = part.rebuilt(chunks[:count])
    whole = kept.rows == part.rows and kept.size_bytes == part.size_bytes
    kept.done = part.done and whole
    return kept
