"""Servers that are gone, refuse us, let us only read, or hold other tables: one error with a code,
soon, and without the password.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from duly import Tx
from duly.errors import ConfigurationError, DatabaseUnavailableError, DulyError, SchemaError
from duly.ports import Severity
from tests.acceptance.shop_app import Placed, Shop, child, insert
from tools.services import PrivateServer

SECRET = "hunter2secret"


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def with_login(url: str, user: str, *, password: str = SECRET, path: str | None = None) -> str:
    """The same server for another user."""
    parts = urlsplit(url)
    netloc = f"{user}:{password}@{parts.hostname}:{parts.port}"
    return parts._replace(netloc=netloc, path=parts.path if path is None else path).geturl()


@pytest.fixture
def broker(tmp_path: Path) -> str:
    return f"embedded:///{tmp_path / 'broker.db'}"


def listen(shop: Shop) -> None:
    @shop.app.on(Placed, group="sales")
    def bill(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))


async def refusal(shop: Shop, *, seconds: float = 15) -> DulyError:
    """How the App refuses to start, or ends as soon as it learns."""
    try:
        with pytest.raises(DulyError) as caught:
            async with asyncio.timeout(seconds), shop.app.running() as running:
                await running.wait()
    finally:
        shop.close()
    assert SECRET not in str(caught.value) + repr(caught.value)
    return caught.value


# --- PostgreSQL -----------------------------------------------------------------------------------
async def test_a_database_server_that_is_gone(broker: str) -> None:
    url = f"postgresql://bob:{SECRET}@127.0.0.1:{closed_port()}/shop"
    error = await refusal(Shop(url, broker))
    assert (type(error), error.code) == (DatabaseUnavailableError, "DATABASE_UNAVAILABLE")


async def test_a_database_that_does_not_exist(postgres_url: str, broker: str) -> None:
    url = urlsplit(postgres_url)._replace(path="/no_such_database").geturl()
    error = await refusal(Shop(url, broker))
    assert (type(error), error.code) == (ConfigurationError, "DATABASE_REFUSED")


async def test_a_database_that_does_not_know_what_its_text_means(
    private_postgres: PrivateServer, broker: str
) -> None:
    with psycopg.connect(private_postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    url = urlsplit(private_postgres.url)._replace(path="/bytes").geturl()
    shop = Shop(url, broker)
    with pytest.raises(ConfigurationError) as caught:
        shop.app.upgrade_tables()
    assert caught.value.code == "DATABASE_ENCODING"
    error = await refusal(shop)
    assert (type(error), error.code) == (ConfigurationError, "DATABASE_ENCODING")


def test_missing_tables_are_found_by_the_check_before_a_start_is_refused(
    postgres_url: str, broker: str
) -> None:
    shop = Shop(postgres_url, broker)
    red = [one.code for one in shop.app.check() if one.severity is Severity.RED]
    assert red == ["SCHEMA_MISSING"]
    shop.prepare()
    assert not [one for one in shop.app.check() if one.severity is Severity.RED]
    shop.close()


async def test_a_role_that_does_not_exist(postgres_url: str, broker: str) -> None:
    error = await refusal(Shop(with_login(postgres_url, "nobody_at_all"), broker))
    assert (type(error), error.code) == (ConfigurationError, "DATABASE_REFUSED")


async def test_a_wrong_password(private_postgres: PrivateServer, broker: str) -> None:
    with psycopg.connect(private_postgres.url, autocommit=True) as admin:
        admin.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
        place = admin.execute("SHOW hba_file").fetchone()
        assert place is not None
        rules = Path(place[0])
        rules.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        admin.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(0.5)
    error = await refusal(Shop(with_login(private_postgres.url, "locked"), broker))
    assert (type(error), error.code) == (ConfigurationError, "DATABASE_REFUSED")


@pytest.fixture
def clerk(postgres_url: str) -> Iterator[str]:
    """The URL of a role that may log in and nothing else."""
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        name = f"clerk_{urlsplit(postgres_url).path[-12:]}"
        admin.execute(f"CREATE ROLE {name} LOGIN")
        yield with_login(postgres_url, name)
        admin.execute(f"DROP OWNED BY {name}")
        admin.execute(f"DROP ROLE {name}")


async def test_a_role_without_rights(postgres_url: str, clerk: str, broker: str) -> None:
    owner = Shop(postgres_url, broker)
    owner.prepare()
    error = await refusal(Shop(clerk, broker))
    assert isinstance(error, ConfigurationError)
    assert error.code in ("DATABASE_REFUSED", "UNSAFE_SETTING")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"GRANT SELECT, INSERT ON work TO {urlsplit(clerk).username}")
    shop = Shop(clerk, broker)
    with pytest.raises((DulyError, DBAPIError)) as caught:
        shop.place(1)
    assert "permission denied" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert owner.ordered() == []
    shop.close()
    owner.close()


async def test_tables_that_are_not_there_or_older(postgres_url: str, broker: str) -> None:
    error = await refusal(Shop(postgres_url, broker))
    assert (type(error), error.code) == (SchemaError, "SCHEMA_MISSING")
    assert "duly db upgrade" in str(error)
    shop = Shop(postgres_url, broker)
    shop.prepare()
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("UPDATE duly_meta SET value = '0' WHERE name = 'schema_version'")
    error = await refusal(shop)
    assert (type(error), error.code) == (SchemaError, "SCHEMA_OLDER")


async def test_a_server_that_may_only_be_read(postgres_url: str, broker: str) -> None:
    """As on a replica: every writing statement fails with SQLSTATE 25006."""
    owner = Shop(postgres_url, broker)
    owner.prepare()
    owner.place(1)
    owner.close()
    name = urlsplit(postgres_url).path[1:]
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    shop = Shop(postgres_url, broker)
    with pytest.raises((DulyError, DBAPIError), match="read-only"):
        shop.place(2)
    assert shop.ordered() == [1]
    error = await refusal(shop)
    assert isinstance(error, ConfigurationError)
    assert "DATABASE_READ_ONLY" in str(error)


async def test_a_cached_sequence_is_refused(postgres_url: str, broker: str) -> None:
    """P5: cached ids are handed out in another order than they are committed."""
    shop = Shop(postgres_url, broker)
    shop.prepare()
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("ALTER SEQUENCE duly_outbox_id_seq CACHE 20")
    assert "SEQUENCE_CACHE" in [finding.code for finding in await asyncio.to_thread(shop.app.check)]
    error = await refusal(shop)
    assert error.code == "UNSAFE_SETTING"
    assert "SEQUENCE_CACHE" in error.detail
    assert "CACHE 1" in error.detail


# --- RabbitMQ -------------------------------------------------------------------------------------
async def test_a_broker_that_is_gone_keeps_messages_in_the_outbox(sqlite_url: str) -> None:
    """A publisher never needs the broker; the relay waits for it and uses up no attempt."""
    shop = Shop(sqlite_url, f"amqp://guest:{SECRET}@127.0.0.1:{closed_port()}/")
    listen(shop)
    shop.prepare()
    began = time.monotonic()
    async with shop.app.running():
        shop.place(1, 2)
        await asyncio.sleep(2)
        assert shop.outbox() == [("ready", None)] * 2
    assert time.monotonic() - began < 15
    shop.close()


async def test_a_broker_that_refuses_us(
    sqlite_url: str, rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = {
        "password": with_login(rabbitmq_url, "guest"),
        "virtual host": with_login(rabbitmq_url, "guest", password="guest", path="/no-such-host"),
    }
    for what, url in wrong.items():
        shop = Shop(sqlite_url, url)
        error = await refusal(shop)
        assert isinstance(error, ConfigurationError), what
    assert SECRET not in caplog.text


# --- secrets --------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["database", "broker"])
def test_no_output_of_a_failing_process_shows_a_password(what: str, tmp_path: Path) -> None:
    dead = f"bob:{SECRET}@127.0.0.1:{closed_port()}/shop"
    database = f"postgresql://{dead}" if what == "database" else f"sqlite:///{tmp_path / 's.db'}"
    broker = f"amqp://{dead}" if what == "broker" else f"embedded:///{tmp_path / 'b.db'}"
    body = """
        import asyncio, faulthandler, logging, sys
        logging.basicConfig(level="DEBUG", stream=sys.stdout)
        app.on(Placed, group="sales")(lambda event: None)
        print(app.settings, [finding for finding in app.check()])
        asyncio.run(app.run_once(timeout="3s"))
    """
    process = child(database, broker, body)
    output, errors = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "Traceback" in errors
    assert "127.0.0.1" in output + errors
    assert SECRET not in output + errors
