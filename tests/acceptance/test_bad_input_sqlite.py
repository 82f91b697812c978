"""A database file that cannot be written, is no database, is full, locked or somebody else's."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from duly import App, Tx
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DulyError,
    SchemaError,
    TransactionConflictError,
)
from tests.acceptance.shop_app import Placed, Shop, insert
from tests.servers.disks import free_bytes, small_disk


def listen(shop: Shop) -> None:
    @shop.app.on(Placed, group="sales")
    def bill(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))


async def refusal(shop: Shop) -> DulyError:
    """How the App refuses to start."""
    with pytest.raises(DulyError) as caught:
        async with shop.app.running():
            raise AssertionError("it has started")
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


async def test_a_file_that_is_no_database(local: Shop, path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to look like one" * 100)
    before = path.read_bytes()
    error = await refusal(local)
    assert (type(error), error.code) == (ConfigurationError, "NOT_A_DATABASE")
    assert path.read_bytes() == before


async def test_a_damaged_database(local: Shop, path: Path) -> None:
    local.prepare()
    local.app.close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(3_000))
    error = await refusal(local)
    assert isinstance(error, ConfigurationError)
    assert error.code in ("DATABASE_CORRUPT", "NOT_A_DATABASE", "SCHEMA_MISSING")


async def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    shop = Shop(f"sqlite:///{tmp_path / 'no' / 'shop.db'}", f"embedded:///{tmp_path / 'b.db'}")
    error = await refusal(shop)
    assert str(tmp_path / "no") in str(error)
    assert isinstance(error, ConfigurationError | DatabaseUnavailableError)


@pytest.fixture
def others_folder() -> Iterator[Path]:
    """A folder of root's that another user may look into; root itself may write everywhere."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        os.seteuid(0)


@pytest.mark.parametrize("what", ["file", "folder and file"])
async def test_what_may_only_be_read(others_folder: Path, tmp_path: Path, what: str) -> None:
    path = others_folder / "shop.db"
    shop = Shop(f"sqlite:///{path}", f"embedded:///{tmp_path / 'broker.db'}")
    listen(shop)
    shop.prepare()
    shop.place(1)
    await shop.app.run_once(timeout="20s")  # everything that another user may not read is imported
    shop.app.close()
    path.chmod(0o444)
    others_folder.chmod(0o755 if what == "folder and file" else 0o777)
    os.seteuid(65534)
    error = await refusal(shop)
    os.seteuid(0)
    assert isinstance(error, ConfigurationError)
    assert "DATABASE_READ_ONLY" in str(error)
    assert shop.work() == [1]
    shop.close()


async def test_a_locked_file_makes_the_publisher_fail_and_nothing_is_lost(
    local: Shop, path: Path
) -> None:
    listen(local)
    local.prepare()
    with locked(path):
        connection = local.app.database.connect()
        with pytest.raises(TransactionConflictError) as caught:
            connection.run(local.app.outlet.write([]))
        connection.close()
        assert caught.value.code == "DATABASE_LOCKED"
        with pytest.raises(sa.exc.OperationalError, match="locked"):
            local.place(1)
    local.place(2)
    await local.app.run_once(timeout="20s")
    assert local.work() == local.ordered() == [2]


async def test_a_lock_while_it_runs_is_waited_for(local: Shop, path: Path) -> None:
    listen(local)
    local.prepare()
    local.place(1, 2, 3)
    async with local.app.running() as running:
        with locked(path):
            import asyncio

            await asyncio.sleep(3.0)  # longer than lock_timeout and than the lease
        await asyncio.wait_for(running.settled(), 20)
    assert local.work() == [1, 2, 3]
    assert set(local.inbox().values()) == {"done"}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program writes."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_full_database_refuses_the_whole_transaction(local: Shop) -> None:
    """``max_page_count`` is a quota: SQLITE_FULL comes from the same place as on a full disk."""
    local.prepare()
    local.place(1)
    engine = local.engine

    @sa.event.listens_for(engine, "connect")
    def limit(connection: sqlite3.Connection, record: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")

    engine.dispose()
    with pytest.raises(DulyError) as caught, Session(engine) as session, session.begin():
        session.execute(insert(-2))
        for n in range(300):
            local.app.publish(session, Placed(order_id=n, note="x" * 3_000))
    assert isinstance(caught.value, DatabaseUnavailableError)
    assert local.ordered() == [1]
    assert local.query("SELECT count(*) FROM duly_outbox") == [1]


async def test_a_full_disk_stops_publishers_and_relays_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path, megabytes=1) as disk:
        shop = Shop(f"sqlite:///{disk / 'shop.db'}", f"embedded:///{tmp_path / 'broker.db'}")
        shop.app._given["allow_unsafe"] = {"DISK_NEARLY_FULL": "a test"}
        listen(shop)
        shop.prepare()
        filler = disk / "filler"
        committed = []
        with pytest.raises((DulyError, sa.exc.OperationalError)) as caught:
            for n in range(1, 1_000):
                shop.place(n, n + 1_000)
                committed += [n, n + 1_000]
                if n == 3:
                    filler.write_bytes(b"x" * free_bytes(disk))
        assert "full" in str(caught.value)
        assert shop.ordered() == sorted(committed)
        filler.unlink()
        await shop.app.run_once(timeout="30s")
        assert shop.work() == sorted(committed)
        shop.close()


async def test_the_tables_of_another_app(local: Shop, tmp_path: Path) -> None:
    local.prepare()
    other = App("other", database=str(local.engine.url), broker=f"embedded:///{tmp_path / 'o.db'}")
    with pytest.raises(SchemaError) as caught:
        async with other.running():
            raise AssertionError("it has started")
    assert caught.value.code == "SCHEMA_OTHER_APP"
    other.close()


async def test_a_newer_schema(local: Shop, path: Path) -> None:
    local.prepare()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE duly_meta SET value = '999' WHERE name = 'min_code_version'")
    error = await refusal(local)
    assert (type(error), error.code) == (SchemaError, "SCHEMA_NEWER")


async def test_a_group_whose_order_has_changed(local: Shop) -> None:
    listen(local)
    local.prepare()
    await local.app.run_once(timeout="20s")
    changed = Shop(str(local.engine.url), local.app.settings.broker)
    changed.app.on(Placed, group="sales", order="key")(lambda event: None)
    error = await refusal(changed)
    assert error.code == "GROUP_MODE_CHANGED"
    changed.close()
