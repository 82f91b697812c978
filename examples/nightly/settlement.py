"""What an airport settles with each carrier: one file per carrier and month, over SFTP."""

import os
from decimal import Decimal

from duly import App, Event
from duly.batch import CsvFile, Finished, Process, Query, Sftp

app = App("airport", database="sqlite:///settlement.db", broker="embedded:///settlement-broker.db")


class Settled(Event, name="settlement.delivered", topic="settlements"):
    carrier: str
    month: str
    departures: int


def price(row: dict) -> dict:
    """A landing fee for each departure, and something back for a delay."""
    late = max(0, row["delay"] or 0)
    fee = Decimal("120.00") - min(Decimal(late) / 4, Decimal("60.00"))
    return {**row, "fee": fee.quantize(Decimal("0.01"))}


@app.batch("settlement", params={"carrier": str, "month": str})
class Settlement:
    read = Query(
        "SELECT id, day, carrier, number, dest, delay, 0 AS fee FROM departures"
        " WHERE carrier = :carrier AND substr(day, 1, 7) = :month",
        key="id",
        chunk_bytes=16 * 1024,
    )
    process = Process(price)
    write = CsvFile("settlement-{carrier}-{month}.csv")
    send = Sftp(
        os.environ.get("SETTLEMENT_SFTP", "sftp://me@bank.example/in"),
        known_hosts=os.environ.get("SETTLEMENT_KNOWN_HOSTS", "known_hosts"),
        key=os.environ.get("SETTLEMENT_KEY", "id_ed25519"),
        verify="read-back",
        marker=".done",
    )

    def done(self, run: Finished) -> Settled:
        return Settled(
            carrier=run.params["carrier"], month=run.params["month"], departures=run.rows
        )
