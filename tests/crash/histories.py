"""Random histories of transactions, and what was to begin after their commits.

Each unit of work inserts order n and submits call n after the commit, at one and the same place of
a history of savepoints, ends and errors; the call looks, over a connection of its own, whether
order n is there.  The database is the oracle: call n ran once if order n is there, saw it, and did
not run if it is not; then its handle is cancelled.  Three joins: a Session, an AsyncSession,
Django's ``atomic``.

    python -m tests.crash.histories COUNT SEED FOLDER SECONDS     prints one JSON object
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import django
from django.conf import settings
from django.db import connections, transaction
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from duly import App
from duly.background import Task
from duly.databases.sqlite.engine import sqlite_engine

__all__ = ["ENDS", "KINDS", "VERBS", "History", "Part", "Violations", "World"]

KINDS = ("session", "async", "django")
VERBS = ("work", "work", "orm", "core", "open", "open", "release", "back")
ENDS = ("commit", "commit", "commit", "rollback", "close", "raise")
INSERT = "INSERT INTO orders (id) VALUES (:n)"
WAIT_SECONDS = 20.0


class Part(NamedTuple):
    """One root transaction. steps: (verb, which of the open savepoints)."""

    steps: Sequence[tuple[str, int]]
    end: str


class History(NamedTuple):
    """Root transactions of one session or connection, one after the other."""

    kind: str
    parts: Sequence[Part]


class Violations(NamedTuple):
    """What was wrong, by how; units: of work, kept: that were committed."""

    histories: int
    units: int
    kept: int
    lost: int  # committed, and the call did not run
    unexpected: int  # ran for what was not committed, or before it could be seen
    duplicated: int
    dangling: int  # the handle of what was rolled back never ended

    @property
    def none(self) -> bool:
        """Nothing was."""
        return not (self.lost or self.unexpected or self.duplicated or self.dangling)

    def plus(self, other: Violations) -> Violations:
        """Both."""
        return Violations(*(a + b for a, b in zip(self, other, strict=True)))


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class BoomError(Exception):
    """Raised inside a transaction."""


class World:
    """A SQLite file, three ways to it, and an App with a function of threads and one of tasks."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "shop.db"
        self.engine = sqlite_engine(f"sqlite:///{self.path}", synchronous="NORMAL")
        Base.metadata.create_all(self.engine)
        self.async_engine = sqlite_engine(
            f"sqlite:///{self.path}", synchronous="NORMAL", asynchronous=True
        )
        self.app = App("histories", database=self.engine, broker="embedded:///:memory:")
        self.seen: list[tuple[int, bool]] = []
        self.tasks: dict[int, Task[None]] = {}
        self.n = 0
        self._mine = threading.local()
        self._loop = asyncio.Runner()
        self._in_thread = self.app.background(pool="threads", workers=3, name="in_thread")(
            self.look
        )
        self._in_task = self.app.background(pool="tasks", name="in_task")(self.look_async)
        if not settings.configured:
            file = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(self.path)}
            settings.configure(DATABASES={"default": file}, LOGGING_CONFIG=None)
            django.setup()
        connections["default"].close()
        connections["default"].settings_dict["NAME"] = str(self.path)

    def close(self) -> None:
        self._loop.run(self.async_engine.dispose())
        self._loop.close()
        self.app.close()
        connections["default"].close()
        self.engine.dispose()

    # --- the calls --------------------------------------------------------------------------------
    def look(self, n: int) -> None:
        if not hasattr(self._mine, "connection"):
            self._mine.connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
        found = self._mine.connection.execute("SELECT 1 FROM orders WHERE id = ?", (n,)).fetchall()
        self.seen.append((n, bool(found)))

    async def look_async(self, n: int) -> None:
        self.look(n)

    def submit(self, target: Any) -> int:
        """Number a unit of work and submit its call."""
        self.n += 1
        function: Any = self._in_thread if self.n % 2 else self._in_task
        self.tasks[self.n] = function.after(target).submit(self.n)
        return self.n

    # --- playing ----------------------------------------------------------------------------------
    def play(self, history: History) -> Violations:
        """Play a history to its end and judge it."""
        first = self.n + 1
        if history.kind == "async":
            self._loop.run(self._play_async(history.parts))
        elif history.kind == "django":
            for part in history.parts:
                self._play_django(part)
        else:
            self._play_session(history.parts)
        return self._judge(first)

    def _play_session(self, parts: Sequence[Part]) -> None:
        with Session(self.engine) as session:
            for part in parts:
                savepoints: list[Any] = []
                for verb, place in part.steps:
                    if verb == "open":
                        savepoints.append(session.begin_nested())
                    elif verb in ("release", "back"):
                        if savepoints:  # ends those inside it, too
                            at = place % len(savepoints)
                            getattr(savepoints[at], "commit" if verb == "release" else "rollback")()
                            del savepoints[at:]
                    elif verb == "orm":
                        session.add(Order(id=self.submit(session)))
                    else:
                        target = session.connection() if verb == "core" else session
                        n = self.submit(target)
                        session.execute(text(INSERT), {"n": n})
                if part.end == "raise":
                    with suppress(BoomError), session:
                        raise BoomError
                else:
                    getattr(session, part.end)()

    async def _play_async(self, parts: Sequence[Part]) -> None:
        async with AsyncSession(self.async_engine) as session:
            for part in parts:
                savepoints: list[Any] = []
                for verb, place in part.steps:
                    if verb == "open":
                        savepoints.append(await session.begin_nested())
                    elif verb in ("release", "back"):
                        if savepoints:
                            at = place % len(savepoints)
                            ending = savepoints[at]
                            await (ending.commit() if verb == "release" else ending.rollback())
                            del savepoints[at:]
                    elif verb == "orm":
                        session.add(Order(id=self.submit(session)))
                    else:
                        target = await session.connection() if verb == "core" else session
                        n = self.submit(target)
                        await session.execute(text(INSERT), {"n": n})
                if part.end == "raise":
                    with suppress(BoomError):
                        async with session:
                            raise BoomError
                else:
                    await getattr(session, part.end)()

    def _play_django(self, part: Part) -> None:
        connection = connections["default"]
        blocks = [transaction.atomic()]
        blocks[0].__enter__()
        for verb, place in part.steps:
            if verb == "open":
                blocks.append(transaction.atomic())
                blocks[-1].__enter__()
            elif verb in ("release", "back"):
                for _ in range(place % len(blocks)):  # from inside out, never the root
                    _leave(blocks.pop(), verb == "release")
            else:
                with connection.cursor() as cursor:
                    cursor.execute(
                        "INSERT INTO orders (id) VALUES (%s)", (self.submit(connection),)
                    )
        if part.end == "close":
            connection.close()
        while blocks:
            _leave(blocks.pop(), part.end == "commit")

    def _judge(self, first: int) -> Violations:
        with self.engine.connect() as connection:
            wanted = {"first": first}
            rows = connection.execute(text("SELECT id FROM orders WHERE id >= :first"), wanted)
            kept = set(rows.scalars())
        lost = dangling = 0
        for n in range(first, self.n + 1):
            task = self.tasks.pop(n)
            if n in kept:
                try:
                    task.result(WAIT_SECONDS)
                except BaseException:  # not begun, cancelled, failed: all of it is a loss
                    lost += 1
            elif not task.cancelled():
                gc.collect()
                dangling += not task.cancelled()
                with suppress(BaseException):
                    task.result(1.0)  # let it show what it does
        seen, self.seen = self.seen, []
        counts = Counter(n for n, _ in seen)
        unexpected = sum(n not in kept for n in counts) + sum(not found for _, found in seen)
        duplicated = sum(count - 1 for count in counts.values())
        units = self.n - first + 1
        return Violations(1, units, len(kept), lost, unexpected, duplicated, dangling)


def _leave(block: Any, well: bool) -> None:
    if well:
        block.__exit__(None, None, None)
    else:
        block.__exit__(BoomError, BoomError(), None)


def made(chance: random.Random, *, steps_max: int = 12) -> History:
    """A history by chance."""
    parts = [
        Part(
            [
                (chance.choice(VERBS), chance.randrange(4))
                for _ in range(chance.randint(0, steps_max))
            ],
            chance.choice(ENDS),
        )
        for _ in range(chance.randrange(1, 4))
    ]
    return History(chance.choice(KINDS), parts)


def main(count: int, seed: int, folder: Path, *, seconds: float) -> None:
    """Play that many, or as many as the time allows, and print the sum."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    chance, world = random.Random(seed), World(folder)
    sum_of = Violations(*([0] * len(Violations._fields)))
    worst = ""
    for _ in range(count):
        history = made(chance)
        found = world.play(history)
        worst = worst or ("" if found.none else repr(history)[:600])
        sum_of = sum_of.plus(found)
        if sum_of.lost + sum_of.dangling > 20 or time.monotonic() > end:
            break  # each costs its wait, and the verdict stands
    world.close()
    print(json.dumps({**sum_of._asdict(), "example": worst}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), seconds=float(sys.argv[4]))
