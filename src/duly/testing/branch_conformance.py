"""What a database that prepares transactions must do: one suite for all of them.

    class TestMine(BranchConformance):
        @pytest.fixture
        def database(self) -> Iterator[Database]: ...

Every test gets a fresh, empty database that is also ``PreparesTransactions``.  Left out: crashes of
the server between preparing and ending, which the crash runs make.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from duly.branches import Finished, PreparesTransactions
from duly.kernel.twophase import BranchName, branch_name
from duly.message import new_id
from duly.ports import Severity

__all__ = ["BranchConformance"]

JOURNAL = "0123456789ab"
LOOKS, PAUSE_SECONDS = 500, 0.02
_TABLE = "CREATE TABLE branch_work (id integer PRIMARY KEY)"


class _Work:
    """A connection of a user's, in autocommit, so that it says what it is told and no more."""

    def __init__(self, database: Any) -> None:
        self._words = database.branch_words
        self._mark = database.branch_mark
        engine = database.engine().execution_options(isolation_level="AUTOCOMMIT")
        self._connection = engine.connect()
        self.name = branch_name(BranchName(JOURNAL, new_id(), 0))

    def say(self, *verbs: str) -> None:
        for verb in verbs:
            for text in self._words(verb, self.name):
                self._connection.exec_driver_sql(text)

    def insert(self, number: int) -> None:
        self._connection.exec_driver_sql(f"INSERT INTO branch_work VALUES ({number})")

    def sql(self, text: str) -> list[Any]:
        result = self._connection.exec_driver_sql(text)
        return [tuple(row) for row in result] if result.returns_rows else []

    def mark(self) -> list[Any]:
        text = self._mark(self.name)
        return self.sql(text) if text else [("",)]

    def gone(self) -> None:
        """The connection is lost."""
        if not self._connection.closed:
            self._connection.invalidate()
            self._connection.close()


class BranchConformance:
    """Every test gets a fresh, empty database through the fixture ``database``."""

    @pytest.fixture
    def work(self, database: Any) -> Iterator[_Work]:
        """A connection with a branch begun and a row in it; the branch is ended in the end."""
        prepares: object = database
        assert isinstance(prepares, PreparesTransactions)
        first = _Work(database)
        first.sql(_TABLE)
        first.say("begin")
        first.insert(1)
        yield first
        first.gone()
        with closing(database.connect()) as own:
            database.finish(own, first.name, commit=False)

    @staticmethod
    def rows(database: Any) -> list[int]:
        """What is committed."""
        other = _Work(database)
        try:
            return [row[0] for row in other.sql("SELECT id FROM branch_work")]
        finally:
            other.gone()

    def test_nothing_stands_against_a_server_that_is_set_up(self, database: Any) -> None:
        """A server as it is set up for tests carries global transactions."""
        found = database.inspect_prepared()
        assert [finding for finding in found if finding.severity is Severity.RED] == []

    @pytest.mark.parametrize("commit", [True, False])
    def test_a_prepared_branch_outlives_its_connection(
        self, database: Any, work: _Work, commit: bool
    ) -> None:
        """It is listed, unseen, and ended by its name once, on any connection."""
        ((mark,),) = work.mark()
        work.say("prepare")
        work.gone()
        with closing(database.connect()) as own:
            assert work.name in database.prepared(own)
            assert self.rows(database) == []
            assert self.ended(database, own, work.name, commit=commit) is Finished.DONE
            assert work.name not in database.prepared(own)
            assert self.rows(database) == ([1] if commit else [])
            assert database.finish(own, work.name, commit=commit) is Finished.GONE
            assert (database.fate(own, mark) if mark else commit) is commit

    def test_its_own_connection_ends_it(self, database: Any, work: _Work) -> None:
        """As in the second phase of every payment; nothing is left."""
        work.mark()
        work.say("prepare", "commit")
        with closing(database.connect()) as own:
            assert database.prepared(own) == []
        assert self.rows(database) == [1]

    def test_a_branch_that_is_given_up_leaves_nothing(self, database: Any, work: _Work) -> None:
        """Not prepared, and rolled back by itself."""
        work.say("abandon")
        assert self.rows(database) == []
        assert work.sql("SELECT 1") == [(1,)]

    def test_a_branch_that_is_there_is_never_taken_for_gone(
        self, database: Any, work: _Work
    ) -> None:
        """While its connection lives it is ended, or busy."""
        work.say("prepare")
        with closing(database.connect()) as own:
            first = database.finish(own, work.name, commit=False)
            assert first in (Finished.DONE, Finished.BUSY)
            assert (work.name in database.prepared(own)) == (first is Finished.BUSY)

    def test_what_was_ended_meanwhile_is_not_prepared(self, database: Any, work: _Work) -> None:
        """COMMIT typed in a branch: its mark, or the preparation, tells; nothing is half done."""
        try:
            work.sql("COMMIT")
            is_told = work.mark() == []
            if not is_told:
                work.say("prepare")
        except Exception:  # noqa: BLE001  # the driver's own
            is_told = True
        assert is_told
        with closing(database.connect()) as own:
            assert work.name not in database.prepared(own)

    @staticmethod
    def ended(database: Any, own: Any, name: str, *, commit: bool) -> Finished:
        """The end of a branch; a server may need a moment to see that its connection is lost."""
        for _ in range(LOOKS):
            found: Finished = database.finish(own, name, commit=commit)
            if found is not Finished.BUSY:
                break
            time.sleep(PAUSE_SECONDS)
        return found
