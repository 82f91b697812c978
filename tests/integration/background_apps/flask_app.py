"""Flask: a request puts work into the background, with its transaction."""

import contextvars

from flask import Flask, current_app, g
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from duly import App
from duly.errors import CrossesThreadsError

app = App("shop", database="sqlite:///shop.db", broker="embedded:///broker.db")
web = Flask("shop")
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


def db() -> Session:
    if "db" not in g:
        g.db = Session(app.database.engine())
    return g.db


@web.teardown_appcontext
def close_db(_: object) -> None:
    if "db" in g:
        g.pop("db").close()


@app.background(pool="mail", workers=2)
def send_receipt(order_id: int) -> str:
    with web.app_context(), Session(app.database.engine()) as session:
        found = session.get(Order, order_id)
        return f"{current_app.name} {request_id.get()} {found is not None}"


SENT = []


@web.post("/orders/<int:order_id>")
def place(order_id: int) -> dict[str, str]:
    request_id.set(f"r{order_id}")
    with db().begin():
        db().add(Order(id=order_id))
        SENT.append(send_receipt.after(db()).submit(order_id))
    return {"placed": str(order_id)}


@web.post("/careless")
def careless() -> dict[str, str]:
    with db().begin():
        try:
            send_receipt.submit(db())  # type: ignore[arg-type]
        except CrossesThreadsError as error:
            return {"refused": error.code}
    return {}


Base.metadata.create_all(app.database.engine())
with web.test_client() as client:
    for n in (1, 2):
        assert client.post(f"/orders/{n}").json == {"placed": str(n)}
    assert client.post("/careless").json == {"refused": "CROSSES_THREADS"}
assert [task.result(20) for task in SENT] == ["shop r1 True", "shop r2 True"]
print("flask ok")
