"""A global transaction beside the outbox on the same work, on PostgreSQL and MariaDB.

Informative: it shows what agreeing at once costs, in payments a second, in the caller's latency and
in how long its rows stay locked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import psycopg

from bench.measure import Row, Sample, Scale, Sides
from bench.places import connect_mariadb, database, folder, mariadb
from bench.process import run_side
from duly import App

__all__ = ["ROWS"]

PAYMENTS = 1_000
WARM = 10


def _pay(urls: dict[str, str], *, way: str, count: int, home: Path) -> Sample:
    with psycopg.connect(urls["database"], autocommit=True) as shop:
        shop.execute("TRUNCATE orders, duly_outbox")
    with closing(connect_mariadb(urls["ledger"])) as ledger:
        cursor = ledger.cursor()
        for table in ("entries", "duly_inbox"):
            cursor.execute(f"DELETE FROM {table}")
    broker = home / f"{way}.db"
    broker.unlink(missing_ok=True)
    sample = run_side("ours.pay", broker=f"embedded:///{broker}", way=way, count=count, **urls)
    _check(urls, count + WARM)
    return sample


def _check(urls: dict[str, str], wanted: int) -> None:
    """Every payment has both halves, whatever was measured."""
    with psycopg.connect(urls["database"]) as shop:
        row = shop.execute("SELECT count(*) FROM orders").fetchone()
    with closing(connect_mariadb(urls["ledger"])) as ledger:
        cursor = ledger.cursor()
        cursor.execute("SELECT count(*) FROM entries")
        found = (row[0] if row else 0, *(cursor.fetchone() or ()))
    if found != (wanted, wanted):
        raise RuntimeError(f"{found} orders and entries, not {wanted} of each")


@contextmanager
def _both(scale: Scale) -> Iterator[Sides]:
    with database() as shop_url, mariadb() as ledger_url, folder() as home:
        for name, url in (("bench", shop_url), ("ledger", ledger_url)):
            app = App(name, database=url)
            app.upgrade_tables()
            app.close()
        with psycopg.connect(shop_url) as shop:
            shop.execute("CREATE TABLE orders (id int PRIMARY KEY, account int NOT NULL)")
            shop.execute("CREATE TABLE account (id int PRIMARY KEY, total int NOT NULL)")
            shop.execute("INSERT INTO account SELECT n, 0 FROM generate_series(-100, 100) AS n")
        with closing(connect_mariadb(ledger_url)) as ledger:
            ledger.cursor().execute("CREATE TABLE entries (id int PRIMARY KEY) ENGINE=InnoDB")
        given = {"count": scale.of(PAYMENTS, least=50), "home": home}
        urls = {"database": shop_url, "ledger": ledger_url}
        yield Sides(
            ours=partial(_pay, urls, way="global", **given),
            reference=partial(_pay, urls, way="outbox", **given),
        )


ROWS = (
    Row(
        "global transaction",
        "payments/s",
        "the outbox on the same work, until both databases have it",
        _both,
    ),
)
