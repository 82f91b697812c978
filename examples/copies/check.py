"""Counts and contents: do the index and the cache hold what the table holds?

``python check.py [SECONDS]`` waits that long for it, as they are a little behind; 0 where they do.
"""

import json
import sqlite3
import ssl
import sys
import time
from base64 import b64encode
from contextlib import closing
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import redis
from copies import CA_FILE, CACHE, INDEX, PREFIX, SEARCH, SERVICE
from sqlalchemy import create_engine, text

Rows = dict[str, Any]


def table() -> Rows:
    """What the service has, by id."""
    url = SERVICE.replace("mysql://", "mysql+pymysql://", 1)
    with create_engine(url).connect() as db:
        rows = db.execute(text("SELECT * FROM flights")).mappings().all()
    return {str(row["id"]): dict(row) for row in rows}


def indexed() -> Rows:
    """Number and text of what can be found, by id."""
    if SEARCH:
        ask("_refresh", {})
        hits = ask("_search", {"size": 10_000})["hits"]["hits"]
        return {hit["_id"]: (hit["_source"]["flight"], hit["_source"]["text"]) for hit in hits}
    query = "SELECT key, flight, text FROM found_duly AS f JOIN found ON found.rowid = f.id"
    with closing(sqlite3.connect("search.db", timeout=30)) as db:
        return {key: tuple(rest) for key, *rest in db.execute(query)}


def ask(what: str, body: Any) -> Any:
    at = urlsplit(SEARCH)
    login = f"{unquote(at.username or '')}:{unquote(at.password or '')}".encode()
    headers = {"Authorization": f"Basic {b64encode(login).decode()}"}
    headers["Content-Type"] = "application/json"
    place = f"{at.scheme}://{at.hostname}:{at.port}/{INDEX}/{what}"
    request = Request(place, json.dumps(body).encode(), headers)  # noqa: S310  # our own server
    context = ssl.create_default_context(cafile=CA_FILE) if at.scheme == "https" else None
    with urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
        return json.loads(answer.read())


def cached() -> Rows:
    """What the screens get, by id."""
    with closing(redis.Redis.from_url(CACHE, protocol=2, socket_timeout=10)) as client:
        own = (f"{PREFIX}duly", f"{PREFIX}duly:ids")
        names = [name.decode() for name in client.scan_iter(match=f"{PREFIX}*", count=1000)]
        names = [name for name in names if name not in own]
        values = client.mget(names) if names else []
    return {name.removeprefix(PREFIX): json.loads(v) for name, v in zip(names, values, strict=True)}


def wanted(row: Rows) -> tuple[str, str]:
    late = "late" if (row["delay"] or 0) > 60 else ""
    return f"{row['carrier']}{row['number']}", f"{row['status']} {late}"


def differing(one: Rows, other: Rows) -> list[str]:
    return sorted(id_ for id_ in one.keys() | other.keys() if one.get(id_) != other.get(id_))


def look() -> bool:
    """Print counts and what differs; whether nothing does."""
    rows, found, kept = table(), indexed(), cached()
    shown = {id_: row for id_, row in rows.items() if row["status"] != "cancelled"}
    texts = {id_: wanted(row) for id_, row in rows.items()}
    wrong = differing(texts, found), differing(shown, kept)
    index = f"index {len(found)} of {len(rows)}: {len(wrong[0])} differ"
    cache = f"cache {len(kept)} of {len(shown)}: {len(wrong[1])} differ"
    print(f"table {len(rows)}, {index}, {cache}", *wrong[0][:3], *wrong[1][:3], flush=True)
    return not any(wrong)


if __name__ == "__main__":
    end = time.monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else 0)
    while not (equal := look()) and time.monotonic() < end:
        time.sleep(0.2)
    sys.exit(not equal)
