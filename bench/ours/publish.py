"""A business insert and its messages in one transaction: ``duly.atomic`` on psycopg."""

from __future__ import annotations

import time
from typing import Any

import psycopg

import duly
from bench.ours.shop import Placed, arguments, make_app, tell

WARM = 20
KEYS = 1_000
NOTE = "x" * 960
BUSINESS = "INSERT INTO business (customer, cents) VALUES (%s, %s)"


def run(given: dict[str, Any], connection: Any, transactions: int) -> None:
    """That many transactions, one after the other."""
    app, each = given["app"], given["each"]
    for number in range(transactions):
        with duly.atomic(connection):
            connection.execute(BUSINESS, (f"customer-{number % KEYS}", 1250))
            for place in range(each):
                order = number * each + place
                event = Placed(order_id=order, cents=1250, note=NOTE)
                app.publish(connection, event, key=f"customer-{order % KEYS}")


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    given["app"] = make_app(given)
    with psycopg.connect(given["database"], autocommit=True) as connection:
        run(given, connection, WARM)
        began = time.perf_counter()
        run(given, connection, given["count"])
        seconds = time.perf_counter() - began
        names = ("synchronous_commit", "fsync")
        said = {name: connection.execute(f"SHOW {name}").fetchone() for name in names}
    facts = {name: row[0] for name, row in said.items() if row}
    tell(given["count"] * given["each"] / seconds, **facts, connections=1, keyed=True)


if __name__ == "__main__":
    main(arguments())
