"""Classes of every driver are known without a connection."""

from __future__ import annotations

import sys
from typing import Any

import aiosqlite
import asyncmy.connection
import asyncmy.cursors
import psycopg
import pymysql
import pymysql.cursors
import pytest
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper
from django.utils.connection import ConnectionProxy

from duly.frameworks import threadbound


@pytest.mark.parametrize(
    "kind",
    [
        psycopg.Connection,
        psycopg.AsyncConnection,
        psycopg.Cursor,
        psycopg.ServerCursor,
        psycopg.AsyncCursor,
        pymysql.connections.Connection,
        pymysql.cursors.DictCursor,
        aiosqlite.Connection,
        aiosqlite.Cursor,
        asyncmy.connection.Connection,
        asyncmy.cursors.Cursor,
        BaseDatabaseWrapper,
        DatabaseWrapper,
        CursorWrapper,
        CursorDebugWrapper,
        ConnectionProxy,
    ],
    ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}",
)
def test_bound(kind: type) -> None:
    assert threadbound._kind_of(kind).startswith(("a connection", "a cursor"))  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize("value", [1, "text", None, 1.5, b""], ids=repr)
def test_plain(value: Any) -> None:
    assert threadbound.bound(value) == threadbound.PLAIN


@pytest.mark.parametrize("value", [[], {}, object(), type, sys], ids=repr)
def test_anything_else(value: Any) -> None:
    assert threadbound.bound(value) == ""


def test_django_is_not_touched_where_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "django.db", raising=False)
    threadbound.release()
    assert "django.db" not in sys.modules
