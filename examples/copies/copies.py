"""A search index and a cache that are kept in step with the table of a service."""

import os
from collections.abc import Mapping
from typing import Any

from duly import App, Change
from duly.sinks import Fts5, RedisCache, SearchIndex

SERVICE = os.environ.get("SERVICE_URL", "sqlite:///flights.db")
SEARCH = os.environ.get(
    "SEARCH_URL", ""
)  # of OpenSearch; without one, a file with full-text search
INDEX = os.environ.get("SEARCH_INDEX", "flights")
CA_FILE = os.environ.get("SEARCH_CA_FILE")
CACHE = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
PREFIX = os.environ.get("REDIS_PREFIX", "flight:")
MAPPINGS = {
    "properties": {
        "flight": {"type": "keyword"},
        "carrier": {"type": "keyword"},
        "dest": {"type": "keyword"},
        "text": {"type": "text"},
    }
}

app = App("copies", broker="embedded:///copies-broker.db")
app.source("service", SERVICE)

search = (
    SearchIndex(SEARCH, index=INDEX, mappings=MAPPINGS, ca_file=CA_FILE)
    if SEARCH
    else Fts5("sqlite:///search.db", table="found", columns=[*MAPPINGS["properties"]])
)
cache = RedisCache(CACHE, prefix=PREFIX)


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
