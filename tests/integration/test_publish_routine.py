"""``duly_publish``: messages of a trigger, stored, ordered and rolled back as duly's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from duly.kernel.names import place
from duly.ports import PublishesInSql
from tests.acceptance.shop_app import Placed, Shop
from tests.integration.probes import blocked, in_thread, order_ids

CALLS = {
    "postgres": "SELECT duly_publish('event', :topic, 'order.placed', :payload ::bytea, :key)",
    "mysql": "CALL duly_publish('event', :topic, 'order.placed', :payload, :key)",
}
TRIGGERS = {
    "postgres": """
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM duly_publish('event', 'orders', 'order.placed',
                convert_to(json_build_object('order_id', NEW.order_id)::text, 'UTF8'), 'k');
            RETURN NULL;
        END $$;
        CREATE TRIGGER tell AFTER INSERT ON work FOR EACH ROW EXECUTE FUNCTION tell()""",
    "mysql": """
        CREATE TRIGGER tell AFTER INSERT ON work FOR EACH ROW
            CALL duly_publish(
                'event', 'orders', 'order.placed', JSON_OBJECT('order_id', NEW.order_id), 'k')""",
}


@pytest.fixture(params=["postgres", "mariadb"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    url = request.getfixturevalue(f"{request.param}_url")
    shop = Shop(url, f"embedded:///{tmp_path / 'broker.db'}", lock_timeout="10s")
    shop.prepare()
    assert isinstance(shop.app.database, PublishesInSql)
    with shop.engine.begin() as connection:
        connection.exec_driver_sql(
            shop.app.database.publish_routine("elsewhere").replace("%", "%%")
        )
    yield shop
    shop.close()


def call(session: Any, shop: Shop, key: str | None, *, topic: str = "orders", n: int = 1) -> None:
    values = {"topic": topic, "key": key, "payload": json.dumps({"order_id": n})}
    session.execute(sa.text(CALLS[shop.app.database.dialect]), values)


def test_a_row_of_the_routine_is_a_row_of_dulys(shop: Shop) -> None:
    """Lane and key as Python places them, headers as Python writes them, any text as a key."""
    keys = [None, "k", "it's \u00e4 \U0001f600 key", "x" * 1024]
    with Session(shop.engine) as session, session.begin():
        for n, key in enumerate(keys):
            call(session, shop, key, n=n)
        shop.app.publish(session, Placed(order_id=9), key="k")
    quoted = shop.engine.dialect.identifier_preparer.quote("key")
    rows = shop.query(
        f"SELECT message_type, kind, topic, {quoted}, lane, headers FROM duly_outbox ORDER BY id"
    )
    for key, (message_type, kind, topic, stored, lane, headers) in zip(keys, rows, strict=False):
        assert (message_type, kind, topic) == ("order.placed", "event", "orders")
        assert (stored.decode() if isinstance(stored, bytes) else stored) == key
        assert lane == place("orders", key).lane if key else 0 <= lane < 64
        ours = json.loads(rows[-1][-1])
        assert json.loads(headers).keys() == ours.keys()
        assert json.loads(headers)["source"] == "elsewhere"
        assert len(json.loads(headers)["time"]) == len(ours["time"])
    assert order_ids(shop) == [0, 1, 2, 3, 9]


async def test_a_trigger_publishes_and_a_handler_gets_it(shop: Shop) -> None:
    got: list[int] = []

    @shop.app.on(Placed, group="sales")
    def handle(event: Placed) -> None:
        got.append(event.order_id)

    with shop.engine.begin() as connection:
        connection.exec_driver_sql(TRIGGERS[shop.app.database.dialect])
    with shop.engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO work (order_id) VALUES (1), (2), (3)"))
    with shop.engine.connect() as connection:
        connection.execute(sa.text("INSERT INTO work (order_id) VALUES (4)"))
        connection.rollback()
    async with shop.app.running() as running:
        await running.settled()
    assert sorted(got) == [1, 2, 3]


def test_the_routine_and_dulys_own_flush_wait_for_each_other(shop: Shop) -> None:
    with Session(shop.engine) as session:
        call(session, shop, "k", n=1)
        second = in_thread(lambda: shop.place(2, key="k"))
        assert blocked(second)
        session.commit()
    second.result(20)
    assert order_ids(shop) == [1, 2]


@pytest.mark.parametrize(
    ("topic", "key"), [("no topic", None), ("orders", ""), ("orders", "x" * 1025)]
)
def test_what_duly_would_refuse_is_refused(shop: Shop, topic: str, key: str | None) -> None:
    with Session(shop.engine) as session, pytest.raises(Exception, match="duly_publish"):
        call(session, shop, key, topic=topic)


@pytest.mark.parametrize("way", ["routine", "raw connection"])
def test_a_deferred_key_may_wait_for_its_other_half_behind_a_message(
    postgres_url: str, tmp_path: Path, way: str
) -> None:
    """What the commit would check is not checked in the middle of the transaction."""
    shop = Shop(postgres_url, f"embedded:///{tmp_path / 'broker.db'}")
    shop.prepare()
    database = shop.app.database
    assert isinstance(database, PublishesInSql)
    with shop.engine.begin() as own:
        own.exec_driver_sql(database.publish_routine("elsewhere").replace("%", "%%"))
        own.exec_driver_sql("CREATE TABLE head (id int PRIMARY KEY)")
        own.exec_driver_sql(
            "CREATE TABLE line (head int REFERENCES head DEFERRABLE INITIALLY DEFERRED)"
        )
    with psycopg.connect(postgres_url) as connection:
        connection.execute("INSERT INTO line VALUES (1)")
        if way == "routine":
            connection.execute(
                "SELECT duly_publish('event', 'orders', 'order.placed', '{}'::bytea, 'k')"
            )
        else:
            shop.app.publish(connection, Placed(order_id=1), key="k")
        connection.execute("INSERT INTO head VALUES (1)")
    with shop.engine.connect() as own:
        stored = own.execute(sa.text("SELECT key FROM duly_outbox")).scalars().all()
    shop.close()
    assert stored == ["k"]
