"""Handling rows of the inbox: ordered messages, and whatever has to be tried again.

Owns what the lane reader does not know: how a row becomes a job, and what its end means for the
row.  Order, due times, holds and the storing of failures are the reader's (``runtime.lanes``).  The
invariants: a row is settled only in its handler's transaction, by an update that carries the lane's
token - no row means that somebody else owns it; the attempt of a row that may have ended a process
is committed before its handler starts.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import msgspec

from duly.errors import DulyError, PermanentError
from duly.inbox.claims import judged, row_statement
from duly.inbox.context import ConsumeContext, Job
from duly.inbox.crew import Crew, Task, crew_of
from duly.inbox.ending import End, Ending, error_text
from duly.inbox.failures import received_row
from duly.inbox.handlers import Handler
from duly.inbox.identity import Identity, business_key
from duly.inbox.intake import handler_of, problem_of, seconds_since
from duly.kernel.backoff import Retry
from duly.kernel.lease import LeaseTerm
from duly.message import Message
from duly.observe.facts import Duplicate, Handled
from duly.ports import Statement, Steps
from duly.runtime.connection import ConnectionThread
from duly.runtime.work import LaneTerms, Row, Verdict, VerdictKind

__all__ = ["InboxWork"]

_HEADERS = msgspec.json.Decoder(dict[str, str])
_NO_RETRY = Retry(attempts=1)
_VERDICTS = {
    End.DONE: VerdictKind.SETTLED,
    End.DUPLICATE: VerdictKind.SETTLED,
    End.STALE: VerdictKind.STALE,
    End.OWNED: VerdictKind.STALE,
    End.RETRY: VerdictKind.RETRY,
    End.FAILED: VerdictKind.FAILED,
    End.HELD: VerdictKind.HELD,
    End.BUSY: VerdictKind.HELD,
    End.LATER: VerdictKind.WAIT,
    End.AGAIN: VerdictKind.LATER,
}


class InboxWork:
    """The work behind one group's lanes. connection: for what happens around the handler's
    transaction.
    """

    box = "inbox"

    def __init__(
        self, context: ConsumeContext, group: str, *, connection: ConnectionThread
    ) -> None:
        self.group = group
        self.scope = f"inbox:{group}"
        self._context, self._connection = context, connection
        self._ordered = context.handlers.order_of(group) == "key"
        self._crews: dict[Handler, Crew] = {}
        self.batch_max = context.workers * 2
        self.in_flight_max = 4

    def order_key(self, row: Row) -> tuple[str, str] | None:
        """(topic, key) in an ordered group; rows without a key and other groups are free."""
        return (row.topic, row.key) if self._ordered and row.key is not None else None

    def wave_key(self, row: Row) -> tuple[str, str] | None:
        """The order key."""
        return self.order_key(row)

    def retry_of(self, row: Row) -> Retry:
        """The retry policy of the row's handler."""
        found = self._context.handlers.named(self.group, row.handler)
        return found[0].retry if found else _NO_RETRY

    def blocks(self, row: Row) -> bool:
        """Whether the row's handler blocks its key behind a failed message; for one without a
        handler: any of them.
        """
        of_group = self._context.handlers.of_group(self.group)
        found = self._context.handlers.named(self.group, row.handler) or of_group
        return any(handler.on_exhausted == "block" for handler in found)

    async def deliver(
        self, rows: Sequence[Row], *, deadline_seconds: float, terms: LaneTerms
    ) -> Sequence[Verdict]:
        """Handle rows, each in its own transaction; handlers may take longer than the deadline,
        their fence holds.
        """
        began = time.monotonic()
        if self._context.after_unclean_exit():
            endings = [await self._one(row, terms, careful=True) for row in rows]
        else:
            endings = await self._together(rows, terms)
        self._report(rows, endings, began)
        return [Verdict(_VERDICTS[ending.end], ending.error) for ending in endings]

    async def _together(self, rows: Sequence[Row], terms: LaneTerms) -> list[Ending]:
        """All at once, but one after the other what is tried again: one of them may end the
        process, and would use up an attempt of each that runs beside it.
        """
        again = [place for place, row in enumerate(rows) if row.status == "retry"]
        fresh = [place for place, row in enumerate(rows) if row.status != "retry"]

        async def one_by_one() -> list[Ending]:
            return [await self._one(rows[place], terms) for place in again]

        first, second = await asyncio.gather(
            asyncio.gather(*(self._one(rows[place], terms) for place in fresh)), one_by_one()
        )
        found = dict(zip([*fresh, *again], [*first, *second], strict=True))
        return [found[place] for place in range(len(rows))]

    async def stop(self, timeout_seconds: float) -> bool:
        """Start nothing more and wait for what is under way; False when some did not end."""
        for crew in self._crews.values():
            for task in crew.stop():
                task.done(task.job, [Ending(End.AGAIN, "STOPPING")])
        return all(
            await asyncio.gather(*(crew.join(timeout_seconds) for crew in self._crews.values()))
        )

    # --- one row ----------------------------------------------------------------------------------
    async def _one(self, row: Row, terms: LaneTerms, *, careful: bool = False) -> Ending:
        term = terms(row.lane)
        if term is None:
            return Ending(End.STALE)
        try:
            message = _message(row)
        except msgspec.MsgspecError as error:
            return Ending(End.HELD, error_text(error))
        handler = handler_of(self._context, self.group, message)
        problem = problem_of(self._context, self.group, message, handler=handler)
        if handler is None or problem is not None:
            return Ending(End.HELD, problem or "UNKNOWN_TYPE: its handler is gone")
        try:
            return await self._handle(
                Job(handler, [message], [_identity(self.group, row)], row=row, term=term), careful
            )
        except DulyError as error:
            return Ending(End.AGAIN, error_text(error))

    async def _handle(self, job: Job, careful: bool) -> Ending:
        row, term = job.row, job.term
        assert row is not None
        assert term is not None
        if ending := await self._identify(job, row, term):
            return ending
        counted = row.status == "retry" or careful
        if counted:
            if row.attempts >= job.handler.retry.attempts:
                return Ending(End.FAILED, "PROCESS_ENDED: its process ended in every attempt")
            if not await self._set_attempts(row, term, row.attempts + 1):
                return Ending(End.STALE)
        ending = await self._submit(job)
        if ending.half:
            await self._reopen(job, row, ending)
        elif counted and ending.end in (End.LATER, End.AGAIN):
            await self._set_attempts(row, term, row.attempts)
        return ending

    async def _identify(self, job: Job, row: Row, term: LeaseTerm) -> Ending | None:
        """A business key is computed again: an operator may have edited the message, or it waited
        for a busy key.
        """
        dedupe = job.handler.dedupe
        if dedupe is None:
            return None
        try:
            job.values[0] = self._context.registry.decode(job.handler.type, row.payload)
            key = business_key(dedupe, job.values[0])
        except Exception as error:  # noqa: BLE001  # the user's function may raise anything
            return Ending(
                End.FAILED if isinstance(error, PermanentError) else End.RETRY, error_text(error)
            )
        job.identities = [Identity(self.group, row.handler, key)]
        if key == row.dedupe_key:
            return None
        return await self._connection.run(lambda: _rekey(row, term, key=key, group=self.group))

    async def _set_attempts(self, row: Row, term: LeaseTerm, attempts: int) -> bool:
        result = await self._connection.ask(
            row_statement("inbox.attempt", row, term, attempts=attempts)
        )
        return result.count == 1

    async def _reopen(self, job: Job, row: Row, ending: Ending) -> None:
        values = received_row(job.identities[0], job.messages[0], ordered=self._ordered)
        more = {"attempts": row.attempts + 1, "error": ending.error}
        await self._connection.ask(Statement("inbox.reopen", {**values, "lane": row.lane, **more}))

    async def _submit(self, job: Job) -> Ending:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Ending] = loop.create_future()

        def tell(ending: Ending) -> None:
            if not ended.done():
                ended.set_result(ending)

        def done(_: Job, endings: Sequence[Ending]) -> None:
            loop.call_soon_threadsafe(tell, endings[0])

        crew = self._crews.get(job.handler)
        if crew is None:
            crew = self._crews[job.handler] = crew_of(self._context, job.handler)
        crew.submit(Task(job, done, stores=False))
        return await ended

    # --- facts ------------------------------------------------------------------------------------
    def _report(self, rows: Sequence[Row], endings: Sequence[Ending], began: float) -> None:
        emit, seconds = self._context.hooks.emit, time.monotonic() - began
        done, lag, duplicates = Counter[str](), dict[str, float](), Counter[str]()
        for row, ending in zip(rows, endings, strict=True):
            if ending.end is End.DONE:
                done[row.handler] += 1
                lag[row.handler] = max(lag.get(row.handler, 0.0), seconds_since(_message(row)))
            elif ending.end is End.DUPLICATE:
                duplicates[row.handler] += 1
        for name, count in done.items():
            emit(
                Handled(
                    group=self.group,
                    handler=name,
                    count=count,
                    seconds=seconds,
                    lag_seconds=lag[name],
                )
            )
        for name, count in duplicates.items():
            emit(Duplicate(group=self.group, handler=name, count=count))


def _identity(group: str, row: Row) -> Identity:
    return Identity(group, row.handler, row.dedupe_key)


def _message(row: Row) -> Message:
    headers = _HEADERS.decode(row.headers)
    return Message(
        row.message_id, row.message_type, row.kind, row.topic, row.key, bytes(row.payload), headers
    )


def _rekey(row: Row, term: LeaseTerm, *, key: str, group: str) -> Steps[Ending | None]:
    """Give a row its business key, unless another message has it: then that one decides."""
    moved = yield Statement(
        "inbox.rekey", {"id": row.id, "message_id": row.message_id, "dedupe_key": key}
    )
    if moved.count == 1:
        return None
    found = yield Statement(
        "inbox.look", {"group": group, "handler": row.handler, "dedupe_key": key}
    )
    if not found.rows:
        return Ending(End.AGAIN, "TRANSACTION_CONFLICT: the row in the way is gone")
    ending = judged(found.rows[0][0], found.rows[0][1], row.message_id)
    if ending.end is End.DUPLICATE:
        error = "DUPLICATE: another message with this key is done"
        yield row_statement("inbox.pass_over", row, term, error=error)
    return ending
