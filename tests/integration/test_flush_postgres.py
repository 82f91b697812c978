"""The statement that stores messages on PostgreSQL: its arrays in every encoding, and what it asks
of deferred constraints before it locks.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row, namedtuple_row

import duly
from duly import App, Event
from duly.errors import DulyError
from duly.outbox.schema import Schema

WAITING = """SELECT pid FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database()"""
STORED = "SELECT convert_from(payload, 'UTF8')::json ->> 'text' FROM duly_outbox ORDER BY id"
STRIPES = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = %s"


class Said(Event, name="flush.said", topic="said"):
    text: str


@pytest.fixture
def app(postgres_url: str) -> App:
    app = App("flush", database=postgres_url, broker="embedded://")
    Schema(app.database, "flush").upgrade()
    return app


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
def test_messages_of_a_connection_in_another_encoding(
    app: App, postgres_url: str, encoding: str
) -> None:
    words = ["été", "été", "à"]
    with (
        psycopg.connect(postgres_url, client_encoding=encoding) as connection,
        duly.atomic(connection),
    ):
        ids = [app.publish(connection, Said(text=word), key=word) for word in words]
        ids += [app.publish(connection, Said(text=word)) for word in words]
    with psycopg.connect(postgres_url) as connection:
        rows = connection.execute(
            "SELECT message_id, key, convert_from(payload, 'UTF8')::json ->> 'text'"
            " FROM duly_outbox ORDER BY id"
        ).fetchall()
    keys = [*words, None, None, None]
    assert rows == list(zip(ids, keys, words * 2, strict=True))


@pytest.mark.parametrize(
    "chosen",
    [
        {"row_factory": dict_row},
        {"cursor_factory": psycopg.RawCursor},
        {"cursor_factory": psycopg.ClientCursor, "row_factory": namedtuple_row},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 3])
def test_the_rows_and_cursors_of_a_connection_are_its_users_own(
    app: App, postgres_url: str, chosen: dict[str, Any], count: int
) -> None:
    with psycopg.connect(postgres_url, **chosen) as connection, duly.atomic(connection):
        for key in range(count):
            app.publish(connection, Said(text=f"'{key}\\"), key=key)
    with psycopg.connect(postgres_url) as connection:
        assert [row[0] for row in connection.execute(STORED)] == [f"'{n}\\" for n in range(count)]


async def test_the_rows_of_an_async_connection_are_its_users_own(
    app: App, postgres_url: str
) -> None:
    connect = psycopg.AsyncConnection.connect
    async with await connect(postgres_url, row_factory=dict_row) as connection:
        async with duly.atomic(connection):
            app.publish(connection, Said(text="x"), key="k")
        stored = await (await connection.execute(STORED)).fetchall()
    assert [list(row.values()) for row in stored] == [["x"]]


# --- deferred constraints -------------------------------------------------------------------------
@pytest.fixture
def orders(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
        connection.execute(
            "CREATE TABLE line (o bigint REFERENCES orders DEFERRABLE INITIALLY DEFERRED)"
        )
        connection.execute("INSERT INTO orders VALUES (1)")


def add_line(app: App, url: str, order: int, keys: int) -> None:
    """A line of an order, and messages under so many keys."""
    with psycopg.connect(url) as connection, duly.atomic(connection):
        connection.execute("INSERT INTO line VALUES (%s)", (order,))
        for key in range(keys):
            app.publish(connection, Said(text="line"), key=key)


def until_waiting(connection: Any) -> int:
    """Who waits for a lock."""
    end = time.monotonic() + 10
    while not (found := connection.execute(WAITING).fetchone()):
        assert time.monotonic() < end
        time.sleep(0.01)  # between two looks at the server; bounded by ``end``
    return int(found[0])


@pytest.mark.parametrize("keys", [1, 3])
def test_a_deferred_foreign_key_waits_before_the_stripes_are_held(
    app: App, postgres_url: str, orders: None, keys: int
) -> None:
    """T2 holds the order; T1's flush waits for it, and holds no stripe that T2 may need."""
    with ThreadPoolExecutor(1) as pool, psycopg.connect(postgres_url) as t2:
        with psycopg.connect(postgres_url, autocommit=True) as looker, duly.atomic(t2):
            t2.execute("SELECT 1 FROM orders WHERE id = 1 FOR UPDATE")
            t1 = pool.submit(add_line, app, postgres_url, 1, keys)
            pid = until_waiting(looker)
            assert looker.execute(STRIPES, (pid,)).fetchone() == (0,)
            app.publish(t2, Said(text="order"), key=0)
        t1.result(10)
        assert [row[0] for row in t2.execute(STORED)] == ["order", *["line"] * keys]


@pytest.mark.parametrize("keys", [1, 3])
def test_a_deferred_constraint_that_is_broken_stores_nothing(
    app: App, postgres_url: str, orders: None, keys: int
) -> None:
    with pytest.raises(DulyError, match="line_o_fkey"):
        add_line(app, postgres_url, 2, keys)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM duly_outbox").fetchone() == (0,)


@pytest.mark.parametrize("keys", [1, 3])
def test_a_constraint_that_waits_for_its_other_half_is_left_alone_in_the_middle(
    app: App, postgres_url: str, orders: None, keys: int
) -> None:
    """A raw connection stores inside ``publish``: the order comes behind its line."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute("INSERT INTO line VALUES (2)")
        for key in range(keys):
            app.publish(connection, Said(text="line"), key=key)
        connection.execute("INSERT INTO orders VALUES (2)")
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM duly_outbox").fetchone() == (keys,)
