"""One branch of a global transaction on the connection that does its work.

Two kinds: a ``Connection`` of SQLAlchemy (async ones through their sync side, in a greenlet) and a
raw one of psycopg or PyMySQL.  The invariant: a connection whose branch did not end as it should is
never given back; it is closed, and what was not prepared is rolled back by its server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from sqlalchemy.engine import Connection
from sqlalchemy.engine.base import TwoPhaseTransaction
from sqlalchemy.orm import Session

from duly.errors import ConfigurationError, TransactionMisuseError
from duly.ports import Result, Statement, Steps
from duly.twophase.registry import Participant

__all__ = ["AlchemyBranch", "LiveBranch", "RawBranch", "rebound"]

_log = logging.getLogger("duly.twophase")
_RAW = {"psycopg", "pymysql"}


class LiveBranch(Protocol):
    """What the coordinator asks of a branch, in this order."""

    participant: Participant
    name: str

    def settle(self) -> None:
        """Say everything that the user's work still has to say; nothing may follow it."""
        ...

    def mark(self) -> str:
        """The mark of the branch. Raises TransactionMisuseError where its transaction is not the
        one that began, and what the database raises where it has failed.
        """
        ...

    def prepare(self) -> None:
        """Prepare it; what it raises may leave it prepared or not."""
        ...

    def finish(self, *, commit: bool) -> None:
        """End what is prepared."""
        ...

    def release(self, *, clean: bool) -> None:
        """Give the connection back; not clean: roll back what is not prepared, and close it."""
        ...


class AlchemyBranch:
    """A branch on a Connection. owned: whether to close it in the end. flush: stores what waits in
    its transaction for the commit.
    """

    def __init__(
        self,
        participant: Participant,
        name: str,
        connection: Connection,
        *,
        owned: bool,
        flush: Callable[[Any], None],
    ) -> None:
        self.participant, self.name, self.connection = participant, name, connection
        self.sessions: list[Session] = []  # ours
        self.guests: list[Session] = []  # the user's, here until the end
        self._owned, self._flush = owned, flush
        if connection.in_transaction():
            raise _not_idle(participant, "its connection")
        self._transaction: TwoPhaseTransaction = connection.begin_twophase(name)
        try:
            for text in participant.branches.branch_words("begin", name)[1:]:
                connection.exec_driver_sql(text)
        except BaseException:
            self.release(clean=False)
            raise

    def admit(self) -> None:
        """Raise ConfigurationError where the user's connection goes to another database."""
        try:
            _admit(self.participant, self.connection.connection.driver_connection, self._run)
        except BaseException:
            self.release(clean=False)
            raise

    def session(self, **options: Any) -> Session:
        """A session in this branch; its commit flushes, and decides nothing."""
        made = Session(
            bind=self.connection,
            join_transaction_mode="rollback_only",
            **{"expire_on_commit": False, **options},
        )
        self.sessions.append(made)
        return made

    def settle(self) -> None:
        """Flush sessions, hand over and store messages."""
        for session in (*self.sessions, *self.guests):
            session.commit()
        self._check()
        self._flush(self.connection)

    def mark(self) -> str:
        """As ``LiveBranch``."""
        self._check()
        text = self.participant.branches.branch_mark(self.name)
        if not text:
            return ""
        return _marked(self.participant, self.connection.exec_driver_sql(text).fetchall())

    def prepare(self) -> None:
        """As ``LiveBranch``."""
        self._transaction.prepare()

    def finish(self, *, commit: bool) -> None:
        """As ``LiveBranch``."""
        if commit:
            self._transaction.commit()
        else:
            self._transaction.rollback()

    def release(self, *, clean: bool) -> None:
        """As ``LiveBranch``."""
        with suppress(Exception):  # of a session whose connection is lost; it holds nothing more
            for session in self.sessions:
                session.close()
            for session in self.guests:
                session.rollback()
        if not clean:
            self._throw_away()
        if self._owned:
            with suppress(Exception):  # as above
                self.connection.close()

    def _throw_away(self) -> None:
        if self.connection.closed:
            return
        try:
            if self._transaction.is_active and not self._transaction._is_prepared:
                self._transaction.rollback()
                return
        except Exception as error:  # noqa: BLE001  # then the server rolls back when it is closed
            _log.debug("branch %s was not rolled back: %s", self.name, type(error).__name__)
        with suppress(Exception):  # it is given up, whatever it says
            self.connection.invalidate()

    def _check(self) -> None:
        live = self.connection.get_transaction() is self._transaction
        if not live or not self._transaction.is_active:
            raise _ended(self.participant)

    def _run(self, sql: str, parameters: Any) -> list[tuple[Any, ...]]:
        with self.connection.exec_driver_sql(sql, parameters) as cursor:
            return [tuple(row) for row in cursor] if cursor.returns_rows else []


class RawBranch:
    """A branch on a psycopg or PyMySQL connection of the user's, which stays theirs."""

    def __init__(self, participant: Participant, name: str, connection: Any) -> None:
        self.participant, self.name, self.connection = participant, name, connection
        self._packages = {cls.__module__.partition(".")[0] for cls in type(connection).__mro__}
        if not self._packages & _RAW or type(connection).__name__.startswith("Async"):
            kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
            raise ConfigurationError(
                f"{kind} cannot be a branch; give a Session or Connection of SQLAlchemy, or a "
                "psycopg or PyMySQL connection",
                code="NOT_A_BRANCH",
            )
        self._prepared = False
        if self._in_transaction():
            raise _not_idle(participant, "its connection")
        self._autocommit = self._is_psycopg and connection.autocommit
        if self._is_psycopg:
            connection.autocommit = True  # else the driver begins before everything that is said
        try:
            self._say("begin")
            _admit(participant, connection, self._run)
        except BaseException:
            self.release(clean=False)
            raise

    @property
    def _is_psycopg(self) -> bool:
        return "psycopg" in self._packages

    def settle(self) -> None:
        """Nothing waits on a raw connection."""

    def mark(self) -> str:
        """As ``LiveBranch``."""
        text = self.participant.branches.branch_mark(self.name)
        return _marked(self.participant, self._run(text, None)) if text else ""

    def prepare(self) -> None:
        """As ``LiveBranch``."""
        self._say("prepare")
        self._prepared = True

    def finish(self, *, commit: bool) -> None:
        """As ``LiveBranch``."""
        undo = "rollback" if self._prepared else "abandon"
        self._say("commit" if commit else undo)

    def release(self, *, clean: bool) -> None:
        """As ``LiveBranch``."""
        try:
            if not clean:
                if self._prepared:
                    self.connection.close()
                    return
                self._say("abandon")
            if self._is_psycopg:
                self.connection.autocommit = self._autocommit
        except Exception as error:  # noqa: BLE001  # then the server rolls back when it is closed
            _log.debug("branch %s was not rolled back: %s", self.name, type(error).__name__)
            with suppress(Exception):  # it is given up, whatever it says
                self.connection.close()

    def _in_transaction(self) -> bool:
        if self._is_psycopg:
            return bool(self.connection.info.transaction_status.name != "IDLE")
        return bool(self.connection.server_status & 1)  # SERVER_STATUS_IN_TRANS

    def _say(self, verb: Any) -> None:
        for text in self.participant.branches.branch_words(verb, self.name):
            self._run(text, None)

    def _run(self, sql: str, parameters: Any) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return [tuple(row) for row in cursor.fetchall()] if cursor.description else []


@contextmanager
def rebound(session: Session, participant: Participant) -> Iterator[Connection]:
    """A connection of the session's own engine, and the session on it until the block ends."""
    if session.in_transaction():
        raise _not_idle(participant, "the session")
    if getattr(session, "_Session__binds", None):
        text = "a session with several binds is no one branch; join one session per database"
        raise ConfigurationError(text, code="NOT_A_BRANCH")
    engine = session.get_bind()
    if isinstance(engine, Connection):
        raise ConfigurationError("join the session's connection instead", code="NOT_A_BRANCH")
    connection = engine.connect()
    before = session.bind, session.join_transaction_mode
    session.bind, session.join_transaction_mode = connection, "rollback_only"
    try:
        yield connection
    finally:
        session.bind, session.join_transaction_mode = before


def _admit(
    participant: Participant, driver: Any, run: Callable[[str, Any], list[tuple[Any, ...]]]
) -> None:
    """Raise ConfigurationError where a connection of the user's goes to another database."""

    def call(statement: Statement) -> Result:
        rows: list[tuple[Any, ...]] = []
        for sql, parameters, _ in participant.database.prepare(statement):
            rows = run(sql, parameters or None)
        return Result(rows, len(rows))

    steps: Steps[None] = participant.database.admits(driver, managed=True)
    try:
        statement = next(steps)
        while True:
            statement = steps.send(call(statement))
    except StopIteration:
        return


def _marked(participant: Participant, rows: Any) -> str:
    if not rows:
        raise _ended(participant)
    return str(rows[0][0] or "")


def _ended(participant: Participant) -> TransactionMisuseError:
    text = f"the transaction of {participant.name} was ended inside the global transaction"
    return TransactionMisuseError(text, code="BRANCH_ENDED")


def _not_idle(participant: Participant, what: str) -> ConfigurationError:
    text = f"{what} of {participant.name} has a transaction already; join it before its first work"
    return ConfigurationError(text, code="BRANCH_NOT_IDLE")
