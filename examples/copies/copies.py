"""A search index and a cache that are kept in step with the table of a service."""

import os
from collections.abc import Mapping
from typing import Any

from duly import App, Change
from duly.sinks import Fts5, RedisCache

app = App("copies", broker="embedded:///copies-broker.db")
app.source("service", "sqlite:///flights.db")

search = Fts5("sqlite:///search.db", table="found", columns=["flight", "carrier", "dest", "text"])
cache = RedisCache(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
    prefix=os.environ.get("REDIS_PREFIX", "flight:"),
)


@app.cdc(table="flights", source="service", into=search)
def found(c: Change) -> Mapping[str, Any]:
    """What can be searched for: a flight by its number, its carrier, its destination, its state."""
    row = c.after
    late = (row["delay"] or 0) > 60
    text = f"{row['status']} {'late' if late else ''}"
    return {"flight": f"{row['carrier']}{row['number']}", "carrier": row["carrier"]} | {
        "dest": row["dest"],
        "text": text,
    }


@app.cdc(table="flights", source="service", into=cache)
def cached(c: Change) -> Mapping[str, Any] | None:
    """What the screens ask for; a flight that was cancelled is on none of them."""
    return None if c.after["status"] == "cancelled" else c.after
