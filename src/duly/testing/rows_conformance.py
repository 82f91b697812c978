"""The suite that a source of rows must pass; public, so that anybody can certify one.

Derive a class, give it a fixture named ``target``, and run it with pytest::

    class TestMyRows(RowsConformance):
        @pytest.fixture
        def target(self, my_database):
            return RowsTarget(MyRows(my_database.url), features=..., run=my_database.execute)

The invariant: every promise of ``duly.rows`` is tried on the real database - above all that blocks
begin and end at the same rows wherever a reading begins, and that no key can be lost at a cut.
What is declared in ``RowFeatures`` is shown to hold and what is not is shown to be absent.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from duly.errors import ConfigurationError, DulyError, PermanentError
from duly.rows import (
    Block,
    CsvShape,
    Key,
    KeyColumn,
    Reading,
    RowFeatures,
    RowQuery,
    RowSource,
)

__all__ = ["RowsConformance", "RowsTarget"]

COUNT = 500
BLOCK_BYTES = 1024
ALL = RowQuery("SELECT id, name, amount FROM thing", (KeyColumn("id"),))
SEVERAL = RowQuery("SELECT * FROM thing", (KeyColumn("kind", True), KeyColumn("name")))


@dataclass(frozen=True)
class RowsTarget:
    """What is tested. run: runs a statement and commits it. text_keys: whether text can be a key
    here, by its bytes.
    """

    source: RowSource
    features: RowFeatures
    run: Callable[[str], None]
    text_keys: bool = True

    def fill(self) -> None:
        """The table ``thing``: ids with gaps, names in an order that is not theirs."""
        self.run(
            "CREATE TABLE thing (id BIGINT NOT NULL PRIMARY KEY, kind INTEGER NOT NULL, "
            "name VARCHAR(60) NOT NULL, amount DECIMAL(12,2))"
        )
        names = (f"{'äZ_a '[n % 5]}{(n * 7919) % COUNT:04}" for n in range(COUNT))
        rows = (
            f"({n * 3}, {n % 4}, '{name}', {n if n % 7 else 'NULL'})"
            for n, name in enumerate(names)
        )
        self.run(f"INSERT INTO thing VALUES {', '.join(rows)}")


def read(target: RowsTarget, query: RowQuery, **reading: Any) -> list[Block]:
    """All blocks of a reading, by a reader of its own."""
    with closing(target.source.open()) as reader:
        return list(reader.read(query, Reading(**{"block_bytes": BLOCK_BYTES, **reading})))


def bytes_of(blocks: list[Block]) -> bytes:
    """The CSV of blocks."""
    return b"".join(piece for block in blocks for piece in block.data)


def rows_of(blocks: list[Block]) -> list[tuple[Any, ...]]:
    """The rows of blocks."""
    return [tuple(row) for block in blocks for row in block.values]


def code_of(target: RowsTarget, query: RowQuery) -> str:
    """With which code a query is refused, when it is looked at or when it is read."""

    def looked_at() -> None:
        with closing(target.source.open()) as reader:
            reader.columns(query)
            reader.check(query)
            list(reader.read(query, Reading()))

    with pytest.raises(DulyError) as caught:
        looked_at()
    return caught.value.code


class RowsConformance:
    """Every test gets a target with a fresh, empty database through the fixture ``target``."""

    def test_a_source_declares_what_is_expected_of_it(self, target: RowsTarget) -> None:
        """A feature cannot be lost by no longer declaring it."""
        assert target.source.features == target.features
        assert target.source.dialect

    def test_blocks_are_the_same_wherever_a_reading_begins(self, target: RowsTarget) -> None:
        """And every row is in one of them, once, in the order of its key."""
        target.fill()
        forms = ("csv", "text", "values") if target.features.csv else ("text", "values")
        for query in (ALL, SEVERAL) if target.text_keys else (ALL,):
            for form in forms:
                whole = read(target, query, form=form)
                assert len(whole) > 5
                assert sum(block.rows for block in whole) == COUNT
                for cut in (0, 3, len(whole) - 2):
                    assert read(target, query, form=form, after=whole[cut].last) == whole[cut + 1 :]

    def test_the_order_is_that_of_the_key(self, target: RowsTarget) -> None:
        """Of numbers as numbers, of text by its bytes, descending where it says so."""
        target.fill()
        assert [row[0] for row in rows_of(read(target, ALL, form="values"))] == [
            n * 3 for n in range(COUNT)
        ]
        if target.text_keys:
            found = [(-row[1], row[2].encode()) for row in rows_of(read(target, SEVERAL))]
            assert found == sorted(found)
            assert len(set(found)) == COUNT

    def test_parts_give_every_row_once(self, target: RowsTarget) -> None:
        """About equal ones, also behind an upper bound."""
        target.fill()
        with closing(target.source.open()) as reader:
            until = reader.highest(ALL)
            cuts = reader.splits(ALL, 4, until=until)
        assert until is not None
        target.run("INSERT INTO thing VALUES (999999, 1, 'late', 1)")
        bounds: list[Key | None] = [None, *cuts, until]
        assert len(bounds) == 5
        parts = [
            rows_of(read(target, ALL, after=after, until=until))
            for after, until in pairwise(bounds)
        ]
        assert [row[0] for part in parts for row in part] == [n * 3 for n in range(COUNT)]
        assert all(COUNT // 4 - 2 <= len(part) <= COUNT // 4 + 2 for part in parts)

    def test_nothing_to_read(self, target: RowsTarget) -> None:
        """No blocks, no highest key, no cuts."""
        target.fill()
        none = RowQuery("SELECT * FROM thing WHERE id < :least", (KeyColumn("id"),), {"least": 0})
        assert read(target, none) == []
        with closing(target.source.open()) as reader:
            assert reader.highest(none) is None
            assert reader.splits(none, 4, until=None) == []

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("SELECT id / 6 * 6 AS id FROM (SELECT 6 AS id UNION ALL SELECT 6) x", "DUPLICATE"),
            ("SELECT nullif(id, 9) AS id FROM thing", "NULL"),
            ("SELECT name FROM thing", "UNKNOWN"),
        ],
    )
    def test_a_key_that_is_none_is_refused(self, target: RowsTarget, text: str, code: str) -> None:
        """Before a row can be lost by it."""
        target.fill()
        assert code_of(target, RowQuery(text, (KeyColumn("id"),))) == f"BATCH_KEY_{code}"

    @pytest.mark.parametrize(
        "text", ["SELECT nothing FROM thing", "SELEC id FROM thing", "SELECT id FROM nowhere"]
    )
    def test_a_query_that_is_none_is_refused(self, target: RowsTarget, text: str) -> None:
        """As the job's own mistake, not as one of the tables of duly."""
        target.fill()
        assert code_of(target, RowQuery(text, (KeyColumn("id"),))) == "BATCH_QUERY"

    def test_values_never_become_sql(self, target: RowsTarget) -> None:
        """Text with quotes, percent signs and colons, as a value and in the query."""
        target.fill()
        name = 'it\'s 100 % :x \\ "q"'
        query = RowQuery(
            "SELECT id, 'it''s 100 % :x' AS a, :name AS b FROM thing WHERE name <> :name",
            (KeyColumn("id"),),
            {"name": name},
        )
        found = rows_of(read(target, query))
        assert len(found) == COUNT
        assert found[0] == (0, "it's 100 % :x", name)

    def test_a_row_that_is_too_large_is_refused(self, target: RowsTarget) -> None:
        """With its own code."""
        target.fill()
        target.run("CREATE TABLE large (id INTEGER NOT NULL PRIMARY KEY, body TEXT)")
        body = "x" * 60_000
        target.run(f"INSERT INTO large VALUES (1, 'a'), (2, '{body}'), (3, 'c')")
        small = RowQuery("SELECT * FROM large", (KeyColumn("id"),), {}, 50_000)
        with pytest.raises(PermanentError, match="BATCH_ROW_TOO_LARGE"):
            read(target, small)
        enough = RowQuery("SELECT * FROM large", (KeyColumn("id"),), {}, 100_000)
        assert len(rows_of(read(target, enough))) == 3

    def test_a_result_that_is_kept_does_not_change(self, target: RowsTarget) -> None:
        """Or cannot be kept."""
        target.fill()
        name = "duly_stage_conformance"
        with closing(target.source.open()) as reader:
            if not target.features.stages:
                with pytest.raises(ConfigurationError, match="BATCH_MODE"):
                    reader.stage(ALL, name)
                return
            assert reader.staged(ALL, name) is None
            reader.stage(ALL, name)
            reader.stage(ALL, name)
            target.run("DELETE FROM thing WHERE id > 9")
            kept = reader.staged(ALL, name)
            assert kept is not None
            assert sum(block.rows for block in reader.read(kept, Reading())) == COUNT
            reader.unstage(name)
            reader.unstage(name)
        with closing(target.source.open()) as reader:
            assert reader.staged(ALL, name) is None

    def test_several_readers_see_one_moment(self, target: RowsTarget) -> None:
        """Or say that they cannot."""
        target.fill()
        with closing(target.source.open()) as keeper:
            if not target.features.shares_snapshot:
                with pytest.raises(ConfigurationError, match="BATCH_MODE"):
                    keeper.export()
                return
            moment = keeper.export()
            target.run("DELETE FROM thing WHERE id > 9")
            with closing(target.source.open(moment=moment)) as reader:
                assert sum(block.rows for block in reader.read(ALL, Reading())) == COUNT

    def test_csv_of_the_source(self, target: RowsTarget) -> None:
        """In the asked shape; NULL is nothing and empty text is two quotes."""
        target.fill()
        if not target.features.csv:
            return
        query = RowQuery(
            "SELECT 1 AS id, 'a;b' AS a, '' AS b, NULL AS c, 'x\"y' AS d, 'l\nm' AS e",
            (KeyColumn("id"),),
        )
        plain, all_, tabs = (
            bytes_of(read(target, query, form="csv", csv=shape))
            for shape in (CsvShape(";"), CsvShape(quote_all=True), CsvShape("\t"))
        )
        assert plain == b'1;"a;b";"";;"x""y";"l\nm"\n'
        assert all_ == b'"1","a;b","",,"x""y","l\nm"\n'
        assert tabs == b'1\ta;b\t""\t\t"x""y"\t"l\nm"\n'

    def test_a_reading_that_is_left_early_ends(self, target: RowsTarget) -> None:
        """And its reader closes."""
        target.fill()
        with closing(target.source.open()) as reader:
            blocks = reader.read(ALL, Reading(block_bytes=BLOCK_BYTES))
            first = next(blocks)
            blocks.close()  # type: ignore[attr-defined]  # a generator
        assert read(target, ALL)[0].last == first.last
