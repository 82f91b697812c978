"""What a group's held rows cost, and that another group's held rows stand in nobody's way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from duly.adapters import make_database
from duly.config import Settings
from duly.kernel.names import LANES
from duly.outbox.schema import Schema
from duly.ports import Database
from duly.runtime.box import PER_KEY_MAX, Box, Reading
from duly.runtime.work import Row
from tests.unit.outbox.rows import Rows

ALL = Reading(tuple(range(LANES)), (), (), 1000)
BILLING = Box("inbox", "inbox:billing", group="billing", keep=True)


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    made = make_database(Settings(database=request.getfixturevalue(f"{request.param}_url")))
    Schema(made, "shop").upgrade()
    yield made
    made.close()


def test_many_held_rows_of_another_group_hold_up_nobody(database: Database) -> None:
    rows = Rows(database)
    for n in range(PER_KEY_MAX + 1):
        rows.inbox(status="held", key="k", group_name="stuck", message_id=f"s{n}")
    ours = [rows.inbox(status="held", key="k", message_id=f"b{n}") for n in range(3)]
    rows.hold(None, scope="inbox:billing")
    with closing(database.connect()) as connection:
        drained = [Row(*values) for values in connection.ask(BILLING.drain(ALL)).rows]
    assert [row.id for row in drained] == ours
