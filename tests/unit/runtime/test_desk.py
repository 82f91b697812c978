"""A transaction that was begun below SQLAlchemy: whole without it, and joined by it when asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from duly.databases.sqlite.database import SqliteDatabase
from duly.errors import TransactionMisuseError
from duly.runtime.desk import Desk


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    made = SqliteDatabase(f"sqlite:///{tmp_path / 'shop.db'}")
    with made.engine().begin() as connection:
        connection.execute(text("CREATE TABLE one (id INTEGER PRIMARY KEY)"))
    yield made
    made.close()


@pytest.fixture
def desk(database: SqliteDatabase) -> Iterator[Desk]:
    made = Desk(database, limit_seconds=30, turn=database.turn)
    yield made
    made.close()


def rows(database: SqliteDatabase) -> int:
    with database.engine().connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM one")).scalar_one())


def finish(desk: Desk) -> None:
    desk.commit(failed=desk.unguard(committing=True))


@pytest.fixture
def heard(database: SqliteDatabase) -> Iterator[list[str]]:
    names: list[str] = []
    listeners = {name: _teller(names, name) for name in ("begin", "commit", "rollback")}
    for name, listener in listeners.items():
        event.listen(database.engine(), name, listener)
    yield names
    for name, listener in listeners.items():
        event.remove(database.engine(), name, listener)


def _teller(names: list[str], name: str) -> Any:
    def tell(_connection: Any) -> None:
        names.append(name)

    return tell


def test_plain_sql_is_committed_without_a_word_to_sqlalchemy(
    desk: Desk, database: SqliteDatabase
) -> None:
    for number in range(3):
        desk.begin_guarded()
        assert desk.in_transaction
        assert not desk._core.in_transaction()
        desk.driver.execute("INSERT INTO one VALUES (?)", (number,))
        finish(desk)
        assert not desk.in_transaction
    assert rows(database) == 3


def test_it_is_rolled_back_likewise(desk: Desk, database: SqliteDatabase) -> None:
    desk.begin_guarded()
    desk.driver.execute("INSERT INTO one VALUES (1)")
    desk.rollback()
    assert not desk.in_transaction
    assert not desk.driver.in_transaction
    desk.begin_guarded()
    finish(desk)
    assert rows(database) == 0


def test_a_session_joins_in_the_middle(desk: Desk, database: SqliteDatabase) -> None:
    desk.begin_guarded()
    desk.driver.execute("INSERT INTO one VALUES (1)")
    session = Session(bind=desk.core, join_transaction_mode="rollback_only")
    assert session.execute(text("SELECT count(*) FROM one")).scalar_one() == 1
    session.execute(text("INSERT INTO one VALUES (2)"))
    assert desk.unguard() is None
    desk.commit(session.commit)
    session.close()
    assert not desk.driver.in_transaction
    assert rows(database) == 2


def test_what_is_unguarded_and_committed_in_two_steps_is_committed(
    desk: Desk, database: SqliteDatabase
) -> None:
    desk.begin_guarded()
    desk.driver.execute("INSERT INTO one VALUES (1)")
    assert desk.unguard() is None
    desk.commit()
    assert rows(database) == 1


def test_whoever_listens_hears_every_transaction(desk: Desk, heard: list[str]) -> None:
    desk.open()
    heard.clear()
    desk.begin_guarded()
    desk.driver.execute("INSERT INTO one VALUES (1)")
    finish(desk)
    assert heard == ["begin", "commit"]
    heard.clear()
    desk.begin_guarded()
    desk.rollback()
    assert heard == ["begin", "rollback"]


def test_a_transaction_that_the_handler_ended_is_misuse(
    desk: Desk, database: SqliteDatabase
) -> None:
    desk.begin_guarded()
    desk.driver.execute("COMMIT")
    desk.driver.execute("BEGIN IMMEDIATE")
    desk.driver.execute("INSERT INTO one VALUES (1)")
    with pytest.raises(TransactionMisuseError):
        finish(desk)
    desk.rollback()
    assert rows(database) == 0
