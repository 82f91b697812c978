"""Change data capture: nobody may touch the code that pays orders, but its database tells."""

import asyncio

from sqlalchemy import text

from duly import App, Change, Event, Tx

app = App("orders")
engine = app.database.engine()


class OrderPaid(Event, name="order.paid", topic="orders"):
    order_id: int


@app.cdc(table="orders", key="id")
def order_changes(change: Change):
    if change.became("status", "paid"):
        yield OrderPaid(order_id=change.after["id"])


@app.on(OrderPaid, group="shipping")
def ship(event: OrderPaid, tx: Tx) -> None:
    print(f"shipped order {event.order_id}")


with engine.begin() as connection:
    connection.execute(text("CREATE TABLE orders (id INTEGER PRIMARY KEY, status TEXT)"))
    connection.execute(text("INSERT INTO orders VALUES (7, 'placed')"))


async def main() -> None:
    async with app.running() as running:
        await running.settled()
        with engine.begin() as service:  # the code that nobody may touch
            service.execute(text("UPDATE orders SET status = 'paid'"))
        await running.settled()


asyncio.run(main())
