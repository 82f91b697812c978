"""CSV and TSV: fields in quotes where they need them, NULL as nothing, empty text as two quotes.

The invariant: what a source writes itself and what is written here are the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from duly.batch.formats.text import Framed, RowRefusedError, shown
from duly.errors import ConfigurationError
from duly.rows import CsvShape, RowColumn

__all__ = ["CsvFile"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_TEXT_KINDS = ("text", "json", "")


@dataclass(frozen=True)
class CsvFile(Framed):
    """A CSV file.

    name: of the file, with parameters in braces. delimiter: one ASCII character, a tab for TSV.
    header: whether the names of the columns are the first row. quote: ``minimal`` or ``all`` but
    NULL. spreadsheet_safe: text that a spreadsheet would run as a formula gets a ``'`` before it.
    encoding, line_end, compress, columns, first_line, last_line: as of every text format.

    Raises ConfigurationError (BATCH_FORMAT).
    """

    name: str
    delimiter: str = ","
    header: bool = True
    quote: Literal["minimal", "all"] = "minimal"
    spreadsheet_safe: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        good = len(self.delimiter) == 1 and self.delimiter.isascii()
        if not good or self.delimiter.isalnum() or self.delimiter in '"\r\n.\\\0':
            raise ConfigurationError(f"delimiter {self.delimiter!r}", code="BATCH_FORMAT")
        if self.quote not in ("minimal", "all"):
            raise ConfigurationError(f"quote is not {self.quote!r}", code="BATCH_FORMAT")

    def csv_shape(self) -> CsvShape | None:
        """As ``FileFormat``: a source writes UTF-8 with LF, and makes nothing safe."""
        plain = self.encoding.lower() in ("utf-8", "utf8") and self.line_end == "\n"
        if self.spreadsheet_safe or not plain:
            return None
        return CsvShape(self.delimiter, self.quote == "all")

    def wants_values(self) -> bool:
        """As ``FileFormat``."""
        return False

    def encoder(self, columns: Sequence[RowColumn], params: Mapping[str, object]) -> _CsvRows:
        """As ``FileFormat``."""
        return _CsvRows(self, columns, params)


class _CsvRows:
    """As ``Encoder``."""

    glue = b""

    def __init__(
        self, form: CsvFile, columns: Sequence[RowColumn], params: Mapping[str, object]
    ) -> None:
        self._form = form
        self._columns = columns
        self._params = params
        special = re.escape(f'{form.delimiter}"\r\n')
        self._needs = re.compile(f"[{special}]" if form.quote == "minimal" else "").search
        self._safe = [form.spreadsheet_safe and c.kind in _TEXT_KINDS for c in columns]

    def begin(self) -> bytes:
        """As ``Encoder``."""
        first = self._form.line(self._form.first_line, self._params)
        if not self._form.header:
            return first
        names = [self._field(column.name) for column in self._columns]
        text = f"{self._form.delimiter.join(names)}{self._form.line_end}"
        return first + text.encode(self._form.encoding)

    def rows(self, values: Sequence[Sequence[Any]]) -> bytes:
        """As ``Encoder``."""
        mark, end, safe = self._form.delimiter, self._form.line_end, any(self._safe)
        lines = [
            mark.join([self._field(value) for value in (self._made_safe(row) if safe else row)])
            for row in values
        ]
        lines.append("")
        return encoded(lines, end, self._form.encoding)

    def end(self, rows: int) -> bytes:
        """As ``Encoder``."""
        return self._form.line(self._form.last_line, {**self._params, "rows": rows})

    def _field(self, value: Any) -> str:
        if value is None:
            return ""
        text = shown(value)
        if not text or self._needs(text):
            return '"' + text.replace('"', '""') + '"'
        return text

    def _made_safe(self, row: Sequence[Any]) -> list[Any]:
        return [
            f"'{value}" if safe and isinstance(value, str) and value.startswith(_FORMULA) else value
            for safe, value in zip(self._safe, row, strict=True)
        ]


def encoded(lines: Sequence[str], end: str, encoding: str) -> bytes:
    """Lines as bytes. Raises RowRefusedError for the one that the encoding cannot say."""
    try:
        return end.join(lines).encode(encoding)
    except UnicodeEncodeError:
        index = next(n for n, line in enumerate(lines) if not _sayable(line, encoding))
        raise RowRefusedError(index, f"a character that {encoding} does not have") from None


def _sayable(line: str, encoding: str) -> bool:
    check: Callable[[str], bytes] = line.encode
    try:
        check(encoding)
    except UnicodeEncodeError:
        return False
    return True
