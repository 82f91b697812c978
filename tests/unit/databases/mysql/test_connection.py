"""A migration is run statement by statement."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from duly.databases.mysql.connection import MysqlConnection


class Raw:
    """A driver's connection that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def cursor(self) -> Any:
        yield self

    def execute(self, text: str, _values: object = None) -> None:
        self.said.append(text.strip())

    def fetchone(self) -> tuple[int]:
        return (1,)


def test_a_semicolon_in_a_comment_ends_no_statement() -> None:
    raw = Raw()
    connection = MysqlConnection(None, raw)  # type: ignore[arg-type]
    connection.script("-- how far it is; written together\nCREATE TABLE a (b int);\n  -- end;\n")
    lock, *statements, release = raw.said
    assert "GET_LOCK" in lock
    assert statements == ["CREATE TABLE a (b int)"]
    assert "RELEASE_LOCK" in release
