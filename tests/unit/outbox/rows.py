"""Rows put into duly's tables by hand, and read back, on any database."""

from __future__ import annotations

import re
import time
from typing import Any

from sqlalchemy import text

from duly.kernel.names import place
from duly.ports import Database

NOW = {
    "mysql": "UTC_TIMESTAMP(6)",
    "postgres": "clock_timestamp()",
    "sqlite": "unixepoch('subsec')",
}
_BYTES = ("key", "dedupe_key")


class Rows:
    """Writes and reads rows behind the back of duly's own statements."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._engine = database.engine()

    def run(self, sql: str, **values: Any) -> list[Any]:
        if self.database.dialect == "mysql":  # there KEY is a reserved word, and stored as bytes
            sql = re.sub(r"(?<![.:\w])key(?=[, ]|$)", "`key`", sql)
        with self._engine.begin() as connection:
            result = connection.execute(text(sql), values)
            rows = [dict(row) for row in result.mappings()] if result.returns_rows else []
        return [
            {k: v.decode() if k in _BYTES and isinstance(v, bytes) else v for k, v in row.items()}
            for row in rows
        ]

    def ago(self, seconds: float) -> str:
        """An expression for a time in the past."""
        if self.database.dialect == "sqlite":
            return repr(time.time() - seconds)  # SQLite's own clock has whole milliseconds only
        if self.database.dialect == "mysql":
            return f"UTC_TIMESTAMP(6) - INTERVAL {seconds} SECOND"
        return f"clock_timestamp() - make_interval(secs => {seconds})"

    def outbox(self, **given: Any) -> int:
        """One outbox row; a key places it on its lane."""
        return self._insert("outbox", given)

    def inbox(self, **given: Any) -> int:
        """One inbox row of group ``billing``."""
        row = {"group_name": "billing", "handler": "billing/order.placed"} | given
        row.setdefault("dedupe_key", f"shop/{row.get('message_id', 'm1')}")
        return self._insert("inbox", row)

    def _insert(self, box: str, given: dict[str, Any]) -> int:
        age, settled = given.pop("age", 0.0), given.pop("settled_age", None)
        row = {
            "message_id": "m1",
            "message_type": "order.placed",
            "kind": "event",
            "topic": "orders",
            "key": None,
            "payload": b'{"order_id":7}',
            "headers": '{"source":"shop"}',
            "status": "failed",
            "attempts": 8,
            "last_error": "REFUSED: no" if given.get("status", "failed") == "failed" else None,
        } | given
        row.setdefault("lane", place(row["topic"], row["key"]).lane if row["key"] else 0)
        names = ", ".join(row)
        places = ", ".join(f":{name}" for name in row)
        settled_at = "NULL" if settled is None else self.ago(settled)
        found = self.run(
            f"INSERT INTO duly_{box} ({names}, created_at, settled_at)"
            f" VALUES ({places}, {self.ago(age)}, {settled_at}) RETURNING id",
            **row,
        )
        return int(found[0]["id"])

    def hold(self, blocker: int | None, *, key: str = "k", scope: str = "outbox") -> None:
        self.run(
            "INSERT INTO duly_key_hold (scope, topic, key, lane, blocker_id, created_at)"
            f" VALUES (:scope, 'orders', :key, :lane, :blocker, {self.ago(0)})",
            scope=scope,
            key=key,
            lane=place("orders", key).lane,
            blocker=blocker,
        )

    def holds(self) -> list[tuple[str, str, int | None]]:
        rows = self.run("SELECT scope, key, blocker_id FROM duly_key_hold ORDER BY scope, key")
        return [(row["scope"], row["key"], row["blocker_id"]) for row in rows]

    def row(self, box: str, row_id: int) -> dict[str, Any]:
        return dict(self.run(f"SELECT * FROM duly_{box} WHERE id = :id", id=row_id)[0])

    def due(self, box: str) -> list[int]:
        """The rows that the lane reader would find by their due time."""
        sql = f"SELECT id FROM duly_{box} WHERE status = 'retry' AND due_at <= {self.ago(0)}"
        return sorted(row["id"] for row in self.run(sql))

    def audits(self) -> list[tuple[str, str, str, str | None]]:
        rows = self.run("SELECT verb, actor, target, message_id FROM duly_audit ORDER BY id")
        return [(r["verb"], r["actor"], r["target"], r["message_id"]) for r in rows]
