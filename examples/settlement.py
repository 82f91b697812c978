"""A batch: the payouts of a day become a file, which is delivered whole or not at all."""

import asyncio
from datetime import date
from pathlib import Path

from sqlalchemy import text

from duly import App
from duly.batch import CsvFile, Local, Query
from duly.outbox.operator import By

app = App("payouts")
engine = app.database.engine()
outgoing = Path("outgoing").absolute()
outgoing.mkdir(exist_ok=True)


@app.batch("settlement", params={"day": date}, schedule="0 3 * * *")
class Settlement:
    read = Query("SELECT id, amount FROM payouts WHERE day = :day", key="id")
    write = CsvFile("settlement-{day}.csv")
    send = Local(f"file://{outgoing}")


with engine.begin() as connection:
    connection.execute(text("CREATE TABLE payouts (id INTEGER PRIMARY KEY, day TEXT, amount TEXT)"))
    connection.execute(text("INSERT INTO payouts VALUES (1, '2026-11-23', '19.90')"))
app.upgrade_tables()
app.batches.start("settlement", {"day": date(2026, 11, 23)}, by=By("me", "by hand"))
asyncio.run(app.run_once())
print(*sorted(path.name for path in outgoing.iterdir()))
