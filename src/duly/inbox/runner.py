"""Running one job: decode, transaction, handler, commit - and what to do when that did not work.

Owns the attempts that are nobody's fault: a deadlock or a lost connection is tried again at once, a
bounded number of times, and uses up no attempt.  A batch that failed is tried without its named
culprits, then one by one, once.  What an ending leads to - acknowledging, storing - belongs to the
callers.

``run`` and ``run_async`` differ in how the handler is called and how the desk is reached, and in
nothing else.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from duly.errors import BatchError, DulyError, PermanentError
from duly.inbox.context import ConsumeContext, Job
from duly.inbox.ending import DONE, End, Ended, Ending, error_text
from duly.inbox.transaction import AsyncTx, HandlerTransaction, Tx
from duly.observe import tracing
from duly.runtime.desk import AsyncDesk, Desk

__all__ = ["AGAIN_MAX", "run", "run_async"]

AGAIN_MAX = 8


class _Attempt:
    """One attempt at a job: its transaction, the values that could be decoded, the endings that are
    known.
    """

    def __init__(self, context: ConsumeContext, desk: Desk, job: Job) -> None:
        self.context, self.job = context, job
        self.endings: dict[int, Ending] = {}
        self.values = self._decode()
        self.readable = sorted(self.values)
        self.claimed = job if len(self.readable) == len(job.messages) else job.part(self.readable)
        self.transaction = (
            HandlerTransaction(context, desk, self.claimed) if self.readable else None
        )

    def _decode(self) -> dict[int, Any]:
        found = dict(self.job.values)
        decode, spec = self.context.registry.decode, self.job.handler.type
        for place, message in enumerate(self.job.messages):
            if place not in found:
                try:
                    found[place] = decode(spec, message.payload)
                except PermanentError as error:
                    self.endings[place] = Ending(End.FAILED, error_text(error))
        return found

    def fresh(self) -> list[int]:
        """The places that the handler is to get; known once the batch is claimed."""
        known = getattr(self._transaction.claim, "endings", {})
        for place, ending in known.items():
            self.endings[self.readable[place]] = ending
        return [place for place in self.readable if place not in self.endings]

    @property
    def _transaction(self) -> HandlerTransaction:
        assert self.transaction is not None
        return self.transaction

    def call(self, tx: Any) -> Any:
        """Call the handler with what it asks for."""
        handler = self.job.handler
        if handler.batch is None:
            return handler.function(
                self.values[0], **handler.arguments(tx=tx, messages=self.job.messages)
            )
        places = self.fresh()
        messages = [self.job.messages[place] for place in places]
        return handler.function(
            [self.values[p] for p in places], **handler.arguments(tx=tx, messages=messages)
        )

    def done(self) -> None:
        """What has no ending yet is committed."""
        self.endings = {**dict.fromkeys(range(len(self.job.messages)), DONE), **self.endings}

    def failed(self, error: BaseException, ending: Ending) -> None:
        """The transaction was rolled back: everything that was fresh has this ending, culprits of a
        batch their own.
        """
        places = [place for place in self.readable if place not in self.endings]
        if ending.end is End.RETRY or isinstance(error, BatchError):
            culprits = self._culprits(error, places)
            if culprits and len(culprits) < len(places):
                self.endings.update(dict.fromkeys(culprits, Ending(End.RETRY, error_text(error))))
                places = [place for place in places if place not in culprits]
                ending = Ending(End.AGAIN, "BATCH_WITHOUT_CULPRITS")
            elif isinstance(error, BatchError):
                ending = Ending(End.RETRY, error_text(error))
        self.endings.update(dict.fromkeys(places, ending))

    def _culprits(self, error: BaseException, places: Sequence[int]) -> set[int]:
        if not isinstance(error, BatchError):
            return set()
        found = set()
        for one in error.failed:
            if isinstance(one, int) and not isinstance(one, bool):
                if 0 <= one < len(places):
                    found.add(places[one])
            else:
                found |= {p for p in places if self.values[p] is one or self.job.messages[p] is one}
        return found

    def result(self) -> list[Ending]:
        """One ending per message, in order."""
        return [self.endings[place] for place in range(len(self.job.messages))]


# --- plain handlers -------------------------------------------------------------------------------
def run(context: ConsumeContext, desk: Desk, job: Job) -> list[Ending]:
    """Handle the messages of a job in a worker thread; one ending per message, in order. Never
    raises an Exception.
    """
    endings = _insist(lambda part: _attempt(context, desk, part), job)
    if len(job.messages) > 1:
        for place, ending in enumerate(endings):
            if (
                ending.end in (End.RETRY, End.FAILED)
                and ending.error.partition(":")[0] != BatchError.code
            ):
                endings[place] = run(context, desk, job.part([place]))[0]
    return endings


def _insist(attempt: Callable[[Job], list[Ending]], job: Job) -> list[Ending]:
    endings = attempt(job)
    for round_ in range(1, AGAIN_MAX):
        again = [place for place, ending in enumerate(endings) if ending.end is End.AGAIN]
        if not again:
            break
        time.sleep(_pause(round_))
        part = job if len(again) == len(job.messages) else job.part(again)
        for place, ending in zip(again, attempt(part), strict=True):
            endings[place] = ending
    return endings


def _attempt(context: ConsumeContext, desk: Desk, job: Job) -> list[Ending]:
    try:
        desk.open()
    except DulyError as error:
        return [Ending(End.AGAIN, error_text(error))] * len(job.messages)
    attempt = _Attempt(context, desk, job)
    transaction = attempt.transaction
    if transaction is None:
        return attempt.result()
    token = context.deadlines.enter(job.handler.label, context.handler_timeout_seconds)
    try:
        with _span(job), desk.shared(transaction.reach) as agree:
            if job.handler.batch is not None:
                transaction.open()
            attempt.call(Tx(transaction))
            agree()
            transaction.finish()
        attempt.done()
    except BaseException as error:  # noqa: BLE001  # also SystemExit: the message has failed, the worker lives
        _judge(attempt, transaction, error)
    finally:
        context.deadlines.leave(token)
    return attempt.result()


def _judge(attempt: _Attempt, transaction: HandlerTransaction, error: BaseException) -> None:
    ending = transaction.abandon(error)
    if attempt.job.handler.batch is not None:
        attempt.fresh()
    attempt.failed(error, ending)


# --- async handlers -------------------------------------------------------------------------------
async def run_async(context: ConsumeContext, desk: AsyncDesk, job: Job) -> list[Ending]:
    """The same on the event loop. Raises CancelledError only when this task was cancelled: nothing
    was done then.
    """
    endings = await _insist_async(context, desk, job)
    if len(job.messages) > 1:
        for place, ending in enumerate(endings):
            if (
                ending.end in (End.RETRY, End.FAILED)
                and ending.error.partition(":")[0] != BatchError.code
            ):
                endings[place] = (await run_async(context, desk, job.part([place])))[0]
    return endings


async def _insist_async(context: ConsumeContext, desk: AsyncDesk, job: Job) -> list[Ending]:
    endings = await _attempt_async(context, desk, job)
    for round_ in range(1, AGAIN_MAX):
        again = [place for place, ending in enumerate(endings) if ending.end is End.AGAIN]
        if not again:
            break
        await asyncio.sleep(_pause(round_))
        part = job if len(again) == len(job.messages) else job.part(again)
        for place, ending in zip(again, await _attempt_async(context, desk, part), strict=True):
            endings[place] = ending
    return endings


async def _attempt_async(context: ConsumeContext, desk: AsyncDesk, job: Job) -> list[Ending]:
    try:
        await desk.open()
    except DulyError as error:
        return [Ending(End.AGAIN, error_text(error))] * len(job.messages)
    attempt = _Attempt(context, desk.desk, job)
    transaction = attempt.transaction
    if transaction is None:
        return attempt.result()
    token = context.deadlines.enter(job.handler.label, context.handler_timeout_seconds)
    try:
        with _span(job):
            if job.handler.batch is not None:
                await desk.call(transaction.open)
            await attempt.call(AsyncTx(transaction, desk))
            await desk.call(transaction.finish)
        attempt.done()
    except BaseException as error:  # also SystemExit: the message has failed, the worker lives
        task = asyncio.current_task()
        cancelled = (
            isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
        )
        await _judge_async(attempt, error, desk)
        if cancelled and any(ending.end is not End.DONE for ending in attempt.result()):
            raise
    finally:
        context.deadlines.leave(token)
    return attempt.result()


async def _judge_async(attempt: _Attempt, error: BaseException, desk: AsyncDesk) -> None:
    transaction = attempt.transaction
    assert transaction is not None
    try:
        await asyncio.shield(desk.call(lambda: _judge(attempt, transaction, error)))
    except Exception as lost:  # noqa: BLE001  # the connection cannot even roll back: the server does
        await desk.close()
        attempt.failed(error, Ending(End.AGAIN, error_text(lost)))


def _span(job: Job) -> AbstractContextManager[Any]:
    handler = job.handler
    return tracing.processing(
        job.messages, group=handler.group, batch=handler.batch is not None, expected=(Ended,)
    )


def _pause(round_: int) -> float:
    """Seconds: short and uneven, so that two that collided do not collide again."""
    return float(min(0.5, 0.005 * 2**round_) * (0.5 + random.random()))
