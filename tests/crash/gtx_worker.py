"""The children of the row "crash twophase": coordinators that die, and recoverers beside them.

A coordinator pays: an order in PostgreSQL with a message, an entry in MariaDB, a note sent by
ActiveMQ, in one global transaction, again and again - and sweeps without any lease in a thread of
its own, as a second coordinator would that believes to be alone.  Its journal says what it has
begun and what it was told.  A fault strikes at a failpoint: this process dies or freezes, or a
server is killed, by the driver, while this process waits for that."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from duly import App, Command, Event
from duly.errors import DulyError, OutcomeUnknownError
from duly.testing.failpoints import arm, parse
from duly.testing.journal import Journal
from duly.twophase import recovery, role
from tests.crash.stop import Stop

WISH_SECONDS = 20.0
PAUSE_SECONDS = 0.01


class Paid(Event, name="crash.paid", topic="crash.payments"):
    id: str


class Note(Command, name="crash.note", queue="notes"):
    id: str


def make_app(config: dict[str, Any]) -> App:
    """The App of all children; the short times are those of the fast part of a run."""
    app = App(
        "crash",
        database=config["shop"],
        broker=f"embedded:///{config['folder']}/broker.db",
        global_tx_timeout=5.0 if config["slow"] else 1.0,
    )
    app.participant("ledger", config["ledger"])
    app.participant("mq", config["xa"])
    if not config["slow"]:
        coordinator_journal_seconds(3.0)
        recovery.GRACE_SECONDS, recovery.LOOK_SECONDS = 0.5, 1.0
        role.EVERY_SECONDS = 0.1
    return app


def coordinator_journal_seconds(seconds: float) -> None:
    """How long a coordinator asks for its decision."""
    from duly.twophase import journal

    journal.DECIDE_SECONDS = seconds


class Teller:
    """What the process is doing, on the disk before it does it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.folder = Path(config["folder"])
        self.journal = Journal(self.folder / f"gtx-{os.getpid()}.jsonl")
        self.now: str = ""
        self._wishes = list(config["wishes"])

    def before(self, point: str) -> None:
        """A fault is about to strike."""
        self.journal.append("struck", point=point, payment=self.now)

    def every(self, point: str) -> None:
        """Let the driver kill a database here, where that is planned."""
        for n, (where, hit, server) in enumerate(self._wishes):
            if where != point:
                continue
            self._wishes[n] = (where, hit - 1, server)
            if hit == 1:
                self.journal.append("wished", point=point, payment=self.now, server=server)
                wish = self.folder / f"wish-{os.getpid()}"
                wish.with_suffix(".new").write_text(server)
                wish.with_suffix(".new").rename(wish)
                end = time.monotonic() + WISH_SECONDS
                while wish.exists() and time.monotonic() < end:
                    time.sleep(0.002)


def main(config: dict[str, Any]) -> int:
    """A coordinator or a recoverer, until SIGTERM."""
    teller = Teller(config)
    plans = parse(config["plan"])
    arm(*plans, before=teller.before, every=teller.every)
    app = make_app(config)
    if config["what"] == "recoverer":
        teller.now = "recovery"
        asyncio.run(recover(app, config))
    else:
        pay(app, teller, config)
    return 0


async def recover(app: App, config: dict[str, Any]) -> None:
    """The production role, alone."""
    ttl = 5.0 if config["slow"] else 1.0
    made = role.RecoveryRole(
        app.global_transactions.recovery(),
        database=app.database,
        clock=app.clock,
        health=app.health,
        ttl_seconds=ttl,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, made.stop)
    await made.run()


def pay(app: App, teller: Teller, config: dict[str, Any]) -> None:
    """Payments until SIGTERM; every end that is told is written down."""
    stopping = Stop()
    chance = random.Random(config["seed"])
    sweeper = threading.Thread(target=sweep, args=(app, stopping), daemon=True)
    if config["sweeps"]:
        sweeper.start()
    while not stopping.is_set():
        teller.now = payment = uuid4().hex
        teller.journal.append("began", payment=payment)
        try:
            with app.global_transaction() as gtx:
                places = [("app", "orders"), ("ledger", "entries")]
                chance.shuffle(places)
                for participant, table in places:
                    session = gtx.session(participant)
                    session.execute(text(f"INSERT INTO {table} VALUES (:id)"), {"id": payment})
                gtx.publish(Paid(id=payment))
                gtx.send(Note(id=payment), via="mq")
        except OutcomeUnknownError:
            teller.journal.append("unknown", payment=payment)
        except (DulyError, SQLAlchemyError) as error:
            teller.journal.append("failed", payment=payment, error=f"{type(error).__name__}")
            time.sleep(0.05)
        else:
            teller.journal.append("acknowledged", payment=payment)
        teller.now = ""
        time.sleep(PAUSE_SECONDS)


def sweep(app: App, stopping: Stop) -> None:
    """A recovery without a lease, beside everything."""
    mine = app.global_transactions.recovery()
    while not stopping.wait(1.3):
        with suppress(DulyError):  # a database is down: the next time
            mine.sweep()
