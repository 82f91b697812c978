"""Does it add up: what the tables and the gateway hold, against the raw data set.

Owns the verdict.  It reads with plain SQL and counts by itself what there should be; nothing of
duly takes part, so a mistake of duly cannot hide here.  The invariant: every line has an expected
and a found value from two different sources, and the verdict is right only when all lines are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine

from duly.admin.demo.data import Flight
from duly.admin.demo.gateway import GatewayRecord

__all__ = ["Check", "Evidence", "Kill", "percentiles", "reconcile"]

_SIGKILL = 9

# Written down again: the checker shares no code with what it checks.
DESTINATIONS = "duly-demo.destinations"
CARRIERS = "duly-demo.carriers"
DELAYS = "duly-demo.delays"
QUEUE = "duly-demo.passengers"
_TYPES = ("demo.flight_departed", "demo.flight_delayed", "demo.flight_cancelled")


class Check(NamedTuple):
    """One line of the verdict."""

    what: str
    expected: str
    found: str
    right: bool


class Kill(NamedTuple):
    """One SIGKILL of the worker. where: the place in the code or ``random``. open_work: events that
    were published and not handled by all groups then, and commands in doubt. in_doubt: gateway
    calls made and not recorded then. recovered_seconds: until every group with open work went on,
    None when it never did.
    """

    where: str
    signal: int
    open_work: int
    in_doubt: int
    recovered_seconds: float | None


class Evidence(NamedTuple):
    """What the tables cannot show. undone: ids of messages whose transaction was rolled back."""

    gateway: GatewayRecord
    undone: Sequence[str]
    kills: Sequence[Kill]


def reconcile(engine: Engine, flights: Sequence[Flight], evidence: Evidence) -> list[Check]:
    """Every line of the verdict, in the order in which a flight takes its way."""
    with engine.connect() as connection:
        return [
            *_airline(connection, flights, evidence),
            *_events(connection, flights),
            *_projections(connection, flights),
            *_passengers(connection, flights, evidence.gateway),
            *_left_over(connection),
            *_kills(evidence),
        ]


def percentiles(engine: Engine, *, since: float) -> tuple[float, float] | None:
    """p50 and p99 in seconds from just before a flight's commit to the start of the transaction
    that handles it in order, for flights written after ``since`` (seconds since 1970); None when
    there are none. With a database on another machine, its clock takes part.
    """
    wrote = "SELECT message_id, written_at FROM duly_demo_flights WHERE written_at >= :since"
    handled = "SELECT message_id, settled_at FROM duly_demo_inbox WHERE group_name = :group"
    with engine.connect() as connection:
        written = {row[0]: float(row[1]) for row in _rows(connection, wrote, since=since)}
        done = _rows(connection, handled, group=DESTINATIONS)
    taken = sorted(_seconds(at) - written[number] for number, at in done if number in written)
    if not taken:
        return None
    return taken[len(taken) // 2], taken[min(len(taken) - 1, len(taken) * 99 // 100)]


def _airline(
    connection: Connection, flights: Sequence[Flight], evidence: Evidence
) -> Iterator[Check]:
    sql = "SELECT id, day, scheduled, delay, carrier, number, origin, dest FROM duly_demo_flights"
    rows = [Flight(*row) for row in _rows(connection, sql)]
    yield _equal("flights in the airline's table", len(flights), len(rows))
    wrong = (Counter(rows) - Counter(flights)) + (Counter(flights) - Counter(rows))
    yield _equal("... that differ from the data set", 0, wrong.total())
    undone = set(evidence.undone)
    seen = {row[0] for row in _rows(connection, "SELECT message_id FROM duly_demo_inbox")}
    seen |= {row[0] for row in _rows(connection, "SELECT message_id FROM duly_demo_outbox")}
    what = f"messages seen of the {len(undone):,} that were rolled back"
    yield _equal(what, 0, len(undone & seen))


def _events(connection: Connection, flights: Sequence[Flight]) -> Iterator[Check]:
    """Each event handled once by each group: by type, and by the ids in the airline's table."""
    sql = (
        "SELECT group_name, message_type, COUNT(*), COUNT(DISTINCT message_id) "
        "FROM duly_demo_inbox WHERE status = 'done' GROUP BY group_name, message_type"
    )
    counted = {(group, kind): (rows, ids) for group, kind, rows, ids in _rows(connection, sql)}
    wanted = Counter(_type_of(flight) for flight in flights)
    groups = {DESTINATIONS: _TYPES, CARRIERS: _TYPES, DELAYS: _TYPES[1:2]}
    for kind in _TYPES:
        asked = [group for group, kinds in groups.items() if kind in kinds]
        found = [counted.get((group, kind), (0, 0)) for group in asked]
        what = f"{kind.removeprefix('demo.')} handled once in {len(asked)} groups"
        right = all(pair == (wanted[kind], wanted[kind]) for pair in found)
        yield Check(what, f"{wanted[kind]:,}", _shown(rows for rows, _ in found), right)
    written = {row[0] for row in _rows(connection, "SELECT message_id FROM duly_demo_flights")}
    sql = "SELECT message_id FROM duly_demo_inbox WHERE group_name = :group AND status = 'done'"
    missed = made_up = 0
    for group in (DESTINATIONS, CARRIERS):
        heard = {row[0] for row in _rows(connection, sql, group=group)}
        missed, made_up = missed + len(written - heard), made_up + len(heard - written)
    yield _equal("... flights that a group missed", 0, missed)
    yield _equal("... events without a flight", 0, made_up)


def _projections(connection: Connection, flights: Sequence[Flight]) -> Iterator[Check]:
    sql = (
        "SELECT dest, flights, late, cancelled, delay_minutes, last_sequence "
        "FROM duly_demo_destinations"
    )
    sums = {row[0]: tuple(row[1:]) for row in _rows(connection, sql)}
    yield _same("destinations with the right sums", _delays(flights), sums)
    broken = _one(connection, "SELECT COALESCE(SUM(order_breaks), 0) FROM duly_demo_destinations")
    yield _equal("events out of order", 0, broken)
    sql = "SELECT day, carrier, flights, cancelled FROM duly_demo_carrier_days"
    days = {(row[0], row[1]): (row[2], row[3]) for row in _rows(connection, sql)}
    flown = Counter((flight.day, flight.carrier) for flight in flights)
    dropped = Counter((flight.day, flight.carrier) for flight in flights if flight.cancelled)
    expected = {place: (n, dropped[place]) for place, n in flown.items()}
    yield _same("daily counts of carriers that are right", expected, days)


def _passengers(
    connection: Connection, flights: Sequence[Flight], gateway: GatewayRecord
) -> Iterator[Check]:
    late = Counter(flight.id for flight in flights if flight.long_delayed)
    noted = Counter(row[0] for row in _rows(connection, "SELECT flight_id FROM duly_demo_notices"))
    sent = Counter(flight_id for _, flight_id in gateway.sent)
    yield _multiset("passengers told, by our table", late, noted)
    yield _multiset("text messages sent, by the gateway", late, sent)
    twice = sum(times > 1 for times in sent.values())
    yield _equal("... sent twice", 0, twice)
    yield Check(
        "... asked twice, sent once", "1 or more", f"{gateway.repeated:,}", gateway.repeated > 0
    )
    done = _one(
        connection,
        "SELECT COUNT(*) FROM duly_demo_effect WHERE group_name = :group AND state = 'done'",
        group=QUEUE,
    )
    yield _equal("effects recorded", late.total(), done)


def _left_over(connection: Connection) -> Iterator[Check]:
    yield _equal(
        "messages left in the outbox", 0, _one(connection, "SELECT COUNT(*) FROM duly_demo_outbox")
    )
    left = _one(connection, "SELECT COUNT(*) FROM duly_demo_inbox WHERE status <> 'done'")
    yield _equal("messages failed, held or waiting", 0, left)


def _kills(evidence: Evidence) -> Iterator[Check]:
    killed = [kill for kill in evidence.kills if kill.signal == _SIGKILL and kill.open_work > 0]
    yield _equal("SIGKILLs with work open", 2, len(killed))
    doubtful = sum(kill.in_doubt > 0 for kill in evidence.kills if kill.where != "random")
    yield _equal("... between gateway call and record", 1, doubtful)
    went_on = sum(kill.recovered_seconds is not None for kill in evidence.kills)
    yield _equal("... after which all groups went on", 2, went_on)


def _delays(flights: Iterable[Flight]) -> dict[str, tuple[int, ...]]:
    """(flights, delayed, cancelled, minutes, last sequence number) by destination."""
    sums: dict[str, list[int]] = {}
    for flight in flights:
        row = sums.setdefault(flight.dest, [0, 0, 0, 0, 0])
        for n, value in enumerate((1, flight.delayed, flight.cancelled, flight.delay or 0, 1)):
            row[n] += value
    return {dest: tuple(row) for dest, row in sums.items()}


def _type_of(flight: Flight) -> str:
    return _TYPES[2] if flight.cancelled else _TYPES[int(flight.delayed)]


def _equal(what: str, expected: int, found: int) -> Check:
    return Check(what, f"{expected:,}", f"{found:,}", expected == found)


def _same(what: str, expected: dict[Any, Any], found: dict[Any, Any]) -> Check:
    """How many entries are the same; one too many is as wrong as one that is missing."""
    same = sum(found.get(place) == value for place, value in expected.items())
    extra = len(found.keys() - expected.keys())
    shown = f"{same:,}" + (f" and {extra:,} unknown" if extra else "")
    return Check(what, f"{len(expected):,}", shown, expected == found)


def _multiset(what: str, expected: Counter[int], found: Counter[int]) -> Check:
    missing, extra = (expected - found).total(), (found - expected).total()
    shown = f"{found.total():,}"
    if missing or extra:
        shown += f" ({missing:,} missing, {extra:,} too many)"
    return Check(what, f"{expected.total():,}", shown, not missing and not extra)


def _shown(counts: Iterable[int]) -> str:
    """One number where all groups agree, else all of them."""
    found = list(counts)
    return " / ".join(f"{n:,}" for n in (found if len(set(found)) > 1 else found[:1]))


def _seconds(at: Any) -> float:
    """A time as seconds since 1970, as SQLite has it; PostgreSQL has times of its own."""
    return float(at.timestamp() if isinstance(at, datetime) else at)


def _rows(connection: Connection, sql: str, **values: Any) -> Sequence[Any]:
    return connection.execute(text(sql), values).all()


def _one(connection: Connection, sql: str, **values: Any) -> int:
    return int(_rows(connection, sql, **values)[0][0])
