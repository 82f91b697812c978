"""What psycopg raises, as one of ours; no server is needed to tell errors apart."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from duly.databases.postgres.database import PostgresDatabase
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DulyError,
    PermanentError,
    SchemaError,
    TransactionConflictError,
)
from duly.ports import Statement

URL = "postgresql://bob:hunter2secret@127.0.0.1:1/shop"
STATES: list[tuple[str, type[DulyError], str]] = [
    ("40001", TransactionConflictError, "TRANSACTION_CONFLICT"),
    ("40P01", TransactionConflictError, "TRANSACTION_CONFLICT"),
    ("55P03", TransactionConflictError, "TRANSACTION_CONFLICT"),
    ("28P01", ConfigurationError, "DATABASE_REFUSED"),
    ("3D000", ConfigurationError, "DATABASE_REFUSED"),
    ("42501", ConfigurationError, "DATABASE_REFUSED"),
    ("42P01", SchemaError, "SCHEMA"),
    ("42703", SchemaError, "SCHEMA"),
    ("25006", ConfigurationError, "DATABASE_READ_ONLY"),
    ("57P01", DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    ("53300", DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    ("08006", DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    ("23505", PermanentError, "DATABASE_ERROR"),
    ("22003", PermanentError, "DATABASE_ERROR"),
]
TEXTS = {
    'FATAL:  password authentication failed for user "bob"': "DATABASE_REFUSED",
    'FATAL:  database "shop" does not exist': "DATABASE_REFUSED",
    'FATAL:  role "bob" does not exist': "DATABASE_REFUSED",
    'FATAL:  role "bob" is not permitted to log in': "DATABASE_REFUSED",
    'FATAL:  no pg_hba.conf entry for host "127.0.0.1"': "DATABASE_REFUSED",
    "FATAL:  unsupported startup parameter: options": "POOLER_WITHOUT_LISTEN_URL",
    "connection refused": "DATABASE_UNAVAILABLE",
    "server closed the connection unexpectedly": "DATABASE_UNAVAILABLE",
}


@pytest.fixture
def database() -> PostgresDatabase:
    return PostgresDatabase(URL)


def with_state(state: str | None, text: str = "the text") -> psycopg.Error:
    error = psycopg.OperationalError(text)
    error.sqlstate = state  # type: ignore[misc]
    return error


@pytest.mark.parametrize(("state", "kind", "code"), STATES)
def test_sqlstates(
    database: PostgresDatabase, state: str, kind: type[DulyError], code: str
) -> None:
    error = database.map_error(with_state(state))
    assert type(error) is kind
    assert isinstance(error, DulyError)
    assert error.code == code


@pytest.mark.parametrize("text", TEXTS)
def test_a_connection_that_was_not_made_has_only_its_text(
    database: PostgresDatabase, text: str
) -> None:
    error = database.map_error(with_state(None, f"connection to server failed: {text}"))
    away = TEXTS[text] == "DATABASE_UNAVAILABLE"
    assert type(error) is (DatabaseUnavailableError if away else ConfigurationError)
    assert isinstance(error, DulyError)
    assert error.code == TEXTS[text]


def test_a_closed_connection(database: PostgresDatabase) -> None:
    error = database.map_error(psycopg.InterfaceError("the connection is closed"))
    assert isinstance(error, DatabaseUnavailableError)


def test_other_exceptions_stay_what_they_are(database: PostgresDatabase) -> None:
    error = ValueError()
    assert database.map_error(error) is error


def test_a_server_that_is_not_there_is_told_without_the_password(
    database: PostgresDatabase,
) -> None:
    with pytest.raises(DatabaseUnavailableError) as caught:
        database.connect()
    assert "hunter2secret" not in str(caught.value)


# --- statements -----------------------------------------------------------------------------------
def row(stripe: int | None) -> dict[str, Any]:
    values = dict.fromkeys(("message_id", "message_type", "kind", "topic", "key", "headers"), "x")
    return {**values, "lane": 1, "stripe": stripe, "payload": b"{}"}


def test_keyless_messages_take_one_statement_and_no_lock(database: PostgresDatabase) -> None:
    calls = database.prepare(Statement("outbox.insert", many=[row(None), row(None)]))
    assert len(calls) == 1
    assert "advisory" not in calls[0][0]
    assert "stripes" not in calls[0][1]


def test_keyed_messages_lock_distinct_stripes_in_order_before_they_draw_ids(
    database: PostgresDatabase,
) -> None:
    rows = [row(stripe) for stripe in (9, 3, None, 9, 1)]
    calls = database.prepare(Statement("outbox.insert", many=rows))
    [(text, values, many)] = calls
    assert "MATERIALIZED" in text
    assert text.index("duly_settled()") < text.index("pg_advisory_xact_lock")
    assert values["stripes"] == [1, 3, 9]
    assert len(values["message_id"]) == 5
    assert many is False


def test_one_keyed_message_is_one_row_and_no_arrays(database: PostgresDatabase) -> None:
    calls = database.prepare(Statement("outbox.insert", many=[row(7)]))
    [(text, values, many)] = calls
    assert not many
    assert "unnest" not in text
    places = [text.index(n) for n in ("WHERE CASE", "duly_settled()", "pg_advisory_xact_lock")]
    assert places == sorted(places)
    assert (values["stripe"], values["lock_timeout"]) == (7, "5000ms")


def test_apps_with_different_prefixes_lock_different_stripes() -> None:
    def namespace(prefix: str) -> object:
        made = PostgresDatabase(URL, prefix=prefix)
        return made.prepare(Statement("outbox.insert", many=[row(1)]))[0][1]["namespace"]

    assert namespace("a_") != namespace("b_")
    assert namespace("a_") == namespace("a_")


# --- poolers --------------------------------------------------------------------------------------
def test_behind_a_pooler_every_transaction_makes_its_settings(database: PostgresDatabase) -> None:
    assert database.begin == "BEGIN"
    pooled = PostgresDatabase(URL, listen_url=URL, lock_timeout_seconds=2, idle_timeout_seconds=9)
    assert pooled.begin.split("; ") == [
        "BEGIN",
        "SET LOCAL lock_timeout = 2000",
        "SET LOCAL idle_in_transaction_session_timeout = 9000",
        "SET LOCAL enable_seqscan = off",
        "SET LOCAL enable_bitmapscan = off",
        "SET LOCAL jit = off",
    ]
    assert pooled.prepare(Statement("inbox.deadline", {"milliseconds": "9000"})) == [
        ("SELECT 1", None, False)
    ]
    [(guard, values, _)] = pooled.prepare(Statement("inbox.guard"))
    assert guard.split("; ") == [
        "SET LOCAL lock_timeout = 9000",
        "SET LOCAL idle_in_transaction_session_timeout = 9000",
        "SAVEPOINT duly_guard",
    ]
    assert values is None, "one round trip: several statements take no parameters"
    assert "SET" not in database.prepare(Statement("inbox.guard"))[0][0]
