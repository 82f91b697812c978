"""The same payment two ways: an order in PostgreSQL and an entry in MariaDB, with a message.

global: both in one global transaction.  outbox: the order and the message in one transaction, and a
handler of another App on MariaDB makes the entry; both Apps run here, over the embedded broker.
The figure is payments a second until both databases have all of them; latency and locks are those
of the caller, from its first statement until its commit has returned.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from bench.ours.shop import arguments, durability, tell
from duly import App, Event, Tx

WARM = 10
LOOK_SECONDS = 0.02
ORDER = text("INSERT INTO orders (id, account) VALUES (:id, 1)")
ACCOUNT = text("UPDATE account SET total = total + 1 WHERE id = :id")
ENTRY = text("INSERT INTO entries (id) VALUES (:id)")


class Paid(Event, name="bench.paid", topic="bench.payments"):
    id: int


def globally(app: App, number: int) -> float:
    """One payment in a global transaction; for how many seconds its rows were locked."""
    with app.global_transaction() as gtx:
        session = gtx.session()
        began = time.perf_counter()
        session.execute(ACCOUNT, {"id": number % 100})
        session.execute(ORDER, {"id": number})
        gtx.session("ledger").execute(ENTRY, {"id": number})
        gtx.publish(Paid(id=number))
    return time.perf_counter() - began


def by_outbox(app: App, number: int) -> float:
    """One payment whose other half is a message."""
    with Session(app.database.engine()) as session, session.begin():
        session.connection()
        began = time.perf_counter()
        session.execute(ACCOUNT, {"id": number % 100})
        session.execute(ORDER, {"id": number})
        app.publish(session, Paid(id=number))
    return time.perf_counter() - began


def ledger_app(given: dict[str, Any]) -> App:
    """The other service."""
    app = App("ledger", database=given["ledger"], broker=given["broker"])

    @app.on(Paid, group="ledger")
    def enter(event: Paid, tx: Tx) -> None:
        tx.session.execute(ENTRY, {"id": event.id})

    return app


async def measure(app: App, given: dict[str, Any]) -> tuple[float, list[float], list[float]]:
    """Payments a second, latencies and lock times in seconds."""
    pay, count = (globally if given["way"] == "global" else by_outbox), given["count"]
    other = ledger_app(given)
    latencies: list[float] = []
    locks: list[float] = []

    def work() -> float:
        for number in range(-WARM, 0):
            pay(app, number)
        start = time.perf_counter()
        for number in range(count):
            began = time.perf_counter()
            locks.append(pay(app, number))
            latencies.append(time.perf_counter() - began)
        while entries(other) < count + WARM:
            time.sleep(LOOK_SECONDS)
        return count / (time.perf_counter() - start)

    if given["way"] == "global":
        return await asyncio.to_thread(work), latencies, locks
    async with other.running(roles=["consumer"]) as listening:
        await listening.settled()  # its group is there before the first message
        async with app.running(roles=["relay"]):
            return await asyncio.to_thread(work), latencies, locks


def entries(other: App) -> int:
    """What has arrived."""
    with other.database.engine().connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM entries")).scalar_one())


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    app = App("bench", database=given["database"], broker=given["broker"])
    app.participant("ledger", given["ledger"])
    figure, latencies, locks = asyncio.run(measure(app, given))
    shown = {"latency": sorted(latencies), "locks": sorted(locks)}
    milliseconds = {
        f"{name}_p{part}_ms": round(times[min(len(times) - 1, len(times) * part // 100)] * 1000, 2)
        for name, times in shown.items()
        for part in (50, 99)
    }
    tell(figure, **milliseconds, **durability(app), connections=1, way=given["way"])


if __name__ == "__main__":
    main(arguments())
