"""What a program may try to publish: each is refused with a code, and the rest of the transaction,
or nothing of it, is there afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

import duly
from duly import App, Event
from duly.errors import DulyError, error_code
from duly.testing.app_test import AppTest
from tests.acceptance.shop_app import Charge, Placed

CAP = 1_000


class Other(Event, name="order.other", topic="orders"):
    value: Any


class Unserialisable:
    """No JSON form."""


@pytest.fixture
def app() -> App:
    return App("shop", payload_bytes_max=CAP)


@pytest.fixture
def kit(app: App, tmp_path: Path) -> Iterator[AppTest]:
    with AppTest(app, tmp_path) as kit:
        with kit.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE work (order_id integer)"))
        yield kit


def committed(kit: AppTest) -> tuple[int, int]:
    """Rows of work and messages."""
    with kit.engine.connect() as connection:
        counts = [
            connection.scalar(sa.text(f"SELECT count(*) FROM {table}"))
            for table in ("work", "duly_outbox")
        ]
    return counts[0] or 0, counts[1] or 0


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


BODIES: dict[str, tuple[Any, str]] = {
    "one byte over the cap": ("x" * (CAP - len('{"value":""}') + 1), "PAYLOAD_TOO_LARGE"),
    "no JSON form": (Unserialisable(), "NOT_SERIALIZABLE"),
    "NaN": (math.nan, "NOT_SERIALIZABLE"),
    "infinity, deep inside": ({"a": [1, {"b": -math.inf}]}, "NOT_SERIALIZABLE"),
    "lone surrogate": ("\ud800", "NOT_SERIALIZABLE"),
    "depth 100,000": (nested(100_000), "NOT_SERIALIZABLE"),
    "a cycle": (cycle(), "NOT_SERIALIZABLE"),
    "keys that are no text": ({(1, 2): 3}, "NOT_SERIALIZABLE"),
}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "at the commit"])
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_cannot_be_sent(app: App, kit: AppTest, name: str, late: bool) -> None:
    body, code = BODIES[name]
    with pytest.raises(DulyError) as caught, Session(kit.engine) as session, session.begin():
        session.execute(sa.text("INSERT INTO work VALUES (1)"))
        app.publish(session, (lambda: Other(value=body)) if late else Other(value=body))
    assert caught.value.code == code
    assert len(str(caught.value)) < 500
    assert committed(kit) == (0, 0)


def test_a_body_of_exactly_the_cap_is_sent(app: App, kit: AppTest) -> None:
    body = "x" * (CAP - len('{"value":""}'))
    app.publish(kit.session, Other(value=body))
    kit.session.commit()
    assert kit.drain().relayed == 1


HEADERS: dict[str, Any] = {
    "10,000 of them": {f"x{n}": "v" for n in range(10_000)},
    "CR": {"a": "b\rc"},
    "LF": {"a": "b\nSet-Cookie: c"},
    "NUL": {"a": "b\0"},
    "LF in the name": {"a\nb": "c"},
    "no name": {"": "c"},
    "no text": {"a": 1},
    "lone surrogate": {"a": "\udfff"},
    "our own": {"dulyversion": "7"},
    "of CloudEvents": {"ce_id": "7"},
    "16,385 bytes": {"a": "b" * 16_385},
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_cannot_be_sent(app: App, kit: AppTest, name: str) -> None:
    with pytest.raises(DulyError) as caught:
        app.publish(kit.session, Placed(order_id=1), headers=HEADERS[name])
    assert caught.value.code == "INVALID_HEADER"
    kit.session.commit()
    assert committed(kit) == (0, 0)


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "KEY_IS_NONE"),
        (lambda: None, "KEY_IS_NONE"),
        ("", "KEY_INVALID"),
        ("a\0b", "KEY_INVALID"),
        ("x" * 1_025, "KEY_INVALID"),
        ("\ud800", "KEY_INVALID"),
        (1.5, "KEY_INVALID"),
        (True, "KEY_INVALID"),
        (b"bytes", "KEY_INVALID"),
    ],
)
def test_keys_that_keep_no_order(app: App, kit: AppTest, key: Any, code: str) -> None:
    with pytest.raises(DulyError) as caught, Session(kit.engine) as session, session.begin():
        session.execute(sa.text("INSERT INTO work VALUES (1)"))
        app.publish(session, Placed(order_id=1), key=key)
    assert caught.value.code == code
    assert committed(kit) == (0, 0)


# --- names ----------------------------------------------------------------------------------------
NAMES = [
    "",
    "x" * 121,
    "x" * 10_000,
    'a"b',
    "a'b",
    "a;drop table x;--",
    "a\nb",
    "trailing\n",
    "\u0430dmin",
    "a\u202eb",
    "a\0b",
    "%s",
    "{0}",
    "../x",
    "$JS.API",
    "*",
    ">",
    "#",
    "a b",
    "-a",
    ".a",
    7,
    None,
]
GOOD = ["a.b", "select", "pg_catalog", "9lives", "x" * 120, "A-b_c.9"]


def declare_topic(app: App, name: Any) -> None:
    app.event("some.event", topic=name)(type("Some", (), {}))


def declare_type(app: App, name: Any) -> None:
    app.event(name, topic="some")(type("Some", (), {}))


def declare_group(app: App, name: Any) -> None:
    app.on(Placed, group=name)(lambda event: None)


def declare_handler(app: App, name: Any) -> None:
    app.on(Placed, group="some", name=name)(lambda event: None)


def declare_route(app: App, name: Any) -> None:
    app.route(name)


def declare_app(app: App, name: Any) -> None:
    App(name)


DECLARE = [declare_topic, declare_type, declare_group, declare_handler, declare_route, declare_app]


@pytest.mark.parametrize("declare", DECLARE, ids=lambda d: d.__name__)
def test_names_that_are_refused(app: App, declare: Callable[[App, Any], None]) -> None:
    for name in NAMES:
        if declare is declare_handler and name is None:
            continue  # stands for the default name there
        with pytest.raises(DulyError) as caught:
            declare(app, name)
        assert caught.value.code in ("INVALID_NAME", "CONFIGURATION"), name
        assert len(str(caught.value)) < 400
        assert str(caught.value).isprintable()
    for name in GOOD:
        declare(App("fresh"), name)


@pytest.mark.parametrize("name", [*NAMES, *GOOD, "Duly_", "9_", "x" * 42])
def test_table_prefixes(name: Any) -> None:
    """Stricter: it becomes SQL."""
    if name in ("select", "pg_catalog"):
        assert App("shop", table_prefix=name).settings.table_prefix == name  # duly_ and such follow
    elif name is None:
        assert App("shop", table_prefix=name).settings.table_prefix == "duly_"
    else:
        with pytest.raises(DulyError) as caught:
            App("shop", table_prefix=name).settings  # noqa: B018  # read at first use
        assert error_code(caught.value) in ("INVALID_NAME", "CONFIGURATION")


# --- places where nothing would commit ------------------------------------------------------------
def test_an_engine_a_factory_a_string_are_no_transaction(app: App, kit: AppTest) -> None:
    for target, code in (
        (kit.engine, "ENGINE_IS_NO_TRANSACTION"),
        (sessionmaker(kit.engine), "ENGINE_IS_NO_TRANSACTION"),
        ("sqlite:///shop.db", "NOT_A_TRANSACTION"),
        (None, "NOT_A_TRANSACTION"),
    ):
        with pytest.raises(DulyError) as caught:
            app.publish(target, Placed(order_id=1))
        assert caught.value.code == code
    assert committed(kit) == (0, 0)


def test_autocommit_in_every_form(app: App, kit: AppTest) -> None:
    engine = kit.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("INSERT INTO work VALUES (1)"))
        with pytest.raises(DulyError) as caught:
            app.publish(connection, Placed(order_id=1))
        assert caught.value.code == "AUTOCOMMIT"
    with pytest.raises(DulyError) as caught, Session(engine) as session:
        session.execute(sa.text("INSERT INTO work VALUES (1)"))
        app.publish(session, Placed(order_id=1))
        session.commit()
    assert caught.value.code == "AUTOCOMMIT"
    assert committed(kit)[1] == 0


def test_another_database(app: App, kit: AppTest, tmp_path: Path) -> None:
    other = duly.sqlite_engine(f"sqlite:///{tmp_path / 'other.db'}")
    try:
        with other.begin() as connection:
            connection.execute(sa.text("CREATE TABLE work (order_id integer)"))
        with pytest.raises(DulyError) as caught, Session(other) as session, session.begin():
            session.execute(sa.text("INSERT INTO work VALUES (1)"))
            app.publish(session, Placed(order_id=1))
        assert caught.value.code == "WRONG_DATABASE"
        with other.connect() as connection:
            assert connection.scalar(sa.text("SELECT count(*) FROM work")) == 0
    finally:
        other.dispose()


def test_an_engine_that_begins_late(app: App, kit: AppTest) -> None:
    engine = sa.create_engine(kit.engine.url)
    try:
        with pytest.raises(DulyError) as caught, Session(engine) as session, session.begin():
            session.execute(sa.text("INSERT INTO work VALUES (1)"))
            app.publish(session, Placed(order_id=1))
        assert caught.value.code in ("SQLITE_NOT_IMMEDIATE", "SQLITE_NOT_BEGUN")
    finally:
        engine.dispose()
    assert committed(kit) == (0, 0)


def test_after_the_commit_and_after_the_rollback(app: App, kit: AppTest) -> None:
    with kit.engine.connect() as connection:
        transaction = connection.begin()
        connection.execute(sa.text("INSERT INTO work VALUES (1)"))
        transaction.commit()
        with pytest.raises(DulyError) as caught:
            app.publish(connection, Placed(order_id=1))
        assert caught.value.code == "NOT_IN_TRANSACTION"
        transaction = connection.begin()
        transaction.rollback()
        with pytest.raises(DulyError) as caught:
            app.publish(transaction, Placed(order_id=1))
        assert caught.value.code == "NOT_IN_TRANSACTION"
    assert committed(kit) == (1, 0)


def test_the_wrong_verb_a_class_and_a_stranger(app: App, kit: AppTest) -> None:
    attempts: list[tuple[Callable[[Any, Any], str], Any, str]] = [
        (app.publish, Charge(order_id=1), "WRONG_VERB"),
        (app.send, Placed(order_id=1), "WRONG_VERB"),
        (app.publish, Placed, "UNKNOWN_TYPE"),
        (app.publish, {"order_id": 1}, "UNKNOWN_TYPE"),
        (app.publish, None, "UNKNOWN_TYPE"),
    ]
    for verb, message, code in attempts:
        with pytest.raises(DulyError) as caught:
            verb(kit.session, message)
        assert caught.value.code == code
    kit.session.commit()
    assert committed(kit) == (0, 0)


def test_a_late_value_that_raises_ends_the_transaction(app: App, kit: AppTest) -> None:
    with pytest.raises(ZeroDivisionError), Session(kit.engine) as session, session.begin():
        session.execute(sa.text("INSERT INTO work VALUES (1)"))
        app.publish(session, lambda: Placed(order_id=1 // 0))
    assert committed(kit) == (0, 0)
    with Session(kit.engine) as session, session.begin():  # the pooled connection is clean
        session.execute(sa.text("INSERT INTO work VALUES (2)"))
        app.publish(session, Placed(order_id=2))
    assert committed(kit) == (1, 1)
