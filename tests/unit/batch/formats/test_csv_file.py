from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from duly.batch.formats.csv_file import CsvFile
from duly.batch.formats.text import RowRefusedError
from duly.rows import CsvShape, RowColumn

COLUMNS = [RowColumn("id", "integer"), RowColumn('a "name"', "text")]


def written(form: CsvFile, rows: list[tuple[Any, ...]]) -> str:
    encoder = form.encoder(COLUMNS, {"day": "d"})
    data = encoder.begin() + encoder.rows(rows) + encoder.end(len(rows))
    return data.decode(form.encoding)


def test_fields_are_quoted_where_they_need_it():
    rows = [(1, "a,b"), (2, ""), (3, None), (4, 'x"y'), (5, "l\nm"), (6, " s "), (None, "r\r")]
    text = written(CsvFile("a"), rows)
    assert text == ('id,"a ""name"""\n1,"a,b"\n2,""\n3,\n4,"x""y"\n5,"l\nm"\n6, s \n,"r\r"\n')
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read[1:] == [["" if v is None else str(v) for v in row] for row in rows]


def test_all_quoted_but_null():
    assert written(CsvFile("a", quote="all", header=False), [(1, None)]) == '"1",\n'


def test_first_and_last_line_and_line_ends():
    form = CsvFile("a", first_line="H{day}", last_line="T{rows}", line_end="\r\n", delimiter="\t")
    assert written(form, [(1, "x")]) == 'Hd\r\nid\t"a ""name"""\r\n1\tx\r\nT1\r\n'


def test_text_that_a_spreadsheet_would_run_is_made_safe():
    form = CsvFile("a", spreadsheet_safe=True, header=False)
    rows = [(-1, "=1+1"), (2, "+1"), (3, "-x"), (4, "@x"), (5, "\tx"), (6, "a=1"), (7, None)]
    assert written(form, rows) == "-1,'=1+1\n2,'+1\n3,'-x\n4,'@x\n5,'\tx\n6,a=1\n7,\n"


def test_a_character_that_the_encoding_does_not_have_refuses_its_row():
    encoder = CsvFile("a", encoding="latin-1").encoder(COLUMNS, {})
    assert encoder.rows([(1, "é")]) == "1,é\n".encode("latin-1")
    with pytest.raises(RowRefusedError) as caught:
        encoder.rows([(1, "é"), (2, "€"), (3, "x")])
    assert caught.value.index == 1


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (CsvFile("a"), CsvShape(",", False)),
        (CsvFile("a", delimiter="\t", quote="all"), CsvShape("\t", True)),
        (CsvFile("a", spreadsheet_safe=True), None),
        (CsvFile("a", encoding="latin-1"), None),
        (CsvFile("a", line_end="\r\n"), None),
    ],
)
def test_what_a_source_may_write_itself(form: CsvFile, shape: CsvShape | None):
    assert form.csv_shape() == shape
