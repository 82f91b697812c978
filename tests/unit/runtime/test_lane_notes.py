"""What a lane reader writes down for the operator about a topic that nobody takes."""

from __future__ import annotations

from pathlib import Path

from duly.databases.sqlite.database import SqliteDatabase
from duly.outbox.operator import Operator
from duly.ports import Connection, Statement
from duly.runtime.aside import note, note_name
from duly.runtime.work import Verdict, VerdictKind
from tests.unit.runtime.test_lanes import DONE, Script, rows_left, running, store, until

UNROUTED = Verdict(VerdictKind.TOPIC_LATER, "UNROUTED: nobody is bound to orders")


def metas(connection: Connection) -> list[tuple[str, str]]:
    return [(name, value) for name, value in connection.ask(Statement("meta.all")).rows]


async def test_a_stuck_topic_is_noted_and_taken_back_by_whoever_gets_it_through(
    tmp_path: Path,
) -> None:
    database = SqliteDatabase(f"sqlite:///{tmp_path}/lanes.db")
    connection = database.connect()
    for _, _, text in database.migrations():
        connection.script(text)
    operator = Operator(database.connect)
    store(connection, [None, None])
    assert operator.stuck("outbox") == []
    async with running(database, Script(lambda row: UNROUTED)):
        await until(lambda: operator.stuck("outbox") != [])
    (stuck,) = operator.stuck("outbox")
    assert (stuck.topic, stuck.rows, stuck.error) == ("orders", 2, UNROUTED.error)
    assert stuck.tries >= 3
    # Another process, that knows of the trouble only by the note.
    async with running(database, Script(lambda row: DONE)):
        await until(lambda: not rows_left(database))
        store(connection, [None])
        await until(lambda: not rows_left(database))
        await until(lambda: "stuck/outbox/orders" not in dict(metas(connection)))
    assert operator.stuck("outbox") == []
    connection.close()
    database.close()


async def test_a_note_on_a_topic_that_has_nothing_left_is_not_shown(tmp_path: Path) -> None:
    database = SqliteDatabase(f"sqlite:///{tmp_path}/lanes.db")
    connection = database.connect()
    for _, _, text in database.migrations():
        connection.script(text)
    note_text = note("UNROUTED: x", since=1.0, tries=3)
    connection.ask(
        Statement("meta.put", {"name": note_name("outbox", "orders"), "value": note_text})
    )
    operator = Operator(database.connect)
    assert operator.stuck("outbox") == []
    store(connection, [None])
    assert [(one.topic, one.since) for one in operator.stuck("outbox")] == [("orders", 1.0)]
    assert operator.stuck("inbox") == []
    connection.close()
    database.close()
