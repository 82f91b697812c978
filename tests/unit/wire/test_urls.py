from __future__ import annotations

import pytest

from duly.wire.urls import redact

CANARY = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///duly.db", "sqlite:///duly.db"),
        ("embedded:///:memory:", "embedded:///:memory:"),
        ("postgresql://db.example:5432/shop", "postgresql://db.example:5432/shop"),
        ("postgresql://u:s3cr3t@db:5432/shop", "postgresql://***@db:5432/shop"),
        ("amqp://guest:s3cr3t@[::1]:5672/%2Fprod", "amqp://***@[::1]:5672/%2Fprod"),
        ("postgresql://u:s3cr3t@/shop?host=/run/pg", "postgresql://***@/shop?host=/run/pg"),
        ("postgresql://u:p%40s3cr3t:/?#@db/shop", "postgresql://***@db/shop"),
        ("postgresql://u:p@ss/?#s3cr3t@db/shop", "postgresql://***@db/shop"),
        ("pg://db/x?password=s3cr3t&a=1", "pg://db/x?password=***&a=1"),
        ("pg://db/x?PassWord=s3cr3t;a=1", "pg://db/x?PassWord=***;a=1"),
        ("pg://db/x?p%61ssword=s3cr3t", "pg://db/x?p%61ssword=***"),
        ("pg://db/x?p%2561ssword=s3cr3t", "pg://db/x?p%2561ssword=***"),
        ("pg://db/x?sslkey=/s3cr3t&flag&token=", "pg://db/x?sslkey=***&flag&token="),
        ("pg://db/x?a=1#s3cr3t", "pg://db/x?a=1#***"),
        ("", ""),
        ("no url at all", "no url at all"),
        ("host=db user=u password=s3cr3t dbname=x", "host=db user=*** password=*** dbname=x"),
        ("host=db password='s3cr3t and \\' more' port=1", "host=db password=*** port=1"),
        ('Server=db;Pwd={s3cr3t;x};Pwd2="s3cr3t y"', "Server=db;Pwd=***;Pwd2=***"),
        ("password = 's3cr3t unfinished", "password = ***"),
        ("token=s3cr3t://host/x", "token=***://host/x"),
    ],
)
def test_shows_the_place_and_no_secret(url, shown):
    assert redact(url) == shown
    assert CANARY not in redact(url)
