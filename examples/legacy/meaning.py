"""What the rows of the old system mean, and what follows from it."""

from collections.abc import Iterator

from duly import App, Change, ChangeTx, Command, Event, Tx

app = App(
    "operations", database="sqlite:///operations.db", broker="embedded:///operations-broker.db"
)
app.source("legacy", "sqlite:///legacy.db")
LONG_MINUTES = 120


class FlightDeparted(Event, name="flight.departed", topic="flights"):
    flight: int
    delay: int


class FlightCancelled(Event, name="flight.cancelled", topic="flights"):
    flight: int


class DelayCorrected(Event, name="flight.delay_corrected", topic="flights"):
    flight: int
    was: int
    now: int
    by: str


class TellPassengers(Command, name="passengers.tell", queue="passengers"):
    flight: int
    text: str


@app.cdc(table="flights", source="legacy")
def movements(c: Change) -> Iterator[FlightDeparted | FlightCancelled | TellPassengers]:
    if c.moved("status", "scheduled", "departed"):
        late = c.after["delay"]
        yield FlightDeparted(flight=c.key["id"], delay=late)
        if late >= LONG_MINUTES:
            yield TellPassengers(flight=c.key["id"], text=f"{late} minutes late: meals are on us")
    elif c.became("status", "cancelled"):
        yield FlightCancelled(flight=c.key["id"])
        yield TellPassengers(flight=c.key["id"], text="cancelled: please come to the desk")


@app.cdc(table="flights", source="legacy")
def corrections(c: Change) -> Iterator[DelayCorrected]:
    said = c.intent("Corrected")  # the same change without the word is no correction
    if said and c.changed("delay"):
        was, now = c.before["delay"], c.after["delay"]
        yield DelayCorrected(flight=c.key["id"], was=was, now=now, by=said.json()["by"])


@app.cdc(table="flights", source="legacy")
def board(c: Change, tx: ChangeTx) -> None:
    """Counts, so it may not see a change twice: it commits with the position of the stream."""
    ended = [c.became("status", "departed"), c.became("status", "cancelled")]
    if any(ended):
        tx.connection.execute(
            "INSERT INTO board VALUES (?, ?, ?) ON CONFLICT (carrier) DO UPDATE SET"
            " departed = departed + excluded.departed, cancelled = cancelled + excluded.cancelled",
            (c.after["carrier"], *map(int, ended)),
        )


@app.handle(TellPassengers)
def tell(command: TellPassengers, tx: Tx) -> None:
    values = (command.flight, command.text)
    tx.connection.execute("INSERT INTO told VALUES (?, ?)", values)


@app.on(DelayCorrected, group="statistics")
def correct(event: DelayCorrected, tx: Tx) -> None:
    tx.connection.execute("INSERT INTO corrected VALUES (?, ?)", (event.flight, event.by))


with app.database.engine().begin() as connection:
    for table in (
        "board (carrier TEXT PRIMARY KEY, departed INTEGER, cancelled INTEGER)",
        "told (flight INTEGER, text TEXT)",
        "corrected (flight INTEGER, by TEXT)",
    ):
        connection.exec_driver_sql(f"CREATE TABLE IF NOT EXISTS {table}")
