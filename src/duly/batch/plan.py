"""How far an extraction is: the checkpoint of the step ``extract``, and what it is made of.

The invariants: what is decided once - columns, upper bound, cuts, the stage - is stored before the
first row is read and never decided again; a part's place in the checkpoint never passes what was
synced; the checkpoint stays small, so chunks move into a file beside the data before it grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from duly.batch.seal import part_name
from duly.batch.spool import Chunk, SpoolFile, spool_errors
from duly.errors import PermanentError
from duly.rows import Key, RowColumn

__all__ = ["Part", "Plan", "from_key", "to_key"]

TAIL_MAX = 32
KEY_BYTES_MAX = 512
_READERS: dict[str, Any] = {
    "decimal": Decimal,
    "bytes": bytes.fromhex,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda text: timedelta(microseconds=int(text)),
    "uuid": UUID,
}


def to_key(key: Key | None) -> list[Any] | None:
    """A key as JSON that gives the same values again. Raises PermanentError (BATCH_KEY_...)."""
    if key is None:
        return None
    stored = [_stored(value) for value in key]
    if len(msgspec.json.encode(stored)) > KEY_BYTES_MAX:
        raise PermanentError(f"more than {KEY_BYTES_MAX} bytes", code="BATCH_KEY_TOO_LARGE")
    return stored


def _stored(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        for kind, text in _texts(value):
            return [kind, text]
        what = f"a {type(value).__name__} cannot be a key"
        raise PermanentError(what, code="BATCH_KEY_TYPE")
    return value


def _texts(value: Any) -> Sequence[tuple[str, str]]:
    if isinstance(value, Decimal):
        return [("decimal", str(value))]
    if isinstance(value, bytes):
        return [("bytes", value.hex())]
    if isinstance(value, datetime | date | time):
        kind = "datetime" if isinstance(value, datetime) else type(value).__name__
        return [(kind, value.isoformat())]
    if isinstance(value, timedelta):
        return [("timedelta", str(value // timedelta(microseconds=1)))]
    return [("uuid", str(value))] if isinstance(value, UUID) else []


def from_key(stored: Sequence[Any] | None) -> Key | None:
    """The key that ``to_key`` stored."""
    if stored is None:
        return None
    return tuple(
        _READERS[value[0]](value[1]) if isinstance(value, list) else value for value in stored
    )


class Part(msgspec.Struct):
    """One range of the key. after, until: where it begins and ends; last: the last key that is
    stored. listed: chunks in the file beside, listed_bytes of it; tail: those behind them.
    """

    after: list[Any] | None = None
    until: list[Any] | None = None
    last: list[Any] | None = None
    size_bytes: int = 0
    rows: int = 0
    skipped: int = 0
    listed: int = 0
    listed_bytes: int = 0
    tail: list[Chunk] = []
    done: bool = False

    def add(self, chunk: Chunk) -> None:
        """A chunk that is on the disk."""
        self.last = self.last if chunk.last is None else chunk.last
        self.size_bytes += chunk.size_bytes
        self.rows += chunk.rows
        self.skipped += len(chunk.skipped)
        self.tail.append(chunk)

    def spill(self, path: Path) -> None:
        """Move the tail into the file beside, which is durable when this returns."""
        moved = list(self.tail)  # another part's task may add to it meanwhile
        lines = b"".join(msgspec.json.encode(chunk) + b"\n" for chunk in moved)
        file = SpoolFile(path)
        try:
            file.write([lines], self.listed_bytes)
            file.cut(self.listed_bytes + len(lines))
            file.sync()
        finally:
            file.close()
        self.listed += len(moved)
        self.listed_bytes += len(lines)
        del self.tail[: len(moved)]

    def chunks(self, path: Path) -> list[Chunk]:
        """All chunks, of the file beside and the tail; as many as can be read."""
        found: list[Chunk] = []
        if self.listed:
            with spool_errors(path):
                data = path.read_bytes()[: self.listed_bytes] if path.exists() else b""
            try:
                found = [msgspec.json.decode(line, type=Chunk) for line in data.splitlines()]
            except msgspec.DecodeError:
                return found
            if len(found) != self.listed:
                return found
        return [*found, *self.tail]

    def rebuilt(self, chunks: Sequence[Chunk]) -> Part:
        """The same range with these chunks only."""
        part = Part(after=self.after, until=self.until, done=False)
        for chunk in chunks:
            part.add(chunk)
        return part


class Plan(msgspec.Struct):
    """The checkpoint. mode: as the query says. stage: the table that is read instead. shape: the
    columns; parts: ranges of the key, in its order. unstaged: the stage was dropped. restarts: how
    often it had to begin again. mark: of this plan, where its parts are shared with other
    processes; how far they are is stored beside it then, until they are gathered.
    """

    mode: str
    columns: list[RowColumn]
    parts: list[Part]
    stage: str = ""
    unstaged: bool = False
    restarts: int = 0
    mark: str = ""

    @property
    def rows(self) -> int:
        """Stored so far."""
        return sum(part.rows for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Stored so far."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def skipped(self) -> int:
        """Rows left out so far."""
        return sum(part.skipped for part in self.parts)

    @property
    def done(self) -> bool:
        """Whether every part is."""
        return all(part.done for part in self.parts)

    def spill(self, spool: Path, *, tail_max: int = TAIL_MAX) -> None:
        """Keep the checkpoint small."""
        bound = max(1, tail_max // len(self.parts))
        for number, part in enumerate(self.parts):
            if len(part.tail) >= bound or any(chunk.skipped for chunk in part.tail):
                part.spill(list_path(spool, number))


def list_path(spool: Path, number: int) -> Path:
    """The file beside a part's data: its chunks, one in a line."""
    return (spool / part_name(number)).with_suffix(".chunks")
