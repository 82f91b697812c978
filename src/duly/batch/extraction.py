"""Rows become chunks of a file, and a chunk is stored once: written, synced, then checkpointed.

    read -> (process) -> encode -> write -> fdatasync -> checkpoint
     next chunk meanwhile

The invariants: a checkpoint is saved only behind the sync of all it speaks of; a chunk ends where
its rows say, not when somebody wants to stop, so that whoever goes on makes the same chunks; and
what another attempt left is used only as far as its digests hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from duly.batch.formats.text import RowRefusedError
from duly.batch.instance import file_name
from duly.batch.manifest import MANIFEST
from duly.batch.plan import Part, Plan, from_key, list_path, to_key
from duly.batch.process import RowSet, as_process
from duly.batch.seal import EXTRACTED, Extracted, part_name
from duly.batch.spool import Chunk, SpoolFile, adopt, spool_errors, verified
from duly.batch.steps import StepContext, StopAtCheckpoint
from duly.errors import ConfigurationError, PermanentError
from duly.kernel import failpoints
from duly.rows import Block, Reading, RowColumn, RowQuery, RowReader

__all__ = ["Extraction"]

WORKERS = 4
CHECKPOINT_BYTES = 32 * 1024
STAGES_KEPT_MAX = 16
T = TypeVar("T")


class Extraction:
    """One run of the step ``extract``. job: its read, write, process and places are asked."""

    def __init__(self, job: Any, context: StepContext) -> None:
        self._declared = job.read
        self._form = job.write
        self._process = as_process(job.process)
        self._context = context
        self._source = job.places.row_source(job.read.database)
        self._query = RowQuery(
            job.read.text, job.read.key_columns(), context.params, job.read.row_bytes_max
        )
        self._saving = asyncio.Lock()
        self._whole: Any = None  # digest of the one part that this attempt writes from its begin

    async def run(self) -> None:
        """Extract what is missing. Raises what the port raises, and StopAtCheckpoint."""
        context = self._context
        stored = context.load()
        if stored is None:
            plan = await asyncio.to_thread(self._new_plan, 0)
            self._empty_spool()
            await self._save(plan)
            if len(plan.parts) == 1 and not hasattr(self._form, "assemble"):
                self._whole = sha256()
        else:
            plan = await self._resumed(msgspec.json.decode(stored, type=Plan))
        context.fact("mode", plan.mode)
        context.fact("source", self._source.dialect)
        if not plan.done:
            await self._extract(plan)
        await self._finish(plan)

    # --- the plan ---------------------------------------------------------------------------------
    def _new_plan(self, restarts: int) -> Plan:
        """Look at the query, and decide what is decided once."""
        declared, context = self._declared, self._context
        self._check_features()
        with closing(self._source.open()) as reader:
            columns = list(reader.columns(self._query))
            twice = {c.name for c in columns if [o.name for o in columns].count(c.name) > 1}
            if twice:
                text = f"the query has the column {min(twice)!r} twice"
                raise ConfigurationError(text, code="BATCH_QUERY")
            self._check_form(columns)
            context.fact("key", reader.check(self._query))
            query, stage, until = self._query, "", None
            if declared.mode == "staged":
                stage = self._stage_name(context.attempt)
                reader.stage(self._query, stage)
                self._unstage_older(reader)
                query = reader.staged(self._query, stage) or self._query
            if declared.mode == "bounded":
                until = reader.highest(query)
            # Cutting reads all keys, so it is asked for only where there is something to cut.
            parallel = declared.partitions > 1
            cuts = reader.splits(query, declared.partitions, until=until) if parallel else []
        bounds = [None, *map(to_key, cuts), to_key(until)]
        parts = [Part(after=a, until=u) for a, u in pairwise(bounds)]
        if declared.mode == "bounded" and until is None:
            parts[0].done = True  # there was no row when it began
        return Plan(declared.mode, columns, parts, stage, restarts=restarts)

    def _check_form(self, columns: list[RowColumn]) -> None:
        """What the file wants is found out before hours of reading, not behind them."""
        chosen_ones = chosen(columns, self._form.columns, self._process)
        encoder = self._form.encoder(chosen_ones, self._context.params)
        file_name(self._form.name, self._context.params)
        self._form.framed(encoder.begin() + encoder.end(0) + b"\n")

    def _check_features(self) -> None:
        mode, features = self._declared.mode, self._source.features
        beside = mode == "snapshot" and self._declared.partitions > 1
        if (mode == "staged" and not features.stages) or (beside and not features.shares_snapshot):
            text = f"{self._source.dialect} has no mode={mode!r}"
            raise ConfigurationError(
                f"{text} with partitions" if beside else text, code="BATCH_MODE"
            )

    async def _resumed(self, plan: Plan) -> Plan:
        """Go on from what an attempt before, or this one, has stored."""
        context = self._context
        if plan.mode == "snapshot" and not plan.done:
            return await self._again(plan, "a snapshot ends with its connection")
        if plan.stage and not plan.done and not await asyncio.to_thread(self._stage_stands, plan):
            return await self._again(plan, "the stage is gone")
        # Whoever stored the checkpoint has what it speaks of; what lies here may be half a copy.
        if context.previous_spool is not None:
            source = context.previous_spool
            context.fact("spool", "copied")
        elif (context.spool / part_name(0)).exists():
            source = context.spool
        else:
            return await self._again(plan, "the spool of the attempt before cannot be seen here")
        found = await asyncio.to_thread(self._adopted, plan, source)
        if found is None:
            return await self._again(plan, "the spool does not hold what was stored")
        if not found.done:
            await asyncio.to_thread(self._unseal)
        if found.rows < plan.rows:
            context.fact("rows_lost", plan.rows - found.rows)
        context.fact("resumed_at_rows", found.rows)
        await self._save(found)
        return found

    async def _again(self, plan: Plan, reason: str) -> Plan:
        """Begin at the first row, and say so. What bounds the rows stays, where it still can."""
        self._context.fact("restarted", reason)
        if plan.mode in ("snapshot", "staged") or plan.stage:
            if plan.stage:
                await asyncio.to_thread(self._unstage, plan)
            fresh = await asyncio.to_thread(self._new_plan, plan.restarts + 1)
        else:
            parts = [part.rebuilt(()) for part in plan.parts]
            fresh = Plan(plan.mode, plan.columns, parts, restarts=plan.restarts + 1)
            if plan.mode == "bounded" and parts[-1].until is None:
                fresh.parts[0].done = True
        self._empty_spool()
        await self._save(fresh)
        return fresh

    def _adopted(self, plan: Plan, source: Path) -> Plan | None:
        """The plan as far as its chunks are in files of this attempt; None: not even the first."""
        own, parts = self._context.spool, []
        for number, part in enumerate(plan.parts):
            chunks = part.chunks(list_path(source, number))
            if source == own:
                count = verified(own / part_name(number), chunks)
            else:
                file = SpoolFile(own / part_name(number))
                with closing(file):
                    count = adopt(source / part_name(number), file, chunks)
            if count == 0 and (chunks or part.rows):
                return None
            kept = part.rebuilt(chunks[:count])
            whole = kept.rows == part.rows and kept.size_bytes == part.size_bytes
            kept.done = part.done and whole
            parts.append(kept)
        made = msgspec.structs.replace(plan, parts=parts)
        made.spill(own, tail_max=1)
        return made

    def _stage_stands(self, plan: Plan) -> bool:
        with closing(self._source.open()) as reader:
            return reader.staged(self._query, plan.stage) is not None

    def _unstage(self, plan: Plan) -> None:
        with closing(self._source.open()) as reader:
            reader.unstage(plan.stage)
            self._unstage_older(reader)

    def _stage_name(self, attempt: int) -> str:
        """Of each attempt its own: one that wakes up late may make, fill or drop its table."""
        return f"duly_stage_{sha256(self._context.instance.encode()).hexdigest()[:12]}_{attempt}"

    def _unstage_older(self, reader: RowReader) -> None:
        """What attempts left that died before they could tell of it."""
        attempt = self._context.attempt
        for older in range(max(1, attempt - STAGES_KEPT_MAX), attempt):
            reader.unstage(self._stage_name(older))

    def _unseal(self) -> None:
        """What was told of a whole file holds no longer."""
        with spool_errors(self._context.spool):
            for name in (MANIFEST, EXTRACTED):
                (self._context.spool / name).unlink(missing_ok=True)

    def _empty_spool(self) -> None:
        """Nothing of an earlier beginning may be taken for this one's."""
        with spool_errors(self._context.spool):
            for path in self._context.spool.iterdir():
                if path.is_file() or path.is_symlink():
                    path.unlink()

    # --- rows -------------------------------------------------------------------------------------
    async def _extract(self, plan: Plan) -> None:
        keeper: RowReader | None = None
        moment = ""
        query = self._query
        if plan.stage:
            query = replace(query, text=f"SELECT * FROM {plan.stage}", params={})  # noqa: S608
        try:
            if plan.mode == "snapshot" and len(plan.parts) > 1:
                keeper = opened = await asyncio.to_thread(self._source.open)
                moment = await asyncio.to_thread(opened.export)
            gate = asyncio.Semaphore(WORKERS)

            async def guarded(number: int) -> None:
                async with gate:
                    await self._part(plan, number, query=query, moment=moment)

            async with asyncio.TaskGroup() as group:
                for number, part in enumerate(plan.parts):
                    if not part.done:
                        group.create_task(guarded(number))
        except* StopAtCheckpoint as stopped:
            raise StopAtCheckpoint from stopped
        except* Exception as failed:
            raise _first(failed) from failed
        finally:
            if keeper is not None:
                await asyncio.to_thread(keeper.close)

    async def _part(self, plan: Plan, number: int, *, query: RowQuery, moment: str) -> None:
        part = plan.parts[number]
        work = self._work(plan, number)
        file = SpoolFile(self._context.spool / part_name(number))
        reader = await asyncio.to_thread(self._source.open, moment=moment)
        try:
            self._same_columns(plan, await asyncio.to_thread(reader.columns, query))
            blocks = reader.read(query, self._reading(plan, part))
            with closing(file):
                file.cut(part.size_bytes)
                await self._chunks(plan, work, file=file, blocks=blocks)
        finally:
            await asyncio.to_thread(reader.close)
        part.done = True
        await self._save(plan)

    async def _chunks(
        self, plan: Plan, work: _PartWork, *, file: SpoolFile, blocks: Iterator[Block]
    ) -> None:
        """Store block after block; the next one is read meanwhile."""
        part = plan.parts[work.number]
        coming = asyncio.create_task(asyncio.to_thread(next, blocks, None))
        try:
            if work.number == 0 and not part.tail and not part.listed:
                part.add(await _to_its_end(work.write_first, file))
            while (block := await asyncio.shield(coming)) is not None:
                coming = asyncio.create_task(asyncio.to_thread(next, blocks, None))
                chunk = await _to_its_end(work.write, file, block, self._skips(plan))
                part.add(chunk)
                await self._save(plan)
                failpoints.hit(failpoints.BATCH_CHECKPOINT_SAVED)
                if self._context.stopping:
                    raise StopAtCheckpoint
        finally:
            await asyncio.wait({coming})  # its thread has the connection
            coming.exception()
            blocks.close()  # type: ignore[attr-defined]  # a generator, as the port says

    def _work(self, plan: Plan, number: int) -> _PartWork:
        columns = chosen(plan.columns, self._form.columns, self._process)
        encoder = self._form.encoder(columns, self._context.params)
        part = plan.parts[number]
        return _PartWork(self._form, encoder, part=part, number=number, whole=self._whole)

    def _skips(self, plan: Plan) -> Callable[[Block], RowSet]:
        """Makes the rows of a block ready."""
        process = self._process
        columns, names = plan.columns, [column.name for column in plan.columns]
        wanted = [column.name for column in chosen(columns, self._form.columns, process)]
        places = [names.index(column.name) for column in self._query.key]
        left = (process.skip_max if process else 0) - plan.skipped

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

    def _reading(self, plan: Plan, part: Part) -> Reading:
        names = [column.name for column in plan.columns]
        plain = self._process is None and tuple(self._form.columns) in ((), tuple(names))
        shape = self._form.csv_shape()
        reading = Reading(
            form="values" if self._process or self._form.wants_values() else "text",
            after=from_key(part.last if part.last is not None else part.after),
            until=from_key(part.until),
            block_bytes=max(1024, self._declared.chunk_bytes // min(WORKERS, len(plan.parts))),
        )
        if plain and shape is not None and self._source.features.csv:
            return replace(reading, form="csv", csv=shape)
        return reading

    @staticmethod
    def _same_columns(plan: Plan, columns: Any) -> None:
        if list(columns) != plan.columns:
            text = "the query gives other columns than when the run began"
            raise PermanentError(text, code="BATCH_COLUMNS_CHANGED")

    # --- the end ----------------------------------------------------------------------------------
    async def _save(self, plan: Plan) -> None:
        async with self._saving:
            await _to_its_end(plan.spill, self._context.spool)
            data = msgspec.json.encode(plan)
            if len(data) > CHECKPOINT_BYTES:
                await _to_its_end(partial(plan.spill, self._context.spool, tail_max=0))
                data = msgspec.json.encode(plan)
            await self._context.save(data, rows=plan.rows, size_bytes=plan.size_bytes)
        self._context.progress(rows=plan.rows, size_bytes=plan.size_bytes)

    async def _finish(self, plan: Plan) -> None:
        spool = self._context.spool
        if plan.rows == 0 and self._declared.on_empty == "fail":
            raise PermanentError("the query gives no row", code="BATCH_EMPTY")
        if not (spool / EXTRACTED).exists():
            await asyncio.to_thread(self._describe, plan)
        if plan.stage and not plan.unstaged:
            await asyncio.to_thread(self._unstage, plan)
            plan.unstaged = True
            await self._save(plan)

    def _describe(self, plan: Plan) -> None:
        spool = self._context.spool
        if not (spool / part_name(0)).exists() or not (plan.parts[0].tail or plan.parts[0].listed):
            work = self._work(plan, 0)
            with closing(SpoolFile(spool / part_name(0))) as file:
                plan.parts[0].add(work.write_first(file))
        parts = [part.chunks(list_path(spool, n)) for n, part in enumerate(plan.parts)]
        columns = chosen(plan.columns, self._form.columns, self._process)
        digest = ""
        if self._whole is not None:
            end = self._form.encoder(columns, self._context.params).end(plan.rows)
            self._whole.update(self._form.framed(end))
            digest = self._whole.hexdigest()
        Extracted(columns, parts, digest).store(spool)


class _PartWork:
    """Writes the chunks of one part. It is called by one thread at a time."""

    def __init__(self, form: Any, encoder: Any, *, part: Part, number: int, whole: Any) -> None:
        self.number = number
        self._form = form
        self._encoder = encoder
        self._part = part
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
        if count and self._part.rows:
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
        file.write(pieces, self._part.size_bytes)
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


async def _to_its_end(function: Callable[..., T], *arguments: Any) -> T:
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


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
