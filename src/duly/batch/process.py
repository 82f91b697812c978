"""What a job does to its rows between the query and the file, and which of them it may leave out.

The invariant: a row that is left out is counted and named by its key and the error's name, never by
what is in it; one more than the limit ends the attempt with nothing of its chunk written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any, Literal

from duly.errors import ConfigurationError, PermanentError, error_code

__all__ = ["Process", "RowSet", "as_process"]

Row = dict[str, Any]
KEY_TEXT_MAX = 200


@dataclass(frozen=True)
class Process:
    """A function over the rows of a job.

    function: takes a row as a dict and gives one, or None to leave it out; with ``per="batch"`` it
    takes a list of rows and gives a list. skip_max: how many rows of a run may fail, 0 by default.

    Guarantee: it sees a row again only when the chunk that the row is in was not stored.
    On failure: a batch that fails is tried once more row by row; then the row is skipped, or the
    attempt fails.  Idempotence: it must give the same for the same row.
    """

    function: Callable[[Any], Any]
    per: Literal["row", "batch"] = "row"
    skip_max: int = 0

    def __post_init__(self) -> None:
        if iscoroutinefunction(self.function):
            text = "process= is called in a thread: it cannot be an async function"
            raise ConfigurationError(text, code="BATCH_JOB")
        if self.per not in ("row", "batch") or self.skip_max < 0 or not callable(self.function):
            text = "Process(function, per='row' or 'batch', skip_max=0 or more)"
            raise ConfigurationError(text, code="BATCH_JOB")


def as_process(declared: Any) -> Process | None:
    """What a job declares, a plain function among it."""
    if declared is None or isinstance(declared, Process):
        return declared
    return Process(declared)


@dataclass
class RowSet:
    """Rows on their way to a file. origins: the row as it was read, for each; places: of the key in
    it. left: how many may still fail.
    """

    origins: list[Sequence[Any]]
    rows: list[Sequence[Any]]
    places: Sequence[int]
    left: int
    skipped: list[tuple[str, str]]

    def drop(self, index: int, error: str) -> None:
        """Leave a row out. Raises PermanentError (BATCH_ROW_REFUSED) when no more may be."""
        self._skip(self.origins[index], error, None)
        del self.origins[index], self.rows[index]

    def process(self, process: Process, names: Sequence[str], wanted: Sequence[str]) -> None:
        """Put what the function makes of the rows in their place."""
        given = [dict(zip(names, row, strict=True)) for row in self.rows]
        if process.per == "batch":
            try:
                made = process.function([dict(row) for row in given])
                rows = [_chosen(row, wanted) for row in made]
            except Exception as error:  # noqa: BLE001  # told below, row by row
                if self.left <= 0:
                    self._skip(self.origins[0], f"in its batch, {_named(error)}", error)
            else:
                self.rows = list(rows)
                self.origins = self.origins[:1] * len(rows)  # which came of which is its secret
                return
        self._one_by_one(process, given, wanted)

    def _one_by_one(self, process: Process, given: list[Row], wanted: Sequence[str]) -> None:
        origins, self.origins, self.rows = self.origins, [], []
        for origin, row in zip(origins, given, strict=True):
            try:
                made = process.function([row] if process.per == "batch" else row)
                found = made if process.per == "batch" else [] if made is None else [made]
                rows = [_chosen(one, wanted) for one in found]
            except Exception as error:  # noqa: BLE001  # whatever it raises, it is about this row
                self._skip(origin, _named(error), error)
                continue
            self.rows += rows
            self.origins += [origin] * len(rows)

    def _skip(self, origin: Sequence[Any], text: str, error: Exception | None) -> None:
        key = ", ".join(str(origin[place]) for place in self.places)[:KEY_TEXT_MAX]
        if self.left <= 0:
            raise PermanentError(f"the row {key}: {text}", code="BATCH_ROW_REFUSED") from error
        self.left -= 1
        self.skipped.append((key, text))


def _chosen(row: Any, wanted: Sequence[str]) -> tuple[Any, ...]:
    missing = [name for name in wanted if name not in row]
    if missing:
        raise PermanentError(f"it gives no {missing[0]!r}", code="BATCH_PROCESS")
    return tuple(row[name] for name in wanted)


def _named(error: Exception) -> str:
    """The error without its text, in which there may be what is in the row."""
    return error_code(error)
