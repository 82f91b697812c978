"""Events in Debezium's form, for consumers that were written for it.

Owns what is around the values, which are ``wire.debezium``'s: the event types of one topic, its
key, the ``source`` block.  The invariant: an event is made of its change alone, so that a replay
repeats it byte for byte; the time at which Debezium handled it is the time of the commit here.
Leaves out schemas (``schemas.enable=false``) and events for emptied tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from duly.errors import ConfigurationError
from duly.kernel.changes import Change
from duly.kernel.rules import Emit
from duly.message import Event
from duly.wire.debezium import Decimals, Form, told

__all__ = ["Debezium"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BINLOGS: Final = ("mariadb", "mysql")


class Debezium:
    """Tells changes of one table: ``yield from debezium(change)`` in a rule.

    topic: ``prefix.schema.table`` or ``prefix.table``, as Debezium names it. connector: what its
    ``source`` calls the kind of database; of "mariadb" and "mysql" moments and documents are told
    as those connectors tell them. database: the name that stands there; for those two the middle of
    the topic where empty. decimals: as its ``decimal.handling.mode``. tombstones: whether a row
    that is gone is followed by an empty event under its key. types: for those two, by column, where
    a value does not say how it is told: ``datetime(6)``, ``timestamp(6)``, ``bit(8)``, each with
    its own digits, and ``date``, ``datetime``, ``timestamp`` that can be zero. Raises
    ConfigurationError.
    """

    def __init__(
        self,
        topic: str,
        *,
        connector: str = "postgresql",
        database: str = "",
        decimals: Decimals = "precise",
        tombstones: bool = True,
        types: Mapping[str, str] = {},
    ) -> None:
        self._prefix, _, table = topic.partition(".")
        if not table:
            raise ConfigurationError(f"Debezium: {topic!r:.80} is not of the form prefix.table")
        if decimals not in ("precise", "string", "double"):
            raise ConfigurationError("Debezium: decimals is 'precise', 'string' or 'double'")
        self._schema, _, self._table = table.rpartition(".")
        self._connector, self._binlog = connector, connector in _BINLOGS
        if types and not self._binlog:
            raise ConfigurationError("Debezium: types are of the connectors 'mariadb' and 'mysql'")
        self._database = database or (self._schema if self._binlog else "")
        self._form = Form(decimals=decimals, binlog=self._binlog, types=types)
        self._tombstones = tombstones
        self._known: tuple[Any, dict[str, Any], dict[str, Any]] = (None, {}, {})
        self.changed, self.gone = _types(topic)

    def __call__(self, change: Change) -> Iterator[Emit]:
        """The events of a change, each under the key of its row. Raises ConfigurationError for a
        moment that is finer than its column's type.
        """
        source, times = self._source(change)
        changed, gone = self.changed, self.gone
        for key, envelope in told(change, self._form, tombstones=self._tombstones):
            if envelope is None:
                yield Emit(gone(), key)
                continue
            before, after, op = envelope
            yield Emit(changed(before=before, after=after, op=op, source=source, **times), key)

    def _source(self, change: Change) -> tuple[dict[str, Any], dict[str, Any]]:
        """The block of a change, and the times of its event; most are those of its transaction."""
        at = change.position, change.op == "read", change.xid, change.committed_at
        known = self._known
        if at != known[0]:
            begun = self._begun(change)
            times = {name: begun[name] or None for name in ("ts_ms", "ts_us", "ts_ns")}
            known = self._known = at, begun, times
        _, source, times = known
        return {**source, "row": change.ordinal} if self._binlog else source, times

    def _begun(self, change: Change) -> dict[str, Any]:
        at = change.committed_at
        micros = 0 if at is None else (at - _EPOCH) // timedelta(microseconds=1)
        every = {
            "version": "duly",
            "connector": self._connector,
            "name": self._prefix,
            "ts_ms": micros // 1000,
            "snapshot": "true" if change.op == "read" else "false",
            "db": self._database,
            "sequence": None,
            "ts_us": micros,
            "ts_ns": micros * 1000,
        }
        return {**every, **(self._of_binlog(change) if self._binlog else self._of_wal(change))}

    def _of_wal(self, change: Change) -> dict[str, Any]:
        number = change.position[:16]
        return {
            "schema": self._schema,
            "table": self._table,
            "txId": int(change.xid) if change.xid.isdigit() else None,
            "lsn": int(number, 16) if self._connector == "postgresql" else None,
            "xmin": None,
            "origin": None,
            "origin_lsn": None,
        }

    def _of_binlog(self, change: Change) -> dict[str, Any]:
        """Six digits of a position are the number of the file, the next eight its offset."""
        server = change.xid.split("-")[1:2] if self._connector == "mariadb" else []
        return {
            "table": self._table,
            "server_id": int(server[0]) if server else 0,
            "gtid": change.xid or None,
            "file": f"{int(change.position[:6], 16):06d}",
            "pos": int(change.position[6:14], 16),
            "row": 0,
            "thread": None,
            "query": None,
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
