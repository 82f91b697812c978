"""What belongs to the caller's thread is found wherever it hides, and nothing else is refused."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import sqlite3
import types
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import uuid4

import attrs
import msgspec
import psycopg
import pydantic
import pytest
from django.db.backends.sqlite3.base import DatabaseWrapper
from sqlalchemy import Engine, ForeignKey, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import (
    Mapped,
    Session,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

from duly import App, Tx, atomic
from duly.background.task import Task
from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import CrossesThreadsError
from tests.unit.frameworks.shop import Base, Order


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    pets: Mapped[list[Pet]] = relationship()
    toys: Mapped[set[Toy]] = relationship()


class Pet(Base):
    __tablename__ = "pets"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))


class Toy(Base):
    __tablename__ = "toys"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))


@dataclasses.dataclass
class Data:
    inner: Any


@attrs.define
class Attrs:
    inner: Any


class Struct(msgspec.Struct):
    inner: Any


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    inner: Any


class Pair(NamedTuple):
    inner: Any
    other: int = 0


class Repository:
    def __init__(self, session: Any) -> None:
        self.session = session

    def save(self) -> None: ...


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class World:
    """Everything that may not cross, of one SQLite file."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.session = Session(engine)
        self.connection = engine.connect()
        self.raw = sqlite3.connect(str(engine.url.database))
        self.kept: list[Any] = []  # a session knows its objects only weakly

    def close(self) -> None:
        for one in (self.session, self.connection, self.raw):
            one.close()

    def attached(self, number: int = 1) -> Customer:
        found = self.session.get(Customer, number)
        assert found is not None
        self.kept.append(found)
        return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("guard") / "shop.db"
    engine = sqlite_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Customer(id=1, pets=[Pet(id=1)]), Customer(id=2), Order(id=1)])
    yield engine
    engine.dispose()


@pytest.fixture
def world(engine: Engine) -> Iterator[World]:
    world = World(engine)
    yield world
    world.close()


def closure(inner: Any) -> Callable[[], Any]:
    return lambda: inner


def default(inner: Any) -> Callable[[], Any]:
    def function(value: Any = inner) -> Any:
        return value

    return function


def keyword_default(inner: Any) -> Callable[[], Any]:
    def function(*, value: Any = inner) -> Any:
        return value

    return function


def rows(session: Session) -> Iterator[Any]:
    result = session.execute(select(Order))
    yield from result


def started(generator: Iterator[Any]) -> Iterator[Any]:
    next(generator)
    return generator


BOUND: dict[str, Callable[[World], Any]] = {
    "session": lambda w: w.session,
    "session of a subclass": lambda w: type("Own", (Session,), {})(w.engine),
    "scoped_session": lambda w: scoped_session(sessionmaker(w.engine)),
    "AsyncSession": lambda w: AsyncSession(),
    "async_scoped_session": lambda w: async_scoped_session(async_sessionmaker(), lambda: 1),
    "connection": lambda w: w.connection,
    "transaction": lambda w: w.connection.begin(),
    "result": lambda w: w.connection.execute(text("SELECT 1")),
    "mappings": lambda w: w.connection.execute(text("SELECT 1 AS one")).mappings(),
    "scalars": lambda w: w.session.scalars(select(Order)),
    "query": lambda w: w.session.query(Order),
    "session's transaction": lambda w: (w.session.begin(), w.session.get_transaction())[1],
    "cursor": lambda w: w.raw.cursor(),
    "raw sqlite3 connection": lambda w: w.raw,
    "raw psycopg connection": lambda w: psycopg.Connection.__new__(psycopg.Connection),
    "Django connection": lambda w: DatabaseWrapper({"NAME": ":memory:"}, "guarded"),
    "driver connection of a pool": lambda w: w.connection.connection,
    "atomic block": lambda w: atomic(w.raw),
    "attached instance": lambda w: w.attached(),
    "pending instance": lambda w: (c := Customer(id=9), w.session.add(c))[0],
    "lazy attribute": lambda w: w.attached().pets,
    "lazy attribute, empty": lambda w: w.attached(2).pets,
    "lazy set, empty": lambda w: w.attached(2).toys,
    "list": lambda w: [1, [w.session]],
    "tuple": lambda w: (w.session,),
    "set": lambda w: {w.attached()},
    "deque": lambda w: deque([w.session]),
    "dict": lambda w: {"deep": {"deeper": w.session}},
    "dict key": lambda w: {w.attached(): 1},
    "dataclass": lambda w: Data(Data(w.session)),
    "attrs": lambda w: Attrs(w.session),
    "struct": lambda w: Struct(w.session),
    "pydantic": lambda w: Model(inner=w.session),
    "namedtuple": lambda w: Pair(w.session),
    "namespace": lambda w: types.SimpleNamespace(db=w.session),
    "object": lambda w: Repository(w.session),
    "slots": lambda w: Slotted(w.session),
    "closure": lambda w: closure(w.session),
    "default argument": lambda w: default(w.session),
    "keyword default": lambda w: keyword_default(w.session),
    "partial": lambda w: functools.partial(print, w.session),
    "partial keyword": lambda w: functools.partial(print, file=w.session),
    "bound method": lambda w: Repository(w.session).save,
    "method of a session": lambda w: w.session.commit,
    "generator over a result": lambda w: rows(w.session),
    "generator, begun": lambda w: started(rows(w.session)),
    "Tx": lambda w: Tx.__new__(Tx),
}


@pytest.mark.parametrize("what", BOUND)
def test_refused_by_every_way(app: App, world: World, what: str) -> None:
    function = app.background(name="take")(lambda *args: None)
    deferred = app.background(name="defer", on_full="defer")(lambda *args: None)
    with Session(world.engine) as session:
        ways = [
            function.submit,
            function.after(session).submit,
            function.durable(session).submit,
            deferred.submit,
            lambda *args: asyncio.run(function.asubmit(*args)),
        ]
        for way in ways:
            with pytest.raises(CrossesThreadsError):
                way(1, BOUND[what](world))
            world.session.rollback()
            world.connection.rollback()
    assert app.tasks.status() == []  # it came nowhere near a pool


def test_a_context_variable_is_looked_at(app: App, world: World) -> None:
    function = app.background(name="take")(lambda: "ran")
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("db")
    token = variable.set(world.session)
    with Session(world.engine) as session:
        for way in (function.submit, function.after(session).submit):
            with pytest.raises(CrossesThreadsError, match="the context variable 'db'"):
                way()
    variable.reset(token)
    assert function.submit().result(20) == "ran"


def test_the_function_itself_is_looked_at(app: App, world: World) -> None:
    function = app.background(name="f")(closure(world.session))
    with pytest.raises(CrossesThreadsError, match="the function is or holds a Session"):
        function.submit()


def test_the_error_says_where_and_what_to_do(app: App, world: World) -> None:
    function = app.background(name="f")(lambda *args, **kwargs: None)
    with pytest.raises(CrossesThreadsError, match=r"argument 'db' is or holds a Session.*Pass the"):
        function.submit(db=[world.session])


class Account:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.factory = sessionmaker(engine)


def detached(world: World) -> Any:
    with Session(world.engine, expire_on_commit=False) as session:
        return session.get(Customer, 1)


FREE: dict[str, Callable[[World], Any]] = {
    "plain": lambda w: (1, 1.0, "text", b"bytes", None, True, Decimal(1), uuid4()),
    "engine": lambda w: w.engine,
    "factory": lambda w: sessionmaker(w.engine),
    "object with an engine": lambda w: Account(w.engine),
    "detached instance": detached,
    "transient instance": lambda w: Customer(id=7),
    "row": lambda w: w.connection.execute(text("SELECT 1")).all(),
    "statement": lambda w: select(Order),
    "session class": lambda w: Session,
    "model class": lambda w: Customer,
    "module": lambda w: sqlite3,
    "unbound method": lambda w: Session.commit,
    "app": lambda w: App("other"),
    "handle": lambda w: Task.__new__(Task),
    "cycle": lambda w: (one := [], one.append(one))[0],
    "many": lambda w: [[n] for n in range(5_000)],
    "generator": lambda w: (n for n in range(3)),
    "used up generator": lambda w: (g := (n for n in ()), list(g))[0],
}


@pytest.mark.parametrize("what", FREE)
def test_no_false_alarm(app: App, world: World, what: str) -> None:
    function = app.background(name="f")(lambda _: "ran")
    assert function.submit(FREE[what](world)).result(20) == "ran"


def test_whoever_knows_better_may_say_so(app: App, world: World) -> None:
    function = app.background(name="f", guard=False)(lambda _: "ran")
    assert function.submit(world.session).result(20) == "ran"
