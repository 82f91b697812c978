"""The verdict: right for what is right, and wrong in the right line for each planted mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine

from duly.admin.demo.data import Flight
from duly.admin.demo.gateway import GatewayRecord
from duly.admin.demo.ground import clean_database
from duly.admin.demo.handlers import CARRIERS, DELAYS, DESTINATIONS
from duly.admin.demo.model import QUEUE, TOPIC
from duly.admin.demo.reconcile import Check, Evidence, Kill, percentiles, reconcile

FLIGHTS = [
    Flight(1, "2013-06-24", 500, -5, "US", 1431, "EWR", "CLT"),
    Flight(2, "2013-06-24", 510, 20, "UA", 1, "EWR", "IAH"),
    Flight(3, "2013-06-24", 520, None, "UA", 2, "JFK", "CLT"),
    Flight(4, "2013-06-25", 500, 130, "US", 3, "LGA", "CLT"),
    Flight(5, "2013-06-25", 501, 119, "UA", 4, "LGA", "IAH"),
    Flight(6, "2013-06-25", 502, 240, "UA", 5, "LGA", "IAH"),
]
TYPES = {
    1: "departed", 2: "delayed", 3: "cancelled", 4: "delayed", 5: "delayed", 6: "delayed",
}  # fmt: skip
KILLS = [Kill("random", 9, 100, 0, 5.5), Kill("effect", 9, 40, 1, 6.0)]
GATEWAY = GatewayRecord({"k4": 1, "k6": 2}, [("k4", 4), ("k6", 6)])
EVIDENCE = Evidence(GATEWAY, ["undone"], KILLS)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """A database as a right run leaves it, written by hand."""
    url = f"sqlite:///{tmp_path / 'flights.db'}"
    clean_database(url, broker="embedded:///:memory:")
    made = create_engine(url)
    with made.begin() as connection:
        for flight in FLIGHTS:
            row = flight._asdict() | {"mid": f"m{flight.id}"}
            connection.execute(
                text(
                    "INSERT INTO duly_demo_flights VALUES (:id, :day, :scheduled, :delay, :carrier,"
                    " :number, :origin, :dest, :mid, 1000.0 + :id)"
                ),
                row,
            )
            kind = f"demo.flight_{TYPES[flight.id]}"
            groups = [DESTINATIONS, CARRIERS] + [DELAYS] * (TYPES[flight.id] == "delayed")
            for group in groups:
                done(connection, group, f"m{flight.id}", kind)
        for number in (4, 6):
            done(connection, QUEUE, f"c{number}", "demo.notify_passengers")
        connection.execute(text(
            "INSERT INTO duly_demo_destinations VALUES"
            " ('CLT', 3, 1, 1, 125, 3, 0), ('IAH', 3, 3, 0, 379, 3, 0)"
        ))  # fmt: skip
        connection.execute(text(
            "INSERT INTO duly_demo_carrier_days VALUES ('2013-06-24', 'US', 1, 0),"
            " ('2013-06-24', 'UA', 2, 1), ('2013-06-25', 'US', 1, 0), ('2013-06-25', 'UA', 2, 0)"
        ))  # fmt: skip
        for number in (4, 6):
            connection.execute(
                text("INSERT INTO duly_demo_notices (flight_id, receipt) VALUES (:n, 'sms')"),
                {"n": number},
            )
            connection.execute(
                text(
                    "INSERT INTO duly_demo_effect (group_name, handler, dedupe_key, step,"
                    " provider_key, arguments, state, created_at)"
                    " VALUES (:g, 'h', :n, 'sms', :n, '', 'done', 0)"
                ),
                {"g": QUEUE, "n": f"k{number}"},
            )
    return made


def done(connection: object, group: str, number: str, kind: str) -> None:
    connection.execute(  # type: ignore[attr-defined]
        text(
            "INSERT INTO duly_demo_inbox (group_name, handler, dedupe_key, message_id,"
            " message_type, kind, topic, status, created_at, settled_at)"
            " VALUES (:g, 'h', :m || '/' || :g, :m, :t, 'event', :topic, 'done', 1, 1010.0)"
        ),
        {"g": group, "m": number, "t": kind, "topic": TOPIC},
    )


def wrong(engine: Engine, evidence: Evidence = EVIDENCE) -> list[str]:
    return [check.what for check in reconcile(engine, FLIGHTS, evidence) if not check.right]


def test_a_right_run_adds_up(engine: Engine) -> None:
    checks = reconcile(engine, FLIGHTS, EVIDENCE)
    assert wrong(engine) == []
    assert len(checks) > 20
    assert Check("text messages sent, by the gateway", "2", "2", True) in checks


def stray(group: str, number: str, kind: str, *, status: str = "done") -> str:
    """One row of the inbox too many."""
    return (
        "INSERT INTO duly_demo_inbox (group_name, handler, dedupe_key, message_id, message_type,"
        " kind, topic, status, created_at) VALUES"
        f" ('{group}', 'h', 'stray', '{number}', '{kind}', 'event', 't', '{status}', 1)"
    )


PLANTED = {
    "a flight is lost": (
        "DELETE FROM duly_demo_flights WHERE id = 1",
        {
            "flights in the airline's table",
            "... that differ from the data set",
            "... events without a flight",
        },
    ),
    "a flight has another delay": (
        "UPDATE duly_demo_flights SET delay = 21 WHERE id = 2",
        {"... that differ from the data set"},
    ),
    "an event was never handled": (
        f"DELETE FROM duly_demo_inbox WHERE message_id = 'm1' AND group_name = '{CARRIERS}'",
        {"flight_departed handled once in 2 groups", "... flights that a group missed"},
    ),
    "another event took its place": (
        (
            "UPDATE duly_demo_inbox SET message_id = 'stranger' "
            f"WHERE message_id = 'm1' AND group_name = '{CARRIERS}'"
        ),
        {"... flights that a group missed", "... events without a flight"},
    ),
    "an event was handled twice under another key": (
        stray(DESTINATIONS, "m3", "demo.flight_cancelled"),
        {"flight_cancelled handled once in 2 groups"},
    ),
    "a message that was rolled back was seen": (
        stray(QUEUE, "undone", "demo.notify_passengers"),
        {"messages seen of the 1 that were rolled back"},
    ),
    "a sum is wrong": (
        "UPDATE duly_demo_destinations SET delay_minutes = 126 WHERE dest = 'CLT'",
        {"destinations with the right sums"},
    ),
    "a destination nobody flew to": (
        "INSERT INTO duly_demo_destinations VALUES ('ZZZ', 0, 0, 0, 0, 0, 0)",
        {"destinations with the right sums"},
    ),
    "an event overtook another": (
        "UPDATE duly_demo_destinations SET order_breaks = 3 WHERE dest = 'IAH'",
        {"events out of order"},
    ),
    "a batch was counted twice": (
        "UPDATE duly_demo_carrier_days SET flights = 2 WHERE carrier = 'US' AND day = '2013-06-25'",
        {"daily counts of carriers that are right"},
    ),
    "passengers were noted twice": (
        "INSERT INTO duly_demo_notices (flight_id, receipt) VALUES (4, 'sms')",
        {"passengers told, by our table"},
    ),
    "the wrong passengers were noted": (
        "UPDATE duly_demo_notices SET flight_id = 5 WHERE flight_id = 4",
        {"passengers told, by our table"},
    ),
    "an effect has no result": (
        "UPDATE duly_demo_effect SET state = 'intent' WHERE provider_key = 'k4'",
        {"effects recorded"},
    ),
    "a message is left in the outbox": (
        (
            "INSERT INTO duly_demo_outbox (message_id, message_type, kind, topic, lane, payload,"
            " created_at) VALUES ('o', 't', 'event', 't', 0, x'00', 0)"
        ),
        {"messages left in the outbox"},
    ),
    "a message has failed": (
        stray(QUEUE, "y", "demo.notify_passengers", status="failed"),
        {"messages failed, held or waiting"},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_caught_in_its_line(engine: Engine, name: str) -> None:
    sql, lines = PLANTED[name]
    with engine.begin() as connection:
        connection.execute(text(sql))
    assert set(wrong(engine)) == lines


def sent_twice(right: Evidence) -> Evidence:
    return right._replace(
        gateway=GatewayRecord({**GATEWAY.asked, "k": 1}, [*GATEWAY.sent, ("k", 4)])
    )


def never_sent(right: Evidence) -> Evidence:
    return right._replace(gateway=GatewayRecord({"k4": 2}, [("k4", 4)]))


def never_asked_again(right: Evidence) -> Evidence:
    return right._replace(gateway=GatewayRecord({"k4": 1, "k6": 1}, GATEWAY.sent))


def killed_once(right: Evidence) -> Evidence:
    return right._replace(kills=KILLS[:1])


def ended_by_itself(right: Evidence) -> Evidence:
    return right._replace(kills=[KILLS[0], KILLS[1]._replace(signal=-1)])


def killed_when_idle(right: Evidence) -> Evidence:
    return right._replace(kills=[KILLS[0]._replace(open_work=0), KILLS[1]])


def killed_elsewhere(right: Evidence) -> Evidence:
    return right._replace(kills=[KILLS[0], KILLS[1]._replace(in_doubt=0)])


def never_recovered(right: Evidence) -> Evidence:
    return right._replace(kills=[KILLS[0], KILLS[1]._replace(recovered_seconds=None)])


@pytest.mark.parametrize(
    ("planted", "lines"),
    [
        (sent_twice, {"text messages sent, by the gateway", "... sent twice"}),
        (never_sent, {"text messages sent, by the gateway"}),
        (never_asked_again, {"... asked twice, sent once"}),
        (
            killed_once,
            {
                "SIGKILLs with work open",
                "... between gateway call and record",
                "... after which all groups went on",
            },
        ),
        (ended_by_itself, {"SIGKILLs with work open"}),
        (killed_when_idle, {"SIGKILLs with work open"}),
        (killed_elsewhere, {"... between gateway call and record"}),
        (never_recovered, {"... after which all groups went on"}),
    ],
)
def test_evidence_that_is_missing_is_caught(
    engine: Engine, planted: Callable[[Evidence], Evidence], lines: set[str]
) -> None:
    assert set(wrong(engine, planted(EVIDENCE))) == lines


def test_an_empty_database_does_not_add_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'flights.db'}"
    clean_database(url, broker="embedded:///:memory:")
    assert "flights in the airline's table" in wrong(create_engine(url))


def test_latencies_are_those_since_a_time(engine: Engine) -> None:
    assert percentiles(engine, since=1003.5) == (5.0, 6.0)
    assert percentiles(engine, since=2000.0) is None
