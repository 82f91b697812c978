"""The consumers of the demo: the part to read first.

Three groups and one command handler, none of which knows that it is killed in the middle.  What
protects them is not here: each runs in one transaction with the record that it ran, and the outside
call goes through ``tx.effect``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import text

from duly.admin.demo.data import LONG_DELAY_MINUTES
from duly.admin.demo.gateway import SmsGateway
from duly.admin.demo.model import (
    APP,
    EVENT_TYPES,
    PREFIX,
    FlightCancelled,
    FlightDelayed,
    FlightDeparted,
    Notice,
    NotifyPassengers,
)
from duly.app import App
from duly.inbox.transaction import Tx

__all__ = ["CARRIERS", "DELAYS", "DESTINATIONS", "build_app", "register"]

DESTINATIONS = "duly-demo.destinations"
CARRIERS = "duly-demo.carriers"
DELAYS = "duly-demo.delays"

FlightEvent = FlightDeparted | FlightDelayed | FlightCancelled

# The n-th event of a destination must follow the (n-1)-th: anything else is counted as a break.
_PROJECT = text("""
    INSERT INTO duly_demo_destinations AS d
        (dest, flights, late, cancelled, delay_minutes, last_sequence, order_breaks)
    VALUES (:dest, 1, :late, :cancelled, :minutes, :sequence,
        CASE WHEN :sequence = 1 THEN 0 ELSE 1 END)
    ON CONFLICT (dest) DO UPDATE SET
        flights = d.flights + 1,
        late = d.late + excluded.late,
        cancelled = d.cancelled + excluded.cancelled,
        delay_minutes = d.delay_minutes + excluded.delay_minutes,
        last_sequence = excluded.last_sequence,
        order_breaks = d.order_breaks
            + CASE WHEN excluded.last_sequence = d.last_sequence + 1 THEN 0 ELSE 1 END
""")
# The same for MySQL, whose assignments run from left to right: the last sequence comes last.
_PROJECT_MYSQL = text("""
    INSERT INTO duly_demo_destinations
        (dest, flights, late, cancelled, delay_minutes, last_sequence, order_breaks)
    VALUES (:dest, 1, :late, :cancelled, :minutes, :sequence,
        CASE WHEN :sequence = 1 THEN 0 ELSE 1 END)
    ON DUPLICATE KEY UPDATE
        flights = flights + 1,
        late = late + VALUES(late),
        cancelled = cancelled + VALUES(cancelled),
        delay_minutes = delay_minutes + VALUES(delay_minutes),
        order_breaks = order_breaks
            + CASE WHEN VALUES(last_sequence) = last_sequence + 1 THEN 0 ELSE 1 END,
        last_sequence = VALUES(last_sequence)
""")
_COUNT = text("""
    INSERT INTO duly_demo_carrier_days AS c (day, carrier, flights, cancelled)
    VALUES (:day, :carrier, :flights, :cancelled)
    ON CONFLICT (day, carrier) DO UPDATE SET
        flights = c.flights + excluded.flights, cancelled = c.cancelled + excluded.cancelled
""")
_COUNT_MYSQL = text("""
    INSERT INTO duly_demo_carrier_days (day, carrier, flights, cancelled)
    VALUES (:day, :carrier, :flights, :cancelled)
    ON DUPLICATE KEY UPDATE
        flights = flights + VALUES(flights), cancelled = cancelled + VALUES(cancelled)
""")


def build_app(*, database: str, broker: str, gateway: SmsGateway) -> App:
    """The App of the demo with its handlers. Raises ConfigurationError."""
    app = App(APP, database=database, broker=broker, table_prefix=PREFIX)
    register(app, gateway)
    return app


def register(app: App, gateway: SmsGateway) -> None:
    """Tell the App who handles what."""
    for event_type in EVENT_TYPES:
        app.on(event_type, group=DESTINATIONS, order="key")(project)
        app.on(event_type, group=CARRIERS)(count)
    app.on(FlightDelayed, group=DELAYS)(order_notice)

    @app.handle(NotifyPassengers)
    def notify(command: NotifyPassengers, tx: Tx) -> None:
        """Call the gateway outside of any transaction, then keep its receipt."""
        receipt = tx.effect(
            "sms", gateway.send, command.flight_id, command.delay_minutes, key_as="idempotency_key"
        )
        tx.session.add(Notice(flight_id=command.flight_id, receipt=receipt))


def project(event: FlightEvent, tx: Tx) -> None:
    """Keep the delays of a destination, in the order of its flights."""
    minutes = 0 if isinstance(event, FlightCancelled) else event.delay_minutes
    values = {
        "dest": event.dest,
        "late": int(isinstance(event, FlightDelayed)),
        "cancelled": int(isinstance(event, FlightCancelled)),
        "minutes": minutes,
        "sequence": event.sequence,
    }
    tx.session.execute(_PROJECT_MYSQL if _on_mysql(tx) else _PROJECT, values)


def count(events: list[FlightEvent], tx: Tx) -> None:
    """Count the flights of carriers and days, a whole batch in one transaction."""
    flights = Counter((event.day, event.carrier) for event in events)
    cancelled = Counter(
        (event.day, event.carrier) for event in events if isinstance(event, FlightCancelled)
    )
    # Sorted: two batches at once lock the rows in one order.
    rows: list[dict[str, Any]] = [
        {"day": day, "carrier": carrier, "flights": n, "cancelled": cancelled[day, carrier]}
        for (day, carrier), n in sorted(flights.items())
    ]
    tx.session.execute(_COUNT_MYSQL if _on_mysql(tx) else _COUNT, rows)


def order_notice(event: FlightDelayed, tx: Tx) -> None:
    """Have the passengers told when they wait for two hours or more."""
    if event.delay_minutes >= LONG_DELAY_MINUTES:
        tx.send(NotifyPassengers(flight_id=event.flight_id, delay_minutes=event.delay_minutes))


def _on_mysql(tx: Tx) -> bool:
    return tx.session.get_bind().dialect.name in ("mysql", "mariadb")
