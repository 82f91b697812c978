"""The suite that a change source must pass; public, so that anybody can certify one.

Derive a class, give it a fixture named ``target``, and run it with pytest and pytest-asyncio in
auto mode::

    class TestMyChanges(ChangeConformance):
        @pytest.fixture
        def target(self, my_database):
            return Target(make=lambda reader: MyChanges(my_database.url, reader=reader), ...)

The invariant: every promise of ``duly.sources.ChangeSource`` is tried on the real database by
writers that know nothing of it, and the rows that a follower ends with are those of the table.
What is declared in ``ChangeFeatures`` is shown to hold and what is not declared is shown to be
absent.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from duly.errors import (
    AbsentValueError,
    ConfigurationError,
    DatabaseUnavailableError,
    GapError,
    StaleLeaseError,
)
from duly.kernel.changes import ABSENT, Change
from duly.sources import ChangeSource, TableSpec
from duly.testing.change_target import State, Target, following, state_of

__all__ = ["ChangeConformance", "Target"]

THING = "id INTEGER PRIMARY KEY, name TEXT, amount BIGINT"
PART = "a INTEGER NOT NULL, b VARCHAR(40) NOT NULL, note TEXT, PRIMARY KEY (a, b)"


def told(changes: Sequence[Change]) -> list[tuple[str, tuple[object, ...]]]:
    """Operation and key of each change."""
    return [(change.op, tuple(change.key.values())) for change in changes]


class ChangeConformance:
    """Every test gets a target with a fresh, empty database through the fixture ``target``."""

    # --- what a change says -----------------------------------------------------------------------
    async def test_a_source_declares_what_is_expected_of_it(self, target: Target) -> None:
        """A feature cannot be lost by no longer declaring it; the identity stays."""
        assert target.make("one").features == target.features
        assert await target.make("one").identity() == await target.make("two").identity()

    async def test_create_update_and_delete_with_both_images(self, target: Target) -> None:
        """A row's life: keys, old and new values, places in a transaction, the time."""
        spec = target.table("thing", THING)
        source = target.make("r")
        async with following(source, [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'a', 10)")
            target.commit("UPDATE thing SET name = 'b', amount = NULL WHERE id = 1")
            target.commit("DELETE FROM thing WHERE id = 1")
            created, updated, deleted = await follower.get(3)
        first, second = {"id": 1, "name": "a", "amount": 10}, {"id": 1, "name": "b", "amount": None}
        assert (created.op, created.before, created.after) == ("create", None, first)
        assert (updated.op, updated.before, updated.after) == ("update", first, second)
        assert (deleted.op, deleted.before, deleted.after) == ("delete", second, None)
        assert {change.table for change in (created, updated, deleted)} == {spec.name}
        assert [dict(change.key) for change in (created, updated, deleted)] == [{"id": 1}] * 3
        assert {change.source for change in follower.changes} == {await source.identity()}
        assert [one.commit for one in follower.transactions] == sorted(
            {one.commit for one in follower.transactions}
        )
        at = created.committed_at
        assert at is not None
        assert abs(datetime.now(UTC) - at) < timedelta(minutes=10)

    async def test_a_changed_key_is_one_update_with_the_key_before_and_after(
        self, target: Target
    ) -> None:
        """Also of a key of several columns, and without old images wanted."""
        one = target.table("thing", THING)
        two = target.table("part", PART, before_image=False)
        async with following(target.make("r"), [one, two]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'a', 10)")
            target.commit("UPDATE thing SET id = 2 WHERE id = 1")
            target.commit("INSERT INTO part VALUES (1, 'x', 'n')")
            target.commit("UPDATE part SET b = 'y' WHERE a = 1")
            changes = await follower.get(4)
        assert told(changes[1::2]) == [("update", (2,)), ("update", (1, "y"))]
        before = [change.before or {} for change in changes]
        assert (before[1]["id"], before[3]["a"], before[3]["b"]) == (1, 1, "x")

    async def test_an_update_that_changes_nothing_says_nothing_else(self, target: Target) -> None:
        """It may be told, with equal images."""
        spec = target.table("thing", THING)
        async with following(target.make("r"), [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'a', 10)")
            target.commit("UPDATE thing SET name = name")
            target.commit("DELETE FROM thing")
            await follower.until(lambda: told(follower.changes)[-1:] == [("delete", (1,))])
        assert told(follower.changes[:1]) == [("create", (1,))]
        assert all(c.op == "update" and c.before == c.after for c in follower.changes[1:-1])

    async def test_what_is_rolled_back_never_happened(self, target: Target) -> None:
        """Whole transactions, and savepoints within one."""
        spec = target.table("thing", THING)
        async with following(target.make("r"), [spec]) as follower:
            target.run(["INSERT INTO thing VALUES (1, 'gone', 0)"], False)
            target.commit(
                "INSERT INTO thing VALUES (2, 'kept', 0)",
                "SAVEPOINT s",
                "INSERT INTO thing VALUES (3, 'gone', 0)",
                "UPDATE thing SET name = 'gone' WHERE id = 2",
                "ROLLBACK TO SAVEPOINT s",
                "INSERT INTO thing VALUES (4, 'kept', 0)",
            )
            changes = await follower.get(2)
        assert told(changes) == [("create", (2,)), ("create", (4,))]
        assert {(c.after or {})["name"] for c in changes} == {"kept"}

    async def test_an_upsert_is_what_it_did(self, target: Target) -> None:
        """A create for a new row, an update for one that was there, nothing for nothing."""
        spec = target.table("thing", THING)
        upsert, keep = target.upsert("id", "amount = 9"), target.upsert("id", "")
        async with following(target.make("r"), [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'a', 1)")
            target.commit(f"INSERT INTO thing VALUES (1, 'b', 2), (2, 'c', 3) {upsert}")
            target.commit(f"INSERT INTO thing VALUES (1, 'd', 4) {keep}")
            target.commit("DELETE FROM thing WHERE id = 2")
            changes = await follower.get(4)
        assert told(changes) == [
            ("create", (1,)),
            ("update", (1,)),
            ("create", (2,)),
            ("delete", (2,)),
        ]
        assert changes[1].after == {"id": 1, "name": "a", "amount": 9}

    async def test_rows_that_are_replaced_are_told_of(self, target: Target) -> None:
        """Whichever unique key they stood in the way of."""
        spec = target.table("thing", THING.replace("name TEXT", "name VARCHAR(40) UNIQUE"))
        replace = target.replace
        if replace is None:
            with pytest.raises(Exception, match=r".*"):
                target.commit("INSERT OR REPLACE INTO thing VALUES (1, 'a', 1)")
            return
        async with following(target.make("r"), [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)")
            target.commit(replace("thing", "(1, 'z', 9)"))
            target.commit(replace("thing", "(2, 'c', 8)"))
            target.commit(replace("thing", "(4, 'z', 7), (5, 'c', 6)"))
            target.commit("DELETE FROM thing WHERE id = 4")
            await follower.until(lambda: told(follower.changes)[-1:] == [("delete", (4,))])
            assert follower.states[spec.name] == state_of(target.rows("thing"), ["id"])
        before = [c.before for c in follower.changes if c.op in target.replaced_by]
        assert {"id": 3, "name": "c", "amount": 3} in before

    async def test_null_and_absent_are_told_apart(self, target: Target) -> None:
        """Without old images an old value is absent or there is none; it is never made up."""
        spec = target.table("thing", THING, before_image=False)
        async with following(target.make("r"), [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, NULL, 10)")
            target.commit("UPDATE thing SET amount = 11")
            created, updated = await follower.get(2)
        assert created.after is not None
        assert created.after["name"] is None
        assert (updated.after or {})["name"] is None
        old = (updated.before or {}).get("amount", ABSENT)
        assert old is ABSENT
        with pytest.raises(AbsentValueError):
            bool(old)

    async def test_only_the_columns_asked_for_are_carried(self, target: Target) -> None:
        """Include and exclude; the key is known all the same."""
        spec = target.table("thing", THING)
        left = TableSpec(spec.name, exclude=("name",), before_image=True)
        only = TableSpec(spec.name, include=("amount",), before_image=True)
        for reader, wanted, columns in (("x", left, {"id", "amount"}), ("y", only, {"amount"})):
            target.commit("DELETE FROM thing")
            async with following(target.make(reader), [wanted]) as follower:
                target.commit("INSERT INTO thing VALUES (1, 'secret', 10)")
                target.commit("UPDATE thing SET amount = 11")
                changes = await follower.get(2)
            assert [set(c.after or {}) for c in changes] == [columns] * 2
            assert set(changes[1].before or {}) == columns
            assert [dict(change.key) for change in changes] == [{"id": 1}] * 2

    async def test_odd_names(self, target: Target) -> None:
        """Quotes, spaces, other alphabets, reserved words."""
        column, q = 'or"der by', target.quote
        columns = f"{q('select')} INTEGER PRIMARY KEY, {q(column)} TEXT, {q('naïve é')} TEXT"
        spec = target.table("odd na\"me '", columns)
        name = q("odd na\"me '")
        async with following(target.make("r"), [spec], snapshots={spec.name: ""}) as follower:
            target.commit(f"INSERT INTO {name} VALUES (1, 'a', 'b')")
            target.commit(f"UPDATE {name} SET {q(column)} = 'c'")
            await follower.until(lambda: told(follower.changes)[-1:] == [("update", (1,))])
        assert follower.changes[-1].after == {"select": 1, column: "c", "naïve é": "b"}
        assert dict(follower.changes[-1].key) == {"select": 1}

    # --- transactions and order -------------------------------------------------------------------
    async def test_a_transaction_is_whole_and_comes_in_the_order_of_commits(
        self, target: Target
    ) -> None:
        """Marked where the source needs it; unmarked it is whole only where that is declared."""
        spec = target.table("thing", THING)
        rows = [f"INSERT INTO thing VALUES ({n}, 'n', {n})" for n in range(1, 7)]
        async with following(target.make("r"), [spec]) as follower:
            target.commit(*target.mark(rows[:3]))
            target.commit(*rows[3:5])
            target.commit(rows[5])
            await follower.get(6)
        apart = 1 if target.features.transactions else 2
        sizes = [len(one.changes) for one in follower.transactions]
        assert sizes == [3, *([2] if apart == 1 else [1, 1]), 1]
        whole = follower.transactions[0]
        assert [change.ordinal for change in whole] == [0, 1, 2]
        assert [change.ordinal for change in whole] == [c.ordinal for c in whole.changes]
        assert {change.position for change in whole} == {whole.position}
        assert told(follower.changes) == [("create", (n,)) for n in range(1, 7)]

    async def test_a_large_transaction_is_whole(self, target: Target) -> None:
        """Its changes can be walked more than once, before and after what follows was read."""
        spec = target.table("thing", THING)
        values = [f"({n}, 'n', {n})" for n in range(3000)]
        async with following(target.make("r"), [spec]) as follower:
            target.commit(*target.mark([f"INSERT INTO thing VALUES {', '.join(values)}"]))
            target.commit("DELETE FROM thing WHERE id = 0")
            await follower.until(lambda: len(follower.transactions) == 2, "both")
            large = follower.transactions[0]
            walks = [[(c.ordinal, c.key["id"]) for c in large] for _ in range(2)]
            assert walks == [[(n, n) for n in range(3000)]] * 2
            assert (len(large.changes), large.changes[2999].key["id"]) == (3000, 2999)
        assert len({change.id for change in large}) == 3000

    async def test_an_intent_comes_with_the_changes_of_its_transaction(
        self, target: Target
    ) -> None:
        """Its name and its bytes; and only where the source declares it."""
        intent = target.intent
        assert (intent is not None) == target.features.intents
        if intent is None:
            return
        spec = target.table("thing", THING)
        speak = intent("password.reset", b'{"by": "anna"}')
        async with following(target.make("r"), [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'a', 1)")
            target.commit(
                *target.mark(
                    [
                        "UPDATE thing SET name = 'b'",
                        speak,
                        "UPDATE thing SET amount = 2",
                    ]
                )
            )
            target.run(["UPDATE thing SET name = 'never'", speak], False)
            target.commit("DELETE FROM thing")
            await follower.get(4)
        said = [[(i.name, i.data) for i in one.intents] for one in follower.transactions]
        assert said == [[], [("password.reset", b'{"by": "anna"}')], []]
        assert told(list(follower.transactions[1])) == [("update", (1,))] * 2

    async def test_emptying_a_table(self, target: Target) -> None:
        """One change where that is declared, else the rows that went."""
        spec = target.table("thing", THING)
        async with following(target.make("r"), [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', 2)")
            target.commit("TRUNCATE thing" if target.features.truncates else "DELETE FROM thing")
            target.commit("INSERT INTO thing VALUES (3, 'c', 3)")
            await follower.until(lambda: told(follower.changes)[-1:] == [("create", (3,))])
        ops = [change.op for change in follower.changes[2:-1]]
        assert ops == (["truncate"] if target.features.truncates else ["delete", "delete"])
        assert follower.states[spec.name] == state_of(target.rows("thing"), ["id"])

    # --- going on ---------------------------------------------------------------------------------
    async def test_at_every_boundary_the_rest_comes_with_the_same_ids(self, target: Target) -> None:
        """Nothing lost, nothing twice, whatever was read before."""
        spec = target.table("thing", THING)
        source = target.make("r")
        start = await source.prepare([spec])
        for n in range(1, 4):
            insert = f"INSERT INTO thing VALUES ({n}, 'a', 0), ({n + 10}, 'b', 0)"
            target.commit(*target.mark([insert, f"UPDATE thing SET amount = 1 WHERE id = {n}"]))
        async with following(source, [spec], position=start) as follower:
            await follower.get(9)
        whole = follower.transactions
        for done, one in enumerate(whole, 1):
            left = whole[done:]
            async with following(source, [spec], position=one.commit, token=1 + done) as follower:
                await follower.get(sum(len(t.changes) for t in left))
            assert [c.id for t in left for c in t] == [c.id for c in follower.changes]
        ids = [change.id for one in whole for change in one]
        assert len(set(ids)) == len(ids) == 9

    async def test_what_is_confirmed_may_go_and_nothing_else(self, target: Target) -> None:
        """A reader that comes back behind it is told, or gets everything; it never gets a part."""
        spec = target.table("thing", THING)
        source = target.make("r")
        start = await source.prepare([spec])
        target.commit("INSERT INTO thing VALUES (1, 'a', 1)")
        target.commit("INSERT INTO thing VALUES (2, 'b', 2)")
        target.commit("INSERT INTO thing VALUES (3, 'c', 3)")
        async with following(source, [spec], position=start) as follower:
            await follower.get(3)
            middle = follower.transactions[1].commit
            await follower.stream.confirm(middle)
        async with following(source, [spec], position=middle, token=2) as follower:
            assert told(await follower.get(1)) == [("create", (3,))]
        with suppress(GapError):
            async with following(source, [spec], position=start, token=3) as follower:
                await follower.until(lambda: bool(follower.changes))
                assert told(await follower.get(3))[0] == ("create", (1,))

    async def test_a_newer_reader_puts_an_older_one_out(self, target: Target) -> None:
        """It stops by itself; it cannot come back; what is confirmed by it changes nothing."""
        spec = target.table("thing", THING)
        async with following(target.make("r"), [spec], token=5) as first:
            position = first.position
            async with following(target.make("r"), [spec], position=position, token=6) as second:
                target.commit("INSERT INTO thing VALUES (1, 'a', 1)")
                assert told(await second.get(1)) == [("create", (1,))]
                assert isinstance(await first.failed(), StaleLeaseError)
                assert first.changes == []
                with pytest.raises(StaleLeaseError):
                    await target.make("r").open([spec], position=position, token=5)

    async def test_a_reader_that_was_cut_off_goes_on(self, target: Target) -> None:
        """It says so, and what it had stored is where it begins. A file has nothing to cut."""
        cut = target.cut
        assert (cut is not None) == target.features.native_log
        if cut is None:
            return
        spec = target.table("thing", THING)
        source = target.make("r")
        async with following(source, [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'a', 1)")
            await follower.get(1)
            cut()
            target.commit("INSERT INTO thing VALUES (2, 'b', 2)")
            assert isinstance(await follower.failed(), DatabaseUnavailableError)
        async with following(source, [spec], position=follower.position, token=2) as again:
            assert told(await again.get(1)) == [("create", (2,))]

    async def test_two_readers_see_all_of_it_each(self, target: Target) -> None:
        """One confirms, the other one still gets everything; and status says where they are."""
        spec = target.table("thing", THING)
        fast, slow = target.make("fast"), target.make("slow")
        start = await slow.prepare([spec])
        async with following(fast, [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'a', 1)")
            target.commit("INSERT INTO thing VALUES (2, 'b', 2)")
            await follower.get(2)
            end = follower.transactions[-1].commit
            await follower.stream.confirm(end)
        status = await slow.status(start)
        assert start < status.end
        assert end <= status.end
        async with following(slow, [spec], position=start) as follower:
            await follower.get(2)

    async def test_prepare_and_drop_can_be_repeated(self, target: Target) -> None:
        """And what was never prepared cannot be opened."""
        spec = target.table("thing", THING)
        source = target.make("r")
        with pytest.raises((ConfigurationError, GapError)):
            await source.open([spec], position=await target.make("other").prepare([spec]), token=1)
        assert await source.prepare([spec]) <= await source.prepare([spec])
        async with following(source, [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'a', 1)")
            await follower.get(1)
        for one in (source, source, target.make("other"), target.make("never")):
            await one.drop()
        target.commit("INSERT INTO thing VALUES (2, 'b', 2)")
        async with following(source, [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (3, 'c', 3)")
            assert told(await follower.get(1)) == [("create", (3,))]

    async def test_a_table_that_cannot_be_captured_is_refused(self, target: Target) -> None:
        """No such table; no key to name a row by."""
        target.commit("CREATE TABLE bare (x INTEGER)")
        for name in ("nowhere", "bare"):
            with pytest.raises(ConfigurationError):
                await target.make("r").prepare([TableSpec(target.named(name), before_image=True)])

    async def test_lost_history_is_told(self, target: Target) -> None:
        """Whatever way it was lost: GapError, and not one change from behind the gap."""
        for token, (name, lose) in enumerate(target.gaps.items(), 1):
            table = f"gap{token}"
            spec = target.table(table, THING)
            source = target.make(f"r{token}")
            async with following(source, [spec]) as follower:
                target.commit(f"INSERT INTO {table} VALUES (1, 'a', 1)")
                await follower.get(1)
                position = follower.position
            target.commit(f"INSERT INTO {table} VALUES (2, 'b', 2)")
            lose()
            target.commit(f"INSERT INTO {table} VALUES (3, 'c', 3)")
            error, seen = await self._followed_to_its_end(source, spec, (position, token + 1))
            assert isinstance(error, GapError), name
            assert told(seen) in ([], [("create", (2,))]), name
        assert target.gaps, "a source must say how its history can be lost"

    @staticmethod
    async def _followed_to_its_end(
        source: ChangeSource, spec: TableSpec, place: tuple[str, int]
    ) -> tuple[Exception, list[Change]]:
        try:
            async with following(source, [spec], position=place[0], token=place[1]) as follower:
                return await follower.failed(), follower.changes
        except GapError as error:  # opening may tell as well
            return error, []

    # --- snapshots --------------------------------------------------------------------------------
    async def test_a_snapshot_beside_a_writer_gives_the_table(self, target: Target) -> None:
        """In many chunks, stopped and gone on with, under random changes of rows and keys."""
        assert target.features.online_snapshot
        spec = target.table("part", PART)
        random_one = random.Random(20261122)  # a history that can be repeated
        values = ", ".join(f"({n}, 'b{n % 7}', 'first')" for n in range(2500))
        source, snapshots, token = target.make("r"), {spec.name: ""}, 0
        position = await source.prepare([spec])
        target.commit(f"INSERT INTO part VALUES {values}")
        states: dict[str, State] = {}
        done = False
        while not done:
            token += 1
            async with following(
                source, [spec], position=position, token=token, snapshots=snapshots
            ) as follower:
                follower.states = states
                have = len(follower.chunks)
                self._disturb(target, random_one, 15)
                await follower.until(lambda: len(follower.chunks) > have, "a chunk")  # noqa: B023
                self._disturb(target, random_one, 15)
            cursor, done = follower.cursors[spec.name]
            position, snapshots = follower.position, {spec.name: cursor}
            assert all(chunk.resumable for chunk in follower.chunks)
            rows = [row for chunk in follower.chunks for row in chunk.rows]
            assert all(row.op == "read" and row.before is None for row in rows)
        async with following(source, [spec], position=position, token=token + 1) as follower:
            follower.states = states
            self._disturb(target, random_one, 30)
            await follower.reach((await source.status(position)).end)
            await follower.stream.snapshot(spec)
            await follower.until(lambda: follower.cursors.get(spec.name, ("", False))[1], "rows")
            keys = [tuple(row.key.values()) for chunk in follower.chunks for row in chunk.rows]
        assert sorted(keys) == sorted(states[spec.name])
        assert states[spec.name] == state_of(target.rows("part"), ["a", "b"])

    @staticmethod
    def _disturb(target: Target, chance: random.Random, count: int) -> None:
        again = target.upsert("a, b", "note = 'again'")
        for _ in range(count):
            a, b = chance.randrange(2600), chance.randrange(7)
            target.commit(
                chance.choice(
                    [
                        f"UPDATE part SET note = 'u{chance.random()}' WHERE a = {a}",
                        f"DELETE FROM part WHERE a BETWEEN {a} AND {a + 5}",
                        f"UPDATE part SET a = a + 10000 WHERE a = {a}",
                        f"UPDATE part SET a = a - 10000 WHERE a >= 10000 AND b = 'b{b}'",
                        f"INSERT INTO part VALUES ({a}, 'new{b}', NULL) {again}",
                    ]
                )
            )

    async def test_a_table_can_be_read_anew_while_it_is_followed(self, target: Target) -> None:
        """In its place in the stream, with the values that the stream gives."""
        spec = target.table("thing", THING)
        async with following(target.make("r"), [spec]) as follower:
            target.commit("INSERT INTO thing VALUES (1, 'ä\u20ac\U0001f600', 9223372036854775807)")
            target.commit("INSERT INTO thing VALUES (2, NULL, -9223372036854775808)")
            target.commit("INSERT INTO thing VALUES (3, '', NULL)")
            await follower.get(3)
            await follower.stream.snapshot(spec)
            await follower.until(lambda: follower.cursors.get(spec.name, ("", False))[1], "rows")
            target.commit("UPDATE thing SET amount = 0 WHERE id = 1")
            await follower.get(4)
            await follower.stream.snapshot(spec)
            await follower.until(lambda: len(follower.chunks) > 1, "rows again")
            rows = [row for chunk in follower.chunks for row in chunk.rows]
        ids = {one.id for one in (*rows, *follower.changes)}
        assert len(ids) == len(rows) + len(follower.changes)
        streamed = [change.after for change in follower.changes]
        assert [row.after for row in rows[:3]] == streamed[:3]
        assert rows[3].after == streamed[3]
        assert {row.op for row in rows} == {"read"}
        assert follower.states[spec.name] == state_of(target.rows("thing"), ["id"])

    async def test_an_empty_table_is_read_too(self, target: Target) -> None:
        """One chunk without rows, which says that it is done."""
        spec = target.table("thing", THING)
        async with following(target.make("r"), [spec], snapshots={spec.name: ""}) as follower:
            await follower.until(lambda: bool(follower.chunks), "a chunk")
        assert [(len(chunk.rows), chunk.done) for chunk in follower.chunks] == [(0, True)]
