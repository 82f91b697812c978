"""Tables of the binlog: what was said is kept, what was not said stays unsaid."""

from __future__ import annotations

import pytest

from duly.errors import UndecodableError
from duly.wire.binlog_table import Column, Kind, parse_table
from tests.unit.wire.binlog_samples import bodies, field, layout, names, packed, sized


def test_a_table_of_numbers_that_mariadb_described() -> None:
    table = parse_table(bodies("numbers", 19)[0][6:], mariadb=True)
    assert (table.schema, table.name, table.key, table.described) == ("lab", "t", ("k",), True)
    names = [(column.name, column.kind.name, column.unsigned) for column in table.columns]
    assert names[:3] == [("k", "LONG", False), ("s8", "TINY", False), ("u8", "TINY", True)]
    assert names[-2:] == [("s64", "LONGLONG", False), ("u64", "LONGLONG", True)]


def test_a_table_of_everything_that_mariadb_described() -> None:
    table = parse_table(bodies("texts", 19)[0][6:], mariadb=True)
    columns = {column.name: column for column in table.columns}
    assert columns["v"] == Column("v", Kind.VARCHAR, 36, 0, collation=45)
    assert columns["l"] == Column("l", Kind.STRING, 9, 0, collation=8)
    assert columns["w"] == Column("w", Kind.VARCHAR, 1200, 0, collation=54)
    assert columns["ch"] == Column("ch", Kind.STRING, 1020, 0, collation=45)
    assert columns["e"] == Column("e", Kind.ENUM, 1, 0, collation=8, labels=(b"", b"a", b"\xe9"))
    assert columns["s"].labels == (b"x", b"y", "ü".encode())
    assert columns["ge"] == Column("ge", Kind.GEOMETRY, 4, 0, collation=63)
    assert columns["js"] == Column("js", Kind.BLOB, 4, 0, collation=46)
    assert columns["u"] == Column("u", Kind.STRING, 16, 0, collation=63)
    assert columns["cb"] == Column("cb", Kind.BLOB_COMPRESSED, 2, 0, collation=63)


def test_what_was_not_said_stays_unsaid() -> None:
    bare = [parse_table(body[6:], mariadb=True) for body in bodies("texts", 19)]
    unsaid = next(table for table in bare if table.name == "undescribed")
    assert not unsaid.described
    assert unsaid.columns == (Column("", Kind.LONG, 0, 0),) * 2
    assert next(table for table in bare if table.name == "bare").key == ()
    assert next(table for table in bare if table.name == "p").key == ("b", "a")
    keyed = layout(b"\3\3", b"", field(8, b"\1"))
    assert parse_table(keyed, mariadb=False).key == ()


# From here on what only MySQL writes, made from the documented layouts.
EVERY = bytes((1, 13, 16, 245, 255, 15, 254, 254, 254, 246, 4, 5, 18, 242, 252))
EXTRA = bytes((1, 1, 4, 4, 80, 0, 0xF7, 1, 0xF8, 2, 0xEE, 44, 10, 2, 4, 8, 6, 4, 2))
LABELS = b"\2" + sized(b"a") + sized(b"b")


def test_a_table_as_mysql_describes_it() -> None:
    table = parse_table(
        layout(
            EVERY,
            EXTRA,
            field(1, b"\xb0"),  # TINY, YEAR, DECIMAL, FLOAT, DOUBLE
            field(2, packed(255) + packed(1) + packed(63)),  # VARCHAR, CHAR, TEXT: geometry is none
            names(*(f"c{n}" for n in range(len(EVERY)))),
            field(5, LABELS),
            field(6, LABELS),
            field(7, b"\0"),
            field(8, b"\0\1"),
            field(10, packed(8)),
            field(12, b"\xff\xfe"),
            field(13, packed(3)),
        ),
        mariadb=False,
    )
    assert table.key == ("c0", "c1")
    columns = {column.name: column for column in table.columns}
    assert [columns[f"c{n}"].unsigned for n in (0, 1, 9, 10, 11)] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert columns["c2"] == Column("c2", Kind.BIT, 9, 0)
    assert columns["c3"] == Column("c3", Kind.JSON, 4, 0)
    assert columns["c4"] == Column("c4", Kind.GEOMETRY, 4, 0)
    assert columns["c5"] == Column("c5", Kind.VARCHAR, 80, 0, collation=255)
    assert columns["c6"] == Column("c6", Kind.ENUM, 1, 0, collation=8, labels=(b"a", b"b"))
    assert columns["c7"] == Column("c7", Kind.SET, 2, 0, collation=8, labels=(b"a", b"b"))
    assert columns["c8"] == Column("c8", Kind.STRING, 300, 0, collation=63)
    assert columns["c9"] == Column("c9", Kind.NEWDECIMAL, 10, 2, unsigned=True)
    assert columns["c12"] == Column("c12", Kind.DATETIME2, 6, 0)
    assert columns["c13"] == Column("c13", Kind.VECTOR, 4, 0)
    assert columns["c14"] == Column("c14", Kind.BLOB, 2, 0, collation=255)


def test_collations_of_each_column_and_a_key_of_prefixes() -> None:
    said = field(3, packed(8) + packed(255)), field(11, packed(33)), field(9, b"\1\7")
    body = layout(b"\x0f\x0f\xfe", b"\x50\0\x50\0\xf7\1", names("a", "b", "e"), *said)
    table = parse_table(body, mariadb=False)
    assert [column.collation for column in table.columns] == [8, 255, 33]
    assert table.key == ("b",)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(layout(b"\6", b""), id="type"),
        pytest.param(layout(b"\xfe", b"\1\1"), id="type in a string"),
        pytest.param(layout(b"\x0f", b"\1"), id="half of what belongs to a type"),
        pytest.param(layout(b"\3", b"\1"), id="more than belongs to a type"),
        pytest.param(layout(b"\3\3", b"", names("a", "a")), id="two of one name"),
        pytest.param(layout(b"\3", b"", names("a"), field(8, b"\1")), id="key"),
        pytest.param(layout(b"\x0f", b"\1\0", field(2, b"\1\1\1")), id="collation"),
        pytest.param(layout(b"\3", b"", field(1, b"\0\0")), id="more signs than columns"),
        pytest.param(layout(b"\3", b"", field(4, b"\5a")), id="name"),
        pytest.param(layout(b"\xfe", b"\xf7\1", field(6, b"\xfe" + b"\xff" * 8)), id="labels"),
        pytest.param(layout(b"\3", b"")[:-2] + b"\xfd\xff\xff\xff\0", id="hostile length"),
    ],
)
def test_what_does_not_fit_is_refused(body: bytes) -> None:
    with pytest.raises(UndecodableError):
        parse_table(body, mariadb=True)
