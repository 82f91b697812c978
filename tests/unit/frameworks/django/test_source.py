from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.transaction import TransactionManagementError

from duly.adapters import make_database
from duly.config import Settings
from duly.errors import ConfigurationError, TransactionMisuseError
from duly.frameworks.django import DjangoDatabase


@pytest.mark.parametrize(
    ("alias", "url"),
    [
        ("postgres", "postgresql://anna:p%40ss%2Fword@db:5433/shop?sslmode=require"),
        ("pooled", "postgresql://anna:p%40ss%2Fword@/shop?host=%2Frun%2Fpg"),
        ("mysql", "mysql://anna:p%40ss%2Fword@db/shop?ssl_ca=%2Fca.pem"),
        (
            "mysql socket",
            "mysql://anna:p%40ss%2Fword@localhost/shop?charset=utf8mb4&unix_socket=%2Frun%2Fmy.sock",
        ),
    ],
)
def test_the_url_is_what_django_connects_to(alias: str, url: str) -> None:
    assert DjangoDatabase(alias).url == url
    assert make_database(Settings(), DjangoDatabase(alias)).engine().url.database == "shop"


@pytest.mark.parametrize(
    ("alias", "code"), [("memory", "DJANGO_MEMORY_DATABASE"), ("strange", "DJANGO_BACKEND")]
)
def test_what_cannot_work_is_refused(alias: str, code: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        _ = DjangoDatabase(alias).url
    assert caught.value.code == code


def test_the_file_is_the_one_of_now(path: Path) -> None:
    database: Any = make_database(Settings(), DjangoDatabase())
    assert database.path == str(path)


# --- the guest ------------------------------------------------------------------------------------
@pytest.fixture
def source() -> DjangoDatabase:
    return DjangoDatabase()


@pytest.fixture
def core(path: Path, source: DjangoDatabase) -> Iterator[Any]:
    with source.make_engine().connect() as connection, connection.begin():
        yield connection


def driver_of(core: Any) -> Any:
    return core.connection.driver_connection


def test_the_orm_works_where_the_handler_does(core: Any, source: DjangoDatabase) -> None:
    outer = connections["default"]
    with source.shared(lambda: driver_of(core)) as agree:
        with connections["default"].cursor() as cursor:
            cursor.execute("CREATE TABLE t (n)")
            cursor.execute("INSERT INTO t VALUES (%s)", [1])
        with pytest.raises(LookupError), transaction.atomic():
            with connections["default"].cursor() as cursor:
                cursor.execute("INSERT INTO t VALUES (2)")
            raise LookupError
        agree()
    assert connections["default"] is outer
    assert core.exec_driver_sql("SELECT n FROM t").fetchall() == [(1,)]


def test_nothing_is_opened_before_the_first_query(path: Path, source: DjangoDatabase) -> None:
    def reach() -> Any:
        raise AssertionError("reached")

    with source.shared(reach), pytest.raises(AssertionError, match="reached"), transaction.atomic():
        pytest.fail("the savepoint is a query")


def test_the_transaction_cannot_be_ended(core: Any, source: DjangoDatabase) -> None:
    with source.shared(lambda: driver_of(core)) as agree:
        guest = connections["default"]
        for end in (transaction.commit, transaction.rollback):
            with pytest.raises(TransactionManagementError):
                end()
        with pytest.raises(TransactionManagementError):
            transaction.set_autocommit(True)
        with pytest.raises(RuntimeError, match="durable"), transaction.atomic(durable=True):
            pytest.fail("it is nested")
        for private in (guest.close, guest._commit, guest._rollback):
            with pytest.raises(TransactionMisuseError):
                private()
        agree()
        transaction.set_rollback(True)
        with pytest.raises(TransactionMisuseError):
            agree()
    with pytest.raises(TransactionMisuseError), guest.cursor():
        pytest.fail("the handler has returned")


def test_hooks_run_after_a_commit_and_only_then(
    core: Any, source: DjangoDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []

    def fail() -> None:
        raise ValueError

    with pytest.raises(LookupError), source.shared(lambda: driver_of(core)):
        transaction.on_commit(lambda: done.append(0))
        raise LookupError
    with caplog.at_level(logging.ERROR), source.shared(lambda: driver_of(core)):
        transaction.on_commit(lambda: done.append(1))
        transaction.on_commit(fail)
        transaction.on_commit(lambda: done.append(2))
        assert done == []
    assert done == [1, 2]
    assert "on_commit in a handler failed" in caplog.text
