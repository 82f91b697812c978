"""A message after the commit, without the outbox: a push that may get lost."""

from sqlalchemy.orm import Session

from duly import App, Event, Ignore

app = App("orders")
engine = app.database.engine()


class OrderPlaced(Event, name="order.placed", topic="orders"):
    order_id: int


with Session(engine) as session, session.begin():
    app.publish(session, OrderPlaced(order_id=7), outbox=False, policy=Ignore())
app.close()  # waits a little for what is under way
print("sent, or not")
