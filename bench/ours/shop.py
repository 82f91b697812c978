"""The App that is measured, and how its programs tell what they measured.

Owns the event, the clock's start and stop: from the moment at which the program may begin (it holds
its lanes; its first batch has arrived) to the last commit.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from duly import App, Event
from duly.observe.facts import Fact

__all__ = ["GROUP", "Counter", "Placed", "arguments", "durability", "make_app", "tell"]

GROUP = "stats"
_SQLITE: tuple[str, ...] = ("journal_mode", "synchronous")
_POSTGRES: tuple[str, ...] = ("synchronous_commit", "fsync", "full_page_writes")
_MYSQL: tuple[str, ...] = ("innodb_flush_log_at_trx_commit", "sync_binlog", "innodb_doublewrite")
_ASKED = {
    "sqlite": ("PRAGMA ", _SQLITE),
    "postgres": ("SHOW ", _POSTGRES),
    "mysql": ("SELECT @@", _MYSQL),
}


class Placed(Event, name="bench.placed", version=1, topic="orders"):
    """What every message of the load is."""

    order_id: int
    cents: int
    note: str


class Counter:
    """When facts of one type began, and how many messages they have told of."""

    def __init__(self, begins: type[Fact], counts: type[Fact]) -> None:
        self._begins, self._counts = begins, counts
        self.began = 0.0
        self.count = 0

    def __call__(self, fact: Fact) -> None:
        """Hear a fact."""
        if not self.began and isinstance(fact, self._begins):
            self.began = time.perf_counter()
        if isinstance(fact, self._counts):
            self.count += int(getattr(fact, "count"))  # noqa: B009  # counted facts have one


def arguments() -> dict[str, Any]:
    """What the harness asks for."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def make_app(given: dict[str, Any], **settings: Any) -> App:
    """The App on the servers given; the rest is as installed."""
    return App("bench", database=given["database"], broker=given["broker"], **settings)


def durability(app: App) -> dict[str, str]:
    """What the database says of a connection that its handlers work on."""
    ask, names = _ASKED[app.database.dialect]
    with app.database.engine().connect() as connection:
        return {
            name: str(connection.exec_driver_sql(f"{ask}{name}").scalar_one()) for name in names
        }


def tell(figure: float, **facts: Any) -> None:
    """The last line, for the harness."""
    print(json.dumps({"figure": figure, **facts}))
