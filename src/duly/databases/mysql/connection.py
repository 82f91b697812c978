"""One private connection of ours to MySQL or MariaDB.

Owns its session: READ COMMITTED (in REPEATABLE READ a read with locks also locks the gaps, and
producers would wait for the relay), strict mode, the server's clock in UTC, lock and idle limits.
It waits by looking, with growing pauses: there is nothing like LISTEN here.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from duly.databases.statements import drive, single
from duly.errors import OutcomeUnknownError, TransactionConflictError
from duly.kernel.names import STRIPES
from duly.ports import Result, Statement, Steps

if TYPE_CHECKING:
    from duly.databases.mysql.database import Call, MysqlDatabase

__all__ = ["MysqlConnection", "keep_alive"]

T = TypeVar("T")
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.1
MIGRATION_WAIT_SECONDS = 30
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)  # a semicolon in there ends no statement
_PATIENCE = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 3,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 15_000,
}


class MysqlConnection:
    """One connection of ours, used by one thread at a time."""

    def __init__(self, database: MysqlDatabase, raw: Any) -> None:
        self._database = database
        self._raw = raw
        self._woken = threading.Event()
        self._seen: tuple[int, ...] | None = None

    def run(self, steps: Steps[T]) -> T:
        """Drive ``steps`` in one READ COMMITTED transaction and commit it."""
        committing = False
        try:
            self._raw.begin()
            answer = drive(steps, self._call)
            committing = True
            self._raw.commit()
        except BaseException as error:
            lost = self._rollback()
            if committing and lost:
                raise OutcomeUnknownError("the connection was lost during COMMIT") from error
            raise (
                self._database.map_error(error) if isinstance(error, Exception) else error
            ) from error
        return answer

    def ask(self, statement: Statement) -> Result:
        """Run one statement by itself; several texts of one name run in one transaction."""
        if statement.name == "lease.horizon":
            return self._horizon()
        calls = self._database.prepare(statement)
        if len(calls) > 1 or calls[0][2]:
            return self.run(single(statement))
        try:
            return self._execute(calls[0])
        except Exception as error:
            raise self._database.map_error(error) from error

    def script(self, text: str) -> None:
        """Run a migration's statements one by one; no other migration of this database runs beside.

        Every CREATE is a transaction of its own here, so a migration that broke off is run again:
        each of its statements can be.
        """
        try:
            with self._raw.cursor() as cursor:
                cursor.execute(
                    "SELECT GET_LOCK(CONCAT('duly ', MD5(DATABASE())), %s)",
                    (MIGRATION_WAIT_SECONDS,),
                )
                if cursor.fetchone()[0] != 1:
                    raise TransactionConflictError("another migration is running")
                try:
                    for part in filter(str.strip, _COMMENT.sub("", text).split(";")):
                        cursor.execute(part)
                finally:
                    cursor.execute("SELECT RELEASE_LOCK(CONCAT('duly ', MD5(DATABASE())))")
        except Exception as error:
            raise self._database.map_error(error) from error

    def wait(self, timeout_seconds: float) -> bool:
        """Until there is a higher id than at the last look, ``wake`` was called, or time is up."""
        end = time.monotonic() + timeout_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            if self._has_more():
                return True
            left = end - time.monotonic()
            if left <= 0:
                return False
            if self._woken.wait(min(pause, left)):
                self._woken.clear()
                return True
            pause = min(pause * 1.3, LONGEST_PAUSE_SECONDS)

    def wake(self) -> None:
        """End a ``wait`` early, from any thread."""
        self._woken.set()

    def close(self) -> None:
        """Close the connection; never raises."""
        with suppress(Exception):  # whatever a broken connection says on close, it is gone
            self._raw.close()

    def _has_more(self) -> bool:
        row = self.ask(Statement("lease.highest")).rows[0]
        highest = tuple(value or 0 for value in row)
        seen, self._seen = self._seen, highest
        return seen is not None and any(new > old for new, old in zip(highest, seen, strict=True))

    def _horizon(self) -> Result:
        """The flushes under way, as stripe and number; see docs/adr/0010.

        First which stripes are locked, then how often each was: a flush that ends in between makes
        the number higher, never lower, so nobody's flush is taken for over while it is not.
        """
        free = {row[0] for row in self.ask(Statement("lease.free_stripes")).rows}
        locked = [stripe for stripe in range(STRIPES) if stripe not in free]
        numbers = self.ask(Statement("lease.stripes", {"stripes": locked})).rows if locked else []
        return Result([([f"{stripe}:{number}" for stripe, number in numbers], 0, 1)], 1)

    def _call(self, statement: Statement) -> Result:
        result = Result([], 0)
        for n, call in enumerate(self._database.prepare(statement)):
            step = self._execute(call)
            result = Result(step.rows or result.rows, step.count if n == 0 else result.count)
        return result

    def _execute(self, call: Call) -> Result:
        text, values, many = call
        with self._raw.cursor() as cursor:
            if many:
                cursor.executemany(text, values)
                return Result([], cursor.rowcount)
            cursor.execute(text, values)
            rows = list(cursor.fetchall()) if cursor.description is not None else []
            return Result(rows, cursor.rowcount)

    def _rollback(self) -> bool:
        """Roll back; True when the connection is lost instead."""
        try:
            self._raw.rollback()
        except Exception:  # noqa: BLE001  # a lost connection has rolled back by itself
            self.close()
            return True
        return not self._raw.open


def keep_alive(raw: Any) -> None:
    """Notice a peer that is gone without a word within half a minute, also while waiting for it."""
    wire = getattr(raw, "_sock", None)  # the driver has no option for it
    if wire is None or wire.family == socket.AF_UNIX:
        return
    for name, value in _PATIENCE.items():
        if hasattr(socket, name):
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
