"""Events that say something by themselves: as MariaDB wrote them, and as MySQL documents them."""

from __future__ import annotations

from struct import pack
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.errors import UndecodableError
from duly.wire import binlog_events as wire
from duly.wire.binlog_bytes import Bytes
from tests.unit.wire.binlog_samples import bodies, packed, sized, varied

ANY = wire.Header(0, 0, 3, 19, 777, 0)
SOURCE = UUID("3e11fa47-71ca-11e1-9e33-c80aa9429562")


def said(kind: int, body: bytes, **header: int) -> Any:
    return wire.parsed(ANY._replace(kind=kind, **header), Bytes(body))


def queries(part: str) -> list[Any]:
    return [said(2, body) for body in bodies(part, 2)]


# --- as MariaDB wrote them ----------------------------------------------------------------------
def test_transactions_of_mariadb() -> None:
    gtids = [said(162, body) for body in bodies("log", 162)]
    assert gtids[0] == wire.MariadbGtid(
        0, 3, 2, False, True, False, prepares=False, completes=False, xa=None, alter=""
    )
    first, second = wire.Xa(7, b"a", b"b"), wire.Xa(1, b"r", b"")
    marks = [(one.prepares, one.completes, one.xa) for one in gtids if one.xa]
    assert marks == [
        (True, False, first),
        (False, True, first),
        (True, False, second),
        (False, True, second),
    ]
    altered = [(one.alter, one.ddl, one.standalone) for one in gtids if one.alter]
    assert altered == [("start", True, True), ("commit", True, True)]
    assert not gtids[-1].transactional


def test_statements_of_mariadb() -> None:
    found = [(one.schema, one.text.split("'")[0], one.error) for one in queries("log")]
    assert found[0] == ("lab", "SAVEPOINT `s1`", 0)
    assert found[1] == ("lab", "XA END X", 0)
    actions = [wire.action_of(one.text) for one in queries("log")]
    assert actions[:3] == ["savepoint", "xa end", "xa commit"]
    assert "commit" in actions
    assert "other" in actions


def test_a_statement_is_read_as_its_client_wrote_it() -> None:
    rows = [one for one in queries("log") if "rand()" in one.text]
    assert [one.ansi_quotes for one in rows] == [True]
    variables = (
        b"\0" + bytes(4) + b"\1" + bytes(8) + b"\6\3std\3" + bytes(4) + b"\4\x08\0" + bytes(4)
    )
    body = statement("caf\xe9".encode("latin-1"), variables)
    assert said(2, body) == wire.Query("shop", "café", 1062)
    unknown = statement(b"caf\xe9", b"\4\x20\0" + bytes(4))
    assert said(2, unknown).text == "caf\\xe9"
    assert said(2, statement("é".encode(), b"\xee")).text == "é"


def statement(text: bytes, variables: bytes = b"", *, more: bytes = b"") -> bytes:
    head = pack("<IIBHH", 9, 0, 4, 1062, len(variables))
    return head + more + variables + b"shop\0" + text


def test_a_statement_that_loads_a_file_and_one_that_was_compressed() -> None:
    assert said(18, statement(b"LOAD DATA", more=bytes(13))).text == "LOAD DATA"
    body = bodies("log", 165)[0]
    unpacked = wire.query(Bytes(body), unpack=lambda data: data[:1])
    assert unpacked.text.startswith("\\x8")


def test_the_statement_behind_rows() -> None:
    assert said(160, bodies("log", 160)[0]).text.startswith("insert into x values (1,'one',null)")
    assert said(29, b"\x0aupdate t /* intent */") == wire.Comment("update t /* intent */")


def test_the_rest_of_what_mariadb_writes() -> None:
    assert said(163, bodies("log", 163)[0]) == wire.GtidList(((0, 1, 1),))
    assert said(163, bytes(6)) == wire.GtidList(())
    assert said(161, bodies("log", 161)[0]).file.startswith("mysql-bin.")
    assert said(4, bodies("log", 4)[0]) == wire.Rotate("mysql-bin.000003", 4)
    assert isinstance(said(16, bodies("log", 16)[0]), wire.Commit)
    prepared = [said(38, body) for body in bodies("log", 38)]
    assert prepared[0] == wire.XaPrepare(False, wire.Xa(7, b"a", b"b"))
    assert said(13, b"") == wire.Context(13)
    assert said(164, b"\1" + bytes(16)) == wire.StartEncryption(1)
    assert said(3, b"") == wire.Stop()


def test_a_group_commit_has_a_number_of_its_own() -> None:
    body = pack("<QIB", 9, 1, 2 | 4) + bytes(8)
    assert said(162, body, server_id=5)[:3] == (1, 5, 9)
    rolled_back = pack("<QIB", 9, 1, 1) + b"\x08" + bytes(8)
    assert said(162, rolled_back).alter == "rollback"


# --- made from MySQL's documented layouts -------------------------------------------------------
def test_transactions_of_mysql() -> None:
    head = b"\1" + SOURCE.bytes + pack("<q", 23)
    assert said(33, head) == wire.MysqlGtid(str(SOURCE), "", 23)
    assert said(33, head + b"\0" + bytes(16)) == wire.MysqlGtid(str(SOURCE), "", 23)
    clock = head + b"\2" + bytes(16)
    assert said(33, clock) == wire.MysqlGtid(str(SOURCE), "", 23)
    time = (1_700_000_000_000_000).to_bytes(7, "little")
    assert said(33, clock + time) == wire.MysqlGtid(str(SOURCE), "", 23, 1_700_000_000_000_000)
    whole = clock + time + packed(300) + bytes(4)
    assert said(33, whole) == wire.MysqlGtid(str(SOURCE), "", 23, 1_700_000_000_000_000, 300)
    twice = (1_700_000_000_000_000 | 1 << 55).to_bytes(7, "little") + time
    assert said(34, clock + twice + packed(9))[:4] == ("", "", 23, 1_700_000_000_000_000)


def tagged(*fields: tuple[int, bytes], needed: int = 5) -> bytes:
    body = b"".join(varied(number) + data for number, data in fields)
    return varied(1) + varied(len(body)) + varied(needed) + body


TAG_FIELDS = [
    (0, varied(1)),
    (1, b"".join(map(varied, SOURCE.bytes))),
    (2, varied(23 << 1)),
    (3, varied(3) + b"eu1"),
    (4, varied(4)),
    (5, varied(6)),
    (6, varied(1_700_000_000_000_000)),
    (8, varied(2**60)),
]


def test_transactions_with_a_tag() -> None:
    found = said(42, tagged(*TAG_FIELDS))
    assert found == wire.MysqlGtid(str(SOURCE), "eu1", 23, 1_700_000_000_000_000, 2**60)
    newer = tagged(*TAG_FIELDS, (12, b"what it is nobody knows"))
    assert said(42, newer) == found
    wide = [field for field in TAG_FIELDS if field[0] != 2] + [(2, varied(2**63 - 2))]
    assert said(42, tagged(*wide)).number == 2**62 - 1


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(tagged(*TAG_FIELDS, (12, b""), needed=12), id="needed field"),
        pytest.param(tagged(*TAG_FIELDS[1:2]), id="no number"),
        pytest.param(tagged(*TAG_FIELDS[2:3]), id="no source"),
        pytest.param(tagged(TAG_FIELDS[1], (2, varied(23 << 1 | 1))), id="negative number"),
    ],
)
def test_a_tagged_transaction_that_is_none(body: bytes) -> None:
    with pytest.raises(UndecodableError):
        said(42, body)


def test_what_the_files_before_hold() -> None:
    runs = pack("<QQQQQ", 2, 1, 6, 9, 10)
    body = pack("<Q", 1) + SOURCE.bytes + runs
    assert said(35, body) == wire.PreviousGtids({str(SOURCE): ((1, 5), (9, 9))})
    tags = pack("<Q", 1 << 56 | 2 << 8 | 1) + SOURCE.bytes + varied(0) + runs
    tags += SOURCE.bytes + varied(3) + b"eu1" + pack("<QQQ", 1, 1, 2)
    found = said(35, tags).sets
    assert found == {str(SOURCE): ((1, 5), (9, 9)), f"{SOURCE}:eu1": ((1, 1),)}


def test_heartbeats_incidents_and_views() -> None:
    assert said(27, b"log.1") == wire.Heartbeat("log.1", 777)
    assert said(27, pack("<Q", 5 << 32) + b"log.1", end=0) == wire.Heartbeat("log.1", 5 << 32)
    place = packed(1) + sized(b"log.1") + packed(2) + sized(packed(5 << 32)) + packed(0)
    assert said(41, place) == wire.Heartbeat("log.1", 5 << 32)
    assert said(26, b"\1\0\4lost") == wire.Incident(1, "lost")
    assert said(37, b"who is there") == wire.Context(37)


def test_an_unknown_event_is_passed_over_only_when_its_writer_says_so() -> None:
    assert said(99, b"new", flags=0x80) == wire.Ignored(99)
    with pytest.raises(UndecodableError) as caught:
        said(99, b"new")
    assert caught.value.code == "BINLOG_UNKNOWN_EVENT"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(3, b"\0", id="longer stop"),
        pytest.param(16, bytes(9), id="longer commit"),
        pytest.param(35, pack("<Q", 2 << 56), id="form of GTIDs"),
        pytest.param(35, pack("<Q", 2**55), id="GTIDs without end"),
        pytest.param(41, packed(1) + sized(b"log.1") + packed(0), id="heartbeat without a place"),
        pytest.param(41, packed(2) + sized(packed(9)) + packed(0), id="heartbeat without a file"),
        pytest.param(162, pack("<QIB", 9, 1, 0) + b"\x20" + bytes(5), id="flags of a GTID"),
        pytest.param(163, b"\xff\xff\xff\x0f" + bytes(16), id="list without end"),
        pytest.param(2, statement(b"x", b"\6\xff"), id="variables"),
    ],
)
def test_what_does_not_fit_is_refused(kind: int, body: bytes) -> None:
    with pytest.raises(UndecodableError):
        said(kind, body)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("BEGIN", "begin"), (" commit ", "commit"), ("ROLLBACK", "rollback"),
        ("SAVEPOINT `a`", "savepoint"), ("ROLLBACK TO `a`", "rollback to"),
        ("XA START X'61',X'',1", "xa start"), ("xa begin X'61',X'',1", "xa start"),
        ("XA  END X'61',X'',1", "xa end"), ("XA PREPARE X'61',X'',1", "xa prepare"),
        ("XA COMMIT X'61',X'',1 ONE PHASE", "xa commit"),
        ("XA ROLLBACK X'61',X'',1", "xa rollback"),
        ("COMMITTED", "other"), ("CREATE TABLE t (a int)", "other"), ("XA RECOVER", "other"),
        ("BEGIN NOT ATOMIC SELECT 1; END", "other"),
    ],
)  # fmt: skip
def test_what_a_statement_does_to_its_transaction(text: str, action: str) -> None:
    assert wire.action_of(text) == action


def test_the_name_in_an_xa_statement() -> None:
    assert wire.xa_of("XA COMMIT X'61ff',X'',7") == wire.Xa(7, b"a\xff", b"")
    assert wire.xa_of("XA COMMIT X'61',X'62',7 ONE PHASE") == wire.Xa(7, b"a", b"b")
    for other in ("COMMIT", "XA COMMIT X'6',X'',1", "XA COMMIT 'a'"):
        assert wire.xa_of(other) is None


def test_an_event_that_stands_in_no_file() -> None:
    assert ANY._replace(flags=0x20).artificial
    assert not ANY.artificial


KINDS = [2, 3, 4, 13, 16, 18, 26, 27, 29, 33, 34, 35, 38, 41, 42, 99, 160, 161, 162, 163, 164]


@given(st.sampled_from(KINDS), st.binary(max_size=90), st.sampled_from([0, 777]))
def test_no_bytes_raise_anything_else(kind: int, body: bytes, end: int) -> None:
    try:
        found = said(kind, body, end=end)
    except UndecodableError:
        return
    assert isinstance(found, tuple)
