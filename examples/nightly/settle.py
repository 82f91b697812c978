"""Start the settlement of a month with every carrier: ``python settle.py 2013-06``."""

import sqlite3
import sys
from contextlib import closing

from settlement import app

from duly.outbox.operator import By

month = sys.argv[1]
with closing(sqlite3.connect("settlement.db")) as db:
    found = db.execute("SELECT DISTINCT carrier FROM departures ORDER BY carrier").fetchall()
app.upgrade_tables()
params = [{"carrier": carrier, "month": month} for (carrier,) in found]
for run in app.batches.backfill("settlement", params, by=By("cron", f"settle {month}")):
    print(run.instance, run.status, "new" if run.changed else "")
