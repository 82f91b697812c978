"""A message through the outbox: an order and the news of it are one commit; billing hears once."""

import asyncio

from sqlalchemy import text
from sqlalchemy.orm import Session

from duly import App, Event, Tx

app = App("orders")
engine = app.database.engine()


class OrderPlaced(Event, name="order.placed", topic="orders"):
    order_id: int


@app.on(OrderPlaced, group="billing")
def bill(event: OrderPlaced, tx: Tx) -> None:
    tx.session.execute(text("INSERT INTO invoices VALUES (:id)"), {"id": event.order_id})
    print(f"billed order {event.order_id}")


with engine.begin() as connection:
    for table in ("orders", "invoices"):
        connection.execute(text(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY)"))
with Session(engine) as session, session.begin():
    session.execute(text("INSERT INTO orders VALUES (7)"))
    app.publish(session, OrderPlaced(order_id=7), key=7)
asyncio.run(app.run_once())  # a worker does this: duly run outbox:app
