"""Django, set up once for this process: its settings are global."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import django
import pymysql
import pytest
from django.conf import settings
from django.db import connections

LOGIN = {"NAME": "shop", "USER": "anna", "PASSWORD": "p@ss/word"}
POSTGRES = {"ENGINE": "django.db.backends.postgresql", **LOGIN}
MYSQL = {"ENGINE": "django.db.backends.mysql", **LOGIN}

pymysql.install_as_MySQLdb()
settings.configure(
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "set by a fixture"},
        "memory": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        "strange": {"ENGINE": "django.db.backends.dummy"},
        "postgres": {**POSTGRES, "HOST": "db", "PORT": "5433", "OPTIONS": {"sslmode": "require"}},
        "pooled": {**POSTGRES, "HOST": "/run/pg", "OPTIONS": {"pool": True}},
        "mysql": {**MYSQL, "HOST": "db", "OPTIONS": {"ssl": {"ca": "/ca.pem"}}},
        "mysql socket": {**MYSQL, "HOST": "/run/my.sock", "OPTIONS": {"charset": "utf8mb4"}},
    },
    INSTALLED_APPS=["duly.frameworks.django"],
    LOGGING_CONFIG=None,
    DULY={},
)
django.setup()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A new file for the default database."""
    connections["default"].settings_dict["NAME"] = str(tmp_path / "a shop.db")
    yield tmp_path / "a shop.db"
    connections["default"].close()
