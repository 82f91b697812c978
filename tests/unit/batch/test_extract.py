from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from duly.batch.extract import Query
from duly.errors import ConfigurationError
from duly.rows import KeyColumn


def test_a_key_of_several_columns():
    query = Query("SELECT 1", key=("day", "-id"))
    assert query.key_columns() == (KeyColumn("day"), KeyColumn("id", descending=True))


def test_the_password_of_a_database_is_not_shown():
    assert "secret" not in repr(Query("SELECT 1", key="id", database="postgresql://u:secret@h/d"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "dirty"},
        {"partitions": 0},
        {"partitions": 17},
        {"chunk_bytes": 10},
        {"row_bytes_max": 2**40},
        {"on_empty": "cry"},
        {"text": " "},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ConfigurationError, match="BATCH_QUERY"):
        Query(**{"text": "SELECT 1", "key": "id", **wrong})


def test_a_job_without_a_format_is_refused():
    job = SimpleNamespace(name="j", write=None)
    with pytest.raises(ConfigurationError, match="BATCH_JOB"):
        Query("SELECT 1", key="id").step(job)
