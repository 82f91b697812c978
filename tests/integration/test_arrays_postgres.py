"""Arrays of ours on connections of the user's: what is stored does not hang on their encoding."""

from __future__ import annotations

import psycopg
import pytest

import duly
from duly import App, Event
from duly.outbox.schema import Schema


class Said(Event, name="arrays.said", topic="said"):
    text: str


@pytest.fixture
def app(postgres_url: str) -> App:
    app = App("arrays", database=postgres_url, broker="embedded://")
    Schema(app.database, "arrays").upgrade()
    return app


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
def test_messages_of_a_connection_in_another_encoding(
    app: App, postgres_url: str, encoding: str
) -> None:
    words = ["été", "été", "à"]
    with (
        psycopg.connect(postgres_url, client_encoding=encoding) as connection,
        duly.atomic(connection),
    ):
        ids = [app.publish(connection, Said(text=word), key=word) for word in words]
        ids += [app.publish(connection, Said(text=word)) for word in words]
    with psycopg.connect(postgres_url) as connection:
        rows = connection.execute(
            "SELECT message_id, key, convert_from(payload, 'UTF8')::json ->> 'text'"
            " FROM duly_outbox ORDER BY id"
        ).fetchall()
    keys = [*words, None, None, None]
    assert rows == list(zip(ids, keys, words * 2, strict=True))
