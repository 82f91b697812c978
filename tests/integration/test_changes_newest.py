"""The log of the newest PostgreSQL that a wheel brings: what the versions differ in, read alike.

The tests are those of ``test_changes_postgres``, on a server of this module's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.conftest import unavailable
from tests.integration import test_changes_postgres as tests
from tests.integration.test_changes_postgres import Source
from tools.services import PrivateServer, ServerFailedError, start_private_postgres

OLDEST_HERE = 180_000

test_prepared = tests.test_what_is_prepared_comes_when_it_is_committed
test_streamed = tests.test_streamed_transactions_come_whole_and_without_what_was_undone


async def test_every_type(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source.db.info.server_version >= OLDEST_HERE
    monkeypatch.delitem(tests.EDGES, "xml")  # the wheel is built without libxml
    await tests.test_every_type_is_the_same_in_stream_snapshot_and_select(source)


@pytest.fixture(scope="module")
def newest() -> Iterator[PrivateServer]:
    """Its programs are downloaded once, where they are not there."""
    try:
        server = start_private_postgres(newest=True)
    except ServerFailedError as error:
        unavailable(str(error))
    with server:
        yield server


@pytest.fixture
def source(newest: PrivateServer) -> Iterator[Source]:
    """A database of its own, as ``postgres_url`` gives them."""
    admin = Source(newest.url)
    name = f"newest_{admin.run('SELECT count(*) FROM pg_database')[0][0]}"
    admin.run(f"CREATE DATABASE {name}")
    made = Source(newest.url.rpartition("/")[0] + f"/{name}")
    yield made
    asyncio.run(made.changes.drop())
    made.db.close()
    admin.db.close()
