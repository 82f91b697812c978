"""A function in the background: the receipt goes out when the order is committed, nobody waits."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from duly import App

app = App("orders")
engine = app.database.engine()


@app.background(pool="mail", workers=4, queue=1000, on_full="block")
def send_receipt(order_id: int) -> None:
    print(f"receipt of order {order_id}")


with Session(engine) as session, session.begin():
    session.execute(text("CREATE TABLE IF NOT EXISTS orders (id INTEGER)"))
    session.execute(text("INSERT INTO orders VALUES (7)"))
    task = send_receipt.after(session).submit(7)
task.result(timeout=10)
