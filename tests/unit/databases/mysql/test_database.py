"""URLs, refusals and driver calls of the MySQL store; no server is needed."""

from __future__ import annotations

import sqlite3
from typing import Any

import pymysql
import pytest

from duly.databases.mysql.database import MysqlDatabase
from duly.errors import ConfigurationError, InvalidNameError, PermanentError
from duly.kernel.names import LANES
from duly.outbox.layout import layout_of
from duly.ports import PublishesInSql, Statement
from duly.testing.database_conformance import BOX

URL = "mysql://bob:hunter2secret@127.0.0.1:1/shop"


@pytest.fixture
def database() -> MysqlDatabase:
    return MysqlDatabase(URL, lock_timeout_seconds=1.2)


def row(n: int, **more: Any) -> dict[str, Any]:
    values = {"message_id": f"m{n}", "message_type": "t", "kind": "event", "topic": "orders"}
    values |= {"key": None, "stripe": None, "lane": 0, "payload": b"", "headers": "{}"}
    return values | more


def test_urls() -> None:
    assert MysqlDatabase("mariadb+pymysql://h/shop").url == "mysql://h/shop"
    assert MysqlDatabase("mysql://h/shop?charset=utf8mb4").dialect == "mysql"
    with pytest.raises(ConfigurationError, match="must name a database"):
        MysqlDatabase("mysql://h")
    with pytest.raises(ConfigurationError) as caught:
        MysqlDatabase("mysql://h/shop?charset=latin1")
    assert caught.value.code == "MYSQL_CHARSET"


def test_keyed_messages_lock_their_stripes_once_and_in_order(database: MysqlDatabase) -> None:
    rows = [row(1, key="a", stripe=9), row(2, key="b", stripe=3), row(3, key="c", stripe=9)]
    lock, insert = database.prepare(Statement("outbox.insert", many=rows))
    assert "UPDATE duly_stripe" in lock[0]
    assert lock[1] == {"stripes": (3, 9), "wait_seconds": 2}
    assert insert[0].count("(%(message_id_") == 3


def test_messages_without_a_key_are_one_statement(database: MysqlDatabase) -> None:
    ((text, _, many),) = database.prepare(Statement("outbox.insert", many=[row(1), row(2)]))
    assert (text.startswith("INSERT INTO duly_outbox"), many) == (True, False)


def test_a_claim_is_one_insert_however_many_rows_there_are(database: MysqlDatabase) -> None:
    """Its count is the number of those that are new, and callers read the first count."""
    rows = ", ".join(f'["d{n}", "m{n}", null]' for n in range(1200))
    values = {"group": "g", "handler": "h", "message_type": "t", "kind": "event", "topic": "o"}
    statement = Statement("inbox.claim_all", {**values, "rows": f"[{rows}]"})
    assert len(database.prepare(statement)) == 1


def test_two_claims_never_have_the_same_mark(database: MysqlDatabase) -> None:
    values = {"group": "g", "handler": "h", "message_type": "t", "kind": "event", "topic": "o"}
    statement = Statement("inbox.claim_many", {**values, "rows": '[["d", "m", null]]'})
    marks = {database.prepare(statement)[1][1]["mark"] for _ in range(100)}
    assert len(marks) == 100


def test_an_identity_that_would_be_cut_is_refused_before_it_is_sent(
    database: MysqlDatabase,
) -> None:
    values = {"dedupe_key": "x" * 2000, "message_id": "m", "message_type": "t"}
    for name in ("inbox.claim", "inbox.store", "effect.intend"):
        with pytest.raises(PermanentError, match="VALUE_TOO_LONG"):
            database.prepare(Statement(name, values))


def test_lanes_are_named_in_the_order_in_which_all_lock_them(database: MysqlDatabase) -> None:
    values = {"scope": "outbox", "lanes": list(range(LANES)), "holder": "me"}
    texts = [text for text, _, _ in database.prepare(Statement("lease.take", values))]
    assert all("ORDER BY name" in text for text in texts[:2])
    assert len(texts) == 3


@pytest.mark.parametrize("connection", [sqlite3.Connection, object])
def test_other_drivers_are_refused_by_their_class(
    database: MysqlDatabase, connection: type
) -> None:
    made = sqlite3.connect(":memory:") if connection is sqlite3.Connection else object()
    with pytest.raises(ConfigurationError) as caught:
        next(database.admits(made, managed=True))
    assert caught.value.code == "WRONG_DATABASE"


def test_subclasses_of_the_driver_are_asked(database: MysqlDatabase) -> None:
    class Own(pymysql.connections.Connection):  # type: ignore[misc]
        def __init__(self) -> None: ...

    own = Own()
    own._sock = own._rfile = None
    assert next(database.admits(own, managed=True)).name == "meta.identity"


def test_every_table_and_index_of_the_migrations_is_compared(database: MysqlDatabase) -> None:
    layout = layout_of(text for _, _, text in database.migrations())
    assert layout.tables["duly_outbox"]["key"] == "varbinary(1024)"
    assert layout.tables["duly_stripe"] == {"id": "smallint", "flushes": "bigint"}
    assert layout.indexes["duly_inbox_once"].unique
    assert layout.indexes["duly_outbox_kept"].columns == "status,topic,key,id"


def test_the_routine_has_the_prefix_and_only_a_name_gets_in() -> None:
    database = MysqlDatabase(URL, prefix="shop_")
    assert isinstance(database, PublishesInSql)
    text = database.publish_routine("shop")
    assert "CREATE PROCEDURE shop_publish" in text
    assert "duly_outbox" not in text
    with pytest.raises(InvalidNameError):
        database.publish_routine("x'); DROP TABLE t; --")


def test_settling_keeps_each_status(database: MysqlDatabase) -> None:
    many = [{"id": 1, "message_id": "a", "status": "sent"}]
    many.append({"id": 2, "message_id": "b", "status": "unrouted"})
    calls = database.prepare(Statement("outbox.keep", many=many))
    assert [(v["status"], v["ids"], v["message_ids"]) for _, v, _ in calls] == [
        ("sent", (1,), ("a",)),
        ("unrouted", (2,), ("b",)),
    ]
    assert len(database.prepare(BOX.settle([]))) == 1
