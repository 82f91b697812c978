"""The row of a stream, on every database that can hold it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from duly import App
from duly.cdc.offsets import (
    Offset,
    SnapshotState,
    State,
    Trouble,
    ask_for,
    claim,
    forget,
    move,
    read,
    requests,
)
from duly.errors import StaleLeaseError
from duly.ports import Connection
from duly.runtime.role_lease import RoleLease


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def app(request: pytest.FixtureRequest) -> Iterator[App]:
    made = App("shop", database=request.getfixturevalue(f"{request.param}_url"))
    made.upgrade_tables()
    yield made
    made.close()


@pytest.fixture
def connection(app: App) -> Iterator[Connection]:
    made = app.database.connect()
    yield made
    made.close()


async def test_a_row_moves_under_the_newest_token_only(app: App, connection: Connection) -> None:
    lease = RoleLease("cdc/shop", database=app.database, clock=app.clock, ttl_seconds=30)
    assert connection.run(read("shop")) == Offset()
    assert await lease.take()
    first = connection.run(claim("shop", lease.values()))
    assert (first.position, first.token, first.state) == ("", 1, State())
    assert first.updated_at == pytest.approx(app.clock.time(), abs=3600)
    trouble = Trouble("GAP", "gone; é", "7", 1.5, tries=2, stopped=True)
    state = State("db:1", {"orders": SnapshotState("12", True)}, trouble)
    moved = first._replace(position="0000A", state=state)
    connection.run(move("shop", moved))
    connection.run(move("shop", moved))  # the same again is no other reader
    assert connection.run(read("shop"))[:3] == ("0000A", 1, state)
    second = connection.run(claim("shop", lease.values()))
    assert second.token == 2
    with pytest.raises(StaleLeaseError):
        connection.run(move("shop", moved))
    assert connection.run(forget("shop", second._replace(position="")))
    assert not connection.run(forget("shop", second))
    with pytest.raises(StaleLeaseError):
        connection.run(move("shop", second))
    await lease.leave()


async def test_only_the_holder_of_the_lease_may_claim(app: App, connection: Connection) -> None:
    holder, other = (
        RoleLease("cdc/shop", database=app.database, clock=app.clock, ttl_seconds=30)
        for _ in range(2)
    )
    assert await holder.take()
    assert await holder.take()  # prolonged
    assert not await other.take()
    with pytest.raises(StaleLeaseError):
        connection.run(claim("shop", other.values()))
    assert connection.run(read("shop")) == Offset()
    await holder.leave()
    assert await other.take()
    assert connection.run(claim("shop", other.values())).token == 1
    await other.leave()


def test_what_was_asked_is_found_by_the_stream_that_it_was_asked_of(
    connection: Connection,
) -> None:
    connection.ask(ask_for("shop", "snapshot", "crm.orders"))
    connection.ask(ask_for("shop", "skip", "0000A"))
    connection.ask(ask_for("shop2", "skip", "0000B"))
    found = connection.run(requests("shop"))
    assert [(one.verb, one.argument) for one in found] == [
        ("skip", "0000A"),
        ("snapshot", "crm.orders"),
    ]
    connection.ask(ask_for("shop", "skip", "0000A"))
    again = connection.run(requests("shop"))
    assert again[0].mark != found[0].mark
    assert again[1].mark == found[1].mark
