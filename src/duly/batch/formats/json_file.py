"""JSON: one object in a line, or one array of objects.

Decimals are numbers with all their digits, dates and times are ISO 8601, bytes are base64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from duly.batch.formats.text import Framed, RowRefusedError
from duly.errors import ConfigurationError
from duly.rows import CsvShape, RowColumn

__all__ = ["JsonArray", "JsonLines"]

_encode = msgspec.json.Encoder(decimal_format="number").encode


@dataclass(frozen=True)
class _Json(Framed):
    name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoding.lower() not in ("utf-8", "utf8"):
            raise ConfigurationError("JSON is UTF-8", code="BATCH_FORMAT")

    def csv_shape(self) -> CsvShape | None:
        """As ``FileFormat``."""
        return None

    def wants_values(self) -> bool:
        """As ``FileFormat``."""
        return True


@dataclass(frozen=True)
class JsonLines(_Json):
    """A file of JSON lines. name: with parameters in braces; the rest as of every text format."""

    def encoder(self, columns: Sequence[RowColumn], params: Mapping[str, object]) -> _Objects:
        """As ``FileFormat``."""
        between = self.line_end.encode()
        return _Objects(self, columns, params, between=between, frame=(b"", b""), closes=True)


@dataclass(frozen=True)
class JsonArray(_Json):
    """A file with one JSON array. name: with parameters in braces; the rest as of every text
    format.
    """

    def encoder(self, columns: Sequence[RowColumn], params: Mapping[str, object]) -> _Objects:
        """As ``FileFormat``."""
        end = self.line_end.encode()
        frame = (b"[" + end, end + b"]" + end)
        return _Objects(self, columns, params, between=b"," + end, frame=frame, closes=False)


class _Objects:
    """As ``Encoder``. closes: every row is followed by what stands between rows."""

    def __init__(
        self,
        form: _Json,
        columns: Sequence[RowColumn],
        params: Mapping[str, object],
        *,
        between: bytes,
        frame: tuple[bytes, bytes],
        closes: bool,
    ) -> None:
        self._form = form
        self._names = [column.name for column in columns]
        self._params = params
        self._between, self._frame, self._closes = between, frame, closes
        self.glue = b"" if closes else between

    def begin(self) -> bytes:
        """As ``Encoder``."""
        return self._form.line(self._form.first_line, self._params) + self._frame[0]

    def rows(self, values: Sequence[Sequence[Any]]) -> bytes:
        """As ``Encoder``."""
        names = self._names
        found = []
        for index, row in enumerate(values):
            try:
                found.append(_encode(dict(zip(names, row, strict=True))))
            except (TypeError, ValueError, OverflowError) as error:
                raise RowRefusedError(index, str(error)[:200]) from error
        data = self._between.join(found)
        return data + self._between if self._closes and found else data

    def end(self, rows: int) -> bytes:
        """As ``Encoder``."""
        values = {**self._params, "rows": rows}
        return self._frame[1] + self._form.line(self._form.last_line, values)
