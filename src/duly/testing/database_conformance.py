"""The suite that a database adapter must pass; public, so that anybody can certify an adapter.

Derive a class, give it a fixture named ``database`` with an empty database, and run it with
pytest::

    class TestMyDatabase(DatabaseConformance):
        @pytest.fixture
        def database(self, my_server):
            return MyDatabase(my_server.url)

The invariant: every named statement that the rooms rely on does here what its name says, in all
dialects alike: rows are read in the order of ids, settled by (id, message_id), fenced by the lane's
token, held and freed with their key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from duly.errors import PermanentError, StaleLeaseError
from duly.kernel.lease import LeaseTerm
from duly.kernel.names import LANES, place
from duly.message import new_id
from duly.ports import Connection, Database, Result, Severity, Statement, Steps
from duly.runtime.box import Box, Failure, Reading
from duly.runtime.work import Row

__all__ = ["DatabaseConformance", "insert"]

ALL = frozenset(range(LANES))
BOX = Box("outbox", "outbox")


def insert(
    connection: Connection, keys: Sequence[str | None], *, topic: str = "orders"
) -> list[str]:
    """Store one outbox message for each key; returns the message ids in order."""
    many: list[dict[str, Any]] = []
    for n, key in enumerate(keys):
        stripe, lane = (None, n % LANES) if key is None else place(topic, key)
        values: dict[str, Any] = {
            "message_id": new_id(),
            "message_type": "order.placed",
            "kind": "event",
            "topic": topic,
            "key": key,
        }
        values |= {
            "lane": lane,
            "stripe": stripe,
            "payload": b'{"n":%d}' % n,
            "headers": '{"a":"\u00fc"}',
        }
        many.append(values)
    connection.ask(Statement("outbox.insert", many=many))
    return [values["message_id"] for values in many]


class DatabaseConformance:
    """Every test gets a fresh, empty database through the fixture ``database``."""

    @pytest.fixture
    def connection(self, database: Database) -> Iterator[Connection]:
        """A connection to the database with its tables."""
        connection = database.connect()
        for _, _, text in database.migrations():
            connection.script(text)
        yield connection
        connection.close()

    @staticmethod
    def read(connection: Connection, after: int = 0, **limits: Any) -> list[Row]:
        """Ready rows of all lanes, within limits."""
        given = {"lanes": ALL, "busy": (), "aside": (), "limit": 1000, **limits}
        return [Row(*values) for values in connection.ask(BOX.read(Reading(**given), after)).rows]

    @staticmethod
    def lane(connection: Connection, row: Row, holder: str = "me") -> LeaseTerm:
        """Join as ``holder`` and take the lane of a row."""
        join = {
            "name": f"member/{holder}",
            "holder": holder,
            "scopes": '["outbox"]',
            "ttl_seconds": 30.0,
        }
        connection.ask(Statement("lease.join", join))
        connection.ask(Statement("lease.seed", {"scope": "outbox", "lanes": LANES}))
        take = {"scope": "outbox", "lanes": [row.lane], "holder": holder}
        ((_, token),) = connection.ask(Statement("lease.take", take)).rows
        return LeaseTerm(f"lane/outbox/{row.lane}", token, 1e18)

    @staticmethod
    def failure(
        row: Row, term: LeaseTerm, status: str = "retry", *, blocks: bool, holder: str = "me"
    ) -> Failure:
        """A failure of a row that is due again at once."""
        delay = 0.0 if status == "retry" else None
        return Failure(row, term, holder, status, row.attempts + 1, "REFUSED: no", delay, blocks)

    # --- schema -----------------------------------------------------------------------------------
    def test_migrations_can_run_twice(self, database: Database, connection: Connection) -> None:
        """The loser of two concurrent starts finds everything done."""
        for _, _, text in database.migrations():
            connection.script(text)

    def test_inspection_has_nothing_against_a_fresh_database(
        self, database: Database, connection: Connection
    ) -> None:
        """A server as it is set up for tests carries the guarantees."""
        assert [f for f in database.inspect() if f.severity is Severity.RED] == []

    # --- transactions -----------------------------------------------------------------------------
    def test_what_steps_raise_rolls_everything_back(self, connection: Connection) -> None:
        """No half of a transaction stays."""

        def steps() -> Steps[None]:
            yield Statement("meta.put", {"name": "a", "value": "1"})
            raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            connection.run(steps())
        assert connection.ask(Statement("meta.all")).rows == []
        connection.ask(Statement("meta.put", {"name": "a", "value": "2"}))
        assert connection.ask(Statement("meta.all")).rows == [("a", "2")]

    def test_a_failing_statement_reaches_the_steps_and_the_caller(
        self, connection: Connection
    ) -> None:
        """The driver's exception is mapped, and the connection can be used afterwards."""

        def steps() -> Steps[Result]:
            return (yield Statement("meta.put", {"name": None, "value": "1"}))

        with pytest.raises(PermanentError):
            connection.run(steps())
        assert connection.ask(Statement("meta.all")).rows == []

    # --- reading and settling ---------------------------------------------------------------------
    def test_rows_come_back_whole_and_in_order(self, connection: Connection) -> None:
        """Every column survives; ids grow in the order of the insert."""
        ids = insert(connection, ["k1", None, "k1", "k2"])
        rows = self.read(connection)
        assert [row.message_id for row in rows] == ids
        assert [row.id for row in rows] == sorted(row.id for row in rows)
        first = rows[0]
        assert (first.message_type, first.kind, first.topic, first.key) == (
            "order.placed",
            "event",
            "orders",
            "k1",
        )
        assert (bytes(first.payload), first.headers, first.status) == (
            b'{"n":0}',
            '{"a":"\u00fc"}',
            "ready",
        )
        assert (first.lane, first.attempts) == (place("orders", "k1").lane, 0)

    def test_a_read_is_limited_by_lane_id_busy_topic_and_number(
        self, connection: Connection
    ) -> None:
        """What is in memory, set aside or not ours is not read."""
        insert(connection, [None] * 6)
        insert(connection, [None], topic="other")
        rows = self.read(connection)
        assert len(rows) == 7
        assert [r.id for r in self.read(connection, limit=2)] == [r.id for r in rows[:2]]
        assert [r.id for r in self.read(connection, after=rows[2].id)] == [r.id for r in rows[3:]]
        assert [r.id for r in self.read(connection, busy=[r.id for r in rows[:5]])] == [
            r.id for r in rows[5:]
        ]
        assert [r.topic for r in self.read(connection, aside=["orders"])] == ["other"]
        assert [r.lane for r in self.read(connection, lanes=[3])] == [3]

    def test_settling_needs_id_and_message_id(self, connection: Connection) -> None:
        """A settle of a row that was replaced meanwhile does nothing."""
        insert(connection, [None, None])
        one, two = self.read(connection)
        connection.ask(BOX.settle([(replace(one, message_id="other"), "sent")]))
        assert len(self.read(connection)) == 2
        connection.ask(BOX.settle([(one, "sent"), (two, "sent")]))
        assert self.read(connection) == []

    def test_kept_rows_are_sent_and_not_read_again(self, connection: Connection) -> None:
        """History mode."""
        insert(connection, [None])
        (row,) = self.read(connection)
        connection.ask(Box("outbox", "outbox", keep=True).settle([(row, "sent")]))
        assert self.read(connection) == []

    def test_a_thousand_rows_in_one_insert_and_one_settle(self, connection: Connection) -> None:
        """Batches are whole and in order."""
        ids = insert(connection, [f"k{n % 50}" for n in range(1000)])
        rows = self.read(connection)
        assert [row.message_id for row in rows] == ids
        assert connection.ask(BOX.settle([(row, "sent") for row in rows])).count == 1000

    # --- failures and holds -----------------------------------------------------------------------
    def test_a_failure_is_stored_with_its_hold_and_comes_due(self, connection: Connection) -> None:
        """Attempts, error and hold are one transaction."""
        insert(connection, ["a", "a"])
        first, second = self.read(connection)
        term = self.lane(connection, first)
        assert connection.run(BOX.fail(self.failure(first, term, blocks=True))) == set()
        assert [row.id for row in self.read(connection)] == [second.id]
        due = [Row(*v) for v in connection.ask(BOX.due(Reading(ALL, (), (), 10))).rows]
        assert [(row.id, row.attempts, row.status) for row in due] == [(first.id, 1, "retry")]
        assert connection.run(BOX.sweep(ALL)) == [("orders", "a", first.id)]

    def test_a_failure_under_another_token_is_refused_and_changes_nothing(
        self, connection: Connection
    ) -> None:
        """The fence."""
        insert(connection, ["a"])
        (row,) = self.read(connection)
        term = self.lane(connection, row)
        stale = term._replace(token=term.token - 1)
        with pytest.raises(StaleLeaseError):
            connection.run(BOX.fail(self.failure(row, stale, blocks=True)))
        with pytest.raises(StaleLeaseError):
            connection.run(BOX.fail(self.failure(row, term, blocks=True, holder="other")))
        assert self.read(connection) == [row]
        assert connection.run(BOX.sweep(ALL)) == []

    def test_followers_are_marked_only_while_the_hold_exists(self, connection: Connection) -> None:
        """Marking locks the hold; without one nothing is marked."""
        insert(connection, ["a", "a", "a"])
        first, *followers = self.read(connection)
        assert connection.run(BOX.hold_followers(followers)) == 0
        connection.run(BOX.fail(self.failure(first, self.lane(connection, first), blocks=True)))
        assert connection.run(BOX.hold_followers(followers)) == 2
        assert self.read(connection) == []

    def test_followers_drain_in_order_once_the_blocker_is_settled_and_the_hold_dies_with_the_last(
        self, connection: Connection
    ) -> None:
        """The life of a hold."""
        insert(connection, ["a", "a", "a"])
        first, *followers = self.read(connection)
        connection.run(BOX.fail(self.failure(first, self.lane(connection, first), blocks=True)))
        connection.run(BOX.hold_followers(followers))
        reading = Reading(ALL, (), (), 10)
        assert connection.ask(BOX.drain(reading)).rows == []
        assert connection.run(BOX.settle_held([(first, "sent")])) == set()
        drained = [Row(*values) for values in connection.ask(BOX.drain(reading)).rows]
        assert [row.id for row in drained] == [row.id for row in followers]
        assert connection.run(BOX.settle_held([(drained[0], "sent")])) == set()
        assert connection.run(BOX.settle_held([(drained[1], "sent")])) == {("orders", "a")}
        assert connection.run(BOX.sweep(ALL)) == []

    def test_a_drain_reads_a_bounded_number_of_each_key(self, connection: Connection) -> None:
        """A poison key with many followers leaves room for the other keys."""
        insert(connection, ["a"] * 130 + ["b"] * 3)
        rows = self.read(connection)
        for first in (rows[0], rows[130]):
            connection.run(
                BOX.fail(
                    self.failure(
                        first,
                        self.lane(connection, first, first.key or ""),
                        blocks=True,
                        holder=first.key or "",
                    )
                )
            )
        connection.run(
            BOX.hold_followers([row for row in rows if row.id not in (rows[0].id, rows[130].id)])
        )
        connection.run(BOX.settle_held([(rows[0], "sent"), (rows[130], "sent")]))
        drained = [
            Row(*values) for values in connection.ask(BOX.drain(Reading(ALL, (), (), 1000))).rows
        ]
        assert [row.key for row in drained].count("a") == 100
        assert [row.key for row in drained].count("b") == 2

    def test_failed_for_good_frees_or_keeps_the_key(self, connection: Connection) -> None:
        """``on_exhausted``: skip lets the followers go, block keeps them."""
        for key, blocks in (("skip", False), ("block", True)):
            insert(connection, [key, key])
            first, second = self.read(connection)
            term = self.lane(connection, first, key)
            connection.run(BOX.fail(self.failure(first, term, blocks=True, holder=key)))
            connection.run(BOX.hold_followers([second]))
            again = replace(first, attempts=1)
            connection.run(BOX.fail(self.failure(again, term, "failed", blocks=blocks, holder=key)))
            drained = connection.ask(BOX.drain(Reading(ALL, (), (), 10))).rows
            assert [values[0] for values in drained] == ([] if blocks else [second.id])
            connection.run(BOX.settle_held([(second, "sent")]))

    def test_the_sweep_repairs_a_hold_without_blocker_and_held_rows_without_hold(
        self, connection: Connection
    ) -> None:
        """What a stale owner may leave behind."""
        insert(connection, ["a", "a"])
        first, second = self.read(connection)
        connection.run(BOX.fail(self.failure(first, self.lane(connection, first), blocks=True)))
        connection.run(BOX.hold_followers([second]))
        connection.ask(BOX.settle([(first, "sent")]))
        assert connection.run(BOX.sweep(ALL)) == [("orders", "a", None)]
        values = {"scope": "outbox", "group": "", "topics": ["orders"], "keys": ["a"], "ids": []}
        connection.ask(BOX.settle([(second, "sent")]))
        connection.ask(Statement("outbox.free_holds", values))
        assert connection.run(BOX.sweep(ALL)) == []

    # --- leases -----------------------------------------------------------------------------------
    def test_a_lane_has_one_owner_and_a_new_token_each_time(self, connection: Connection) -> None:
        """Taken only when free; counted up at every take."""
        insert(connection, ["a"])
        (row,) = self.read(connection)
        mine = self.lane(connection, row, "me")
        take = {"scope": "outbox", "lanes": [row.lane], "holder": "other"}
        connection.ask(Statement("lease.join", self._member("other", 30.0)))
        assert connection.ask(Statement("lease.take", take)).rows == []
        release = {"scope": "outbox", "lanes": [row.lane], "holder": "me"}
        connection.ask(Statement("lease.release", release))
        assert connection.ask(Statement("lease.take", take)).rows == [(row.lane, mine.token + 1)]

    def test_a_take_that_had_to_wait_robs_nobody(
        self, database: Database, connection: Connection
    ) -> None:
        """The one that came first has joined and taken since the second one looked."""
        connection.ask(Statement("lease.seed", {"scope": "outbox", "lanes": LANES}))
        second = database.connect()
        waiting: list[threading.Thread] = []
        taken: list[Result] = []

        def take(holder: str) -> Statement:
            return Statement("lease.take", {"scope": "outbox", "lanes": [0, 1], "holder": holder})

        def first_takes() -> Steps[None]:
            yield Statement("lease.join", self._member("first", 30.0))
            yield take("first")
            rob = threading.Thread(target=lambda: taken.append(second.ask(take("second"))))
            waiting.append(rob)
            rob.start()
            rob.join(0.4)  # it is waiting for us now

        connection.run(first_takes())
        waiting[0].join(30)
        second.close()
        assert [result.rows for result in taken] == [[]]
        owners = connection.ask(Statement("lease.lanes", {"scope": "outbox"})).rows
        assert {(owner, token) for lane, owner, token in owners if lane < 2} == {("first", 1)}

    def test_an_expired_member_is_buried_and_can_never_renew(self, connection: Connection) -> None:
        """Burying is the fence: its lanes are free then, and its own renewal finds nothing."""
        connection.ask(Statement("lease.join", self._member("dead", 0.05)))
        connection.ask(Statement("lease.join", self._member("alive", 30.0)))
        connection.ask(Statement("lease.seed", {"scope": "outbox", "lanes": LANES}))
        lanes = {"scope": "outbox", "lanes": [0, 1]}
        assert len(connection.ask(Statement("lease.take", {**lanes, "holder": "dead"})).rows) == 2
        time.sleep(0.1)  # the database's clock must pass the term
        assert connection.ask(Statement("lease.take", {**lanes, "holder": "alive"})).rows == []
        assert connection.ask(Statement("lease.bury")).rows == [("dead",)]
        assert len(connection.ask(Statement("lease.take", {**lanes, "holder": "alive"})).rows) == 2
        beat = {"name": "member/dead", "ttl_seconds": 5.0, "asleep": False}
        assert connection.ask(Statement("lease.beat", beat)).rows[0][0] == 0

    def test_an_expired_member_cannot_renew_even_unburied(self, connection: Connection) -> None:
        """Between expiry and burial it is already dead."""
        connection.ask(Statement("lease.join", self._member("late", 0.05)))
        time.sleep(0.1)  # the database's clock must pass the term
        beat = {"name": "member/late", "ttl_seconds": 5.0, "asleep": False}
        assert connection.ask(Statement("lease.beat", beat)).rows[0][0] == 0

    def test_a_beat_tells_members_due_and_ready_work_and_pauses(
        self, connection: Connection
    ) -> None:
        """One statement for everything a node must know."""
        connection.ask(Statement("lease.join", self._member("me", 30.0)))
        beat = Statement("lease.beat", {"name": "member/me", "ttl_seconds": 5.0, "asleep": False})
        renewed, members, *flags, pauses = connection.ask(beat).rows[0]
        assert (renewed, [bool(flag) for flag in flags], pauses) == (1, [False] * 4, "[]")
        assert "member/me" in members
        insert(connection, ["a"])
        (row,) = self.read(connection)
        connection.ask(Statement("meta.put", {"name": "pause/outbox/orders", "value": "x"}))
        assert [bool(flag) for flag in connection.ask(beat).rows[0][2:6]] == [
            False,
            True,
            False,
            False,
        ]
        connection.run(
            BOX.fail(
                self.failure(row, self.lane(connection, row, "you"), blocks=True, holder="you")
            )
        )
        assert [bool(flag) for flag in connection.ask(beat).rows[0][2:6]] == [
            True,
            False,
            False,
            False,
        ]
        assert "pause/outbox/orders" in connection.ask(beat).rows[0][6]

    def test_leaving_frees_the_lanes_at_once(self, connection: Connection) -> None:
        """A node that stops in order is replaced without waiting."""
        insert(connection, ["a"])
        (row,) = self.read(connection)
        self.lane(connection, row, "me")
        connection.ask(Statement("lease.leave", {"name": "member/me", "holder": "me"}))
        self.lane(connection, row, "other")

    # --- waking -----------------------------------------------------------------------------------
    def test_waiting_ends_when_another_connection_commits(
        self, database: Database, connection: Connection
    ) -> None:
        """A hint, where the relay has marked itself asleep."""
        waiting = database.connect()
        connection.ask(Statement("lease.join", self._member("me", 30.0)))
        connection.ask(Statement("lease.sleep", {"name": "member/me"}))
        waiting.wait(0.0)
        insert(connection, [None])
        began = time.monotonic()
        assert waiting.wait(5.0)
        assert time.monotonic() - began < 2.0
        waiting.close()

    def test_waiting_ends_by_itself_and_by_wake(self, connection: Connection) -> None:
        """Bounded, and stoppable from any thread."""
        connection.wait(0.0)
        began = time.monotonic()
        assert not connection.wait(0.1)
        connection.wake()
        assert connection.wait(5.0)
        assert time.monotonic() - began < 2.0

    @staticmethod
    def _member(holder: str, ttl_seconds: float) -> dict[str, Any]:
        return {
            "name": f"member/{holder}",
            "holder": holder,
            "scopes": '["outbox"]',
            "ttl_seconds": ttl_seconds,
        }
