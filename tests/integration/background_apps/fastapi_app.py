"""FastAPI: both colours of endpoints, a session by dependency, the App's lifespan."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from duly import App

app = App("shop", database="sqlite:///shop.db", broker="embedded:///broker.db")
web = FastAPI(lifespan=app.lifespan)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


def db() -> Iterator[Session]:  # on another thread than the endpoint
    with Session(app.database.engine()) as session:
        yield session


async def async_db() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(app.database.async_engine()) as session:
        yield session


SENT: list[Any] = []


@app.background(pool="mail", workers=2)
def send_receipt(order_id: int) -> str:
    with Session(app.database.engine()) as session:
        SENT.append((order_id, session.get(Order, order_id) is not None))
    return "sent"


@app.background(pool="push")
async def push(order_id: int) -> asyncio.AbstractEventLoop:
    await asyncio.sleep(0.01)
    async with AsyncSession(app.database.async_engine()) as session:
        SENT.append((order_id, await session.get(Order, order_id) is not None))
    return asyncio.get_running_loop()


@web.post("/sync/{order_id}")
def place(order_id: int, session: Annotated[Session, Depends(db)]) -> dict[str, int]:
    session.get(Order, 0)
    session.add(Order(id=order_id))
    send_receipt.after(session).submit(order_id)
    session.commit()
    return {"placed": order_id}


@web.post("/async/{order_id}")
async def place_async(
    order_id: int, session: Annotated[AsyncSession, Depends(async_db)]
) -> dict[str, bool]:
    async with session.begin():
        session.add(Order(id=order_id))
        task = push.after(session).submit(order_id)
    return {"same_loop": await task is asyncio.get_running_loop()}


@web.post("/both/{order_id}")
async def both(order_id: int) -> dict[str, str]:
    push.submit(order_id)  # still under way when the server ends
    return {"sent": await send_receipt.submit(order_id)}


async def post(path: str) -> bytes:
    sent: list[dict[str, Any]] = []
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"}
    scope |= {"method": "POST", "path": path, "query_string": b"", "headers": []}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await web(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return b"".join(message.get("body", b"") for message in sent)


async def main() -> None:
    async with app.lifespan():
        assert await post("/sync/1") == b'{"placed":1}'
        assert await post("/async/2") == b'{"same_loop":true}'
        assert await post("/both/1") == b'{"sent":"sent"}'
    assert sorted(SENT) == [(1, True), (1, True), (1, True), (2, True)], SENT


Base.metadata.create_all(app.database.engine())
asyncio.run(main())
print("fastapi ok")
