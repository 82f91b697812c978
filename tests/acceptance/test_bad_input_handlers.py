"""What a handler may do to itself, to our transaction and to its process.

In every case the message is there afterwards: failed with a code, or handled by the next process.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from duly import AsyncTx, Retry, Tx
from tests.acceptance.shop_app import Placed, Shop, child, insert


class Nasty(BaseException):
    """No Exception, and no signal of anybody's."""


def boom(event: Placed, tx: Tx) -> None:
    raise Nasty


def leaves(event: Placed, tx: Tx) -> None:
    raise SystemExit(3)


def interrupts(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    raise KeyboardInterrupt


def recurses(event: Placed, tx: Tx) -> None:
    recurses(event, tx)


def commits(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    tx.session.commit()


def commits_and_catches(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    with suppress(Exception):
        tx.session.commit()


def rolls_back(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    tx.session.rollback()


def closes(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    tx.session.close()


def rolls_back_the_driver(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    tx.connection.rollback()


def rolls_back_in_sql(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    tx.connection.execute("ROLLBACK")


def closes_the_driver(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    tx.connection.close()


def calls_too_late(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    tx.effect("call", lambda: 1)


def calls_too_late_and_catches(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    with suppress(Exception):
        tx.effect("call", lambda: 1)


def ignores_a_broken_statement(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    with suppress(Exception):
        tx.connection.execute("SELECT * FROM nowhere")


def publishes_what_cannot_be_sent(event: Placed, tx: Tx) -> None:
    tx.session.execute(insert(event.order_id))
    tx.publish(lambda: Placed(order_id=1, note=float("nan")))


MISUSE = "failed TRANSACTION_MISUSE"
ENDINGS = {
    boom: "failed Nasty",
    leaves: "failed SystemExit",
    interrupts: "failed KeyboardInterrupt",
    recurses: "failed RecursionError",
    commits: MISUSE,
    commits_and_catches: MISUSE,
    rolls_back: MISUSE,
    closes: MISUSE,
    rolls_back_the_driver: MISUSE,
    rolls_back_in_sql: MISUSE,
    closes_the_driver: MISUSE,
    calls_too_late: "failed EFFECT_INSIDE_TRANSACTION",
    calls_too_late_and_catches: "failed EFFECT_INSIDE_TRANSACTION",
    publishes_what_cannot_be_sent: "failed NOT_SERIALIZABLE",
}
BY_NAME = {function.__name__: function for function in ENDINGS}


@pytest.fixture(params=["sqlite", "postgres"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    url = request.getfixturevalue(f"{request.param}_url")
    shop = Shop(url, f"embedded:///{tmp_path / 'broker.db'}")
    yield shop
    shop.close()


async def test_whatever_a_plain_handler_does_it_is_told_and_the_others_go_on(shop: Shop) -> None:
    @shop.app.on(Placed, group="sales", retry=Retry(attempts=1))
    def handle(event: Placed, tx: Tx) -> None:
        if event.note:
            BY_NAME[event.note](event, tx)
        else:
            tx.session.execute(insert(event.order_id))

    shop.prepare()
    messages = {name: publish(shop, 100 + n, name) for n, name in enumerate(BY_NAME)}
    good = [publish(shop, n, "") for n in range(1, 4)]
    await shop.app.run_once(timeout="30s")
    inbox = shop.inbox()
    found = {name: inbox[message_id] for name, message_id in messages.items()}
    assert found == {function.__name__: ending for function, ending in ENDINGS.items()}
    assert [inbox[message_id] for message_id in good] == ["done"] * 3
    assert shop.work() == [1, 2, 3]
    kept = shop.query("SELECT count(*) FROM duly_inbox WHERE status = 'failed' AND payload <> ''")
    assert kept == [len(messages)]
    assert shop.outbox() == []


def publish(shop: Shop, order_id: int, note: str) -> str:
    with shop.engine.begin() as connection:
        return shop.app.publish(connection, Placed(order_id=order_id, note=note))


async def test_a_caught_error_of_the_database_is_no_success(
    postgres_url: str, tmp_path: Path
) -> None:
    """PostgreSQL has aborted the transaction, whatever the handler makes of it."""
    shop = Shop(postgres_url, f"embedded:///{tmp_path / 'broker.db'}")
    shop.app.on(Placed, group="sales", retry=Retry(attempts=1))(ignores_a_broken_statement)
    shop.prepare()
    message_id = publish(shop, 1, "")
    await shop.app.run_once(timeout="30s")
    assert shop.inbox() == {message_id: "failed TRANSACTION_ABORTED"}
    assert shop.work() == []
    shop.close()


async def test_a_commit_in_sql_is_told_and_the_message_kept(shop: Shop) -> None:
    """What the handler committed itself stays; nobody could take it back. It is not called done."""

    @shop.app.on(Placed, group="sales")
    def handle(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))
        tx.connection.execute("COMMIT")

    shop.prepare()
    message_id = publish(shop, 1, "")
    await shop.app.run_once(timeout="30s")
    assert shop.inbox() == {message_id: MISUSE}
    assert shop.work() == [1]
    assert shop.query("SELECT count(*) FROM duly_inbox WHERE payload <> ''") == [1]


async def test_whatever_an_async_handler_raises(shop: Shop) -> None:
    raising: list[BaseException] = [
        Nasty(),
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
    ]

    @shop.app.on(Placed, group="sales", retry=Retry(attempts=1))
    async def handle(event: Placed, tx: AsyncTx) -> None:
        await tx.session.execute(insert(event.order_id))
        if event.order_id >= 100:
            raise raising[event.order_id - 100]

    shop.prepare()
    messages = [publish(shop, 100 + n, "") for n in range(len(raising))]
    publish(shop, 1, "")
    await shop.app.run_once(timeout="30s")
    inbox = shop.inbox()
    expected = [f"failed {type(error).__name__}" for error in raising]
    assert [inbox[message_id] for message_id in messages] == expected
    assert shop.work() == [1]


async def test_publishing_to_ones_own_topic_is_a_loop_like_any_other(local: Shop) -> None:
    @local.app.on(Placed, group="echo")
    def echo(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))
        if event.order_id < 5:
            tx.publish(Placed(order_id=event.order_id + 1))

    local.prepare()
    local.place(1)
    await local.app.run_once(timeout="30s")
    assert local.work() == [1, 2, 3, 4, 5]
    assert local.outbox() == []


async def test_what_is_returned_does_not_matter(local: Shop) -> None:
    @local.app.on(Placed, group="sales")
    def handle(event: Placed, tx: Tx) -> Any:
        tx.session.execute(insert(event.order_id))
        return object()

    local.prepare()
    local.place(1)
    await local.app.run_once(timeout="30s")
    assert local.work() == [1]


# --- the process ----------------------------------------------------------------------------------
GOOD = """
    @app.on(Placed, group="sales", retry=Retry(attempts=3, base="100ms"))
    def handle(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))
    import asyncio
    asyncio.run(app.run_once(timeout="25s"))
"""


def urls(tmp_path: Path) -> tuple[str, str]:
    return f"sqlite:///{tmp_path / 'shop.db'}", f"embedded:///{tmp_path / 'broker.db'}"


def prepare(tmp_path: Path, *order_ids: int) -> Shop:
    shop = Shop(*urls(tmp_path))
    shop.app.on(Placed, group="sales")(lambda event: None)
    shop.prepare()
    shop.place(*order_ids)
    return shop


def test_a_handler_that_never_returns_ends_its_process_and_not_its_message(tmp_path: Path) -> None:
    shop = prepare(tmp_path, 1)
    stuck = child(
        *urls(tmp_path),
        """
        import time
        @app.on(Placed, group="sales")
        def handle(event: Placed, tx: Tx) -> None:
            tx.session.execute(insert(event.order_id))
            time.sleep(3600)
        app.run()
        """,
        settings={"handler_timeout": "1s"},
    )
    _, errors = stuck.communicate(timeout=25)
    assert stuck.returncode == 75
    assert "past its hard deadline: sales/" in errors
    assert "in handle" in errors, "the stacks of all threads are dumped"
    assert shop.work() == []
    after = child(*urls(tmp_path), GOOD)
    assert after.wait(30) == 0, after.communicate()
    assert shop.work() == [1]
    shop.close()


def test_a_handler_that_kills_its_process_is_stopped_after_its_attempts(tmp_path: Path) -> None:
    shop = prepare(tmp_path, 1, 2)
    deadly = """
        import os, signal
        @app.on(Placed, group="sales", retry=Retry(attempts=3, base="100ms"))
        def handle(event: Placed, tx: Tx) -> None:
            if event.order_id == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            tx.session.execute(insert(event.order_id))
        import asyncio
        asyncio.run(app.run_once(timeout="25s"))
    """
    ends = []
    until = time.monotonic() + 45
    while time.monotonic() < until and (not ends or ends[-1] != 0):
        process = child(*urls(tmp_path), deadly)
        process.communicate(timeout=30)
        ends.append(process.returncode)
    assert ends[-1] == 0, ends
    assert set(ends[:-1]) == {-9}
    assert len(ends) <= 6
    assert shop.work() == [2]
    assert sorted(shop.inbox().values()) == ["done", "failed PROCESS_ENDED"]
    shop.close()


def test_a_process_that_is_killed_in_a_handler_leaves_nothing_half_done(tmp_path: Path) -> None:
    shop = prepare(tmp_path, 1)
    killed = child(
        *urls(tmp_path),
        """
        import os, signal
        @app.on(Placed, group="sales")
        def handle(event: Placed, tx: Tx) -> None:
            tx.session.execute(insert(event.order_id))
            os.kill(os.getpid(), signal.SIGKILL)
        app.run()
        """,
    )
    assert killed.wait(25) == -9
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        assert connection.execute("SELECT count(*) FROM work WHERE order_id > 0").fetchone() == (0,)
    connection.close()
    after = child(*urls(tmp_path), GOOD)
    assert after.wait(30) == 0, after.communicate()
    assert shop.work() == [1]
    assert list(shop.inbox().values()) == ["done"]
    shop.close()


def test_the_limit_of_a_handler_that_commits_and_then_loses_its_process(tmp_path: Path) -> None:
    """The one way to half a piece of work: what the handler commits by itself contains the record
    that the message is done, and nobody is left to find out. Written in the guarantees.
    """
    shop = prepare(tmp_path, 1)
    killed = child(
        *urls(tmp_path),
        """
        import os, signal
        @app.on(Placed, group="sales")
        def handle(event: Placed, tx: Tx) -> None:
            tx.connection.execute("INSERT INTO work (order_id) VALUES (?)", (event.order_id,))
            tx.connection.commit()
            os.kill(os.getpid(), signal.SIGKILL)
        app.run()
        """,
    )
    assert killed.wait(25) == -9
    after = child(*urls(tmp_path), GOOD)
    assert after.wait(30) == 0, after.communicate()
    assert shop.work() == [1], "the first half, and no second run"
    assert list(shop.inbox().values()) == ["done"]
    shop.close()
