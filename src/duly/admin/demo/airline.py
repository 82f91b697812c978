"""The airline service: a process of its own that is never killed.

Owns the business transactions: a handful of flights each, every flight with its event.  On purpose,
some transactions roll back whole and some roll back a savepoint; their flights are written again
later, their messages must never be seen by anybody.  The invariant: the sequence numbers of a
destination are those of committed flights only, without gaps, so that a consumer can tell a lost, a
doubled and an overtaking message from the numbers alone.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections import ChainMap, deque
from collections.abc import Sequence
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from duly.admin.demo.data import Flight, load
from duly.admin.demo.model import (
    APP,
    PREFIX,
    FlightCancelled,
    FlightDelayed,
    FlightDeparted,
    FlightRow,
)
from duly.admin.demo.setup import STAGES, read_setup, stages
from duly.app import App
from duly.errors import RetryableError

__all__ = ["Airline", "main"]

LIVE_FLIGHTS_PER_SECOND = 50
_ATTEMPTS = 10  # of a transaction that another one was in the way of
_FLIGHTS_MOST = 8  # of one transaction
_FATES = {"commit": 88, "roll back": 6, "roll back a savepoint": 6}
_LATER = (20, 60)  # how many flights later one that was rolled back is written again
_SAY_EVERY_SECONDS = 0.1


class RolledBackOnPurposeError(Exception):
    """The airline changed its mind. Its flights come again."""


class Airline:
    """Writes flights and publishes their events. say: told how far it is, as JSON lines."""

    def __init__(self, app: App, *, seed: int, say: Any = None) -> None:
        self._app = app
        self._engine = app.database.engine()
        self._random = random.Random(seed)
        self._say = say or (lambda **fact: None)
        self._sequences: dict[str, int] = {}
        self.written = self.transactions = self.rolled_back = self.savepoints = 0
        self.undone: list[str] = []

    def write(self, flights: Sequence[Flight], *, per_second: float = 0.0) -> None:
        """Write all flights; per_second: the pace, 0 for as fast as it goes."""
        waiting = deque(flights)
        started, before, said = time.monotonic(), self.written, 0.0
        while waiting:
            size = min(len(waiting), self._random.randint(1, _FLIGHTS_MOST))
            batch = [waiting.popleft() for _ in range(size)]
            for flight in self._transaction(batch):
                waiting.insert(min(len(waiting), self._random.randint(*_LATER)), flight)
            now = time.monotonic()
            if now - said > _SAY_EVERY_SECONDS:
                said = now
                self._say(written=self.written)
            if per_second:
                time.sleep(max(0.0, started + (self.written - before) / per_second - now))
        self._say(written=self.written)

    def _transaction(self, batch: list[Flight]) -> list[Flight]:
        """Write some flights; returns those that are still to be written."""
        fate = self._random.choices(list(_FATES), list(_FATES.values()))[0]
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._attempt(batch, fate)
            except (RetryableError, OperationalError):
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError

    def _attempt(self, batch: list[Flight], fate: str) -> list[Flight]:
        half = len(batch) // 2 if fate == "roll back a savepoint" else len(batch)
        kept, undone = batch[:half], batch[half:]
        sequences = ChainMap[str, int]({}, self._sequences)
        lost: list[str] = []
        try:
            with Session(self._engine) as session, session.begin():
                ids = [self._write(session, flight, sequences) for flight in kept]
                if undone:
                    lost = self._savepoint(session, undone, sequences.new_child())
                if fate == "roll back":
                    lost = ids
                    raise RolledBackOnPurposeError
        except RolledBackOnPurposeError:
            kept, undone = [], batch
            self.rolled_back += 1
        else:
            self._sequences.update(sequences.maps[0])
            self.transactions += 1
            self.savepoints += bool(undone)
        self.undone += lost
        self.written += len(kept)
        return undone

    def _savepoint(
        self, session: Session, flights: list[Flight], sequences: ChainMap[str, int]
    ) -> list[str]:
        ids: list[str] = []
        try:
            with session.begin_nested():
                ids += [self._write(session, flight, sequences) for flight in flights]
                raise RolledBackOnPurposeError
        except RolledBackOnPurposeError:
            return ids

    def _write(self, session: Session, flight: Flight, sequences: ChainMap[str, int]) -> str:
        """One flight and its event: two lines, one fate."""
        sequences[flight.dest] = sequences.get(flight.dest, 0) + 1
        event = _event(flight, sequences[flight.dest])
        message_id = self._app.publish(session, event, key=flight.dest)
        session.add(FlightRow(**flight._asdict(), message_id=message_id, written_at=time.time()))
        return message_id


def _event(flight: Flight, sequence: int) -> FlightDeparted | FlightDelayed | FlightCancelled:
    if flight.delay is None:
        return FlightCancelled(
            flight_id=flight.id,
            day=flight.day,
            carrier=flight.carrier,
            dest=flight.dest,
            sequence=sequence,
        )
    kind = FlightDelayed if flight.delayed else FlightDeparted
    return kind(
        flight_id=flight.id,
        day=flight.day,
        carrier=flight.carrier,
        dest=flight.dest,
        sequence=sequence,
        delay_minutes=flight.delay,
    )


def main() -> None:
    """Write the stages, each when the driver says so, the last one at a steady pace."""
    setup = read_setup(sys.stdin)
    waiting = iter(load(setup.flights))
    app = App(APP, database=setup.database, broker=setup.broker, table_prefix=PREFIX)
    airline = Airline(app, seed=setup.seed, say=_say)
    for stage, size in enumerate(stages(setup.total), 1):
        if not sys.stdin.readline():
            return  # the driver is gone
        started = time.time()
        airline.write(
            list(itertools.islice(waiting, size)),
            per_second=LIVE_FLIGHTS_PER_SECOND if stage == STAGES else 0,
        )
        _say(stage=stage, started=started, seconds=time.time() - started)
    _say(
        transactions=airline.transactions,
        rolled_back=airline.rolled_back,
        savepoints=airline.savepoints,
        undone=airline.undone,
    )
    app.database.close()


def _say(**fact: Any) -> None:
    print(json.dumps(fact), flush=True)


if __name__ == "__main__":
    main()
