"""XA transactions of MySQL and MariaDB: the words, and what their errors mean.

A prepared branch stays with its connection until that closes: until then nobody else can end it,
and "unknown XID" (1397) is also the answer to a branch that is there.  So whoever gets it looks at
the list.  There is nothing to ask about a branch that has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from duly.branches import BranchVerb, Finished
from duly.errors import DulyError
from duly.kernel.twophase import parse_branch
from duly.ports import Connection, Finding, Severity, Statement

__all__ = ["calls", "finish", "inspect", "prepared", "words"]

_UNKNOWN_XID = 1397
_WORDS = {
    "begin": ("XA START '{name}'",),
    "prepare": ("XA END '{name}'", "XA PREPARE '{name}'"),
    "commit": ("XA COMMIT '{name}'",),
    "rollback": ("XA ROLLBACK '{name}'",),
    "abandon": ("XA END '{name}'", "XA ROLLBACK '{name}'"),
}
_DURABLE = {"innodb_flush_log_at_trx_commit": "1", "sync_binlog": "1"}


def words(verb: BranchVerb, name: str) -> Sequence[str]:
    """As ``PreparesTransactions.branch_words``."""
    assert parse_branch(name), "only names of branches stand in SQL"
    return [text.format(name=name) for text in _WORDS[verb]]


def calls(statement: Statement) -> Sequence[tuple[str, Any, bool]]:
    """The driver calls of ``branch.*``."""
    verb = statement.name.removeprefix("branch.")
    if verb == "list":
        return [("XA RECOVER", None, False)]
    assert verb in ("commit", "rollback"), statement.name
    return [(words(verb, statement.params["name"])[0], None, False)]  # type: ignore[arg-type]


def prepared(connection: Connection) -> list[str]:
    """As ``PreparesTransactions.prepared``; those of the whole server, which any database ends."""
    rows = connection.ask(Statement("branch.list")).rows
    names = (_name(length, data) for _, length, _, data in rows)
    return [name for name in names if parse_branch(name)]


def finish(connection: Connection, name: str, *, commit: bool) -> Finished:
    """As ``PreparesTransactions.finish``."""
    verb = "commit" if commit else "rollback"
    try:
        connection.ask(Statement(f"branch.{verb}", {"name": name}))
    except DulyError as error:
        number = next(iter(getattr(error.__cause__, "args", ())), 0)
        if number != _UNKNOWN_XID:
            raise
        return Finished.BUSY if name in prepared(connection) else Finished.GONE
    return Finished.DONE


def inspect(connection: Any) -> list[Finding]:
    """As ``PreparesTransactions.inspect_prepared``; connection: the driver's."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW GLOBAL VARIABLES")
        settings = {str(name): str(value) for name, value in cursor.fetchall()}
        try:
            cursor.execute("XA RECOVER")
        except Exception as error:  # noqa: BLE001  # the driver's, and the text says which right
            text = f"prepared transactions cannot be listed: {error.args[-1]}"
            fix = "GRANT XA_RECOVER_ADMIN ON *.* to this user"
            return [Finding("XA_RECOVER_DENIED", Severity.RED, text[:300], fix)]
    found = []
    for name, good in _DURABLE.items():
        value = settings.get(name, good)
        if value != good and not (name == "sync_binlog" and settings.get("log_bin") != "ON"):
            text = f"{name} is {value}: a crash of the server can undo a branch that was ended"
            fix = f"set {name} = {good}"
            found.append(Finding("GLOBAL_TX_NOT_DURABLE", Severity.RED, text, fix))
    return found or [Finding("XA", Severity.GREEN, "XA transactions can be prepared and listed")]


def _name(length: int, data: Any) -> str:
    raw = data if isinstance(data, bytes) else str(data).encode()
    return raw[: int(length)].decode(errors="replace")
