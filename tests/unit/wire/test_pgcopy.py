from __future__ import annotations

import pytest

from duly.wire.pgcopy import CopyAnswer, csv_fields, text_fields


def frame(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


ROWS = [b"1,a\n", b'2,"b\nc"\n', b"3,\n", b"4,dddddddd\n", b"5,e\n"]
ANSWER = (
    frame(b"H", b"\0\0\2\0\0\0\0")
    + b"".join(frame(b"d", row) for row in ROWS[:3])
    + frame(b"N", b"SNOTICE\0\0")
    + b"".join(frame(b"d", row) for row in ROWS[3:])
    + frame(b"c", b"")
    + frame(b"C", b"COPY 5\0")
    + frame(b"Z", b"I")
)


def blocks_of(
    pieces: list[bytes], size: int, *, piece: int
) -> list[tuple[int, bytes, bytes, bytes]]:
    answer = CopyAnswer(size, piece_bytes=piece)
    found = [block for piece in pieces for block in answer.feed(piece)]
    assert answer.done
    assert not answer.refusal
    last = answer.last()
    found += [last] if last is not None else []
    assert answer.last() is None
    return [(b.rows, b.first, b.last, b"".join(b.pieces)) for b in found]


@pytest.mark.parametrize("piece", [0, 1, 25])
@pytest.mark.parametrize("each", [1, 3, 7, 20, 1000])
def test_blocks_end_at_the_same_rows_however_the_bytes_come(each: int, piece: int):
    pieces = [ANSWER[at : at + each] for at in range(0, len(ANSWER), each)]
    found = blocks_of(pieces, 20, piece=piece)
    assert found == blocks_of([ANSWER], 20, piece=piece)
    assert b"".join(block[3] for block in found) == b"".join(ROWS)
    assert [block[0] for block in found] == [2, 2, 1]
    assert (found[0][1], found[0][2]) == (ROWS[0], ROWS[1])


@pytest.mark.parametrize("piece", [0, 1, 25])
def test_a_block_that_ends_with_the_answer_is_given_once(piece: int):
    assert [block[0] for block in blocks_of([ANSWER], 1, piece=piece)] == [1] * 5


def test_a_refusal_is_told_by_its_fields():
    answer = CopyAnswer(100)
    answer.feed(frame(b"E", b"SERROR\0C22012\0Mdivision by zero\0\0") + frame(b"Z", b"E"))
    assert answer.done
    assert answer.refusal == {"S": "ERROR", "C": "22012", "M": "division by zero"}


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (b"1,a,\n", [b"1", b"a", None]),
        (b',"",x\n', [None, b"", b"x"]),
        (b'"a ""b"",\n",2\n', [b'a "b",\n', b"2"]),
        (b'1,"x"\n', [b"1", b"x"]),
        (b"\n", [None]),
    ],
)
def test_fields_of_csv(row: bytes, fields: list[bytes | None]):
    assert csv_fields(row, b",") == fields


@pytest.mark.parametrize("row", [b"1,2", b'"a\n', b'"a"b,c\n', b'"a""\n'])
def test_what_is_no_row_is_refused(row: bytes):
    with pytest.raises(ValueError, match=r"row|quotes"):
        csv_fields(row, b",")


def test_fields_of_text():
    row = b"1\t\\N\t\ta\\tb\\\\c\\nd\\xe\\\\\\\\\t\\b\\f\\r\\v\n"
    assert text_fields(row) == [b"1", None, b"", b"a\tb\\c\ndxe\\\\", b"\b\f\r\v"]
