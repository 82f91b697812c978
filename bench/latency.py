"""How long after a commit its message arrives, one at a time, with an idle relay in between.

The meter of both sides: it commits (``side`` ours: through duly; reference: a plain insert and a
NOTIFY; raw: no database, a publish alone) and receives from the same queue, so one clock sees both
ends.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import pika
import psycopg

import duly
from bench.load import GROUP, QUEUE, TOPIC, TYPE, body
from bench.ours.shop import Placed, arguments, make_app, tell

WARM, PAUSE_SECONDS, ARRIVES_SECONDS = 5, 0.03, 5.0
PLAIN = (
    "INSERT INTO plain_outbox (message_id, message_type, topic, payload) VALUES (%s, %s, %s, %s)"
)
NOTE = "x" * 960


def sender(given: dict[str, Any], channel: Any) -> Callable[[int], None]:
    """What commits one message."""
    if given["side"] == "raw":
        return lambda n: channel.basic_publish(TOPIC, TYPE, body(n))
    connection = psycopg.connect(given["database"], autocommit=True)
    if given["side"] == "reference":

        def plain(number: int) -> None:
            with connection.transaction():
                connection.execute(PLAIN, (str(uuid.uuid4()), TYPE, TOPIC, body(number)))
                connection.execute("NOTIFY plain_wake")

        return plain
    app = make_app(given)

    def ours(number: int) -> None:
        with duly.atomic(connection):
            event = Placed(order_id=number, cents=1250, note=NOTE)
            app.publish(connection, event, key=f"customer-{number}")

    return ours


def main(given: dict[str, Any]) -> None:
    """Measure the median."""
    connection = pika.BlockingConnection(pika.URLParameters(given["broker"]))
    channel = connection.channel()
    arrived: list[float] = []
    channel.basic_consume(
        QUEUE, lambda *_: arrived.append(time.perf_counter()), auto_ack=True, exclusive=True
    )
    send, seconds = sender(given, channel), []
    for number in range(WARM + given["count"]):
        time.sleep(PAUSE_SECONDS)
        arrived.clear()
        send(number)
        committed = time.perf_counter()
        while not arrived:
            connection.process_data_events(time_limit=0.1)
            if time.perf_counter() > committed + ARRIVES_SECONDS:
                raise RuntimeError(f"message {number} did not arrive in {ARRIVES_SECONDS} s")
        seconds.append(arrived[0] - committed)
    kept = seconds[WARM:]
    tell(median(kept) * 1000, p99_ms=round(quantiles(kept, n=100)[98] * 1000, 2), group=GROUP)


if __name__ == "__main__":
    main(arguments())
