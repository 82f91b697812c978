"""What all formats share: the declaration's settings, frames, lines with counts, and row errors.

The invariant: the bytes of a chunk depend on its rows and on whether rows came before it, and on
nothing else; each chunk is a frame of its own where there is compression, so a file can be cut
behind any of them.
"""

from __future__ import annotations

import gzip
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, Protocol

import msgspec

from duly.batch.instance import text_of
from duly.batch.seal import SealStep
from duly.batch.steps import Step
from duly.errors import ConfigurationError, MissingExtraError
from duly.rows import CsvShape, RowColumn

__all__ = ["Compress", "Encoder", "FileFormat", "Framed", "RowRefusedError", "filled", "shown"]

Compress = Literal["", "gzip", "zstd"]
_GZIP_LEVEL = 6


class RowRefusedError(Exception):
    """A row cannot be written in this format. index: of the row among those given."""

    def __init__(self, index: int, text: str) -> None:
        self.index = index
        self.text = text
        super().__init__(text)


class Encoder(Protocol):
    """Writes the rows of one run. glue: stands between two pieces that both have rows."""

    glue: bytes

    def begin(self) -> bytes:
        """What stands before all rows."""
        ...

    def rows(self, values: Sequence[Sequence[Any]]) -> bytes:
        """Rows, not yet framed. Raises RowRefusedError."""
        ...

    def end(self, rows: int) -> bytes:
        """What stands behind all rows; rows: how many there are."""
        ...


class FileFormat(Protocol):
    """A declared file. name: of the file, with the parameters of the instance in braces.
    columns: to write, all of the query's where empty. compress: whether ``framed`` does anything.
    """

    name: str
    columns: tuple[str, ...]

    @property
    def compress(self) -> str:
        """The kind of frames, empty for none."""
        ...

    def csv_shape(self) -> CsvShape | None:
        """The CSV that a source may write for this format; None where only duly can."""
        ...

    def wants_values(self) -> bool:
        """Whether Python's values are needed, not only their text."""
        ...

    def encoder(self, columns: Sequence[RowColumn], params: Mapping[str, object]) -> Encoder:
        """Of one run. Raises ConfigurationError."""
        ...

    def framed(self, data: bytes) -> bytes:
        """A chunk as it stands in the file."""
        ...


@dataclass(frozen=True, kw_only=True)
class Framed:
    """Settings of every text format. compress: each chunk is a frame of its own. first_line,
    last_line: templates with the parameters and, in the last, ``{rows}``.
    """

    columns: tuple[str, ...] = ()
    compress: Compress = ""
    encoding: str = "utf-8"
    line_end: str = "\n"
    first_line: str = ""
    last_line: str = ""

    def __post_init__(self) -> None:
        if self.compress not in ("", "gzip", "zstd"):
            raise ConfigurationError(f"no compression {self.compress!r}", code="BATCH_FORMAT")
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise ConfigurationError(
                f"no encoding {self.encoding!r}", code="BATCH_FORMAT"
            ) from error
        if self.line_end not in ("\n", "\r\n"):
            raise ConfigurationError("line_end is LF or CR LF", code="BATCH_FORMAT")

    def framed(self, data: bytes) -> bytes:
        """As ``FileFormat``."""
        if not data or not self.compress:
            return data
        if self.compress == "gzip":
            return gzip.compress(data, _GZIP_LEVEL, mtime=0)
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtraError("zstandard", "zstd") from error
        return zstandard.ZstdCompressor(write_checksum=True).compress(data)

    def line(self, template: str, values: Mapping[str, object]) -> bytes:
        """A line of the template's, empty where there is none."""
        if not template:
            return b""
        return f"{filled(template, values)}{self.line_end}".encode(self.encoding)

    def step(self, job: Any) -> Step:
        """Seals what was extracted: last line, digest, manifest."""
        return SealStep(job)


def filled(template: str, values: Mapping[str, object]) -> str:
    """A template with values put in; parameters in their canonical form unless it says otherwise.

    Raises ConfigurationError (BATCH_FORMAT).
    """
    parts: list[str] = []
    try:
        for literal, name, spec, conversion in string.Formatter().parse(template):
            parts.append(literal)
            if name is not None:
                parts.append(_field(values[name], spec or "", plain=conversion is None))
    except (KeyError, ValueError, TypeError) as error:
        text = f"{ascii(template)[:80]} cannot be filled in with {', '.join(values)}"
        raise ConfigurationError(text, code="BATCH_FORMAT") from error
    return "".join(parts)


def _field(value: object, spec: str, *, plain: bool) -> str:
    if not plain:
        raise ValueError("conversions such as !r are not for files")
    return format(value, spec) if spec else text_of(value)


def shown(value: Any) -> str:
    """The text of a value, the same for every source: as PostgreSQL writes it."""
    if type(value) is str:
        return value
    if value is True or value is False:
        return "t" if value else "f"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"\\x{bytes(value).hex()}"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    return str(value)
