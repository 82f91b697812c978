"""Events in Debezium's form, for consumers that were written for it.

Owns what is around the values, which are ``wire.debezium``'s: the event types of one topic, its
key, the ``source`` block.  The invariant: an event is made of its change alone, so that a replay
repeats it byte for byte; the time at which Debezium handled it is the time of the commit here.
Leaves out schemas (``schemas.enable=false``) and events for emptied tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from duly.errors import ConfigurationError
from duly.kernel.changes import Change
from duly.kernel.rules import Emit
from duly.message import Event
from duly.wire.debezium import Decimals, told

__all__ = ["Debezium"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Debezium:
    """Tells changes of one table: ``yield from debezium(change)`` in a rule.

    topic: ``prefix.schema.table`` or ``prefix.table``, as Debezium names it. connector: what its
    ``source`` calls the kind of database. database: the name that stands there. decimals: as its
    ``decimal.handling.mode``. tombstones: whether a row that is gone is followed by an empty event
    under its key. Raises ConfigurationError.
    """

    def __init__(
        self,
        topic: str,
        *,
        connector: str = "postgresql",
        database: str = "",
        decimals: Decimals = "precise",
        tombstones: bool = True,
    ) -> None:
        self._prefix, _, table = topic.partition(".")
        if not table:
            raise ConfigurationError(f"Debezium: {topic!r:.80} is not of the form prefix.table")
        if decimals not in ("precise", "string", "double"):
            raise ConfigurationError("Debezium: decimals is 'precise', 'string' or 'double'")
        self._schema, _, self._table = table.rpartition(".")
        self._connector, self._database = connector, database
        self._decimals: Decimals = decimals
        self._tombstones = tombstones
        self.changed, self.gone = _types(topic)

    def __call__(self, change: Change) -> Iterator[Emit]:
        """The events of a change, each under the key of its row."""
        source = self._source(change)
        for one in told(change, decimals=self._decimals, tombstones=self._tombstones):
            if one.envelope is None:
                yield Emit(self.gone(), one.key)
                continue
            times = {name: source[name] or None for name in ("ts_ms", "ts_us", "ts_ns")}
            envelope = one.envelope._asdict()
            yield Emit(self.changed(**envelope, source=source, **times), one.key)

    def _source(self, change: Change) -> dict[str, Any]:
        at = change.committed_at
        micros = 0 if at is None else (at - _EPOCH) // timedelta(microseconds=1)
        number = change.position[:16]
        return {
            "version": "duly",
            "connector": self._connector,
            "name": self._prefix,
            "ts_ms": micros // 1000,
            "snapshot": "true" if change.op == "read" else "false",
            "db": self._database,
            "sequence": None,
            "ts_us": micros,
            "ts_ns": micros * 1000,
            "schema": self._schema,
            "table": self._table,
            "txId": int(change.xid) if change.xid.isdigit() else None,
            "lsn": int(number, 16) if self._connector == "postgresql" else None,
            "xmin": None,
            "origin": None,
            "origin_lsn": None,
        }


def _types(topic: str) -> tuple[Any, Any]:
    class Changed(Event, name=f"debezium.{topic}", topic=topic):
        before: dict[str, Any] | None
        after: dict[str, Any] | None
        source: dict[str, Any]
        op: str
        ts_ms: int | None
        ts_us: int | None
        ts_ns: int | None
        transaction: None = None

    class Gone(Event, name=f"debezium.{topic}.gone", topic=topic, tombstone=True):
        pass

    return Changed, Gone
