"""What PyMySQL and asyncmy raise, as one of ours; no server is needed to tell errors apart."""

from __future__ import annotations

import pymysql
import pytest

from duly.databases.mysql.database import MysqlDatabase
from duly.databases.mysql.failures import mapped, number_of
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DulyError,
    PermanentError,
    SchemaError,
    TransactionConflictError,
)

NUMBERS: list[tuple[int, type[DulyError], str]] = [
    (1205, TransactionConflictError, "TRANSACTION_CONFLICT"),
    (1213, TransactionConflictError, "TRANSACTION_CONFLICT"),
    (3572, TransactionConflictError, "TRANSACTION_CONFLICT"),
    (1044, ConfigurationError, "DATABASE_REFUSED"),
    (1045, ConfigurationError, "DATABASE_REFUSED"),
    (1049, ConfigurationError, "DATABASE_REFUSED"),
    (1142, ConfigurationError, "DATABASE_REFUSED"),
    (1290, ConfigurationError, "DATABASE_READ_ONLY"),
    (1665, ConfigurationError, "BINLOG_FORMAT"),
    (1054, SchemaError, "SCHEMA"),
    (1146, SchemaError, "SCHEMA"),
    (0, DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    (1040, DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    (1927, DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    (2003, DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    (2006, DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    (2013, DatabaseUnavailableError, "DATABASE_UNAVAILABLE"),
    (1406, PermanentError, "DATABASE_ERROR"),
    (1048, PermanentError, "DATABASE_ERROR"),
]


@pytest.mark.parametrize(("number", "kind", "code"), NUMBERS)
def test_by_number(number: int, kind: type[DulyError], code: str) -> None:
    made = mapped(pymysql.err.OperationalError(number, "what the server says"))
    assert type(made) is kind
    assert isinstance(made, DulyError)
    assert made.code == code
    assert "what the server says" in str(made)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Duplicate entry 'a-b' for key 'duly_inbox_once'", "TRANSACTION_CONFLICT"),
        ("Duplicate entry 'a-b' for key 'duly_inbox.duly_inbox_once'", "TRANSACTION_CONFLICT"),
        ("Duplicate entry 'a' for key 'PRIMARY'", "DATABASE_ERROR"),
        ("Duplicate entry 'a' for key 'orders.PRIMARY'", "DATABASE_ERROR"),
    ],
)
def test_a_claim_that_was_beaten_is_a_conflict_and_a_users_own_double_is_not(
    text: str, code: str
) -> None:
    made = mapped(pymysql.err.IntegrityError(1062, text))
    assert isinstance(made, DulyError)
    assert made.code == code


def test_a_savepoint_that_is_gone_is_no_missing_table() -> None:
    made = mapped(pymysql.err.OperationalError(1305, "SAVEPOINT duly_guard does not exist"))
    assert type(made) is PermanentError


def test_what_is_not_the_drivers_stays_as_it_is() -> None:
    error = ValueError("mine")
    assert (mapped(error), number_of(error)) == (error, None)
    assert number_of(pymysql.err.InterfaceError()) == 0


def test_asyncmy_has_the_same_numbers() -> None:
    errors = pytest.importorskip("asyncmy.errors")
    assert type(mapped(errors.OperationalError(1213, "deadlock"))) is TransactionConflictError


def test_nobody_listens_and_no_password_is_told() -> None:
    database = MysqlDatabase(
        "mysql://bob:hunter2secret@127.0.0.1:1/shop", connect_timeout_seconds=1
    )
    with pytest.raises(DatabaseUnavailableError) as caught:
        database.connect()
    assert "hunter2secret" not in str(caught.value)
