"""A global transaction: an order on PostgreSQL and its entry on MariaDB, both or neither.

Run it with two URLs, postgresql://... and mysql+pymysql://...; SQLite cannot take part.
"""

import sys

from sqlalchemy import create_engine, text

from duly import App

ledger_engine = create_engine(sys.argv[2])
app = App("orders", database=sys.argv[1])
app.participant("ledger", ledger_engine)
app.upgrade_tables()
with app.database.engine().begin() as orders:
    orders.execute(text("CREATE TABLE orders (id int PRIMARY KEY)"))
with ledger_engine.begin() as ledger:
    ledger.execute(text("CREATE TABLE entries (id int PRIMARY KEY)"))
with app.global_transaction() as gtx:
    gtx.session().execute(text("INSERT INTO orders VALUES (7)"))
    gtx.session("ledger").execute(text("INSERT INTO entries VALUES (7)"))
with ledger_engine.connect() as ledger:
    print("entries:", ledger.execute(text("SELECT id FROM entries")).scalars().all())
