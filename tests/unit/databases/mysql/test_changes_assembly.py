"""Whole transactions out of events: groups, savepoints, XA, places, and what stops.

The decoder is the public one's place, filled with events that are made here: what servers write is
in the integration tests, what they write seldom - MySQL's groups, logs behind 4 GiB, a crash in the
middle of a transaction - only here.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest

from duly.databases.mysql.changes_assembly import Assembly, Captured
from duly.databases.mysql.changes_place import Place, Position
from duly.errors import GapError, UndecodableError
from duly.kernel.changes import ABSENT, Transaction
from duly.sources import TableSpec
from duly.wire.binlog import Event
from duly.wire.binlog_events import (
    Comment,
    Commit,
    FormatDescription,
    Header,
    Incident,
    MariadbGtid,
    MysqlGtid,
    Query,
    Rotate,
    Stop,
    Xa,
    XaPrepare,
)
from duly.wire.binlog_rows import Rows
from duly.wire.binlog_table import Column, Kind, Table

MADE = 1_700_000_000
START = Position(Place(7, 500, MADE))
COLUMNS = (
    Column("id", Kind.LONG, 0, 0, unsigned=False),
    Column("v", Kind.LONG, 0, 0, unsigned=False),
)
THING = Table("shop", "thing", COLUMNS, ("id",), described=True)
OTHER = Table("shop", "other", COLUMNS, ("id",), described=True)
XID = Xa(1, b"g", b"b")
NAMED = "X'67',X'62',1"


class Log:
    """A log that is written event by event, and read at once."""

    def __init__(self, position: Position = START, *, before_image: bool = True) -> None:
        self.given: list[Transaction] = []
        spec = TableSpec("thing", before_image=before_image)
        captured = {("shop", "thing"): Captured(spec, ("id",), {}, frozenset())}
        self.assembly = Assembly(
            "s",
            captured,
            intents=("shop", "duly_intent"),
            position=position,
            give=lambda transaction, size: self.given.append(transaction),
        )
        self.assembly._decoder = self  # type: ignore[assignment]
        self.at = position.start.offset
        self._next: list[Event] = []
        self.file(position.start.file, self.at, sent_again=True)

    def feed(self, data: bytes) -> list[Event]:
        return self._next

    def file(self, number: int, at: int = 4, *, made: int = MADE, sent_again: bool = False) -> None:
        """The server goes on in a file, which begins there or is entered in its middle."""
        self.write(Rotate(f"bin.{number:06d}", at), artificial=True)
        self.at = at
        described = FormatDescription("10.11", mariadb=True, checksum=True)
        self.write(
            described, kind=15, seconds=made, silent=sent_again, size=0 if sent_again else 100
        )

    def write(
        self,
        *bodies: Any,
        size: int = 100,
        kind: int = 2,
        seconds: int = MADE,
        artificial: bool = False,
        silent: bool = False,
    ) -> None:
        """Events of one packet. silent: it does not say where it ends."""
        self.at += 0 if artificial else size
        end = 0 if artificial or silent else self.at & 0xFFFFFFFF
        header = Header(seconds, kind, 1, max(size, 19), end, 0x20 if artificial else 0)
        self._next = [Event(header, body) for body in bodies]
        data = struct.pack("<IBIIIH", *header)
        self.assembly.feed(data.ljust(size, b"\0"))

    def transaction(self, *bodies: Any, number: int = 1, end: Any = None) -> None:
        self.write(gtid(number))
        for body in bodies:
            self.write(body)
        self.write(end or Commit(number))


def gtid(number: int, *, standalone: bool = False, alter: Any = "") -> MariadbGtid:
    return MariadbGtid(0, 1, number, standalone, True, False, False, False, None, alter)


def rows(*ids: int, table: Table = THING, op: Any = "create") -> Rows:
    raw = b"".join(b"\xfc" + struct.pack("<ii", n, n * 10) for n in ids)
    raw = b"".join(raw[n * 9 : n * 9 + 9] * (2 if op == "update" else 1) for n in range(len(ids)))
    return Rows(op, table, (b"\xff",) * (2 if op == "update" else 1), raw, False, True)


def query(text: str, schema: str = "shop") -> Query:
    return Query(schema, text, 0)


def keys(log: Log) -> list[list[tuple[str, Any]]]:
    return [[(c.op, c.key.get("id")) for c in one] for one in log.given]


def test_a_transaction_is_given_at_its_commit_and_whole() -> None:
    log = Log()
    log.write(gtid(9))
    log.write(Comment("insert"))
    log.write(THING)
    log.write(rows(1, 2))
    log.write(OTHER)
    log.write(rows(5, table=OTHER))
    log.write(rows(2, op="delete"))
    assert (log.given, log.assembly.reached) == ([], START)
    log.write(Commit(3), seconds=MADE + 7)
    (one,) = log.given
    assert [(c.op, c.key["id"], c.ordinal) for c in one] == [
        ("create", 1, 0), ("create", 2, 1), ("delete", 2, 2),
    ]  # fmt: skip
    place = Place(7, 1300, MADE)
    assert (one.xid, one.position, one.commit) == ("0-1-9", place.text, place.text)
    assert one.committed_at is not None
    assert one.committed_at.timestamp() == MADE + 7
    assert (log.assembly.reached, log.assembly.given) == (Position(place), place)


def test_what_touches_nothing_captured_only_moves_the_position() -> None:
    log = Log()
    log.transaction(rows(1, table=OTHER))
    log.write(gtid(2, standalone=True))
    log.write(query("CREATE TABLE x (id INT)"))
    log.transaction(rows(1), end=query("ROLLBACK"))
    assert log.given == []
    assert log.assembly.reached.place.offset == log.at


def test_savepoints_take_back_rows_and_intents() -> None:
    words = Table("shop", "duly_intent", (
        Column("name", Kind.VARCHAR, 40, 0, collation=45),
        Column("data", Kind.BLOB, 1, 0, collation=45),
    ), (), described=True)  # fmt: skip
    log = Log()
    said = [Rows("create", words, (b"\xff",), b"\xfc\x01" + name + b"\x01{", False, True)
            for name in (b"a", b"b", b"c")]  # fmt: skip
    log.transaction(
        rows(1), said[0], query("SAVEPOINT `s p`"), rows(2), said[1],
        query("SAVEPOINT later"), rows(3), query("ROLLBACK TO SAVEPOINT `S P`"), rows(4), said[2],
    )  # fmt: skip
    assert keys(log) == [[("create", 1), ("create", 4)]]
    assert [(i.name, i.data) for i in log.given[0].intents] == [("a", b"{"), ("c", b"{")]
    with pytest.raises(UndecodableError):
        log.transaction(query("ROLLBACK TO nowhere"))


def test_groups_of_mysql() -> None:
    uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
    log = Log()
    log.write(MysqlGtid(uuid, "", 5, committed_us=MADE * 1_000_000 + 250_000))
    log.write(query("BEGIN"))
    log.write(rows(1))
    log.write(Commit(1))
    log.write(MysqlGtid("", "", 0))
    log.write(query("BEGIN"), rows(2), Commit(2))  # as a compressed transaction comes
    log.write(MysqlGtid(uuid, "blue", 6))
    log.write(query("TRUNCATE TABLE thing"))
    log.write(query("BEGIN"))
    log.write(rows(3))
    log.write(query("COMMIT"))
    assert keys(log) == [[("create", 1)], [("create", 2)], [("truncate", None)], [("create", 3)]]
    assert [one.xid for one in log.given] == [f"{uuid}:5", "", f"{uuid}:blue:6", ""]
    assert log.given[0].committed_at is not None
    assert log.given[0].committed_at.timestamp() == MADE + 0.25


def prepare(log: Log, number: int, *bodies: Any) -> None:
    log.transaction(*bodies, query(f"XA END {NAMED}"), number=number, end=XaPrepare(False, XID))


def decide(log: Log, number: int, verb: str) -> None:
    log.write(gtid(number, standalone=True))
    log.write(query(f"XA {verb} {NAMED}"))


def test_a_prepared_transaction_is_held_until_it_is_decided() -> None:
    log = Log()
    prepare(log, 1, rows(1))
    log.transaction(rows(2), number=2)
    assert keys(log) == [[("create", 2)]]
    assert log.given[0].commit == Position(Place(7, 1200, MADE), START.place).text
    decide(log, 3, "COMMIT")
    decided = log.given[1]
    assert (keys(log)[1], decided.xid, len(decided.commit)) == ([("create", 1)], "0-1-3", 22)
    assert list(log.assembly.decided) == [b"gb"]
    assert log.assembly.given.offset == 1200
    prepare(log, 4, rows(3))
    decide(log, 5, "ROLLBACK")
    log.transaction(rows(4), number=6, end=XaPrepare(True, XID))
    assert keys(log)[2:] == [[("create", 4)]]
    with pytest.raises(GapError) as caught:
        decide(log, 7, "COMMIT")
    assert caught.value.code == "CDC_XA_UNKNOWN"


def test_what_is_read_again_for_what_is_held_is_not_given_again() -> None:
    done = Position(Place(7, 1200, MADE), START.place)
    log = Log(done)
    decide(log, 0, "COMMIT")  # of before; it was given
    log.at = 500
    log = Log(done)
    prepare(log, 1, rows(1))
    log.transaction(query("TRUNCATE thing"), rows(2), number=2)
    assert (log.at, log.given, log.assembly.reached) == (1300, [], done) or log.given
    decide(log, 3, "COMMIT")
    assert keys(log)[-1] == [("create", 1)]


def test_a_log_that_was_begun_anew_is_a_gap() -> None:
    with pytest.raises(GapError) as caught:
        Log(Position(Place(7, 500, MADE - 60)))
    assert caught.value.code == "CDC_SOURCE_CHANGED"
    Log(Position(Place(7, 500, 0)))  # where the time was not known nothing is compared


def test_files_follow_each_other_and_a_crash_undoes_what_was_open() -> None:
    log = Log()
    log.write(gtid(1))
    log.write(rows(1))
    log.file(8, made=MADE + 5)
    log.transaction(rows(2), number=1)
    log.write(Stop())
    assert keys(log) == [[("create", 2)]]
    assert log.assembly.reached.place == Place(8, log.at, MADE + 5)
    with pytest.raises(UndecodableError):
        log.write(Rotate("nine", 4))


def test_events_that_do_not_say_where_they_end_are_counted() -> None:
    log = Log()
    log.write(gtid(1))
    for body in (THING, rows(1)):
        log.write(body, silent=True)
    log.write(Commit(1), silent=True)
    assert log.assembly.reached.place == Place(7, 900, MADE)
    with pytest.raises(UndecodableError):
        log.assembly.feed(b"short")


def test_behind_four_gigabytes_it_is_read_again_from_the_transaction() -> None:
    log = Log(Position(Place(7, 0xFFFFFF00, MADE)))
    log.transaction(rows(1))
    (one,) = log.given
    assert log.at == 0xFFFFFF00 + 300
    wanted = Position(Place(7, 0xFFFFFFFF, MADE), Place(7, 0xFFFFFF00, MADE))
    assert one.commit == wanted.text == log.assembly.reached.text
    again = Log(Position.parse(one.commit))
    again.transaction(rows(1))
    assert again.given == []
    with pytest.raises(GapError) as caught:
        again.transaction(rows(2), number=2)
    assert caught.value.code == "CDC_LOG_TOO_LARGE"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("DROP TABLE thing", "CDC_TABLE_LOST"),
        ("UPDATE thing SET v = 1", "CDC_STATEMENT_LOGGED"),
    ],
)
def test_a_statement_that_hides_changes_stops(text: str, code: str) -> None:
    log = Log()
    log.transaction(rows(1))
    with pytest.raises(GapError) as caught:
        log.transaction(query(text), number=2)
    assert (caught.value.code, keys(log)) == (code, [[("create", 1)]])


def test_only_the_second_half_of_an_alter_in_two_parts_counts() -> None:
    log = Log()
    for number, alter in ((1, "start"), (2, "rollback")):
        log.write(gtid(number, standalone=True, alter=alter))
        log.write(query("ALTER TABLE thing RENAME TO x"))
    with pytest.raises(GapError):
        log.write(gtid(3, standalone=True, alter="commit"))
        log.write(query("ALTER TABLE thing RENAME TO x"))


def test_what_does_not_fit_together_stops() -> None:
    for bodies in (
        (rows(1),),
        (Commit(1),),
        (gtid(1), gtid(2)),
        (XaPrepare(False, XID),),
        (object(),),
    ):
        log = Log()
        with pytest.raises(UndecodableError):
            for body in bodies:
                log.write(body)
    log = Log()
    with pytest.raises(GapError) as caught:
        log.write(Incident(1, "LOST_EVENTS"))
    assert caught.value.code == "CDC_INCIDENT"


def test_a_table_whose_key_went_stops() -> None:
    gone = Table("shop", "thing", COLUMNS[1:], (), described=True)
    log = Log()
    with pytest.raises(GapError) as caught:
        log.transaction(Rows("create", gone, (b"\xff",), b"\xfe\0\0\0\0", False, True))
    assert caught.value.code == "CDC_KEY_COLUMN_GONE"


def test_old_values_that_nobody_wants_are_not_carried() -> None:
    log = Log(before_image=False)
    raw = b"".join(b"\xfc" + struct.pack("<ii", n, 5) for n in (1, 2))
    moved = Rows("update", THING, (b"\xff",) * 2, raw, False, True)
    log.transaction(rows(1, op="update"), moved, rows(2, op="delete"))
    said = [(c.op, dict(c.key), c.before, c.after) for c in log.given[0]]
    assert said == [
        ("update", {"id": 1}, None, {"id": 1, "v": 10}),
        ("update", {"id": 2}, {"id": 1, "v": ABSENT}, {"id": 2, "v": 5}),
        ("delete", {"id": 2}, {"id": 2, "v": ABSENT}, None),
    ]
