"""The step that delivers the file of a run.

Owns how often a connection is made again and what counts as getting on; what is done over one is in
``delivery``.  The invariant: a connection that is lost costs the run nothing as long as bytes go
through, and a server on which nothing goes through ends the attempt after ``retry``.  A run that
another process has taken over stops with the next checkpoint it tries to store.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from duly.batch.delivery import Delivery, Policy, Sealed, matches
from duly.batch.manifest import read_manifest
from duly.batch.steps import StepContext, StopAtCheckpoint
from duly.errors import FileTargetUnavailableError, PermanentError
from duly.kernel.backoff import Retry
from duly.targets import FileSession, FileTarget, ReadAt

__all__ = ["SendStep"]

FULL = "FILE_TARGET_FULL"
STOP_LOOK_SECONDS = 0.5


class SendStep:
    """Delivers the sealed file. policy: what is asked of the delivery. retry: of connections that
    brought nothing.
    """

    name = "send"

    def __init__(self, target: FileTarget, *, policy: Policy, retry: Retry) -> None:
        self._target, self._policy, self._retry = target, policy, retry

    async def run(self, context: StepContext) -> None:
        """Deliver the file from its last checkpoint on.

        Guarantee: under the final name there is the whole file or what was there before. On
        failure: the next attempt goes on where answers ended. Idempotent. Raises FileTargetError,
        FileTargetUnavailableError, HostKeyError, ConfigurationError, OutcomeUnknownError,
        StopAtCheckpoint, StaleLeaseError.
        """
        sealed: Sealed = read_manifest(context.spool)
        with _opened(sealed.path, sealed.size_bytes) as read:
            delivery = Delivery(context, self._policy, sealed, read=read)
            failures, farthest = 0, 0
            while True:
                try:
                    async with self._target.open() as session:
                        await delivery.drive(session)
                        return
                except FileTargetUnavailableError as error:
                    if delivery.held.acked_bytes > farthest:
                        failures, farthest = 0, delivery.held.acked_bytes
                    failures += 1
                    if error.code == FULL or self._retry.exhausted(failures):
                        raise
                await _pause(context, self._retry.delay(failures, random.random()))

    async def verify(self, context: StepContext) -> list[str]:
        """What differs between the manifest and what is there under the final name; changes
        nothing. Raises FileTargetUnavailableError and what connecting raises.
        """
        sealed: Sealed = read_manifest(context.spool)
        with _opened(sealed.path, sealed.size_bytes) as read:
            async with self._target.open() as session:
                found = await _difference(session, sealed, read)
        return [f"{sealed.name} at {self._target.place}: {found}"] if found else []


async def _difference(session: FileSession, sealed: Sealed, read: ReadAt) -> str:
    there = await session.look(sealed.name)
    if there is None:
        return "is not there"
    if there.kind != "file":
        return f"is a {there.kind}"
    if there.size_bytes != sealed.size_bytes:
        return f"has {there.size_bytes} bytes, not {sealed.size_bytes}"
    digest = await session.digest(sealed.name)
    if digest is not None:
        return "" if digest == sealed.sha256 else "has another SHA-256"
    if not session.features.reads:
        return "cannot be read back; its size is right"
    span = range(sealed.size_bytes)
    return "" if await matches(session, sealed.name, read, span=span) else "has other bytes"


@contextmanager
def _opened(path: Path, size_bytes: int) -> Iterator[ReadAt]:
    """Reads of a local file at any place. Raises PermanentError when it is not what was sealed."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        text = f"{path.name} is not in the spool"
        raise PermanentError(text, code="BATCH_SPOOL_GONE") from error
    try:
        found = os.fstat(file).st_size
        if found != size_bytes:
            text = f"{path.name} has {found} bytes in the spool, and {size_bytes} were sealed"
            raise PermanentError(text, code="BATCH_SPOOL_DAMAGED")
        yield lambda offset, size: os.pread(file, size, offset)
    finally:
        os.close(file)


async def _pause(context: StepContext, seconds: float) -> None:
    """Wait before the next connection, and look now and then whether to stop."""
    end = asyncio.get_running_loop().time() + seconds
    while (left := end - asyncio.get_running_loop().time()) > 0:
        if context.stopping:
            raise StopAtCheckpoint
        await asyncio.sleep(min(left, STOP_LOOK_SECONDS))
