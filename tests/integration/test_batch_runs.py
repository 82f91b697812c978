"""The rows of a run, on every database that can hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor as Pool
from contextlib import closing, suppress
from datetime import date
from typing import Any

import pytest

from duly import App
from duly.batch.runs import (
    Checkpoint,
    Claimed,
    Refused,
    add,
    attempts,
    checkpoints,
    claim,
    conclude,
    owner_of,
    read,
    save,
    waiting,
)
from duly.errors import RunActiveError, StaleLeaseError, WrongStatusError
from duly.kernel import runs
from duly.kernel.runs import CRASHES_MAX
from duly.ports import Connection, Statement, Steps
from duly.runtime.role_lease import RoleLease
from tests.unit.batch.world import BY, Script, add_job

DAY = {"day": date(2026, 11, 22)}


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def app(request: pytest.FixtureRequest) -> Iterator[App]:
    made = App("shop", database=request.getfixturevalue(f"{request.param}_url"))
    made.upgrade_tables()
    add_job(made, Script())
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(1) as made:
        yield made


@pytest.fixture
def connection(app: App) -> Iterator[Connection]:
    made = app.database.connect()
    yield made
    made.close()


def lease_of(app: App, instance: str) -> RoleLease:
    return RoleLease(f"batch/{instance}", database=app.database, clock=app.clock, ttl_seconds=30)


def begin(connection: Connection, lease: RoleLease, instance: str, **options: Any) -> Any:
    return connection.run(claiming(lease, instance, **options))


def claiming(lease: RoleLease, instance: str, **options: Any) -> Steps[Any]:
    given = {"definition": "one", "on_change": "refuse", "owner": "host:1", "spool": "s", **options}
    return claim(instance, lease=lease.values(), **given)


def checkpoint(rows: int, data: bytes = b"\x00\xff") -> Checkpoint:
    return Checkpoint("extract", 0, "open", data, rows, 2**40 + rows, {"mode": "live"}, 1, 0.0)


async def test_an_attempt_stores_until_another_one_begins(app: App, connection: Connection) -> None:
    instance = app.batches.start("lines", DAY, by=BY).instance
    assert [one.status for one in connection.run(waiting(["lines", "other"]))] == ["due"]
    first = lease_of(app, instance)
    assert await first.take()
    begun = begin(connection, first, instance)
    assert isinstance(begun, Claimed)
    connection.run(save(begun.row, checkpoint(5), got_on=True))
    connection.run(save(begun.row, checkpoint(6), got_on=False))
    known = connection.run(checkpoints(instance))["extract"]
    assert (known.rows, known.size_bytes, known.data) == (6, 2**40 + 6, b"\x00\xff")
    assert (known.attempt, known.saves, dict(known.facts)) == (1, 2, {"mode": "live"})
    (held,) = [one.holder for one in connection.run(waiting(["lines"]))]
    assert held == first.values()["holder"]
    owner = connection.run(owner_of(instance))
    assert owner is not None
    assert 0 <= owner.age_seconds < 30 >= owner.left_seconds > 0
    connection.ask(Statement("role.leave", {"name": f"role/batch/{instance}", "holder": held}))
    second = lease_of(app, instance)
    assert await second.take()
    again = begin(connection, second, instance, spool="t")
    assert (again.row.attempt, again.row.tries, again.spools) == (2, 1, {1: "s"})
    assert again.checkpoints["extract"].rows == 6
    with pytest.raises(StaleLeaseError):
        connection.run(save(begun.row, checkpoint(9), got_on=True))
    with pytest.raises(StaleLeaseError):
        connection.run(conclude(begun.row, runs.ended))
    with pytest.raises(StaleLeaseError):
        begin(connection, first, instance)
    done = connection.run(conclude(again.row, runs.ended))
    assert (done.status, done.ended_at is not None) == ("done", True)
    tried = connection.run(attempts(instance))
    assert [(one.attempt, one.status) for one in tried] == [(2, "done"), (1, "lost")]
    values = {"instance": instance, "holder": second.values()["holder"]}
    assert connection.ask(Statement("run.forget_lease", values)).count == 1
    assert connection.run(owner_of(instance)) is None
    assert connection.run(waiting(["lines"])) == []
    for lease in (first, second):
        await lease.leave()


def meanwhile(steps: Steps[Any], behind: str, other: Callable[[], Any]) -> Steps[Any]:
    """Steps, with something else going on behind one of them: to its end or until it waits."""
    answer: Any = None
    try:
        while True:
            statement = steps.send(answer)
            answer = yield statement
            if statement.name == behind:
                with suppress(TimeoutError):
                    other().result(0.5)
    except StopIteration as end:
        return end.value


async def test_an_attempt_knows_all_that_was_stored_before_it(app: App, pool: Pool) -> None:
    instance = app.batches.start("lines", DAY, by=BY).instance
    lease = lease_of(app, instance)
    assert await lease.take()
    with closing(app.database.connect()) as connection, closing(app.database.connect()) as another:
        begun = begin(connection, lease, instance)
        connection.run(save(begun.row, checkpoint(5), got_on=True))
        storing: list[Future[None]] = []

        def store() -> Future[None]:
            steps = save(begun.row, checkpoint(6), got_on=True)
            storing.append(pool.submit(another.run, steps))
            return storing[0]

        steps = claiming(lease, instance, spool="t")
        again = connection.run(meanwhile(steps, "checkpoint.of", store))
        (error,) = [one.exception(30) for one in storing]
        assert isinstance(again, Claimed)
        assert isinstance(error, StaleLeaseError), "stored behind the back of who had begun"
        assert again.checkpoints["extract"].rows == 5
        assert connection.run(checkpoints(instance))["extract"].rows == 5
    await lease.leave()


async def test_a_wish_to_stop_is_not_lost_where_an_attempt_ends(app: App, pool: Pool) -> None:
    instance = app.batches.start("lines", DAY, by=BY).instance
    lease = lease_of(app, instance)
    assert await lease.take()
    with closing(app.database.connect()) as connection:
        begun = begin(connection, lease, instance)
        asking: list[Future[Any]] = []

        def stop() -> Future[Any]:
            asking.append(pool.submit(app.batches.stop, instance, by=BY))
            return asking[0]

        steps = conclude(begun.row, lambda run: runs.broken(run, again=True), error="E: no")
        connection.run(meanwhile(steps, "run.read", stop))
        assert asking[0].result(30).status == "stopped"
        assert connection.run(read(instance)).status == "stopped"
    await lease.leave()


async def test_what_keeps_a_run_from_another_attempt(app: App, connection: Connection) -> None:
    instance = app.batches.start("lines", DAY, by=BY).instance
    lease = lease_of(app, instance)
    assert await lease.take()
    begun = begin(connection, lease, instance)
    connection.run(save(begun.row, checkpoint(5), got_on=True))
    with pytest.raises(RunActiveError) as active:
        app.batches.abandon(instance, by=BY)
    assert active.value.owner == "host:1"
    app.batches.stop(instance, by=BY)
    stopped = begin(connection, lease, instance)  # its process died before it came to a safe point
    assert isinstance(stopped, Refused)
    assert stopped.row.status == "stopped"
    with pytest.raises(WrongStatusError):
        begin(connection, lease, instance)
    app.batches.restart(instance, by=BY, request="once")
    assert not app.batches.restart(instance, by=BY, request="once").changed
    changed = begin(connection, lease, instance, definition="two")
    assert (changed.row.status, changed.code) == ("failed", "BATCH_DEFINITION_CHANGED")
    app.batches.restart(instance, by=BY)
    forked = begin(connection, lease, instance, definition="two", on_change="fork")
    assert forked.checkpoints == {}
    for _ in range(CRASHES_MAX - 1):
        begin(connection, lease, instance, definition="two")
    worn = begin(connection, lease, instance, definition="two")
    assert (worn.row.status, worn.code) == ("failed", "BATCH_CRASHES")
    assert app.batches.rerun(instance, by=BY, from_step="send", request="r1").changed
    assert not app.batches.rerun(instance, by=BY, from_step="send", request="r1").changed
    lines = connection.ask(Statement("audit.of", {"target": f"batch/{instance}", "limit": 50})).rows
    verbs = [row[3] for row in lines]
    assert verbs == ["rerun", "restart", "restart", "stop", "start"]
    assert app.batches.runs("lines", status="due")[0].instance == instance
    assert app.batches.runs("other") == app.batches.runs(status="done") == []
    await lease.leave()


def test_an_instance_is_made_once_however_many_start_it(app: App) -> None:
    def start(_: int) -> bool:
        return app.batches.start("lines", DAY, by=BY).changed

    with Pool(8) as pool:
        assert sum(pool.map(start, range(24))) == 1
    (row,) = app.batches.runs()
    with closing(app.database.connect()) as connection:
        assert connection.run(read(row.instance)).status == "due"
        found, made = connection.run(
            add(row.instance, job="lines", params=row.params, scheduled_for=None)
        )
    assert (found.instance, made) == (row.instance, False)
