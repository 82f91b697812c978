"""What a job reads: the declaration of a query, and the step that extracts it.

Owns the settings and what is wrong with them; how rows become durable is the business of
``extraction``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from duly.batch.extraction import Extraction
from duly.batch.process import Process
from duly.batch.steps import Step, StepContext
from duly.errors import ConfigurationError
from duly.rows import KeyColumn

__all__ = ["ExtractStep", "Process", "Query"]

Mode = Literal["live", "bounded", "staged", "snapshot"]
MODES = ("live", "bounded", "staged", "snapshot")
PARTITIONS_MAX = 16
CHUNK_BYTES_MAX = 32 * 1024 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Query:
    """Rows of a database, read in the order of a key.

    text: one SELECT; ``:name`` is a parameter of the instance. key: the column, or the columns,
    that are unique together and never NULL; ``-name`` for descending order. database: URL; the
    App's own where it is None.

    mode: ``live`` reads each row as it is when its turn comes; ``bounded`` the same, up to the
    highest key there was at the start; ``staged`` keeps the result in a table of the source first,
    so that a restart sees the same rows; ``snapshot`` sees one moment, and begins again after a
    crash.

    partitions: ranges of the key that are read beside each other, 1 to 16, also by other processes
    that share the spool. chunk_bytes: how much is made durable at once. row_bytes_max: a larger row
    is refused. on_empty: ``file`` writes a file without rows, ``fail`` ends the run with
    BATCH_EMPTY.

    Guarantee: after a crash no row of a stored chunk is read again while the spool can be seen, and
    the file is the same byte by byte as long as the rows are.  Raises ConfigurationError
    (BATCH_QUERY).
    """

    text: str
    key: str | Sequence[str]
    database: str | None = field(default=None, repr=False)
    mode: Mode = "live"
    partitions: int = 1
    chunk_bytes: int = _CHUNK_BYTES
    row_bytes_max: int = 8 * 1024 * 1024
    on_empty: Literal["file", "fail"] = "file"

    def __post_init__(self) -> None:
        keys = (self.key,) if isinstance(self.key, str) else tuple(self.key)
        object.__setattr__(self, "key", keys)
        if not keys or not all(name.removeprefix("-") for name in keys):
            text = "a query needs the key of its rows: key='id', or ('day', '-number')"
            raise ConfigurationError(text, code="BATCH_NO_KEY")
        wrong = (
            (self.mode not in MODES, f"mode is one of {', '.join(MODES)}"),
            (not 1 <= self.partitions <= PARTITIONS_MAX, f"partitions: 1 to {PARTITIONS_MAX}"),
            (not 1024 <= self.chunk_bytes <= CHUNK_BYTES_MAX, "chunk_bytes: 1 KiB to 32 MiB"),
            (not 1024 <= self.row_bytes_max <= CHUNK_BYTES_MAX, "row_bytes_max: 1 KiB to 32 MiB"),
            (self.on_empty not in ("file", "fail"), "on_empty is 'file' or 'fail'"),
            (not self.text.strip(), "there is no text"),
        )
        for bad, text in wrong:
            if bad:
                raise ConfigurationError(text, code="BATCH_QUERY")

    def key_columns(self) -> tuple[KeyColumn, ...]:
        """The key as the port has it."""
        return tuple(KeyColumn(name.removeprefix("-"), name.startswith("-")) for name in self.key)

    def step(self, job: Any) -> Step:
        """The step ``extract``; it also runs the job's ``process``."""
        if not hasattr(job.write, "encoder"):
            text = f"job {job.name} reads rows and has no file format as write="
            raise ConfigurationError(text, code="BATCH_JOB")
        return ExtractStep(job)


class ExtractStep:
    """As ``Step``."""

    name = "extract"

    def __init__(self, job: Any) -> None:
        self._job = job

    async def run(self, context: StepContext) -> None:
        """Leave all rows in the spool of this attempt."""
        await Extraction(self._job, context).run()
