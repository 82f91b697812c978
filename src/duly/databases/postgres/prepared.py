"""Prepared transactions of PostgreSQL: the words, and what its errors mean.

The invariant: PREPARE TRANSACTION is said only in the transaction that began the branch and has not
failed - elsewhere the server answers ROLLBACK, which is no error.  So the branch's name is a
setting of that transaction, and the statement before the preparation asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from duly.branches import BranchVerb, Finished
from duly.errors import DulyError
from duly.kernel.twophase import parse_branch
from duly.ports import Connection, Finding, Severity, Statement

__all__ = ["calls", "fate", "finish", "inspect", "mark", "prepared", "quiet", "words"]

_GONE = "42704"
_BUSY = "55000"
_WORDS = {
    "begin": ("BEGIN", "SET LOCAL duly.branch = '{name}'"),
    "prepare": ("PREPARE TRANSACTION '{name}'",),
    "commit": ("COMMIT PREPARED '{name}'",),
    "rollback": ("ROLLBACK PREPARED '{name}'",),
    "abandon": ("ROLLBACK",),
}
_LIST = (
    "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE 'duly-%'"
)
_FATE = "SELECT pg_xact_status(%(mark)s::text::xid8)"
_NOTIFY = "SELECT pg_notify("


def words(verb: BranchVerb, name: str) -> Sequence[str]:
    """As ``PreparesTransactions.branch_words``."""
    assert parse_branch(name), "only names of branches stand in SQL"
    return [text.format(name=name) for text in _WORDS[verb]]


def mark(name: str) -> str:
    """As ``PreparesTransactions.branch_mark``."""
    assert parse_branch(name), "only names of branches stand in SQL"
    asked = f"current_setting('duly.branch', true) = '{name}'"
    return f"SELECT pg_current_xact_id_if_assigned()::text WHERE {asked}"


def calls(statement: Statement) -> Sequence[tuple[str, Any, bool]]:
    """The driver calls of ``branch.*``; ending a branch takes no parameters and no transaction."""
    verb = statement.name.removeprefix("branch.")
    if verb == "list":
        return [(_LIST, None, False)]
    if verb == "fate":
        return [(_FATE, statement.params, False)]
    assert verb in ("commit", "rollback"), statement.name
    return [(words(verb, statement.params["name"])[0], None, False)]  # type: ignore[arg-type]


def quiet(text: str) -> str:
    """An insert that wakes nobody: what has notified cannot be prepared."""
    before, word, _ = text.partition(_NOTIFY)
    assert word, "the insert has no notification"
    return f"{before}SELECT 1"


def prepared(connection: Connection) -> list[str]:
    """As ``PreparesTransactions.prepared``."""
    rows = connection.ask(Statement("branch.list")).rows
    return [row[0] for row in rows if parse_branch(row[0])]


def finish(connection: Connection, name: str, *, commit: bool) -> Finished:
    """As ``PreparesTransactions.finish``."""
    verb = "commit" if commit else "rollback"
    try:
        connection.ask(Statement(f"branch.{verb}", {"name": name}))
    except DulyError as error:
        state = getattr(error.__cause__, "sqlstate", "")
        if state == _GONE:
            return Finished.GONE
        if state == _BUSY:
            return Finished.BUSY
        raise
    return Finished.DONE


def fate(connection: Connection, mark: str) -> bool | None:
    """As ``PreparesTransactions.fate``."""
    rows = connection.ask(Statement("branch.fate", {"mark": mark})).rows
    return {"committed": True, "aborted": False}.get(rows[0][0])


def inspect(connection: Any) -> list[Finding]:
    """As ``PreparesTransactions.inspect_prepared``; connection: the driver's."""

    def ask(text: str) -> int:
        return int(connection.execute(text).fetchone()[0])

    room = int(connection.execute("SHOW max_prepared_transactions").fetchone()[0])
    if room == 0:
        text = "max_prepared_transactions is 0: this server prepares no transactions"
        most = ask("SELECT setting FROM pg_settings WHERE name = 'max_connections'")
        fix = f"set max_prepared_transactions = {most} (as max_connections) and restart the server"
        return [Finding("MAX_PREPARED_TRANSACTIONS", Severity.RED, text, fix)]
    if connection.execute("SHOW synchronous_commit").fetchone()[0] == "off":
        text = "synchronous_commit is off: a crash of the server can undo a decision"
        return [Finding("GLOBAL_TX_NOT_DURABLE", Severity.RED, text, "set synchronous_commit = on")]
    used = ask("SELECT count(*) FROM pg_prepared_xacts")
    if used * 2 > room:
        text = f"{used} of max_prepared_transactions = {room} are in use"
        fix = "run `duly 2pc list`; raise max_prepared_transactions where all of them are wanted"
        return [Finding("PREPARED_TRANSACTIONS_MANY", Severity.WEAK, text, fix)]
    return [Finding("PREPARED_TRANSACTIONS", Severity.GREEN, f"room for {room}, {used} in use")]
