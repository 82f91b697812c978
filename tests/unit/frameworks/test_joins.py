"""The right join for a target, without importing what is not in use."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from duly.errors import NotInTransactionError
from duly.frameworks import join_of
from duly.frameworks.dbapi import DbapiJoin, atomic
from duly.frameworks.sqlalchemy import SQLAlchemyJoin


def test_each_target_finds_its_join() -> None:
    class Mine(Session):
        pass

    class Raw(sqlite3.Connection):
        pass

    engine = create_engine("sqlite://")
    with engine.connect() as c, c.begin() as transaction:
        for target in (c, transaction, Mine(), scoped_session(sessionmaker()), engine):
            assert isinstance(join_of(target), SQLAlchemyJoin)
    raw = sqlite3.connect(":memory:", factory=Raw)
    for target in (raw, atomic(raw)):
        assert isinstance(join_of(target), DbapiJoin)
    raw.close()


@pytest.mark.parametrize("target", [None, 1, "sqlite://", object(), print])
def test_anything_else_is_refused(target: Any) -> None:
    with pytest.raises(NotInTransactionError) as caught:
        join_of(target)
    assert caught.value.code == "NOT_A_TRANSACTION"


def test_engines_and_factories_are_refused() -> None:
    engine = create_engine("sqlite://")
    for target in (engine, sessionmaker(engine), engine.execution_options(x=1)):
        with pytest.raises(NotInTransactionError) as caught:
            join_of(target).flush(target)
        assert caught.value.code == "ENGINE_IS_NO_TRANSACTION"
    with pytest.raises(NotInTransactionError) as caught:
        join_of(engine.pool).flush(engine.pool)
    assert caught.value.code == "NOT_A_TRANSACTION"


@pytest.mark.parametrize(
    ("setup", "absent"),
    [
        ("import sqlite3; t = sqlite3.connect(':memory:')", ["sqlalchemy", "psycopg"]),
        (
            "from sqlalchemy.orm import Session; t = Session()",
            ["psycopg", "greenlet", "sqlalchemy.ext.asyncio"],
        ),
    ],
)
def test_nothing_else_is_imported(setup: str, absent: list[str]) -> None:
    """greenlet in particular: SQLAlchemy's asyncio package cannot be imported without it."""
    code = (
        f"{setup}\nimport sys\nfrom duly.frameworks import join_of\n"
        f"join_of(t).flush(t)\nprint([m for m in {absent!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
