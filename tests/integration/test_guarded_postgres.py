"""A handler's transaction begun and ended in one round trip each, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import Connection

from duly.databases.postgres.database import PostgresDatabase
from duly.errors import OutcomeUnknownError, RetryableError, TransactionMisuseError
from duly.runtime.desk import Desk

TABLES = """
CREATE TABLE one (id int PRIMARY KEY);
CREATE TABLE two (id int REFERENCES one DEFERRABLE INITIALLY DEFERRED);
"""


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(TABLES)
        yield connection


@pytest.fixture
def desk(admin: psycopg.Connection[Any], postgres_url: str) -> Iterator[Desk]:
    database = PostgresDatabase(postgres_url)
    made = Desk(database, limit_seconds=30, turn=database.turn)
    made.begin_guarded()
    yield made
    made.close()
    database.close()


def finish(desk: Desk) -> None:
    desk.commit(failed=desk.unguard(committing=True))


def count(admin: psycopg.Connection[Any]) -> int:
    row = admin.execute("SELECT (SELECT count(*) FROM one) + (SELECT count(*) FROM two)").fetchone()
    return int(row[0]) if row else -1


def test_what_was_done_is_committed_and_the_next_one_begins_anew(
    desk: Desk, admin: psycopg.Connection[Any]
) -> None:
    desk.driver.execute("INSERT INTO one VALUES (1)")
    finish(desk)
    assert count(admin) == 1
    assert not desk.in_transaction
    desk.begin_guarded()
    desk.driver.execute("INSERT INTO one VALUES (2)")
    desk.rollback()
    assert count(admin) == 1


def test_a_session_joins_what_was_begun(desk: Desk, admin: psycopg.Connection[Any]) -> None:
    core: Connection = desk.core
    core.exec_driver_sql("INSERT INTO one VALUES (1)")
    assert desk.unguard() is None
    desk.commit()
    assert count(admin) == 1


@pytest.mark.parametrize("again", [False, True], ids=["ended", "ended and begun again"])
def test_a_transaction_that_the_handler_ended_is_misuse(
    desk: Desk, admin: psycopg.Connection[Any], again: bool
) -> None:
    desk.driver.commit()
    if again:
        desk.driver.execute("INSERT INTO one VALUES (1)")
    with pytest.raises(TransactionMisuseError):
        finish(desk)
    desk.rollback()
    assert count(admin) == 0


def test_an_error_that_the_handler_ignored_is_no_misuse(
    desk: Desk, admin: psycopg.Connection[Any]
) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        desk.driver.execute("SELECT 1 / 0")
    with pytest.raises(RetryableError) as caught:
        finish(desk)
    assert caught.value.code == "TRANSACTION_ABORTED"


def test_a_commit_that_a_deferred_constraint_refuses_is_neither(
    desk: Desk, admin: psycopg.Connection[Any]
) -> None:
    desk.driver.execute("INSERT INTO two VALUES (7)")
    failed = desk.unguard(committing=True)
    assert isinstance(failed, psycopg.errors.ForeignKeyViolation)
    with pytest.raises(Exception, match="two_id_fkey"):
        desk.commit(failed=failed)
    assert count(admin) == 0


def test_a_connection_that_is_lost_leaves_the_outcome_unknown(
    desk: Desk, admin: psycopg.Connection[Any]
) -> None:
    desk.driver.execute("INSERT INTO one VALUES (1)")
    admin.execute("SELECT pg_terminate_backend(%s)", (desk.driver.info.backend_pid,))
    with pytest.raises(OutcomeUnknownError):
        finish(desk)
    assert count(admin) == 0


def test_a_connection_with_settings_of_its_own_is_asked_step_by_step(postgres_url: str) -> None:
    database = PostgresDatabase(postgres_url)
    with psycopg.connect(postgres_url) as plain:
        plain.execute("SELECT 1")
        assert not database.begin_guarded(plain), "something has begun already"
        plain.rollback()
        plain.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        assert not database.begin_guarded(plain)
        plain.isolation_level = None
        plain.autocommit = True
        assert not database.begin_guarded(plain)
        plain.autocommit = False
        assert database.begin_guarded(plain)
        assert database.commit_guarded(plain) is None
