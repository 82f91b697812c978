from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from duly.batch.formats.json_file import JsonArray, JsonLines
from duly.batch.formats.text import RowRefusedError
from duly.errors import ConfigurationError
from duly.rows import RowColumn

COLUMNS = [RowColumn("id"), RowColumn("v")]
ROWS = [
    (1, Decimal("12.50")),
    (2, None),
    (3, date(2026, 1, 2)),
    (4, datetime(2026, 1, 2, tzinfo=UTC)),
    (5, 'a "b"\n'),
]


def test_an_object_in_each_line():
    encoder = JsonLines("a", last_line='{{"rows":{rows}}}').encoder(COLUMNS, {})
    data = encoder.begin() + encoder.rows(ROWS) + encoder.rows([]) + encoder.end(5)
    lines = data.decode().splitlines()
    assert lines[0] == '{"id":1,"v":12.50}'
    assert lines[2:4] == ['{"id":3,"v":"2026-01-02"}', '{"id":4,"v":"2026-01-02T00:00:00Z"}']
    assert json.loads(lines[4])["v"] == 'a "b"\n'
    assert lines[5:] == ['{"rows":5}']


def test_pieces_of_an_array_are_glued():
    encoder = JsonArray("a").encoder(COLUMNS, {})
    pieces = [encoder.begin(), encoder.rows(ROWS[:2]), encoder.glue, encoder.rows(ROWS[2:])]
    found = json.loads(b"".join([*pieces, encoder.end(5)]))
    assert [row["id"] for row in found] == [1, 2, 3, 4, 5]
    assert json.loads(encoder.begin() + encoder.end(0)) == []


def test_a_value_that_json_does_not_have_refuses_its_row():
    encoder = JsonLines("a").encoder(COLUMNS, {})
    with pytest.raises(RowRefusedError) as caught:
        encoder.rows([(1, 1), (2, object())])
    assert caught.value.index == 1


def test_json_is_utf_8():
    with pytest.raises(ConfigurationError, match="BATCH_FORMAT"):
        JsonLines("a", encoding="latin-1")
