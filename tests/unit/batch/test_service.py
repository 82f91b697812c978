from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from duly import App
from duly.errors import NotFoundError, SchemaError


def test_before_the_first_start_nothing_has_run(tmp_path: Path) -> None:
    app = App("shop", database=f"sqlite:///{tmp_path / 'duly.db'}", broker="embedded:///:memory:")
    assert app.batches.runs() == []
    for look in (app.batches.show, app.batches.plan):
        with pytest.raises(NotFoundError, match="nothing has run") as caught:
            look("settlement-0123")
        assert caught.value.code == "BATCH_RUN_UNKNOWN"
    app.close()


def test_tables_of_another_make_are_told(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "duly.db")) as db, db:
        db.execute("CREATE TABLE duly_meta (name TEXT, value TEXT)")
    app = App("shop", database=f"sqlite:///{tmp_path / 'duly.db'}", broker="embedded:///:memory:")
    with pytest.raises(SchemaError):
        app.batches.runs()
    app.close()
