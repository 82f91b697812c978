"""What messages mean together: from byte fixtures, also of servers that the tests do not have."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.databases.postgres import changes_spool
from duly.databases.postgres.changes_assembly import Assembly, Captured, lsn_text
from duly.errors import DatabaseUnavailableError, GapError, UndecodableError
from duly.kernel.changes import Transaction
from duly.sources import TableSpec

HEAD = b"w" + bytes(24)
U64, U32, U16 = (struct.Struct(kind).pack for kind in (">Q", ">I", ">H"))
ORDERS = Captured(TableSpec("orders"), 9, "public", "orders", ("id",))


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def relation(
    oid: int = 9, name: str = "orders", *, xid: bytes = b"", identity: bytes = b"d"
) -> bytes:
    columns = b"\1" + text("id") + U32(23) + U32(0) + b"\0" + text("pad") + U32(25) + U32(0)
    return b"R" + xid + U32(oid) + text("public") + text(name) + identity + U16(2) + columns


def insert(number: int, *, oid: int = 9, xid: bytes = b"", pad: bytes = b"x") -> bytes:
    digits = str(number).encode()
    values = b"t" + U32(len(digits)) + digits + b"t" + U32(len(pad)) + pad
    return b"I" + xid + U32(oid) + b"N" + U16(2) + values


def begin(lsn: int, xid: int = 7) -> bytes:
    return b"B" + U64(lsn) + U64(0) + U32(xid)


def commit(lsn: int) -> bytes:
    return b"C\0" + U64(lsn) + U64(lsn + 8) + U64(0)


def stream_commit(xid: int, lsn: int) -> bytes:
    return b"c" + U32(xid) + b"\0" + U64(lsn) + U64(lsn + 8) + U64(0)


def block(xid: int, *messages: bytes, first: bool = True) -> list[bytes]:
    return [b"S" + U32(xid) + bytes([first]), *messages, b"E"]


def assembled(messages: Sequence[bytes], *, start: int = 0) -> tuple[Assembly, list[Transaction]]:
    given_: list[Transaction] = []
    assembly = Assembly(
        "db", {("public", "orders"): ORDERS}, start=start,
        give=lambda transaction, size: given_.append(transaction),
    )  # fmt: skip
    for message in messages:
        assembly.feed(HEAD + message)
    return assembly, given_


def keys(transaction: Transaction) -> list[int]:
    return [change.key["id"] for change in transaction]


def test_a_transaction_is_given_at_its_commit() -> None:
    before = [relation(), begin(16), insert(1), insert(2)]
    assert assembled(before)[1] == []
    assembly, (whole,) = assembled([*before, commit(16)])
    assert (whole.position, whole.commit, whole.xid) == (lsn_text(16), lsn_text(24), "7")
    assert [(c.ordinal, c.position) for c in whole] == [(0, lsn_text(16)), (1, lsn_text(16))]
    assert (len(whole.changes), whole.changes[1].key) == (2, {"id": 2})
    assert [c.key["id"] for c in whole.changes[:1]] == [1]
    assert (assembly.reached, list(assembly.recent)) == (24, [7])
    with pytest.raises(IndexError):
        whole.changes[2]


def test_a_position_is_reached_only_while_nothing_is_open() -> None:
    assembly, _ = assembled([relation(), begin(16), insert(1)], start=8)
    assembly.alive(500)
    assert assembly.reached == 8
    assembly.feed(HEAD + commit(16))
    assembly.alive(20)
    assert assembly.reached == 24
    assembly.alive(500)
    assert assembly.reached == 500


def test_a_transaction_of_other_tables_only_moves_the_position() -> None:
    messages = [relation(5, "other"), begin(16), insert(1, oid=5), commit(16)]
    assembly, found = assembled(messages)
    assert (found, assembly.reached) == ([], 24)


def test_an_ordinal_counts_rows_of_other_tables_too() -> None:
    _, (whole,) = assembled([
        relation(), relation(5, "other"), begin(16), insert(1), insert(9, oid=5), insert(2),
        commit(16),
    ])  # fmt: skip
    assert [(c.key["id"], c.ordinal) for c in whole] == [(1, 0), (2, 2)]
    assert len(whole.changes) == 2


def test_streamed_pieces_interleave_and_subtransactions_are_undone() -> None:
    one, two, sub = U32(7), U32(8), U32(70)
    _, (second, first) = assembled([
        *block(7, relation(xid=one), insert(1, xid=one), insert(2, xid=sub)),
        *block(8, relation(xid=two), insert(50, xid=two)),
        *block(7, insert(3, xid=one), first=False),
        b"A" + U32(7) + sub,
        b"A" + U32(99) + U32(99),
        stream_commit(8, 16),
        *block(7, insert(4, xid=one), first=False),
        stream_commit(7, 32),
    ])  # fmt: skip
    assert (keys(second), second.position) == ([50], lsn_text(16))
    assert (keys(first), len(first.changes)) == ([1, 3, 4], 3)
    assert [c.ordinal for c in first] == [0, 1, 2]


def test_a_streamed_transaction_that_was_aborted_never_happened() -> None:
    xid = U32(7)
    assembly, found = assembled([
        *block(7, relation(xid=xid), insert(1, xid=xid)), b"A" + xid + xid + U64(1) + U64(2),
    ])  # fmt: skip
    assert found == []
    with pytest.raises(UndecodableError):
        assembly.feed(HEAD + stream_commit(7, 16))


def test_a_truncate_is_one_change_of_each_table() -> None:
    _, (whole,) = assembled([
        relation(), relation(5, "other"), begin(16), b"T" + U32(2) + b"\0" + U32(5) + U32(9),
        commit(16),
    ])  # fmt: skip
    assert [(c.op, c.table, c.ordinal) for c in whole] == [("truncate", "orders", 1)]


def test_intents_of_what_was_undone_are_dropped() -> None:
    def said(name: str, xid: int) -> bytes:
        return b"M" + U32(xid) + b"\1" + U64(1) + text(f"duly.intent:{name}") + U32(1) + b"!"

    _, (whole,) = assembled([
        *block(7, said("Kept", 7), said("Undone", 70), said("", 7)),
        b"A" + U32(7) + U32(70),
        stream_commit(7, 16),
    ])  # fmt: skip
    assert [(i.name, i.data) for i in whole.intents] == [("Kept", b"!")]


PREPARED = U64(5) + U64(6) + U64(0) + U32(77) + text("gid")


@pytest.mark.parametrize(
    "message",
    [b"b" + PREPARED, b"P\0" + PREPARED, b"K\0" + PREPARED, b"p\0" + PREPARED,
     b"r\0" + U64(5) + U64(6) + U64(0) + U64(0) + U32(7) + text("g")],
)  # fmt: skip
def test_a_slot_that_decodes_prepared_transactions_is_refused(message: bytes) -> None:
    with pytest.raises(GapError) as caught:
        assembled([message])
    assert caught.value.code == "CDC_SLOT_TWO_PHASE"


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([b""], id="empty frame"),
        pytest.param([relation(), insert(1)], id="row outside"),
        pytest.param([begin(16), insert(1)], id="unknown relation"),
        pytest.param([begin(16), b"I"], id="cut"),
        pytest.param([begin(16), begin(32)], id="begin in a transaction"),
        pytest.param([commit(16)], id="commit alone"),
        pytest.param([begin(16), commit(24)], id="another commit"),
        pytest.param([b"T" + U32(0) + b"\0"], id="truncate outside"),
        pytest.param([b"E"], id="end alone"),
        pytest.param([begin(16), b"E"], id="end of a whole transaction"),
        pytest.param([b"S" + U32(7) + b"\0"], id="later piece first"),
        pytest.param([b"S" + U32(7) + b"\1", stream_commit(7, 16)], id="commit in a block"),
    ],
)
def test_messages_out_of_order_are_refused(messages: list[bytes]) -> None:
    with pytest.raises(UndecodableError):
        assembled(messages)


def test_a_key_column_that_is_gone_is_a_gap() -> None:
    tables = {("public", "orders"): ORDERS._replace(spec=TableSpec("orders", key=("gone",)))}
    assembly = Assembly("db", tables, start=0, give=lambda transaction, size: None)
    with pytest.raises(GapError) as caught:
        assembly.feed(HEAD + relation())
    assert caught.value.code == "CDC_KEY_COLUMN_GONE"


def test_the_key_is_the_identity_or_the_primary_key_where_all_columns_are_it() -> None:
    for identity in (b"d", b"f"):
        _, (whole,) = assembled([relation(identity=identity), begin(16), insert(1), commit(16)])
        assert whole.changes[0].key == {"id": 1}


@given(st.lists(st.sampled_from([
    relation(), begin(16), commit(16), insert(1), b"S" + U32(7) + b"\1", b"E", U32(7),
    insert(2, xid=U32(7)), stream_commit(7, 16), b"A" + U32(7) + U32(7), b"I", b"",
])))  # fmt: skip
def test_no_order_of_messages_raises_anything_else(messages: list[bytes]) -> None:
    found: list[Transaction] = []
    with suppress(UndecodableError, GapError):
        found = assembled(messages)[1]
    assert all(list(one.changes) for one in found)


# --- rows on disk ---------------------------------------------------------------------------------
@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_spool, "MEMORY_BYTES", 2_000)
    monkeypatch.setattr(changes_spool, "_READ_BYTES", 700)


def many(count: int, *, pad: bytes = b"x" * 50) -> list[bytes]:
    xid, sub = U32(7), U32(70)
    rows = [insert(n, xid=sub if n % 3 == 0 else xid, pad=pad) for n in range(count)]
    return [*block(7, relation(xid=xid), *rows), b"A" + xid + sub, stream_commit(7, 16)]


@pytest.mark.usefixtures("small")
def test_a_large_transaction_is_walked_from_disk_as_often_as_wanted() -> None:
    _, found = assembled(many(300))
    (whole,) = found
    wanted = [n for n in range(300) if n % 3]
    assert [keys(whole), keys(whole)] == [wanted, wanted]
    assert [c.ordinal for c in whole] == list(range(200))
    both = zip(whole.changes, whole.changes, strict=True)
    assert all(a.id == b.id for a, b in both)
    file = whole.changes._rows._file  # type: ignore[attr-defined]
    assert os.fstat(file).st_nlink == 0  # nothing is left behind by a process that dies
    found.clear()
    del whole, both
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(file)


@pytest.mark.usefixtures("small")
def test_rows_larger_than_what_is_read_at_once_come_back() -> None:
    _, (whole,) = assembled(many(5, pad=b"y" * 5_000))
    assert [len((c.after or {})["pad"]) for c in whole] == [5_000] * 3


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_an_error_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DatabaseUnavailableError, match="No space left") as caught:
        assembled(many(300))
    assert caught.value.code == "CDC_SPOOL_FAILED"


@pytest.mark.usefixtures("small")
def test_a_spool_that_was_cut_short_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (whole,) = assembled(many(300))
    monkeypatch.setattr(os, "pread", lambda *given_: b"")
    with pytest.raises(GapError) as caught:
        list(whole)
    assert caught.value.code == "CDC_SPOOL_FAILED"


def test_a_row_that_cannot_be_read_is_a_gap_when_it_is_walked() -> None:
    _, (whole,) = assembled([relation(), begin(16), insert(1)[:-1] + b"\xff", commit(16)])
    with pytest.raises(GapError) as caught:
        list(whole)
    assert caught.value.code == "CDC_UNDECODABLE"
