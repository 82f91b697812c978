"""Fixed width: every column has its places, and a value that does not fit is refused, never cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from duly.batch.formats.csv_file import encoded
from duly.batch.formats.text import Framed, RowRefusedError, shown
from duly.errors import ConfigurationError
from duly.rows import CsvShape, RowColumn

__all__ = ["FixedWidth", "Width"]


class Width(NamedTuple):
    """The places of one column. width: characters. align: where a shorter value stands. pad: one
    character. null: what stands for NULL.
    """

    width: int
    align: Literal["left", "right"] = "left"
    pad: str = " "
    null: str = ""


@dataclass(frozen=True)
class FixedWidth(Framed):
    """A file of fixed columns.

    name: with parameters in braces. widths: by column, in the order of the file, as a ``Width`` or
    the number of characters. The rest as of every text format.

    Raises ConfigurationError (BATCH_FORMAT).
    """

    name: str
    widths: Mapping[str, Width | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, width in self.widths.items():
            one = _width(width)
            if one.width < 1 or len(one.pad) != 1 or len(one.null) > one.width:
                raise ConfigurationError(f"the width of {name}", code="BATCH_FORMAT")
            if one.align not in ("left", "right"):
                raise ConfigurationError(f"the alignment of {name}", code="BATCH_FORMAT")
        if not self.widths:
            raise ConfigurationError("widths names no column", code="BATCH_FORMAT")
        object.__setattr__(self, "columns", tuple(self.widths))

    def csv_shape(self) -> CsvShape | None:
        """As ``FileFormat``."""
        return None

    def wants_values(self) -> bool:
        """As ``FileFormat``."""
        return False

    def encoder(self, columns: Sequence[RowColumn], params: Mapping[str, object]) -> _FixedRows:
        """As ``FileFormat``."""
        return _FixedRows(self, params)


class _FixedRows:
    """As ``Encoder``."""

    glue = b""

    def __init__(self, form: FixedWidth, params: Mapping[str, object]) -> None:
        self._form = form
        self._params = params
        self._widths = [(name, _width(width)) for name, width in form.widths.items()]

    def begin(self) -> bytes:
        """As ``Encoder``."""
        return self._form.line(self._form.first_line, self._params)

    def rows(self, values: Sequence[Sequence[Any]]) -> bytes:
        """As ``Encoder``."""
        lines = [self._line(index, row) for index, row in enumerate(values)]
        lines.append("")
        return encoded(lines, self._form.line_end, self._form.encoding)

    def end(self, rows: int) -> bytes:
        """As ``Encoder``."""
        return self._form.line(self._form.last_line, {**self._params, "rows": rows})

    def _line(self, index: int, row: Sequence[Any]) -> str:
        found = []
        for (name, width), value in zip(self._widths, row, strict=True):
            text = width.null if value is None else shown(value)
            if len(text) > width.width or "\n" in text or "\r" in text:
                raise RowRefusedError(index, f"{name} does not fit into {width.width} characters")
            pad = text.ljust if width.align == "left" else text.rjust
            found.append(pad(width.width, width.pad))
        return "".join(found)


def _width(width: Width | int) -> Width:
    return Width(width) if isinstance(width, int) else width
