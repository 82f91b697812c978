"""What the demo's services say to each other and what they keep: messages and tables.

Owns the wire names, the topic and queue, and the tables, all marked as the demo's own.  No table of
a consumer has a key that could hide a message handled twice: such a thing must show in the sums.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Float, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from duly.message import Command, Event

__all__ = [
    "APP",
    "EVENT_TYPES",
    "PREFIX",
    "QUEUE",
    "TOPIC",
    "CarrierDay",
    "Destination",
    "FlightCancelled",
    "FlightDelayed",
    "FlightDeparted",
    "FlightRow",
    "Notice",
    "NotifyPassengers",
    "Tables",
]

APP = "duly-demo"
PREFIX = "duly_demo_"  # of every table: the demo's and duly's own
TOPIC = "duly-demo.flights"
QUEUE = "duly-demo.passengers"


# --- messages -------------------------------------------------------------------------------------
class FlightDeparted(Event, name="demo.flight_departed", topic=TOPIC):
    """A flight left on time. sequence: its place among the flights to this destination, from 1."""

    flight_id: int
    day: str
    carrier: str
    dest: str
    sequence: int
    delay_minutes: int


class FlightDelayed(Event, name="demo.flight_delayed", topic=TOPIC):
    """A flight left 15 minutes late or more."""

    flight_id: int
    day: str
    carrier: str
    dest: str
    sequence: int
    delay_minutes: int


class FlightCancelled(Event, name="demo.flight_cancelled", topic=TOPIC):
    """A flight did not leave."""

    flight_id: int
    day: str
    carrier: str
    dest: str
    sequence: int


class NotifyPassengers(Command, name="demo.notify_passengers", queue=QUEUE):
    """Tell the passengers of a flight how late it is."""

    flight_id: int
    delay_minutes: int


EVENT_TYPES = (FlightDeparted, FlightDelayed, FlightCancelled)


# --- tables ---------------------------------------------------------------------------------------
class Tables(DeclarativeBase):
    """The demo's tables."""

    metadata = MetaData()


class FlightRow(Tables):
    """The airline's own table; message_id: of the event that was published with the row."""

    __tablename__ = f"{PREFIX}flights"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    day: Mapped[str] = mapped_column(String(10))
    scheduled: Mapped[int] = mapped_column(Integer)
    delay: Mapped[int | None] = mapped_column(Integer)
    carrier: Mapped[str] = mapped_column(String(4))
    number: Mapped[int] = mapped_column(Integer)
    origin: Mapped[str] = mapped_column(String(4))
    dest: Mapped[str] = mapped_column(String(4))
    message_id: Mapped[str] = mapped_column(String(40))
    written_at: Mapped[float] = mapped_column(Float(53))
    """Seconds since 1970, just before the commit."""


class Destination(Tables):
    """The projection that is kept in order: how late flights to a destination are."""

    __tablename__ = f"{PREFIX}destinations"

    dest: Mapped[str] = mapped_column(String(4), primary_key=True)
    flights: Mapped[int] = mapped_column(Integer)
    late: Mapped[int] = mapped_column(Integer)
    cancelled: Mapped[int] = mapped_column(Integer)
    delay_minutes: Mapped[int] = mapped_column(BigInteger)
    last_sequence: Mapped[int] = mapped_column(Integer)
    order_breaks: Mapped[int] = mapped_column(Integer)


class CarrierDay(Tables):
    """How many flights a carrier had on a day."""

    __tablename__ = f"{PREFIX}carrier_days"

    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    carrier: Mapped[str] = mapped_column(String(4), primary_key=True)
    flights: Mapped[int] = mapped_column(Integer)
    cancelled: Mapped[int] = mapped_column(Integer)


class Notice(Tables):
    """Passengers that were told. receipt: what the gateway answered."""

    __tablename__ = f"{PREFIX}notices"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    flight_id: Mapped[int] = mapped_column(Integer)
    receipt: Mapped[str] = mapped_column(String(40))
