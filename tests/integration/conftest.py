"""A world for the tests of the inbox, on each database.

A database of a server is made once for a module and emptied before each test: making one costs
more than the tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.conftest import server_url
from tests.integration.inbox_world import World, emptied_postgres, empty, make_database


@pytest.fixture(scope="module")
def module_postgres() -> Iterator[str]:
    """The URL of this module's database."""
    with emptied_postgres(server_url("DULY_TEST_POSTGRES")) as url:
        yield url


@pytest.fixture
def emptied_postgres_url(module_postgres: str) -> str:
    """The same without what the test before has left."""
    empty(module_postgres)
    return module_postgres


@pytest.fixture
def world_settings() -> dict[str, Any]:
    """Settings of ``world``, for a module to override."""
    return {}


@pytest.fixture(params=["sqlite_url", "emptied_postgres_url"], ids=["sqlite", "postgres"])
async def world(
    request: pytest.FixtureRequest, world_settings: dict[str, Any]
) -> AsyncIterator[World]:
    """One process with one group."""
    made = World(make_database(request.getfixturevalue(request.param)), **world_settings)
    yield made
    await made.close()
