"""Parquet: each chunk is kept as Arrow data, and becomes one row group when the file is sealed.

A Parquet file cannot be cut: its index stands at its end.  So it is put together from chunks that
are on the disk already, one in memory at a time, and again from the beginning after a crash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from duly.batch.formats.text import RowRefusedError, shown
from duly.batch.seal import SealStep
from duly.batch.steps import Step
from duly.errors import ConfigurationError, MissingExtraError
from duly.rows import CsvShape, RowColumn

__all__ = ["Parquet"]

_TYPES = {
    "integer": "int64",
    "float": "float64",
    "boolean": "bool",
    "date": "date32",
    "timestamp": "timestamp[us]",
    "bytes": "binary",
}
_PRECISION_MAX = 38


@dataclass(frozen=True)
class Parquet:
    """A Parquet file, one row group for each chunk.

    name: of the file, with parameters in braces. columns: to write, all where empty. types: of
    columns whose type the source cannot tell (SQLite), by Arrow's names, such as ``int64``;
    without one they are text. compression: of the pages.

    Needs pyarrow: MissingExtraError names the command.
    """

    name: str
    columns: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    compression: Literal["zstd", "snappy", "gzip", "none"] = "zstd"

    def csv_shape(self) -> CsvShape | None:
        """As ``FileFormat``."""
        return None

    def wants_values(self) -> bool:
        """As ``FileFormat``."""
        return True

    @property
    def compress(self) -> str:
        """As ``FileFormat``: the pages are packed, when the file is sealed."""
        return ""

    def framed(self, data: bytes) -> bytes:
        """As ``FileFormat``."""
        return data

    def encoder(self, columns: Sequence[RowColumn], params: Mapping[str, object]) -> _Groups:
        """As ``FileFormat``."""
        arrow = _arrow()
        try:
            fields = [arrow.field(c.name, self._type(arrow, c)) for c in columns]
        except ValueError as error:
            raise ConfigurationError(str(error)[:200], code="BATCH_FORMAT") from error
        return _Groups(arrow, arrow.schema(fields))

    def assemble(self, encoder: _Groups, chunks: Iterator[bytes], target: Path) -> None:
        """Write the file from its chunks; not durable yet."""
        from pyarrow import ipc
        from pyarrow.parquet import ParquetWriter

        with ParquetWriter(target, encoder.schema, compression=self.compression) as writer:
            for data in chunks:
                with ipc.open_stream(data) as stream:
                    table = stream.read_all()
                writer.write_table(table, row_group_size=max(1, table.num_rows))

    def step(self, job: Any) -> Step:
        """Seals what was extracted: row groups, digest, manifest."""
        return SealStep(job)

    def _type(self, arrow: Any, column: RowColumn) -> Any:
        if column.name in self.types:
            return arrow.type_for_alias(self.types[column.name])
        if column.kind == "decimal" and 0 < column.precision <= _PRECISION_MAX:
            return arrow.decimal128(column.precision, column.scale)
        if column.kind == "timestamptz":
            return arrow.timestamp("us", tz="UTC")
        return arrow.type_for_alias(_TYPES.get(column.kind, "string"))


class _Groups:
    """As ``Encoder``."""

    glue = b""

    def __init__(self, arrow: Any, schema: Any) -> None:
        self._arrow = arrow
        self.schema = schema
        self._text = [arrow.types.is_string(kind) for kind in schema.types]

    def begin(self) -> bytes:
        """As ``Encoder``: nothing, the file has an index of its own."""
        return b""

    def rows(self, values: Sequence[Sequence[Any]]) -> bytes:
        """As ``Encoder``."""
        arrow = self._arrow
        arrays = [self._column(n, values) for n in range(len(self.schema))]
        batch = arrow.record_batch(arrays, schema=self.schema)
        sink = arrow.BufferOutputStream()
        with arrow.ipc.new_stream(sink, self.schema) as stream:
            stream.write_batch(batch)
        return bytes(sink.getvalue().to_pybytes())

    def end(self, rows: int) -> bytes:
        """As ``Encoder``."""
        return b""

    def _column(self, n: int, values: Sequence[Sequence[Any]]) -> Any:
        column = [row[n] for row in values]
        if self._text[n]:
            column = [None if value is None else shown(value) for value in column]
        kind, wrong = self.schema.types[n], (self._arrow.ArrowException, TypeError, OverflowError)
        try:
            return self._arrow.array(column, type=kind)
        except wrong:
            for index, value in enumerate(column):
                try:
                    self._arrow.array([value], type=kind)
                except wrong as error:
                    text = f"{self.schema.names[n]} is no {kind}"
                    raise RowRefusedError(index, text) from error
            raise


def _arrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.ipc
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    return pa
