"""Places that are kept in step with a table: another database, a cache, a search index.

Each is a ``Sink`` for ``@app.cdc(table=..., into=...)``.  A module is imported when its class is
first used, and a driver when the sink is first looked at, so that declaring one loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duly.sinks.fulltext import Fts5
    from duly.sinks.redis import RedisCache
    from duly.sinks.search import SearchIndex
    from duly.sinks.sql import SqlUpsert

__all__ = ["Fts5", "RedisCache", "SearchIndex", "SqlUpsert"]

_MODULES = {
    "Fts5": "fulltext",
    "RedisCache": "redis",
    "SearchIndex": "search",
    "SqlUpsert": "sql",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
