"""The step ``extract``: what is decided once, and what is left when it breaks off.

    plan -> read the parts -> (gather what other processes read) -> describe

Owns the plan of an extraction: its columns, bounds and parts are decided once, stored before the
first row is read, and kept by whoever goes on - or begun anew, and the run says why.  How a part
becomes chunks is the business of ``parts``; how several processes share them, of ``sharing``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import msgspec

from duly.batch.instance import file_name
from duly.batch.manifest import MANIFEST
from duly.batch.parts import WORKERS, PartReading, Recipe, chosen, taken_up, to_its_end
from duly.batch.plan import Part, Plan, list_path, to_key
from duly.batch.seal import EXTRACTED, Extracted, part_name
from duly.batch.sharing import Sharing
from duly.batch.spool import SpoolFile, spool_errors
from duly.batch.steps import StepContext, StopAtCheckpoint
from duly.errors import ConfigurationError, PermanentError, RetryableError
from duly.kernel import failpoints
from duly.rows import RowColumn, RowReader

if TYPE_CHECKING:
    from duly.batch.partitions import Partitions

__all__ = ["Extraction"]

CHECKPOINT_BYTES = 32 * 1024
STAGES_KEPT_MAX = 16
GATHERINGS_MAX = 3


class Extraction:
    """One run of the step ``extract``. job: its read, write, process and places are asked."""

    def __init__(self, job: Any, context: StepContext) -> None:
        self._declared = job.read
        self._form = job.write
        self._context = context
        self._recipe = Recipe.of(job, context.params)
        self._source, self._query = self._recipe.source, self._recipe.query
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
        if plan.mark and context.partitions is not None:
            await context.partitions.forget()

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
        mark = self._mark(parts)
        return Plan(declared.mode, columns, parts, stage, restarts=restarts, mark=mark)

    def _mark(self, parts: Sequence[Part]) -> str:
        """Of a plan whose parts may be read by others; one moment is seen by one process only."""
        alone = len(parts) == 1 or self._declared.mode == "snapshot"
        return "" if alone or self._context.partitions is None else token_hex(4)

    def _check_form(self, columns: list[RowColumn]) -> None:
        """What the file wants is found out before hours of reading, not behind them."""
        chosen_ones = chosen(columns, self._form.columns, self._recipe.process)
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
        if plan.mark and not plan.done:
            return plan  # how far its parts are is stored beside it
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
            found.mark = ""  # what is damaged is read on here, behind what is not
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
            restarts, mark = plan.restarts + 1, self._mark(parts)
            fresh = Plan(plan.mode, plan.columns, parts, restarts=restarts, mark=mark)
            if plan.mode == "bounded" and parts[-1].until is None:
                fresh.parts[0].done = True
        self._empty_spool()
        await self._save(fresh)
        return fresh

    def _adopted(self, plan: Plan, source: Path) -> Plan | None:
        """The plan as far as its chunks are in files of this attempt; None: not even the first."""
        own, parts = self._context.spool, []
        for number, part in enumerate(plan.parts):
            kept = taken_up(part, number, source=source, own=own)
            if kept is None:
                return None
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
        partitions = self._context.partitions
        if plan.mark and partitions is not None:
            await self._shared(plan, partitions)
        else:
            await self._alone(plan)

    async def _shared(self, plan: Plan, partitions: Partitions) -> None:
        """Read the parts together with whoever helps, then bring them into this folder."""
        await partitions.forget(but=plan.mark)
        sharing = Sharing(plan, partitions, leads=True)
        reading = self._parts_of(plan, skipped=lambda: sharing.skipped)
        told = (-1, -1)

        async def save(known: Mapping[int, Part]) -> None:
            nonlocal told
            parts = list(known.values())
            done = (sum(one.rows for one in parts), sum(one.size_bytes for one in parts))
            if done != told:
                told = done
                await self._save(plan, done=done)

        for _ in range(GATHERINGS_MAX):
            stored = await sharing.work(reading, stopping=self._stopping, told=save)
            if await sharing.gather(stored, self._context.spool):
                break
            self._context.fact("restarted", "partitions that cannot be had here")
        else:
            text = "what was read in partitions does not stay as it was written"
            raise RetryableError(text, code="BATCH_SPOOL_CORRUPT")
        self._skipped_few(plan)
        await self._save(plan)
        failpoints.hit(failpoints.BATCH_PARTITIONS_GATHERED)

    def _skipped_few(self, plan: Plan) -> None:
        """Several who skip at once each know a little late of the others."""
        process = self._recipe.process
        most = process.skip_max if process else 0
        if plan.skipped > most:
            text = f"{plan.skipped} rows were left out, {most} may be"
            raise PermanentError(text, code="BATCH_ROW_REFUSED")

    async def _alone(self, plan: Plan) -> None:
        """Read the parts here, some at a time."""
        keeper: RowReader | None = None
        moment = ""
        reading = self._parts_of(plan, skipped=lambda: plan.skipped)
        try:
            if plan.mode == "snapshot" and len(plan.parts) > 1:
                keeper = opened = await asyncio.to_thread(self._source.open)
                moment = await asyncio.to_thread(opened.export)
            gate = asyncio.Semaphore(WORKERS)

            async def guarded(number: int, part: Part) -> None:
                async with gate:
                    save = partial(self._save, plan)
                    await reading.run(number, part, save=save, moment=moment)

            async with asyncio.TaskGroup() as group:
                for number, part in enumerate(plan.parts):
                    if not part.done:
                        group.create_task(guarded(number, part))
        except* StopAtCheckpoint as stopped:
            raise StopAtCheckpoint from stopped
        except* Exception as failed:
            raise _first(failed) from failed
        finally:
            if keeper is not None:
                await asyncio.to_thread(keeper.close)

    def _parts_of(self, plan: Plan, *, skipped: Callable[[], int]) -> PartReading:
        return PartReading(
            self._recipe,
            plan,
            spool=self._context.spool,
            stopping=self._stopping,
            skipped=skipped,
            whole=self._whole,
        )

    def _stopping(self) -> bool:
        return self._context.stopping

    # --- the end ----------------------------------------------------------------------------------
    async def _save(self, plan: Plan, *, done: tuple[int, int] | None = None) -> None:
        """Store the plan. done: rows and bytes, where these are stored beside it."""
        rows, size_bytes = done or (plan.rows, plan.size_bytes)
        async with self._saving:
            await to_its_end(plan.spill, self._context.spool)
            data = msgspec.json.encode(plan)
            if len(data) > CHECKPOINT_BYTES:
                await to_its_end(partial(plan.spill, self._context.spool, tail_max=0))
                data = msgspec.json.encode(plan)
            await self._context.save(data, rows=rows, size_bytes=size_bytes)
        self._context.progress(rows=rows, size_bytes=size_bytes)

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
            work = self._recipe.work(plan, 0, part=plan.parts[0])
            with closing(SpoolFile(spool / part_name(0))) as file:
                plan.parts[0].add(work.write_first(file))
        parts = [part.chunks(list_path(spool, n)) for n, part in enumerate(plan.parts)]
        columns = chosen(plan.columns, self._form.columns, self._recipe.process)
        digest = ""
        if self._whole is not None:
            end = self._form.encoder(columns, self._context.params).end(plan.rows)
            self._whole.update(self._form.framed(end))
            digest = self._whole.hexdigest()
        Extracted(columns, parts, digest).store(spool)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
